"""Hugging Face directories: config.json, *.safetensors, tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from reference.model import ModelConfig
from reference.rope import RopeScaling
from reference.tokenizer import directory_tokenizer
from reference.weights import Source
from specsim.errors import ConfigError, MissingDataError

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")


def open_directory(path: Path) -> Source:
    """A directory as a `Source`; tensors are read when they are asked for.

    Raises:
        ConfigError, MissingDataError: naming the file at fault.
    """
    config = parse_config(_read_json(path / "config.json"), str(path / "config.json"))
    files = _weight_files(path)

    def get(name: str) -> Tensor:
        try:
            with safe_open(str(files[name]), framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
                return tensor
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{files[name]}: cannot read {name} ({error})") from None

    return Source(path.name, config, get, directory_tokenizer(path))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingDataError(f"{path} is missing: not a model directory") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _weight_files(path: Path) -> dict[str, Path]:
    """Tensor name → file, from the files' own headers."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise MissingDataError(
            f"{path}: no *.safetensors (pickled .bin and .pt weights are not read; convert them)"
        )
    index: dict[str, Path] = {}
    for file in files:
        try:
            with safe_open(str(file), framework="pt") as opened:
                index.update(dict.fromkeys(opened.keys(), file))
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{file}: truncated or not a safetensors file ({error})") from None
    return index


def parse_config(values: dict[str, Any], where: str) -> ModelConfig:
    """Translate a Hugging Face configuration.

    Raises:
        ConfigError: for a missing key, or anything that this transformer does not do.
    """
    kind = values.get("model_type")
    if kind not in ARCHITECTURES:
        raise ConfigError(
            f"{where}: model_type {kind!r} is not supported; expected {', '.join(ARCHITECTURES)}"
        )
    if values.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"{where}: hidden_act {values['hidden_act']!r}; only silu is supported")
    if values.get("quantization_config"):  # its integers would be read as if they were weights
        raise ConfigError(
            f"{where}: quantization_config: quantised safetensors are not read; "
            "expected float16, bfloat16 or float32 weights (or a GGUF file)"
        )
    try:
        heads, width = int(values["num_attention_heads"]), int(values["hidden_size"])
        theta, scaling = _rope(values, where)
        bias = bool(values.get("attention_bias", False))
        return ModelConfig(
            vocab_size=int(values["vocab_size"]),
            hidden_size=width,
            num_layers=int(values["num_hidden_layers"]),
            num_heads=heads,
            num_kv_heads=int(values.get("num_key_value_heads") or heads),
            head_dim=int(values.get("head_dim") or width // heads),
            intermediate_size=int(values["intermediate_size"]),
            max_positions=int(values.get("max_position_embeddings", 2048)),
            rope_theta=theta,
            rope_scaling=scaling,
            norm_eps=float(values.get("rms_norm_eps", 1e-6)),
            tied_embeddings=bool(values.get("tie_word_embeddings", False)),
            qkv_bias=kind == "qwen2" or bias,
            output_bias=bias and kind != "qwen2",
            mlp_bias=bool(values.get("mlp_bias", False)),
            qk_norm=kind == "qwen3",
            sliding_window=_window(values, kind, where),
        )
    except KeyError as error:
        raise ConfigError(f"{where}: key {error.args[0]!r} is missing") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{where}: {error}") from None


def _rope(values: dict[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from either of the two places where they are kept."""
    nested = values.get("rope_parameters") or {}
    scaling = values.get("rope_scaling") or nested
    theta = float(values.get("rope_theta") or nested.get("rope_theta") or 10000.0)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ConfigError(f"{where}: rope scaling {kind!r} is not supported; expected llama3")
    return theta, RopeScaling(
        factor=float(scaling["factor"]),
        low_freq_factor=float(scaling["low_freq_factor"]),
        high_freq_factor=float(scaling["high_freq_factor"]),
        original_max_positions=int(scaling["original_max_position_embeddings"]),
    )


def _window(values: dict[str, Any], kind: str, where: str) -> int | None:
    window = values.get("sliding_window")
    if window is None or (kind != "mistral" and not values.get("use_sliding_window", False)):
        return None
    if kind != "mistral":
        raise ConfigError(f"{where}: sliding windows in some layers only are not supported")
    return int(window)
