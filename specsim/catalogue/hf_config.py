"""From a Hugging Face `config.json` to a `ModelSpec`.

Nothing is guessed: a needed field that is missing is an error that names it, and an
architecture that is not known is refused. Models inside a multimodal wrapper are read
from its `text_config`; the vision part is left out of every count.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specsim.catalogue.attention_layers import attention_layers
from specsim.catalogue.config_fields import ConfigFields, show
from specsim.catalogue.draft_heads import draft_head_from_fields, draft_method
from specsim.catalogue.families import FAMILIES, Family
from specsim.catalogue.feed_forward_layers import feed_forward_layers
from specsim.catalogue.layer_groups import group_layers
from specsim.catalogue.other_families import OTHER_FAMILIES
from specsim.catalogue.specs import ModelSpec
from specsim.errors import ConfigError

#: A config.json has a few kilobytes; anything this large is some other file.
LARGEST_FILE_BYTES = 4_000_000

_OTHER_KINDS = {
    "an encoder": ("bert", "roberta", "distilbert", "electra", "deberta", "xlm-roberta", "mpnet"),
    "a vision model": ("vit", "clip", "siglip", "dinov2", "swin", "convnext", "resnet", "sam"),
    "an audio model": ("whisper", "wav2vec2", "hubert", "encodec", "musicgen"),
}
_OTHER_TASKS = ("ForMaskedLM", "Classification", "ForQuestionAnswering", "Vision", "Embedding")


def load_config(path: str | Path, *, name: str | None = None) -> ModelSpec:
    """Read a `config.json` (or a directory that holds one).

    Raises:
        ConfigError: if the file cannot be read, is not a JSON object, or is not the
            configuration of a supported decoder.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    where = str(path)
    config = _read_json(path)
    return model_from_config(config, name=name or _name_of(path), source=where)


def _name_of(path: Path) -> str:
    stem = path.stem.removesuffix("_config")
    return path.resolve().parent.name if stem == "config" else stem


def _read_json(path: Path) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE_BYTES:
            raise ConfigError(f"{path}: {size} bytes: expected a config.json of a few kilobytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConfigError(f"{path}: cannot be read as a model configuration: {reason}") from error
    return parse_config(text, where=str(path))


def parse_config(text: str, *, where: str) -> dict[str, Any]:
    """The JSON object in `text`.

    Raises:
        ConfigError: if it is cut short, not JSON, or not an object.
    """
    if not text.strip():
        raise ConfigError(f"{where}: the file is empty: expected a model's config.json")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) or "Unterminated" in error.msg
        what = "is cut short" if cut and text.lstrip().startswith("{") else "is not JSON"
        raise ConfigError(
            f"{where}: {what} (line {error.lineno}, column {error.colno}: {error.msg}): "
            "expected a model's config.json"
        ) from error
    except (ValueError, RecursionError) as error:  # integers of thousands of digits, deep nests
        raise ConfigError(f"{where}: is not a model's config.json: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: holds {show(value)}: expected a JSON object")
    return value


def model_from_config(
    config: Mapping[str, Any], *, name: str, source: str, family: str = ""
) -> ModelSpec:
    """The dimensions of the model that a Hugging Face configuration describes.

    Args:
        config: the parsed object.
        name: what to call the model.
        source: the file or URL; error messages begin with it.
        family: the tokenizer family, if known (two models of one family can draft for
            each other).

    Raises:
        ConfigError: naming the source, the key, the value and what was expected.
    """
    fields = text_fields(ConfigFields(config, source))
    return model_from_fields(fields, name=name, family=family)


def model_from_fields(fields: ConfigFields, *, name: str, family: str = "") -> ModelSpec:
    """`model_from_config`, for callers who want to know which fields were consulted.

    Raises:
        ConfigError: as `model_from_config`.
    """
    architecture = _architecture(fields)
    method = draft_method(fields, architecture)
    if method is not None:
        spec = draft_head_from_fields(fields, method, architecture, name=name, family=family)
    else:
        model_type = _model_type(fields, architecture)
        builder = OTHER_FAMILIES.get(model_type)
        if builder is not None:
            spec = builder(fields, name=name, family=family)
        else:
            spec = decoder_from_fields(
                fields, FAMILIES[model_type], architecture or model_type, name=name, family=family
            )
    if spec.num_parameters > 1e14:
        raise ConfigError(
            f"{fields.where}: describes {spec.num_parameters:.2g} parameters: expected at most 1e14"
        )
    return spec


def decoder_from_fields(
    fields: ConfigFields, traits: Family, architecture: str, *, name: str, family: str
) -> ModelSpec:
    """A decoder-only model of one of the regular families."""
    hidden = fields.integer("hidden_size")
    vocab = fields.integer("vocab_size", default=traits.defaults.get("vocab_size"))
    attention = attention_layers(fields, traits)
    # the reference's default is not 0, so a Gemma 4 file has to say
    per_layer_default = None if traits.experts == "gemma4" else 0
    per_layer = fields.integer("hidden_size_per_layer_input", default=per_layer_default, low=0)
    num_layers = len(attention)
    # Gemma 4: two projections and a norm in every layer, one projection of all together
    extra = num_layers * (3 * hidden * per_layer + hidden) + per_layer if per_layer else 0
    feed_forward = feed_forward_layers(fields, traits)
    has_expert_norms = traits.experts == "gemma4" and feed_forward[0].is_moe
    return ModelSpec(
        name=name,
        family=family or name,
        architecture=architecture,
        hidden_size=hidden,
        vocab_size=vocab,
        layers=group_layers(
            attention, feed_forward, num_norms=traits.norms + (3 if has_expert_norms else 0)
        ),
        max_context=fields.integer(
            "max_position_embeddings", default=traits.defaults.get("max_position_embeddings")
        ),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", default=traits.tied),
        norm_bias=traits.norm_bias,
        per_layer_embedding=per_layer,
        extra_parameters=extra,
        mtp_layers=fields.integer(
            "num_nextn_predict_layers", "mtp_num_hidden_layers", default=0, low=0
        ),
        default_dtype=weight_dtype(fields),
        source=fields.where,
    )


def weight_dtype(fields: ConfigFields) -> str:
    """The dtype in which the checkpoint stores its large matrices."""
    quantization = fields.mapping("quantization_config")
    if not quantization.values:
        return (
            "fp32"
            if fields.text("torch_dtype", default=fields.text("dtype")) == "float32"
            else "bf16"
        )
    method = quantization.text("quant_method").lower()
    bits = quantization.get("bits")
    described = (method + quantization.text("fmt") + quantization.text("quant_algo")).lower()
    if "fp4" in described:
        return "fp4"
    if "fp8" in described or "e4m3" in described:
        return "fp8"
    if bits == 4 or method in ("awq", "gptq"):
        return "int8" if bits == 8 else "int4"
    return "int8" if bits == 8 else "bf16"


def text_fields(outer: ConfigFields) -> ConfigFields:
    """The language model's own fields: those of `text_config` first, where there is one."""
    for key in ("text_config", "transformer_layer_config"):
        if outer.has(key):
            inner = outer.mapping(key)
            merged = {k: v for k, v in outer.values.items() if k not in (key, "model_type")}
            if key == "text_config":
                merged.pop("architectures", None)
            return ConfigFields({**merged, **inner.values}, outer.where)
    return outer


def _architecture(fields: ConfigFields) -> str:
    names = fields.strings("architectures")
    return names[0] if names else ""


def _model_type(fields: ConfigFields, architecture: str) -> str:
    """The family to read the file as.

    Raises:
        ConfigError: for other kinds of model and for families that are not known.
    """
    known = sorted({*FAMILIES, *OTHER_FAMILIES})
    model_type = fields.text("model_type")
    if "_class_name" in fields.values or "_diffusers_version" in fields.values:
        kind = show(fields.values.get("_class_name"))
        raise ConfigError(f"{fields.where}: a diffusion pipeline ({kind}): expected a decoder")
    for kind, names in _OTHER_KINDS.items():
        if model_type in names or model_type.split("_")[0] in names:
            raise fields.fail("model_type", f"a decoder's configuration, not {kind}'s")
    if any(task in architecture for task in _OTHER_TASKS):
        raise fields.fail("architectures", "a decoder (…ForCausalLM)")
    if not model_type:
        raise ConfigError(
            f"{fields.where}: model_type is missing: expected a model's config.json with one of "
            f"{', '.join(known)}"
        )
    if model_type not in known:
        near = difflib.get_close_matches(model_type[:100], known, n=3, cutoff=0.0)
        raise ConfigError(
            f"{fields.where}: model_type = {show(model_type)} is not supported, its costs would "
            f"be a guess; nearest supported: {', '.join(near)}"
        )
    return model_type
