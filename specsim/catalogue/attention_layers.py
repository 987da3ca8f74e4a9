"""The attention of each layer of a decoder, read from its configuration."""

from __future__ import annotations

from dataclasses import replace

from specsim.catalogue.config_fields import ConfigFields
from specsim.catalogue.families import Family
from specsim.catalogue.specs import AttentionSpec

_WINDOWED = {"sliding_attention", "chunked_attention"}
_KNOWN_LAYER_TYPES = {*_WINDOWED, "full_attention", "linear_attention"}


def attention_layers(fields: ConfigFields, family: Family) -> tuple[AttentionSpec, ...]:
    """One `AttentionSpec` a layer, first layer first.

    Raises:
        ConfigError: if a field is missing, contradicts another, or is out of range.
    """
    num_layers = fields.integer("num_hidden_layers")
    if family.attention == "latent":
        return _latent_layers(fields, num_layers)
    full = _grouped(fields, family)
    kinds = _layer_kinds(fields, family, num_layers)
    by_kind = {"full_attention": full}
    if "linear_attention" in kinds:
        by_kind["linear_attention"] = _linear(fields)
    for kind in _WINDOWED & set(kinds):
        by_kind[kind] = replace(full, kind="sliding", window=_window(fields, kind))
    if fields.has("global_head_dim") or fields.has("num_global_key_value_heads"):
        by_kind["full_attention"] = _gemma4_global(fields, full)
    shared = fields.integer("num_kv_shared_layers", default=0, low=0)
    layers = [by_kind[kind] for kind in kinds]
    for index in range(max(0, num_layers - shared), num_layers):
        layers[index] = replace(layers[index], shares_kv=True)
    return tuple(layers)


def _grouped(fields: ConfigFields, family: Family) -> AttentionSpec:
    """Multi-head or grouped-query attention over the whole context."""
    defaults = family.defaults
    heads = fields.integer("num_attention_heads", default=defaults.get("num_attention_heads"))
    # absent in Llama 1 files, where it means multi-head attention
    kv_heads = fields.integer(
        "num_key_value_heads", default=defaults.get("num_key_value_heads", heads)
    )
    if heads % kv_heads:
        raise fields.fail("num_key_value_heads", f"a divisor of num_attention_heads = {heads}")
    if fields.has("head_dim") or "head_dim" in defaults:
        head_dim = fields.integer("head_dim", default=defaults.get("head_dim"))
    else:
        hidden = fields.integer("hidden_size")
        if hidden % heads:
            raise fields.fail("num_attention_heads", f"a divisor of hidden_size = {hidden}")
        head_dim = hidden // heads
    biased = bool(family.bias) and (
        not family.bias.endswith("-if") or fields.boolean(family.bias_key, default=False)
    )
    return AttentionSpec(
        kind="full",
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        bias=biased,
        output_bias=biased and family.bias.startswith("all"),
        qk_norm=family.qk_norm
        or (bool(family.qk_norm_key) and fields.boolean(family.qk_norm_key, default=False)),
        sinks=family.sinks,
        output_gate=family.output_gate and fields.boolean("attn_output_gate", default=True),
    )


def _layer_kinds(fields: ConfigFields, family: Family, num_layers: int) -> tuple[str, ...]:
    """The kind of every layer: `layer_types` where given, else the family's rule."""
    if fields.has("layer_types"):
        kinds = fields.strings("layer_types", length=num_layers)
        unknown = sorted(set(kinds) - _KNOWN_LAYER_TYPES)
        if unknown:
            expected = ", ".join(sorted(_KNOWN_LAYER_TYPES))
            raise fields.fail("layer_types", f"one of {expected}; it has {unknown[0]!r}")
        return kinds
    if family.experts == "llama4":
        return _llama4_kinds(fields, num_layers)
    if "full_attention_interval" in family.defaults:
        every = fields.integer(
            "full_attention_interval", default=family.defaults["full_attention_interval"]
        )
        return _all_but_every(every, "linear_attention", num_layers)
    # Qwen and MiMo files set a window that is off unless the flag says otherwise
    uses_window = fields.boolean("use_sliding_window", default=family.sliding != "flag")
    if not fields.has("sliding_window") or not uses_window or not family.sliding:
        return ("full_attention",) * num_layers
    if family.sliding == "flag":
        first = fields.integer("max_window_layers", default=num_layers, low=0)
        return tuple(
            "sliding_attention" if layer >= first else "full_attention"
            for layer in range(num_layers)
        )
    if family.sliding == "all":
        return ("sliding_attention",) * num_layers
    every = 2
    if family.sliding == "pattern":
        every = fields.integer("sliding_window_pattern", "_sliding_window_pattern", default=6)
    return _all_but_every(every, "sliding_attention", num_layers)


def _all_but_every(every: int, kind: str, num_layers: int) -> tuple[str, ...]:
    """`kind`, except that every n-th layer attends to everything."""
    return tuple(
        "full_attention" if (layer + 1) % every == 0 else kind for layer in range(num_layers)
    )


def _llama4_kinds(fields: ConfigFields, num_layers: int) -> tuple[str, ...]:
    """Llama 4: chunks of `attention_chunk_size`, and every fourth layer sees everything."""
    if not fields.has("attention_chunk_size"):
        return ("full_attention",) * num_layers
    return _all_but_every(
        fields.integer("no_rope_layer_interval", default=4), "chunked_attention", num_layers
    )


def _window(fields: ConfigFields, kind: str) -> int:
    # a chunk holds at most, and on average half, as many tokens as a window of its size
    return fields.integer(
        "attention_chunk_size" if kind == "chunked_attention" else "sliding_window"
    )


def _gemma4_global(fields: ConfigFields, full: AttentionSpec) -> AttentionSpec:
    """Gemma 4's full-attention layers: fewer, wider heads, and the key is also the value."""
    key_is_value = fields.boolean("attention_k_eq_v", default=False)
    kv_heads = full.num_kv_heads
    if key_is_value:
        kv_heads = fields.integer("num_global_key_value_heads", default=kv_heads)
    return replace(
        full,
        num_kv_heads=kv_heads,
        head_dim=fields.integer("global_head_dim", default=full.head_dim),
        key_is_value=key_is_value,
    )


def _linear(fields: ConfigFields) -> AttentionSpec:
    """Gated linear attention of Qwen3-Next and Qwen3.5: no cache, a state of fixed size."""
    value_heads = fields.integer("linear_num_value_heads")
    key_dim = fields.integer("linear_key_head_dim")
    value_dim = fields.integer("linear_value_head_dim")
    return AttentionSpec(
        kind="linear",
        num_heads=value_heads,
        num_kv_heads=value_heads,
        head_dim=value_dim,
        linear_key_heads=fields.integer("linear_num_key_heads"),
        linear_value_heads=value_heads,
        linear_key_dim=key_dim,
        linear_value_dim=value_dim,
        conv_kernel=fields.integer("linear_conv_kernel_dim"),
    )


def _latent_layers(fields: ConfigFields, num_layers: int) -> tuple[AttentionSpec, ...]:
    """GLM-5.2 shares one indexer's choice among several layers; the others all have one."""
    own = _latent(fields)
    borrowed = replace(own, index_heads=0, index_head_dim=0)
    kinds = fields.strings("indexer_types", length=num_layers) or ("full",) * num_layers
    if not {"full", "shared"} >= set(kinds):
        raise fields.fail("indexer_types", "'full' or 'shared' for every layer")
    return tuple(own if kind == "full" else borrowed for kind in kinds)


def _latent(fields: ConfigFields) -> AttentionSpec:
    """Multi-head latent attention (DeepSeek-V2 §2.1), with V3.2's sparse indexer if present.

    `num_key_value_heads` equals the number of heads in these files and says nothing about
    the cache, which holds one latent vector a token.
    """
    heads = fields.integer("num_attention_heads")
    rope = fields.integer("qk_rope_head_dim")
    nope = fields.integer("qk_nope_head_dim")
    indexed = fields.has("index_topk")
    return AttentionSpec(
        kind="latent",
        num_heads=heads,
        num_kv_heads=1,
        head_dim=nope + rope,
        v_head_dim=fields.integer("v_head_dim"),
        q_lora_rank=fields.optional_integer("q_lora_rank"),
        kv_lora_rank=fields.integer("kv_lora_rank"),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        index_heads=fields.integer("index_n_heads") if indexed else 0,
        index_head_dim=fields.integer("index_head_dim") if indexed else 0,
        index_topk=fields.integer("index_topk") if indexed else 0,
    )
