"""GGUF files, dequantised one tensor at a time by the `gguf` package."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reference.model import ModelConfig
from reference.tokenizer import gguf_tokenizer
from reference.weights import Source
from specsim.errors import ConfigError

#: GGUF architecture → whether its q and k rows are stored for interleaved rotation.
INTERLEAVED = {"llama": True, "qwen2": False, "qwen3": False}

_MODULES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def open_gguf(path: Path, name: str) -> Source:
    """A GGUF file as a `Source`; tensors are dequantised when they are asked for.

    Raises:
        ConfigError: for a truncated or foreign file, or an unsupported architecture.
    """
    from gguf import quants

    try:
        reader = _plain_reader(path)
        tensors = {t.name: (t.data, t.tensor_type) for t in reader.tensors}
        fields = dict(reader.fields)
    except Exception as error:  # the reader trusts its input: any error may surface
        raise ConfigError(f"{path}: truncated or not a GGUF file ({error})") from None
    config = _config(fields, set(tensors), str(path))
    interleaved = INTERLEAVED[_architecture(fields, str(path))]
    # The reader and its fields end with this function: two arrays for each of 100,000 strings.
    tokenizer, mapped = gguf_tokenizer(fields, str(path)), reader.mapped

    def get(hf_name: str) -> Tensor:
        data, kind = tensors[gguf_name(hf_name)]
        try:
            values = quants.dequantize(data, kind)
        except (NotImplementedError, ValueError) as error:
            raise ConfigError(f"{path}: cannot read {hf_name} ({error})") from None
        # A float32 tensor is a view of the file: copy it, then let go of the file's pages,
        # which would otherwise count as this process's memory for as long as it loads.
        result = torch.from_numpy(values.copy() if np.shares_memory(values, data) else values)
        _release(mapped)
        module = hf_name.rsplit(".", 2)[-2]
        if interleaved and module in ("q_proj", "k_proj"):
            heads = config.num_heads if module == "q_proj" else config.num_kv_heads
            result = half_split(result, heads)
        return result

    divisors = None
    if "rope_freqs.weight" in tensors:
        divisors = torch.from_numpy(tensors["rope_freqs.weight"][0].copy())
    return Source(name, config, get, tokenizer, divisors)


def _plain_reader(path: Path) -> Any:
    """A `GGUFReader` that cuts a plain array instead of a memmap, from the same memory.

    A memmap runs Python code at every cut, and a vocabulary and its merges are a million of
    them: two fifths of the time that SmolLM2 takes to load.
    """
    from gguf import GGUFReader

    class PlainReader(GGUFReader):
        @property  # type: ignore[override]
        def data(self) -> np.ndarray[Any, Any]:
            return self.plain

        @data.setter
        def data(self, mapped: np.memmap[Any, Any]) -> None:
            self.mapped, self.plain = mapped, mapped.view(np.ndarray)

    return PlainReader(path)


def _release(mapped: Any) -> None:
    """Drop a memory-mapped file's pages; they are read again if they are needed."""
    file = getattr(mapped, "_mmap", None)
    if file is not None and hasattr(mmap, "MADV_DONTNEED"):
        file.madvise(mmap.MADV_DONTNEED)


def gguf_name(hf_name: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` → `blk.3.attn_q.weight`."""
    stem, key = hf_name.rsplit(".", 1)
    if stem in _TOP:
        return f"{_TOP[stem]}.{key}"
    _, _, layer, module = stem.split(".", 3)
    return f"blk.{layer}.{_MODULES[module]}.{key}"


def half_split(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head from pairs (0,1),(2,3),… to halves: the layout of `model.rotate`."""
    shape = weight.shape
    pairs = weight.view(heads, shape[0] // heads // 2, 2, *shape[1:])
    return pairs.transpose(1, 2).reshape(shape)


def _architecture(fields: dict[str, Any], where: str) -> str:
    if "general.architecture" not in fields:
        raise ConfigError(f"{where}: no general.architecture in its metadata")
    architecture = str(fields["general.architecture"].contents())
    if architecture not in INTERLEAVED:
        raise ConfigError(
            f"{where}: architecture {architecture!r} is not supported; "
            f"expected {', '.join(INTERLEAVED)}"
        )
    return architecture


def _config(fields: dict[str, Any], tensors: set[str], where: str) -> ModelConfig:
    architecture = _architecture(fields, where)

    def value(key: str, default: Any = None) -> Any:
        field = fields.get(f"{architecture}.{key}")
        if field is None and default is None:
            raise ConfigError(f"{where}: {architecture}.{key} is missing from its metadata")
        return default if field is None else field.contents()

    scaling = value("rope.scaling.type", "none")
    if scaling != "none":
        raise ConfigError(f"{where}: rope scaling {scaling!r} is not supported in GGUF files")
    if "tokenizer.ggml.tokens" not in fields:
        raise ConfigError(f"{where}: no tokenizer in its metadata")
    try:
        width, heads = int(value("embedding_length")), int(value("attention.head_count"))
        return ModelConfig(
            vocab_size=len(fields["tokenizer.ggml.tokens"].data),
            hidden_size=width,
            num_layers=int(value("block_count")),
            num_heads=heads,
            num_kv_heads=int(value("attention.head_count_kv", heads)),
            head_dim=int(value("attention.key_length", width // heads)),
            intermediate_size=int(value("feed_forward_length")),
            max_positions=int(value("context_length")),
            rope_theta=float(value("rope.freq_base", 10000.0)),
            norm_eps=float(value("attention.layer_norm_rms_epsilon")),
            tied_embeddings="output.weight" not in tensors,
            qkv_bias="blk.0.attn_q.bias" in tensors,
            qk_norm="blk.0.attn_q_norm.weight" in tensors,
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{where}: {error}") from None
