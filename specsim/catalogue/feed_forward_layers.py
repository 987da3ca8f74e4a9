"""The feed-forward part of each layer of a decoder, dense or mixture of experts."""

from __future__ import annotations

from collections.abc import Callable

from specsim.catalogue.config_fields import ConfigFields
from specsim.catalogue.families import Family
from specsim.catalogue.specs import FeedForwardSpec


def feed_forward_layers(fields: ConfigFields, family: Family) -> tuple[FeedForwardSpec, ...]:
    """One `FeedForwardSpec` a layer, first layer first.

    The expert count and the number chosen per token go by different keys:
    `num_local_experts` (Mixtral, gpt-oss, Llama 4), `num_experts` (Qwen, Gemma 4),
    `n_routed_experts` (DeepSeek, Kimi); `num_experts_per_tok`, `experts_per_token`,
    `top_k_experts`.

    Raises:
        ConfigError: if a field is missing, contradicts another, or is out of range.
    """
    num_layers = fields.integer("num_hidden_layers")
    if not family.experts:
        return (_dense(fields, family),) * num_layers
    return _PLACEMENTS[family.experts](fields, family, num_layers)


def _dense(fields: ConfigFields, family: Family, key: str = "intermediate_size") -> FeedForwardSpec:
    biased = bool(family.mlp_bias_key) and fields.boolean(
        family.mlp_bias_key, default=family.mlp_bias_key == "use_bias"
    )
    return FeedForwardSpec(intermediate_size=fields.integer(key), gated=family.gated, bias=biased)


def _experts(
    fields: ConfigFields,
    size_key: str,
    *,
    shared: int = 0,
    bias: bool = False,
    shared_gate: bool = False,
    router_bias: bool = False,
    router_scale: bool = False,
) -> FeedForwardSpec:
    count_key = fields.first("num_local_experts", "num_experts", "n_routed_experts")
    count = fields.integer("num_local_experts", "num_experts", "n_routed_experts")
    chosen_keys = ("num_experts_per_tok", "experts_per_token", "top_k_experts")
    chosen = fields.integer(*chosen_keys)
    if chosen > count:
        raise fields.fail(fields.first(*chosen_keys), f"at most {count_key} = {count}")
    return FeedForwardSpec(
        intermediate_size=fields.integer(size_key),
        bias=bias,
        num_experts=count,
        experts_per_token=chosen,
        shared_intermediate_size=shared,
        shared_gate=shared_gate,
        router_bias=router_bias,
        router_scale=router_scale,
    )


def _mixtral(fields: ConfigFields, family: Family, num_layers: int) -> tuple[FeedForwardSpec, ...]:
    """Mixtral, gpt-oss: every layer; `intermediate_size` is one expert's. gpt-oss has biases."""
    biased = family.sinks
    return (_experts(fields, "intermediate_size", bias=biased, router_bias=biased),) * num_layers


def _qwen(fields: ConfigFields, family: Family, num_layers: int) -> tuple[FeedForwardSpec, ...]:
    """Qwen: every `decoder_sparse_step`-th layer, except those in `mlp_only_layers`."""
    shared = fields.integer("shared_expert_intermediate_size", default=0, low=0)
    sparse = _experts(fields, "moe_intermediate_size", shared=shared, shared_gate=shared > 0)
    step = fields.integer("decoder_sparse_step", default=1)
    dense_only = fields.integers("mlp_only_layers")
    is_sparse = [(layer + 1) % step == 0 and layer not in dense_only for layer in range(num_layers)]
    dense = sparse if all(is_sparse) else _dense(fields, family)
    return tuple(sparse if chosen else dense for chosen in is_sparse)


def _deepseek(fields: ConfigFields, family: Family, num_layers: int) -> tuple[FeedForwardSpec, ...]:
    """DeepSeek, Kimi, GLM: `first_k_dense_replace` dense layers, then experts with shared ones.

    Without `n_routed_experts` the model is dense (small siblings and draft heads).
    """
    if not fields.has("n_routed_experts"):
        return (_dense(fields, family),) * num_layers
    size = fields.integer("moe_intermediate_size")
    shared = fields.integer("n_shared_experts", default=0, low=0)
    sparse = _experts(
        fields,
        "moe_intermediate_size",
        shared=shared * size,
        router_bias=_has_correction_bias(fields),
    )
    first = fields.integer("first_k_dense_replace", default=0, low=0)
    step = fields.integer("moe_layer_freq", default=1)
    is_sparse = [layer >= first and layer % step == 0 for layer in range(num_layers)]
    dense = sparse if all(is_sparse) else _dense(fields, family)
    return tuple(sparse if chosen else dense for chosen in is_sparse)


def _has_correction_bias(fields: ConfigFields) -> bool:
    """V3 routes with a learned correction bias (`noaux_tc`); V2 does not."""
    model_type = fields.text("model_type")
    return fields.text("topk_method") == "noaux_tc" or model_type not in ("deepseek_v2", "")


def _llama4(fields: ConfigFields, family: Family, num_layers: int) -> tuple[FeedForwardSpec, ...]:
    """Llama 4: every `interleave_moe_layer_step`-th layer, one shared expert as wide as a routed
    one; the dense layers between are `intermediate_size_mlp` wide."""
    step = fields.integer("interleave_moe_layer_step", default=1)
    chosen = fields.integers("moe_layers") or tuple(range(step - 1, num_layers, step))
    sparse = _experts(fields, "intermediate_size", shared=fields.integer("intermediate_size"))
    is_sparse = [layer in chosen for layer in range(num_layers)]
    dense = sparse if all(is_sparse) else _dense(fields, family, "intermediate_size_mlp")
    return tuple(sparse if chosen else dense for chosen in is_sparse)


def _gemma4(fields: ConfigFields, family: Family, num_layers: int) -> tuple[FeedForwardSpec, ...]:
    """Gemma 4: the dense part runs beside the experts, so it is a shared expert here."""
    if not fields.boolean("enable_moe_block", default=False):
        return (_dense(fields, family),) * num_layers
    sparse = _experts(
        fields,
        "moe_intermediate_size",
        shared=fields.integer("intermediate_size"),
        router_bias=True,  # a scale per expert, as many weights as a bias
        router_scale=True,
    )
    return (sparse,) * num_layers


_PLACEMENTS: dict[str, Callable[[ConfigFields, Family, int], tuple[FeedForwardSpec, ...]]] = {
    "mixtral": _mixtral,
    "qwen": _qwen,
    "deepseek": _deepseek,
    "llama4": _llama4,
    "gemma4": _gemma4,
}
