"""What Hugging Face's decoder families do that their configuration does not say.

A row per `model_type`. Biases, norms and defaults are those of each family's reference
implementation in the `transformers` library; tests build the reference without weights
and compare parameter counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """How a family of decoder-only models departs from Llama.

    `bias`: where biases sit: "qkv" or "all" always, "qkv-if" and "all-if" when the
    configuration's `bias_key` says so.
    `sliding`: which layers attend to a window when `layer_types` is absent: "all" if
    `sliding_window` is set; "flag" if `use_sliding_window` is set too, then the layers from
    `max_window_layers` on; "alternate" every other one; "pattern" all but every n-th.
    `experts`: "": dense; else how expert layers are placed and sized, see
    `feed_forward_layers`.
    """

    bias: Literal["", "qkv", "all", "qkv-if", "all-if"] = ""
    bias_key: str = "attention_bias"
    mlp_bias_key: str = ""
    gated: bool = True
    qk_norm: bool = False
    qk_norm_key: str = ""  # a switch in the configuration instead
    norms: int = 2
    norm_bias: bool = False
    head_bias: bool = False
    tied: bool = False
    sliding: Literal["", "all", "flag", "alternate", "pattern"] = ""
    sinks: bool = False
    experts: Literal["", "mixtral", "qwen", "deepseek", "llama4", "gemma4"] = ""
    attention: Literal["grouped", "latent"] = "grouped"
    output_gate: bool = False
    defaults: dict[str, int] = field(default_factory=dict)  # fields that official files omit


_QWEN_HYBRID = {"full_attention_interval": 4}
# google/gemma-3-4b-it leaves these to the library's defaults
_GEMMA3 = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "sliding_window_pattern": 6,
}

FAMILIES: dict[str, Family] = {
    "llama": Family(bias="all-if", mlp_bias_key="mlp_bias"),
    "mistral": Family(sliding="all"),
    "ministral": Family(sliding="all"),
    "mixtral": Family(sliding="all", experts="mixtral"),
    "qwen2": Family(bias="qkv", sliding="flag"),
    "qwen2_moe": Family(bias="qkv", sliding="flag", experts="qwen"),
    "qwen3": Family(bias="all-if", qk_norm=True, sliding="flag"),
    "qwen3_moe": Family(bias="all-if", qk_norm=True, sliding="flag", experts="qwen"),
    "qwen3_vl_text": Family(bias="all-if", qk_norm=True),
    "qwen3_vl_moe_text": Family(bias="all-if", qk_norm=True, experts="qwen"),
    "qwen3_next": Family(
        bias="all-if", qk_norm=True, experts="qwen", output_gate=True, defaults=_QWEN_HYBRID
    ),
    "qwen3_5_text": Family(bias="all-if", qk_norm=True, output_gate=True, defaults=_QWEN_HYBRID),
    "qwen3_5_moe_text": Family(
        bias="all-if", qk_norm=True, experts="qwen", output_gate=True, defaults=_QWEN_HYBRID
    ),
    "mimo": Family(bias="qkv-if", sliding="flag"),
    "phi3": Family(sliding="all"),
    "smollm3": Family(bias="all-if", mlp_bias_key="mlp_bias", tied=True),
    "starcoder2": Family(
        bias="all-if",
        bias_key="use_bias",
        mlp_bias_key="use_bias",
        gated=False,
        norm_bias=True,
        tied=True,
        sliding="all",
    ),
    "gemma": Family(bias="all-if", tied=True),
    "gemma2": Family(bias="all-if", norms=4, tied=True, sliding="alternate"),
    "gemma3_text": Family(
        bias="all-if", qk_norm=True, norms=4, tied=True, sliding="pattern", defaults=_GEMMA3
    ),
    "gemma4_text": Family(
        bias="all-if", qk_norm=True, norms=4, tied=True, sliding="pattern", experts="gemma4"
    ),
    "gpt_oss": Family(bias="all", sliding="alternate", sinks=True, experts="mixtral"),
    "llama4_text": Family(bias="all-if", experts="llama4"),
    "glm": Family(bias="qkv-if"),
    "glm4": Family(bias="qkv-if", norms=4),
    "glm4_moe": Family(bias="qkv-if", qk_norm_key="use_qk_norm", experts="deepseek"),
    "deepseek_v2": Family(attention="latent", experts="deepseek"),
    "deepseek_v3": Family(attention="latent", experts="deepseek"),
    "deepseek_v32": Family(attention="latent", experts="deepseek"),
    "kimi_k2": Family(attention="latent", experts="deepseek"),
    "glm_moe_dsa": Family(attention="latent", experts="deepseek"),
}
