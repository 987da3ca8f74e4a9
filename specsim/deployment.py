"""A deployment: the target, the draft, the GPU and the runtime, resolved and placed.

`Scenario` and the command line hold names and numbers; `resolve` turns them into the
objects below, which every cost source, the closed form and the simulator take.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from specsim.catalogue.specs import GpuSpec, LayerGroup, ModelSpec, RuntimeSpec
from specsim.units import dtype_bytes

Method = Literal[
    "none",
    "draft-model",
    "eagle",
    "eagle3",
    "medusa",
    "mtp",
    "ngram",
    "early-exit",
    "sparse-kv",
    "block",
]
METHODS: tuple[str, ...] = get_args(Method)

#: Methods whose drafted tokens come from one parallel pass, not one after the other.
PARALLEL_METHODS = frozenset({"medusa", "ngram", "block"})
#: Methods that load no weights of their own.
WEIGHTLESS_METHODS = frozenset({"none", "ngram", "early-exit", "sparse-kv"})

#: Rows of the reduced draft vocabulary of EAGLE-3 heads (Li et al. 2025; SpecForge
#: configurations of Llama-3.1 and Qwen3 heads).
EAGLE3_DRAFT_VOCAB = 32_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Routing:
    """How tokens spread over experts.

    `skew` is the exponent of a Zipf popularity of experts (0 = uniform); `overlap` is
    the share of a token's experts that it inherits from the token before it in the same
    sequence, which makes drafted tokens cheaper than independent ones.
    """

    skew: float = 0.0
    overlap: float = 0.0

    def __post_init__(self) -> None:
        if self.skew < 0:
            raise ValueError(f"routing skew {self.skew} < 0")
        if not 0 <= self.overlap <= 1:
            raise ValueError(f"routing overlap {self.overlap} outside [0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedModel:
    """A model with its dtypes and its tensor-parallel degree.

    Raises:
        ValueError: if the degree does not divide the attention heads, or a dtype is unknown.
    """

    spec: ModelSpec
    weights: str = "bf16"
    kv: str = "bf16"
    tensor_parallel: int = 1
    routing: Routing = Routing()

    def __post_init__(self) -> None:
        dtype_bytes(self.weights)
        dtype_bytes(self.kv)
        if self.tensor_parallel < 1:
            raise ValueError(f"tensor_parallel={self.tensor_parallel} < 1")
        for group in self.spec.layers:
            heads = group.attention.num_heads or group.attention.linear_value_heads
            if heads % self.tensor_parallel:
                raise ValueError(
                    f"tensor_parallel={self.tensor_parallel} does not divide the "
                    f"{heads} attention heads of {self.spec.name}"
                )

    @property
    def weights_bytes(self) -> float:
        """Bytes of all weights, over all GPUs. Embedding and head stay in 16 bits in
        quantised checkpoints (AWQ, GPTQ, FP8 and NVFP4 alike)."""
        spec = self.spec
        tables = 0 if spec.shares_embedding else spec.vocab_size * spec.hidden_size
        if not (spec.tie_word_embeddings or spec.shares_head):
            tables += spec.head_vocab_size * spec.hidden_size
        body = spec.num_parameters - tables
        return tables * max(dtype_bytes(self.weights), 2.0) + body * dtype_bytes(self.weights)

    @property
    def weights_bytes_per_gpu(self) -> float:
        """Bytes of weights on each GPU of the group."""
        return self.weights_bytes / self.tensor_parallel

    @property
    def kv_bytes_per_token_per_gpu(self) -> float:
        """Cache bytes one token adds on each GPU. Key–value heads are replicated where
        there are fewer of them than GPUs; a latent cache is replicated on all."""
        total = 0.0
        for group in self.spec.layers:
            total += group.count * kv_elements_per_gpu(group, self.tensor_parallel)
        return total * dtype_bytes(self.kv)


def kv_elements_per_gpu(group: LayerGroup, tensor_parallel: int) -> float:
    """Cache elements of one token in one layer of `group` on one GPU."""
    attention = group.attention
    elements = attention.kv_elements_per_token()
    if attention.kind == "latent" or elements == 0:
        return elements
    heads = max(1, -(-attention.num_kv_heads // tensor_parallel))
    return elements * heads / attention.num_kv_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """A draft tree as engines configure it: `steps` draft passes deep, `topk` branches a
    step, `nodes` drafted tokens kept for verification."""

    steps: int
    topk: int
    nodes: int

    def __post_init__(self) -> None:
        for name in ("steps", "topk", "nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"tree {name}={getattr(self, name)} < 1")
        if self.nodes < self.steps:
            raise ValueError(f"tree nodes={self.nodes} < steps={self.steps}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """How tokens are drafted.

    `model` is the draft model or head (None for n-gram, or where the target drafts for
    itself). `kv_budget` caps the context that the draft attends to (StreamingLLM,
    SnapKV). `own_gpus` places the draft on GPUs of its own.
    """

    method: Method
    model: PlacedModel | None = None
    kv_budget: int | None = None
    tree: Tree | None = None
    exit_layer: int | None = None
    own_gpus: bool = False

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}; expected {', '.join(METHODS)}")
        needs_model = self.method not in ("none", "ngram", "sparse-kv")
        if needs_model and self.model is None:
            raise ValueError(f"method {self.method!r} needs a draft model")
        if self.kv_budget is not None and self.kv_budget < 1:
            raise ValueError(f"draft kv_budget={self.kv_budget} < 1")


NO_DRAFT = Draft(method="none")


@dataclass(frozen=True, kw_only=True, slots=True)
class Deployment:
    """Everything that decides how long a step takes and what fits."""

    target: PlacedModel
    draft: Draft
    gpu: GpuSpec
    runtime: RuntimeSpec
    gpu_memory_utilization: float = 0.9
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    block_size: int = 16

    @property
    def num_gpus(self) -> int:
        """GPUs of one replica."""
        own = self.draft.own_gpus and self.draft.model is not None
        return self.target.tensor_parallel + (self.draft.model.tensor_parallel if own else 0)  # type: ignore[union-attr]

    def without_draft(self) -> Deployment:
        """The same deployment with speculation off: the baseline of every speedup."""
        return dataclasses.replace(self, draft=NO_DRAFT)


def truncated(spec: ModelSpec, num_layers: int) -> ModelSpec:
    """The first `num_layers` layers of a model with its own head (early exit).

    Raises:
        ValueError: if the model has no such layer.
    """
    if not 1 <= num_layers < spec.num_layers:
        raise ValueError(f"exit layer {num_layers} outside 1..{spec.num_layers - 1} of {spec.name}")
    groups: list[LayerGroup] = []
    left = num_layers
    for group in spec.layers:
        take = min(left, group.count)
        if take:
            groups.append(dataclasses.replace(group, count=take))
        left -= take
    return dataclasses.replace(
        spec, name=f"{spec.name}[:{num_layers}]", layers=tuple(groups), extra_parameters=0
    )


def draft_head(target: ModelSpec, method: str) -> ModelSpec:
    """The draft head that `method` puts on `target`: one decoder layer of its width.

    eagle: embedding and head of the target, a 2h→h fusion (Li et al. 2024). eagle3: three
    target features fused, a second input of width h in attention, a reduced vocabulary
    (Li et al. 2025). mtp: the target's own last layer with a 2h→h fusion
    (DeepSeek-V3). medusa: per head one h×h residual block and a head of its own; the
    spec describes one head (Cai et al. 2024).

    Raises:
        ValueError: for a method without a head, or mtp on a model that has none.
    """
    last = dataclasses.replace(target.layers[-1], count=1)
    h = target.hidden_size
    common = dataclasses.replace(
        target, name=f"{target.name}-{method}", layers=(last,), head_of=method, mtp_layers=0,
        shares_embedding=True, shares_head=True, tie_word_embeddings=False, extra_parameters=0,
        learned_positions=0, per_layer_embedding=0, encoder_parameters=0,
        source=f"one decoder layer of {target.name}",
    )  # fmt: skip
    if method == "eagle":
        return dataclasses.replace(common, feature_inputs=2)
    if method == "mtp":
        if not target.mtp_layers:
            raise ValueError(f"{target.name} has no multi-token-prediction layer")
        return dataclasses.replace(common, feature_inputs=2, extra_parameters=2 * h)
    if method == "eagle3":
        dense = _dense_layer(last)
        attention = dense.attention
        # q, k and v read the embedding beside the feature: twice the input width.
        second_input = (attention.num_heads + 2 * attention.num_kv_heads) * attention.head_dim * h
        return dataclasses.replace(
            common, layers=(dense,), feature_inputs=3, extra_parameters=second_input,
            draft_vocab_size=min(EAGLE3_DRAFT_VOCAB, target.vocab_size), shares_head=False,
        )  # fmt: skip
    if method == "medusa":
        return dataclasses.replace(common, layers=(), feature_inputs=1, shares_head=False)
    raise ValueError(f"method {method!r} has no draft head")


def _dense_layer(group: LayerGroup) -> LayerGroup:
    """The dense, ordinary-attention layer that EAGLE-3 heads use, whatever the target.

    SpecForge's heads for mixture-of-experts targets are dense Llama layers."""
    attention, feed_forward = group.attention, group.feed_forward
    if attention.kind in ("latent", "linear"):
        heads = max(attention.num_heads, 1)
        attention = dataclasses.replace(
            attention, kind="full", num_heads=heads, num_kv_heads=max(1, heads // 4),
            head_dim=128, v_head_dim=None, q_lora_rank=None, kv_lora_rank=0,
            qk_nope_head_dim=0, qk_rope_head_dim=0, index_heads=0, index_head_dim=0,
        )  # fmt: skip
    elif attention.kind == "sliding":
        attention = dataclasses.replace(attention, kind="full", window=None)
    if feed_forward.is_moe:
        width = max(
            feed_forward.intermediate_size * feed_forward.experts_per_token,
            feed_forward.shared_intermediate_size,
        )
        feed_forward = dataclasses.replace(
            feed_forward, num_experts=0, experts_per_token=0, intermediate_size=width,
            shared_intermediate_size=0, shared_gate=False, router_bias=False,
        )  # fmt: skip
    return dataclasses.replace(group, attention=attention, feed_forward=feed_forward)
