"""Draft heads that work on the target's features: EAGLE, EAGLE-3, MTP, DFlash, DSpark.

They have a configuration of their own, read here, or follow from the target's dimensions
(`head_for`), as the published EAGLE and MTP heads do.
"""

from __future__ import annotations

from dataclasses import replace

from specsim.catalogue.attention_layers import attention_layers
from specsim.catalogue.config_fields import ConfigFields
from specsim.catalogue.families import FAMILIES, Family
from specsim.catalogue.feed_forward_layers import feed_forward_layers
from specsim.catalogue.layer_groups import group_layers
from specsim.catalogue.specs import FeedForwardSpec, LayerGroup, ModelSpec

#: Method by the `architectures` entry that engines recognise it by.
DRAFT_ARCHITECTURES = {
    "LlamaForCausalLMEagle": "eagle",
    "EagleLlamaForCausalLM": "eagle",
    "LlamaForCausalLMEagle3": "eagle3",
    "Eagle3LlamaForCausalLM": "eagle3",
    "Eagle3Speculator": "eagle3",
    "Eagle3DeepseekV2ForCausalLM": "eagle3",
    "Eagle3DeepseekV3ForCausalLM": "eagle3",
    "DFlashDraftModel": "dflash",
    "DSparkDraftModel": "dspark",
}

#: Keys that only a draft head's configuration has.
DRAFT_KEYS = ("draft_vocab_size", "eagle_config", "dflash_config")

#: EAGLE-3 and its kin take the target's states after an early, a middle and a late layer.
EAGLE3_FEATURES = 3


def draft_method(fields: ConfigFields, architecture: str) -> str | None:
    """The method of the draft head that a configuration describes, None for a model.

    EAGLE-3's authors publish their heads as a one-layer "LlamaForCausalLM" with a
    `draft_vocab_size`; their EAGLE heads bear no mark at all (see `as_eagle_head`).

    Raises:
        ConfigError: if it is a draft head of a kind that is not known.
    """
    if architecture in DRAFT_ARCHITECTURES:
        return DRAFT_ARCHITECTURES[architecture]
    marks = [key for key in DRAFT_KEYS if fields.has(key)]
    if not marks:
        return None
    if architecture == "LlamaForCausalLM" and marks == ["draft_vocab_size"]:
        return "eagle3"
    known = ", ".join(DRAFT_ARCHITECTURES)
    raise fields.fail("architectures", f"a known draft head ({known}), as it has {marks[0]}")


def draft_head_from_fields(
    fields: ConfigFields, method: str, architecture: str, *, name: str, family: str
) -> ModelSpec:
    """A draft head from its own configuration.

    Raises:
        ConfigError: if a field is missing or out of range.
    """
    latent = fields.has("kv_lora_rank")
    traits = FAMILIES["deepseek_v3" if latent else "llama"]
    if method in ("dflash", "dspark"):
        traits = FAMILIES["qwen3"]
    spec = _decoder(fields, traits, architecture, name=name, family=family)
    if method == "eagle":
        return as_eagle_head(spec)
    if method == "eagle3":
        return _as_eagle3(fields, spec)
    return _as_block_drafter(fields, spec, method)


def _decoder(
    fields: ConfigFields, traits: Family, architecture: str, *, name: str, family: str
) -> ModelSpec:
    """The decoder layers of the head, as if they were a model."""
    return ModelSpec(
        name=name,
        family=family or name,
        architecture=architecture,
        hidden_size=fields.integer("hidden_size"),
        vocab_size=fields.integer("vocab_size"),
        layers=group_layers(attention_layers(fields, traits), feed_forward_layers(fields, traits)),
        max_context=fields.integer("max_position_embeddings", default=2048),
        tie_word_embeddings=False,
        shares_embedding=True,
        shares_head=True,
        source=fields.where,
    )


def as_eagle_head(spec: ModelSpec) -> ModelSpec:
    """A one-layer decoder as an EAGLE head (Li et al. 2024, §3): embedding and feature,
    2h → h, then the layer without an input norm; embedding and output head are the target's.
    The fusion has a bias and there is no final norm: as many weights, so the count stands.

    The authors' heads look like any one-layer Llama; whoever knows better calls this.
    """
    layers = tuple(replace(group, num_norms=1) for group in spec.layers)
    return replace(
        spec,
        layers=layers,
        shares_embedding=True,
        shares_head=True,
        tie_word_embeddings=False,
        head_of="eagle",
        feature_inputs=1,
        fuses_embedding=True,
    )


def _as_eagle3(fields: ConfigFields, spec: ModelSpec) -> ModelSpec:
    """EAGLE-3 (Li et al. 2025, §3): three features, 3h → h, then one decoder layer whose
    attention reads embedding and feature side by side; a head of its own, often over a
    reduced vocabulary."""
    draft_vocab = fields.optional_integer("draft_vocab_size")
    if draft_vocab is not None and draft_vocab > spec.vocab_size:
        raise fields.fail("draft_vocab_size", f"at most vocab_size = {spec.vocab_size}")
    eagle = fields.mapping("eagle_config")
    features = len(eagle.integers("eagle_aux_hidden_state_layer_ids")) or EAGLE3_FEATURES
    return replace(
        spec,
        layers=_wide_attention(spec.layers),
        head_of="eagle3",
        feature_inputs=features,
        feature_size=fields.optional_integer("target_hidden_size"),
        draft_vocab_size=draft_vocab,
        shares_head=False,
    )


def _wide_attention(layers: tuple[LayerGroup, ...]) -> tuple[LayerGroup, ...]:
    """Attention that reads two hidden states side by side, each with its own norm."""
    return tuple(
        replace(group, attention=replace(group.attention, input_features=2), num_norms=3)
        for group in layers
    )


def _as_block_drafter(fields: ConfigFields, spec: ModelSpec, method: str) -> ModelSpec:
    """DFlash (Chen et al. 2026): the target's states after n layers, n·h → h, enter every
    layer's attention as context; a block of positions is filled in one pass. DSpark adds a
    low-rank table of the previous token and a confidence head."""
    options = fields.mapping("dflash_config")
    features = options.integers("target_layer_ids")
    if not features:
        raise options.fail("target_layer_ids", "a list of the target's layers")
    rank = options.integer("markov_rank", default=0, low=0)
    confidence = 0
    if options.boolean("enable_confidence_head", default=False):
        with_markov = options.boolean("confidence_head_with_markov", default=False)
        confidence = spec.hidden_size + (rank if with_markov else 0) + 1
    return replace(
        spec,
        head_of=method,
        feature_inputs=len(features),
        feature_size=fields.optional_integer("target_hidden_size"),
        block_size=fields.integer("block_size"),
        markov_rank=rank,
        extra_parameters=spec.hidden_size + confidence,  # a norm on the fused features
    )


def head_for(target: ModelSpec, method: str, *, draft_vocab_size: int | None = None) -> ModelSpec:
    """The draft head that `method` adds to `target`, from the target's own dimensions.

    "eagle" and "eagle3" are one dense decoder layer of the target's width, as their authors'
    released heads are; "mtp" is one more layer of the target's last kind behind a 2h → h
    fusion (DeepSeek-V3 §2.2). For a mixture of experts the EAGLE heads' dense layer is as
    wide as all the experts a token visits.

    Raises:
        ValueError: for another method, or "mtp" where the target has no such layer.
    """
    if method not in ("eagle", "eagle3", "mtp"):
        raise ValueError(f"no head is derived for {method!r}: expected eagle, eagle3 or mtp")
    last = target.layers[-1]
    base = replace(
        target,
        name=f"{target.name}-{method}",
        mtp_layers=0,
        per_layer_embedding=0,
        learned_positions=0,
        extra_parameters=0,
        encoder_parameters=0,
        shares_embedding=True,
        shares_head=True,
        source=f"derived from {target.name}",
    )
    if method == "mtp":
        if not target.mtp_layers:
            raise ValueError(f"{target.name} has no multi-token-prediction layer")
        # a norm on the embedding and one on the feature before they are fused
        return replace(
            base,
            layers=(replace(last, count=1, num_norms=last.num_norms + 2),),
            head_of="mtp",
            feature_inputs=1,
            fuses_embedding=True,
        )
    layer = LayerGroup(count=1, attention=last.attention, feed_forward=_dense_equivalent(target))
    base = replace(base, layers=(layer,))
    if method == "eagle":
        return as_eagle_head(base)
    return replace(
        base,
        layers=_wide_attention(base.layers),
        head_of="eagle3",
        feature_inputs=EAGLE3_FEATURES,
        draft_vocab_size=draft_vocab_size,
        shares_head=False,
    )


def _dense_equivalent(target: ModelSpec) -> FeedForwardSpec:
    """A dense feed-forward part as wide as what one token visits in the last layer."""
    last = target.layers[-1].feed_forward
    if not last.is_moe:
        return last
    width = last.experts_per_token * last.intermediate_size + last.shared_intermediate_size
    return FeedForwardSpec(intermediate_size=width, gated=last.gated)
