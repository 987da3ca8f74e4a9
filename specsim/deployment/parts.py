"""A deployment: the target, the draft, the GPU and the runtime, resolved and placed.

Every cost source, the closed form and the simulator take these objects; `build` makes
them.
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

    Of `tensor_parallel` GPUs, `expert_parallel` hold different whole experts (1: every
    expert is split over all of them); their outputs meet in the all-reduce that tensor
    parallelism needs anyway.

    Raises:
        ValueError: if the degree does not divide the attention heads, `expert_parallel`
            does not divide the degree, or a dtype is unknown.
    """

    spec: ModelSpec
    weights: str = "bf16"
    kv: str = "bf16"
    tensor_parallel: int = 1
    expert_parallel: int = 1
    routing: Routing = Routing()

    def __post_init__(self) -> None:
        dtype_bytes(self.weights)
        dtype_bytes(self.kv)
        if self.tensor_parallel < 1:
            raise ValueError(f"tensor_parallel={self.tensor_parallel} < 1")
        if self.expert_parallel < 1 or self.tensor_parallel % self.expert_parallel:
            raise ValueError(
                f"expert_parallel={self.expert_parallel} does not divide "
                f"tensor_parallel={self.tensor_parallel}"
            )
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

    @property
    def reads_prompts(self) -> bool:
        """Whether the drafter computes prompts, and so has a KV cache of its own: layers of
        the target and Medusa's heads have none."""
        return self.model is not None and self.method not in ("early-exit", "medusa")


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
