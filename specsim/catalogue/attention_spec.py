"""What one attention layer is: its weight matrices, its cache, its recurrent state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AttentionKind = Literal["full", "sliding", "latent", "linear"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionSpec:
    """One attention layer.

    `kind`:
        full    — multi-head or grouped-query attention over the whole context;
        sliding — the same over the last `window` tokens;
        latent  — multi-head latent attention (DeepSeek-V2): the cache holds one
                  compressed vector of `kv_lora_rank + qk_rope_head_dim` per token;
        linear  — gated linear attention (Qwen3.5): a state of fixed size per sequence.
    """

    kind: AttentionKind
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None
    bias: bool = False  # biases on q, k, v
    output_bias: bool = False
    qk_norm: bool = False
    output_gate: bool = False  # q projection is doubled (Qwen3.5)
    sinks: bool = False  # one learned logit a head (gpt-oss)
    shares_kv: bool = False  # reuses an earlier layer's cache (Gemma 3n/4)
    v_head_dim: int | None = None
    key_is_value: bool = False  # no v projection: the key is also the value (Gemma 4)
    input_features: int = 1  # the q, k, v input is this many hidden states wide (EAGLE-3: 2)
    # latent
    q_lora_rank: int | None = None
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    # sparse indexer on top of latent attention (DeepSeek-V3.2): 0 is none
    index_heads: int = 0
    index_head_dim: int = 0
    index_topk: int = 0
    # linear
    linear_key_heads: int = 0
    linear_value_heads: int = 0
    linear_key_dim: int = 0
    linear_value_dim: int = 0
    conv_kernel: int = 0

    def projections(self, hidden_size: int) -> tuple[tuple[str, int, int], ...]:
        """The weight matrices as (name, inputs, outputs), norms and biases left out."""
        h = hidden_size * self.input_features
        if self.kind == "latent":
            qk = self.qk_nope_head_dim + self.qk_rope_head_dim
            v = self.v_head_dim or self.head_dim
            if self.q_lora_rank:
                query: tuple[tuple[str, int, int], ...] = (
                    ("q_a_proj", h, self.q_lora_rank),
                    ("q_b_proj", self.q_lora_rank, self.num_heads * qk),
                )
            else:
                query = (("q_proj", h, self.num_heads * qk),)
            indexer: tuple[tuple[str, int, int], ...] = ()
            if self.index_heads:
                indexer = (
                    ("index_q_proj", self.q_lora_rank or h, self.index_heads * self.index_head_dim),
                    ("index_k_proj", h, self.index_head_dim),
                    ("index_weights_proj", h, self.index_heads),
                )
            return (
                *query,
                ("kv_a_proj", h, self.kv_lora_rank + self.qk_rope_head_dim),
                ("kv_b_proj", self.kv_lora_rank, self.num_heads * (self.qk_nope_head_dim + v)),
                ("o_proj", self.num_heads * v, hidden_size),
                *indexer,
            )
        if self.kind == "linear":
            key = self.linear_key_heads * self.linear_key_dim
            value = self.linear_value_heads * self.linear_value_dim
            return (
                ("in_proj_qkvz", h, 2 * key + 2 * value),
                ("in_proj_ba", h, 2 * self.linear_value_heads),
                ("o_proj", value, hidden_size),
            )
        query_width = self.num_heads * self.head_dim * (2 if self.output_gate else 1)
        value_dim = self.v_head_dim or self.head_dim
        kv_width = 0
        if not self.shares_kv:
            kv_dim = self.head_dim + (0 if self.key_is_value else value_dim)
            kv_width = self.num_kv_heads * kv_dim
        return (
            ("qkv_proj", h, query_width + kv_width),
            ("o_proj", self.num_heads * value_dim, hidden_size),
        )

    def num_small_parameters(self, hidden_size: int) -> int:
        """Norms, biases, convolutions and gates: read with the layer, never a big product."""
        count = 0
        if self.kind == "latent":
            count += (self.q_lora_rank or 0) + self.kv_lora_rank
            if self.index_heads:
                count += 2 * self.index_head_dim  # a LayerNorm on the index key
            return count
        if self.kind == "linear":
            key = self.linear_key_heads * self.linear_key_dim
            value = self.linear_value_heads * self.linear_value_dim
            # causal convolution over q, k, v; A_log and dt_bias a head; gated norm
            return (
                self.conv_kernel * (2 * key + value)
                + 2 * self.linear_value_heads
                + self.linear_value_dim
            )
        if self.bias:
            count += (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        if self.output_bias:
            count += hidden_size
        if self.qk_norm:
            count += self.head_dim * (1 if self.shares_kv else 2)
        if self.sinks:
            count += self.num_heads
        return count

    def kv_elements_per_token(self) -> int:
        """Cache elements that one token adds in this layer (0 for linear attention)."""
        if self.kind == "linear" or self.shares_kv:
            return 0
        if self.kind == "latent":
            return self.kv_lora_rank + self.qk_rope_head_dim + self.index_head_dim
        return self.num_kv_heads * (self.head_dim + (self.v_head_dim or self.head_dim))

    def state_elements(self) -> int:
        """Elements of the recurrent state of one sequence (linear attention only)."""
        if self.kind != "linear":
            return 0
        key = self.linear_key_heads * self.linear_key_dim
        value = self.linear_value_heads * self.linear_value_dim
        recurrent = self.linear_value_heads * self.linear_key_dim * self.linear_value_dim
        return recurrent + (self.conv_kernel - 1) * (2 * key + value)
