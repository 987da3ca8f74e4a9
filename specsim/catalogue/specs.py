"""What a model, a GPU, a serving runtime and an acceptance preset *are*.

Frozen dataclasses with formula methods; no file is read here. Counts follow the usual
architecture papers: a decoder layer is attention plus a feed-forward part, and a model
is a sequence of groups of equal layers (so that mixed models stay a short list).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from specsim.units import dtype_bytes

AttentionKind = Literal["full", "sliding", "latent", "linear"]
Bound = Literal["memory", "compute", "latency"]


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


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedForwardSpec:
    """One feed-forward part: dense (`num_experts` = 0) or mixture of experts."""

    intermediate_size: int  # of the dense part, or of one routed expert
    gated: bool = True  # SwiGLU/GeGLU has three matrices, a plain MLP two
    bias: bool = False
    num_experts: int = 0
    experts_per_token: int = 0
    shared_intermediate_size: int = 0  # all shared experts together; read by every token
    shared_gate: bool = False  # a scalar gate on the shared expert (Qwen)
    router_bias: bool = False  # per-expert correction bias or router bias
    router_scale: bool = False  # a learned scale on the router's input (Gemma 4)

    @property
    def is_moe(self) -> bool:
        """Whether tokens choose among experts."""
        return self.num_experts > 0

    @property
    def num_matrices(self) -> int:
        """Weight matrices in one (expert's) feed-forward part."""
        return 3 if self.gated else 2

    def expert_parameters(self, hidden_size: int) -> int:
        """Parameters of one routed expert, or of the whole dense part."""
        count = self.num_matrices * hidden_size * self.intermediate_size
        if self.bias:
            count += (self.num_matrices - 1) * self.intermediate_size + hidden_size
        return count

    def common_parameters(self, hidden_size: int) -> int:
        """Router and shared experts (mixture of experts only)."""
        if not self.is_moe:
            return 0
        router = hidden_size * self.num_experts + (self.num_experts if self.router_bias else 0)
        shared = self.num_matrices * hidden_size * self.shared_intermediate_size
        scales = hidden_size * (self.shared_gate + self.router_scale)
        return router + shared + scales


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerGroup:
    """`count` equal decoder layers."""

    count: int
    attention: AttentionSpec
    feed_forward: FeedForwardSpec
    num_norms: int = 2  # of width hidden_size (times two with a bias, see norm_bias)
    cross_attention: AttentionSpec | None = None  # encoder–decoder models (T5)

    def parameters(self, hidden_size: int, *, active: bool, norm_width: int) -> int:
        """Parameters of one layer; `active` counts only the experts a token visits."""
        count = self.num_norms * norm_width
        for attention in (self.attention, self.cross_attention):
            if attention is not None:
                count += sum(n * m for _, n, m in attention.projections(hidden_size))
                count += attention.num_small_parameters(hidden_size)
        feed_forward = self.feed_forward
        experts = 1
        if feed_forward.is_moe:
            experts = feed_forward.experts_per_token if active else feed_forward.num_experts
        count += experts * feed_forward.expert_parameters(hidden_size)
        return count + feed_forward.common_parameters(hidden_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """The dimensions of a language model that decide cost and memory.

    Multi-token-prediction layers are described by `mtp_layers` and left out of every
    count. For a draft head that works on the target's features (EAGLE and kin)
    `head_of` is its method and `feature_inputs` the number of hidden states it fuses.
    """

    name: str
    family: str  # names that share a tokenizer, so that one may draft for another
    architecture: str
    hidden_size: int
    vocab_size: int
    layers: tuple[LayerGroup, ...]
    max_context: int
    tie_word_embeddings: bool
    embedding_size: int | None = None  # where it differs from hidden_size (OPT-350M)
    norm_bias: bool = False
    head_bias: bool = False
    learned_positions: int = 0  # rows of a learned position table (OPT, GPT-2)
    per_layer_embedding: int = 0  # extra embedding width a layer (Gemma 3n/4)
    extra_parameters: int = 0  # what the formulas leave out, with its reason in `source`
    mtp_layers: int = 0
    head_of: str | None = None  # "eagle", "eagle3", "mtp", "medusa", "dflash": a draft head
    feature_inputs: int = 0  # target hidden states a head fuses: EAGLE 1, EAGLE-3 three
    feature_size: int | None = None  # width of the target's states, where not hidden_size
    fuses_embedding: bool = False  # the fusion also takes the token's embedding (EAGLE, MTP)
    block_size: int = 0  # positions that a block drafter (DFlash) fills in one pass
    markov_rank: int = 0  # low-rank table of the previous token on the logits (DSpark)
    draft_vocab_size: int | None = None  # rows of the head's output, where reduced
    shares_embedding: bool = False  # uses the target's embedding (its weights are not its own)
    shares_head: bool = False  # uses the target's output head
    default_dtype: str = "bf16"
    encoder_parameters: int = 0  # encoder–decoder models: run once, outside decoding
    source: str = ""

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return sum(group.count for group in self.layers)

    @property
    def is_moe(self) -> bool:
        """Whether any layer routes tokens to experts."""
        return any(group.feed_forward.is_moe for group in self.layers)

    @property
    def head_vocab_size(self) -> int:
        """Rows of the output head."""
        return self.draft_vocab_size or self.vocab_size

    @property
    def embedding_width(self) -> int:
        """Width of the input embedding and of the output head's input."""
        return self.embedding_size or self.hidden_size

    @property
    def fusion_inputs(self) -> int:
        """Inputs of the projection to `hidden_size` that fuses target features; 0 is none."""
        if not self.feature_inputs:
            return 0
        embedding = self.hidden_size if self.fuses_embedding else 0
        return self.feature_inputs * (self.feature_size or self.hidden_size) + embedding

    @property
    def head_parameters(self) -> int:
        """Parameters of the output head, wherever they are stored: it is read and
        multiplied on every pass, tied or not."""
        return self.head_vocab_size * (self.embedding_width + (1 if self.head_bias else 0))

    @property
    def _norm_width(self) -> int:
        return self.hidden_size * (2 if self.norm_bias else 1)

    def layer_parameters(self, *, active: bool) -> int:
        """Parameters of all decoder layers and the final norm."""
        layers = sum(
            group.count
            * group.parameters(self.hidden_size, active=active, norm_width=self._norm_width)
            for group in self.layers
        )
        fusion = self.fusion_inputs * self.hidden_size
        # an embedding of another width is projected in and out
        resize = 2 * self.hidden_size * self.embedding_size if self.embedding_size else 0
        markov = self.markov_rank * self.head_vocab_size
        return layers + self._norm_width + fusion + resize + markov + self.extra_parameters

    @property
    def num_parameters(self) -> int:
        """All parameters of the decoder, MTP layers and encoder left out."""
        embedding = 0 if self.shares_embedding else self.vocab_size * self.embedding_width
        embedding += self.markov_rank * self.vocab_size
        head = 0
        if not (self.tie_word_embeddings or self.shares_head):
            head = self.head_parameters
        positions = self.learned_positions * self.hidden_size
        per_layer = self.per_layer_embedding * self.num_layers * self.vocab_size
        return embedding + head + positions + per_layer + self.layer_parameters(active=False)

    @property
    def num_active_parameters(self) -> int:
        """Parameters that one token's forward pass multiplies with: layers that the token
        visits and the output head; the input embedding is a look-up and does not count."""
        return self.head_parameters + self.layer_parameters(active=True)

    def kv_bytes_per_token(self, dtype: str = "bf16") -> float:
        """Bytes that one token adds to the KV cache (all layers, before any window)."""
        elements = sum(
            group.count * group.attention.kv_elements_per_token() for group in self.layers
        )
        return elements * dtype_bytes(dtype)

    def state_bytes_per_sequence(self, dtype: str = "bf16") -> float:
        """Bytes of recurrent state per sequence (hybrid linear-attention models)."""
        elements = sum(group.count * group.attention.state_elements() for group in self.layers)
        return elements * dtype_bytes(dtype)


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuSpec:
    """A GPU (or TPU): datasheet limits, and how near to them its kernels come.

    The constants after `price_usd_per_h` are fitted to measured kernels of this GPU or
    carried over from others (`constants_source` says which); `cost/roofline.py` has the
    formulas and docs/cost.md the errors. Shares are ≤ 1.

    Dense products m×k by k×n: `bandwidth_share` and `compute_share` of the peaks,
    `wide_share` of the bandwidth again once there are more rows than one tensor-core tile
    (16); `ridge_exponent` of the smooth maximum; `fixed_s` per kernel; `loop_s` per unit
    of k, for the latency of the loop over k, until the loop is split (`loop_depth`),
    longer by `loop_growth` per 128 rows.
    Products in 8 or 4 bits: `narrow_compute_share`, and the quantisation of the
    activations, `quantise_s` plus `quantise_element_s` each.
    Attention over a KV cache: `attention_share` of bandwidth, `attention_fixed_s`,
    `attention_tile_s` per sequence and key–value head, `attention_depth_s` per doubling
    of the context, `attention_exponent` between bytes and tiles,
    `attention_compute_share`.
    Experts: `expert_share` of bandwidth, `expert_compute_share`, `expert_fixed_s`.
    Small kernels (norms, rotary embedding, activation): `small_s`.
    All-reduce: `link_share`, `link_latency_s`, `link_hop_s` per GPU beyond the second.
    `warm_*` describe tables whose operands stay in the level-2 cache between repetitions:
    up to about so many bytes, this part of the memory time is saved. A model's own pass
    finds its weights and cache cold.
    """

    name: str
    vendor: str
    architecture: str
    memory_bytes: float
    bandwidth_bytes_per_s: float
    peak_flops: dict[str, float]  # dense, by dtype: bf16, fp8, int8, fp4
    link: str
    link_bytes_per_s: float  # one direction, per GPU, to the other GPUs of its node
    power_w: float | None = None
    price_usd_per_h: tuple[float, float] | None = None
    bandwidth_share: float = 0.85
    wide_share: float = 1.0
    compute_share: float = 0.75
    ridge_exponent: float = 2.5
    fixed_s: float = 3e-6
    loop_s: float = 0.0
    loop_depth: float = 2500.0
    loop_growth: float = 0.0
    narrow_compute_share: float = 0.75
    quantise_s: float = 2.5e-6
    quantise_element_s: float = 0.0
    attention_share: float = 0.75
    attention_fixed_s: float = 1e-5
    attention_tile_s: float = 2.5e-8
    attention_depth_s: float = 1e-6
    attention_exponent: float = 2.0
    attention_compute_share: float = 0.5
    expert_share: float = 0.85
    expert_compute_share: float = 0.3
    expert_fixed_s: float = 2e-5
    small_s: float = 2e-6
    link_share: float = 0.75
    link_latency_s: float = 8e-6
    link_hop_s: float = 0.0
    warm_weights_bytes: float = 0.0
    warm_weights_saving: float = 0.0
    warm_kv_bytes: float = 0.0
    warm_kv_saving: float = 0.0
    constants_source: str = "default"
    source: str = ""
    confidence: str = ""
    notes: str = ""

    @property
    def ridge_flops_per_byte(self) -> float:
        """Arithmetic intensity at which bf16 work turns from memory- to compute-bound."""
        return self.peak_flops["bf16"] / self.bandwidth_bytes_per_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A constant with its interval and where it comes from."""

    value: float
    low: float
    high: float
    source: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeSpec:
    """What a serving engine adds to the GPU's own time in one decoding step.

    All in seconds: `step_s` once a step (scheduling, input preparation, sampling
    launch), `layer_s` per layer and forward pass (launches not hidden by a CUDA graph),
    `sequence_s` per sequence in the batch, `token_s` per token verified beyond the first
    of each sequence, `draft_step_s` once per draft round, `draft_pass_s` per draft
    forward pass, `draft_layer_s` per layer of each of them, `ngram_s` once per step that looks
    drafts up in the prompt. `graph_sizes` are the padded token counts of CUDA graphs
    (() = none; beyond `max_graph_tokens` a step runs without one).
    """

    name: str
    version: str
    engine: str
    step_s: Estimate
    layer_s: Estimate
    sequence_s: Estimate
    token_s: Estimate
    draft_step_s: Estimate
    draft_pass_s: Estimate
    draft_layer_s: Estimate
    ngram_s: Estimate
    graph_sizes: tuple[int, ...] = ()
    max_graph_tokens: int = 0
    overlaps_scheduling: bool = False
    gpu_memory_utilization: float = 0.9
    source: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceptancePreset:
    """A named acceptance figure: which of the four "rates" it is, and its range."""

    name: str
    kind: Literal["alpha", "conditional", "survival", "acceptance_length", "draft_acceptance_rate"]
    values: tuple[float, ...]  # a scalar has one entry
    low: tuple[float, ...]
    high: tuple[float, ...]
    at_num_draft_tokens: int | None = None  # K it was measured at
    max_num_draft_tokens: int | None = None  # beyond this K it is an extrapolation
    domain: str = ""
    method: str = ""
    aliases: tuple[str, ...] = field(default=())
    definition: str = ""
    source: str = ""
