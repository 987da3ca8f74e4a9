"""What a language model is: groups of equal layers, and the counts that follow from them.

Counts follow the usual architecture papers: a decoder layer is attention plus a
feed-forward part, and a model is a sequence of groups of equal layers (so that mixed
models stay a short list).
"""

from __future__ import annotations

from dataclasses import dataclass

from specsim.catalogue.attention_spec import AttentionSpec
from specsim.units import dtype_bytes


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
