"""Decoders whose configuration or layer departs from the Llama plan: OPT, GPT-2, Phi, T5."""

from __future__ import annotations

from collections.abc import Callable

from specsim.catalogue.config_fields import ConfigFields
from specsim.catalogue.layer_groups import group_layers
from specsim.catalogue.specs import AttentionSpec, FeedForwardSpec, ModelSpec
from specsim.errors import ConfigError


def _attention(fields: ConfigFields, hidden: int, heads_key: str, *, bias: bool) -> AttentionSpec:
    heads = fields.integer(heads_key)
    kv_heads = fields.integer("num_key_value_heads", default=heads)
    if hidden % heads:
        raise fields.fail(heads_key, f"a divisor of the hidden size {hidden}")
    if heads % kv_heads:
        raise fields.fail("num_key_value_heads", f"a divisor of {heads} heads")
    return AttentionSpec(
        kind="full",
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        bias=bias,
        output_bias=bias,
    )


def _opt(fields: ConfigFields, *, name: str, family: str) -> ModelSpec:
    """OPT: learned positions (two rows more than the context), biases everywhere, ReLU."""
    hidden = fields.integer("hidden_size")
    layers = fields.integer("num_hidden_layers")
    bias = fields.boolean("enable_bias", default=True)
    context = fields.integer("max_position_embeddings")
    embedding = fields.integer("word_embed_proj_dim", default=hidden)
    return ModelSpec(
        name=name,
        family=family or name,
        architecture="OPTForCausalLM",
        hidden_size=hidden,
        vocab_size=fields.integer("vocab_size"),
        layers=group_layers(
            (_attention(fields, hidden, "num_attention_heads", bias=bias),) * layers,
            (FeedForwardSpec(intermediate_size=fields.integer("ffn_dim"), gated=False, bias=bias),)
            * layers,
        ),
        max_context=context,
        tie_word_embeddings=fields.boolean("tie_word_embeddings", default=True),
        embedding_size=embedding if embedding != hidden else None,
        norm_bias=True,
        learned_positions=context + 2,
        # OPT-350M normalises after each layer and has no final norm
        extra_parameters=0 if fields.boolean("do_layer_norm_before", default=True) else -2 * hidden,
        source=fields.where,
    )


def _gpt2(fields: ConfigFields, *, name: str, family: str) -> ModelSpec:
    """GPT-2: its own key names, learned positions, biases everywhere."""
    hidden = fields.integer("n_embd")
    layers = fields.integer("n_layer")
    context = fields.integer("n_positions")
    return ModelSpec(
        name=name,
        family=family or name,
        architecture="GPT2LMHeadModel",
        hidden_size=hidden,
        vocab_size=fields.integer("vocab_size"),
        layers=group_layers(
            (_attention(fields, hidden, "n_head", bias=True),) * layers,
            (
                FeedForwardSpec(
                    intermediate_size=fields.integer("n_inner", default=4 * hidden),
                    gated=False,
                    bias=True,
                ),
            )
            * layers,
        ),
        max_context=context,
        tie_word_embeddings=fields.boolean("tie_word_embeddings", default=True),
        norm_bias=True,
        learned_positions=context,
        source=fields.where,
    )


def _phi(fields: ConfigFields, *, name: str, family: str) -> ModelSpec:
    """Phi-1.5 and Phi-2: attention and feed-forward side by side behind one norm."""
    hidden = fields.integer("hidden_size")
    layers = fields.integer("num_hidden_layers")
    if fields.boolean("qk_layernorm", default=False):
        raise fields.fail("qk_layernorm", "false: no released Phi has it")
    return ModelSpec(
        name=name,
        family=family or name,
        architecture="PhiForCausalLM",
        hidden_size=hidden,
        vocab_size=fields.integer("vocab_size"),
        layers=group_layers(
            (_attention(fields, hidden, "num_attention_heads", bias=True),) * layers,
            (
                FeedForwardSpec(
                    intermediate_size=fields.integer("intermediate_size"), gated=False, bias=True
                ),
            )
            * layers,
            num_norms=1,
        ),
        max_context=fields.integer("max_position_embeddings"),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", default=False),
        norm_bias=True,
        head_bias=True,
        source=fields.where,
    )


def _t5(fields: ConfigFields, *, name: str, family: str) -> ModelSpec:
    """T5's decoder. Its encoder, and the cross-attention's keys and values, run once a
    request: they are in `encoder_parameters`."""
    hidden, width = fields.integer("d_model"), fields.integer("d_ff")
    heads, head_dim = fields.integer("num_heads"), fields.integer("d_kv")
    vocab = fields.integer("vocab_size")
    layers = fields.integer("num_layers")
    decoder_layers = fields.integer("num_decoder_layers", default=layers)
    activation = fields.text("feed_forward_proj", default="relu")
    if activation not in ("relu", "gated-gelu"):
        raise fields.fail("feed_forward_proj", "'relu' (T5) or 'gated-gelu' (T5 v1.1)")
    feed_forward = FeedForwardSpec(intermediate_size=width, gated=activation == "gated-gelu")
    attention = AttentionSpec(kind="full", num_heads=heads, num_kv_heads=heads, head_dim=head_dim)
    cross = AttentionSpec(
        kind="full", num_heads=heads, num_kv_heads=heads, head_dim=head_dim, shares_kv=True
    )
    position_bias = fields.integer("relative_attention_num_buckets", default=32) * heads
    one_attention = 4 * hidden * heads * head_dim
    encoder = layers * (one_attention + feed_forward.expert_parameters(hidden) + 2 * hidden)
    cross_kv = decoder_layers * 2 * hidden * heads * head_dim
    if hidden * layers * vocab > 1e13:
        raise ConfigError(f"{fields.where}: d_model = {hidden}: expected a real T5's size")
    return ModelSpec(
        name=name,
        family=family or name,
        architecture="T5ForConditionalGeneration",
        hidden_size=hidden,
        vocab_size=vocab,
        layers=group_layers(
            (attention,) * decoder_layers,
            (feed_forward,) * decoder_layers,
            num_norms=3,
            cross_attention=cross,
        ),
        max_context=fields.integer("n_positions", default=512),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", default=True),
        extra_parameters=position_bias,
        encoder_parameters=encoder + hidden + position_bias + cross_kv,
        source=fields.where,
    )


OTHER_FAMILIES: dict[str, Callable[..., ModelSpec]] = {
    "opt": _opt,
    "gpt2": _gpt2,
    "phi": _phi,
    "t5": _t5,
}
