"""What one forward pass does: a list of operations with their FLOPs and bytes.

Every count is per GPU (tensor parallelism divides weights, heads and products) and may
be an array: shapes broadcast over batch, new tokens and context. Nothing here knows how
fast a GPU is; see `roofline` and `kernels`.

Sources: counting of decoder layers as in Kaplan et al. 2020 and nanoGPT's
transformer_sizing; latent attention with absorbed projections as in DeepSeek-V2, §2.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from specsim.catalogue.specs import AttentionSpec, FeedForwardSpec, LayerGroup
from specsim.deployment import PlacedModel, Routing, kv_elements_per_gpu
from specsim.units import dtype_bytes

Array = npt.NDArray[np.float64]
ArrayLike = npt.ArrayLike
Kind = Literal["gemm", "attention", "experts", "small", "allreduce"]

#: Bytes of one activation element (16-bit activations, whatever the weights).
ACTIVATION_BYTES = 2.0
#: Fused small kernels per decoder layer in a current engine: two norms (with residual),
#: rotary embedding with cache write, activation. (vLLM's compiled Llama layer.)
SMALL_KERNELS_PER_LAYER = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a forward pass is asked to do, summed over its sequences; arrays broadcast.

    tokens:    new tokens that go through the weight matrices;
    sequences: sequences in the batch;
    logit_rows: rows through the output head;
    kv_tokens: keys read by attention: Σ (context + new tokens) over sequences;
    pairs:     query–key pairs: Σ over new tokens of the keys each one attends to.
    """

    tokens: Any
    sequences: Any
    logit_rows: Any
    kv_tokens: Any
    pairs: Any

    @staticmethod
    def uniform(batch: ArrayLike, new_tokens: ArrayLike, context: ArrayLike) -> Work:
        """B sequences, n new tokens each after L cached ones (decode: n = 1; verify:
        n = K + 1), logits for every new token.

        Raises:
            ValueError: if batch < 1, new_tokens < 1 or context < 0 anywhere.
        """
        b, n, c = (np.asarray(x, dtype=float) for x in (batch, new_tokens, context))
        for name, value, least in (("batch", b, 1), ("new_tokens", n, 1), ("context", c, 0)):
            if not np.all(value >= least):  # also catches NaN
                raise ValueError(f"{name}={np.min(value)} < {least}")
        return Work(
            tokens=b * n, sequences=b, logit_rows=b * n,
            kv_tokens=b * (c + n), pairs=b * n * (c + (n + 1) / 2),
        )  # fmt: skip

    @staticmethod
    def prefill(batch: ArrayLike, prompt_tokens: ArrayLike, cached: ArrayLike = 0) -> Work:
        """Prompts (or chunks of them) of which only the last token needs logits."""
        work = Work.uniform(batch, prompt_tokens, cached)
        return Work(
            tokens=work.tokens, sequences=work.sequences, logit_rows=work.sequences,
            kv_tokens=work.kv_tokens, pairs=work.pairs,
        )  # fmt: skip

    def __add__(self, other: Work) -> Work:
        """Both in one pass (chunked prefill beside decoding)."""
        return Work(
            tokens=self.tokens + other.tokens,
            sequences=self.sequences + other.sequences,
            logit_rows=self.logit_rows + other.logit_rows,
            kv_tokens=self.kv_tokens + other.kv_tokens,
            pairs=self.pairs + other.pairs,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One kind of kernel in a forward pass, `count` times; the rest is for one of them.

    `dtype` is what the GPU multiplies in if it can (`weights` of the model); for a
    product `m` × `k` by `k` × `n`, `m` may be an array. Bytes of an all-reduce are those
    of its message.
    """

    name: str
    kind: Kind
    count: int
    dtype: str
    flops: Any = 0.0
    weight_bytes: Any = 0.0
    activation_bytes: Any = 0.0
    kv_bytes: Any = 0.0
    m: Any = 0.0
    n: int = 0
    k: int = 0
    group: int = 1  # GPUs that take part (all-reduce)

    @property
    def num_bytes(self) -> Any:
        """All bytes moved by one of them."""
        return self.weight_bytes + self.activation_bytes + self.kv_bytes


def operations(model: PlacedModel, work: Work) -> list[Operation]:
    """The operations of one forward pass of `model`, on one of its GPUs.

    Shapes: fields of the operations broadcast over the fields of `work`.
    """
    spec, tp = model.spec, model.tensor_parallel
    result: list[Operation] = []
    if spec.fusion_inputs:  # a draft head fuses features of the target first
        width = spec.fusion_inputs
        result.append(_gemm("fusion", 1, model.weights, work.tokens, width, spec.hidden_size))
    for group in spec.layers:
        result += _layer(model, group, work)
    num_layers = spec.num_layers
    touched = work.tokens * spec.hidden_size * ACTIVATION_BYTES
    result.append(
        Operation(
            name="norms, rotary, activation", kind="small", dtype="bf16",
            count=SMALL_KERNELS_PER_LAYER * num_layers + 2, activation_bytes=2 * touched,
        )
    )  # fmt: skip
    head_dtype = "bf16" if dtype_bytes(model.weights) < 2 else model.weights
    result.append(
        _gemm(
            "lm_head", 1, head_dtype, work.logit_rows, spec.hidden_size, spec.head_vocab_size / tp
        )
    )
    if tp > 1:
        per_layer = sum(
            group.count * (2 + (group.cross_attention is not None)) for group in spec.layers
        )
        result.append(
            Operation(
                name="all-reduce", kind="allreduce", count=per_layer, dtype="bf16",
                activation_bytes=touched, group=tp,
            )
        )  # fmt: skip
    return result


def _gemm(name: str, count: int, dtype: str, m: Any, k: float, n: float) -> Operation:
    """m×k by k×n: 2mnk FLOPs, the weights once, inputs and outputs once."""
    return Operation(
        name=name, kind="gemm", count=count, dtype=dtype, flops=2.0 * m * k * n,
        weight_bytes=n * k * dtype_bytes(dtype), activation_bytes=m * (n + k) * ACTIVATION_BYTES,
        m=m, n=round(n), k=round(k),
    )  # fmt: skip


def _layer(model: PlacedModel, group: LayerGroup, work: Work) -> Iterator[Operation]:
    h, tp = model.spec.hidden_size, model.tensor_parallel
    for attention in (group.attention, group.cross_attention):
        if attention is None:
            continue
        for name, inputs, outputs in attention.projections(h):
            k, n = _split(name, inputs, outputs, tp)
            yield _gemm(name, group.count, model.weights, work.tokens, k, n)
        yield _attention(model, group, attention, work)
    yield from _feed_forward(model, group, group.feed_forward, work)


def _split(name: str, inputs: int, outputs: int, tp: int) -> tuple[float, float]:
    """Column- or row-parallel (Megatron-LM): o_proj splits its inputs, the rest their
    outputs; the small latent down-projections are replicated."""
    if name in ("q_a_proj", "kv_a_proj", "index_k_proj", "index_weights_proj", "index_q_proj"):
        return inputs, outputs
    if name == "o_proj":
        return inputs / tp, outputs
    return inputs, outputs / tp


def _attention(
    model: PlacedModel, group: LayerGroup, attention: AttentionSpec, work: Work
) -> Operation:
    tp = model.tensor_parallel
    heads = max(attention.num_heads, attention.linear_value_heads) / tp
    kv_bytes_per_token = kv_elements_per_gpu(group, tp) * dtype_bytes(model.kv)
    if attention.shares_kv:  # reads an earlier layer's cache of the same shape
        kv_heads = max(1, -(-attention.num_kv_heads // tp))
        kv_bytes_per_token = 2 * kv_heads * attention.head_dim * dtype_bytes(model.kv)
    keys, pairs = work.kv_tokens, work.pairs
    if attention.kind == "linear":
        state = attention.state_elements() / tp * dtype_bytes("fp32")
        # the state is read and written once; each token updates and queries it
        per_token = 4.0 * attention.linear_key_dim * attention.linear_value_dim * heads
        return Operation(
            name="linear attention", kind="attention", count=group.count, dtype="bf16",
            flops=work.tokens * per_token, kv_bytes=2.0 * work.sequences * state,
        )  # fmt: skip
    limit = attention.window if attention.kind == "sliding" else attention.index_topk or None
    if limit is not None:
        new = work.tokens / work.sequences
        # window plus the new tokens themselves; a sequence shorter than that reads all
        keys = np.minimum(keys, work.sequences * (limit + new - 1))
        pairs = np.minimum(pairs, work.tokens * limit)
    if attention.kind == "latent":
        # absorbed form: every head works on the shared latent vector
        width = 2 * attention.kv_lora_rank + attention.qk_rope_head_dim
    else:
        width = attention.head_dim + (attention.v_head_dim or attention.head_dim)
    in_out = 2 * work.tokens * heads * attention.head_dim * ACTIVATION_BYTES
    return Operation(
        name=f"attention ({attention.kind})", kind="attention", count=group.count, dtype="bf16",
        flops=2.0 * heads * width * pairs, kv_bytes=kv_bytes_per_token * keys,
        activation_bytes=in_out, m=work.tokens,
    )  # fmt: skip


def _feed_forward(
    model: PlacedModel, group: LayerGroup, ff: FeedForwardSpec, work: Work
) -> Iterator[Operation]:
    h, tp, dtype = model.spec.hidden_size, model.tensor_parallel, model.weights
    if not ff.is_moe:
        up = ff.intermediate_size * (ff.num_matrices - 1) / tp
        yield _gemm("gate_up_proj", group.count, dtype, work.tokens, h, up)
        yield _gemm("down_proj", group.count, dtype, work.tokens, ff.intermediate_size / tp, h)
        return
    yield _gemm("router", group.count, "bf16", work.tokens, h, ff.num_experts)
    if ff.shared_intermediate_size:
        up = ff.shared_intermediate_size * (ff.num_matrices - 1) / tp
        down = ff.shared_intermediate_size / tp
        yield _gemm("shared gate_up_proj", group.count, dtype, work.tokens, h, up)
        yield _gemm("shared down_proj", group.count, dtype, work.tokens, down, h)
    visited = distinct_experts(ff, work, model.routing)
    expert_bytes = ff.expert_parameters(h) / tp * dtype_bytes(dtype)
    rows = work.tokens * ff.experts_per_token
    width = ff.intermediate_size / tp
    yield Operation(
        name="experts", kind="experts", count=group.count, dtype=dtype,
        flops=2.0 * rows * ff.expert_parameters(h) / tp, weight_bytes=visited * expert_bytes,
        activation_bytes=rows * (2 * h + 3 * width) * ACTIVATION_BYTES,
        m=rows, n=round(ff.num_matrices * width), k=h,
    )  # fmt: skip


def distinct_experts(ff: FeedForwardSpec, work: Work, routing: Routing) -> Array:
    """Expected number of experts that at least one token of the pass visits.

    Uniform independent routing: E(1 − (1 − k/E)^n). With `skew` the popularity of expert
    i is ∝ i^−skew, scaled so that k experts are visited per token, and the expectation
    is Σ_i 1 − (1 − p_i)^n. With `overlap` ρ a drafted token brings (1 − ρ) independent
    draws; the first token of every sequence brings a whole one.

    Shapes: that of `work.tokens`.
    """
    tokens = np.asarray(work.tokens, dtype=float)
    first = np.minimum(np.asarray(work.sequences, dtype=float), tokens)
    independent = first + (1 - routing.overlap) * (tokens - first)
    top_k, count = ff.experts_per_token, ff.num_experts
    if routing.skew == 0:
        return np.asarray(count * (1 - (1 - top_k / count) ** independent))
    popularity = _expert_popularity(count, top_k, routing.skew)
    return np.asarray(np.sum(1 - (1 - popularity) ** independent[..., None], axis=-1))


def _expert_popularity(count: int, top_k: int, skew: float) -> Array:
    """P(a token visits expert i), Σ = top_k, each ≤ 1 (excess is passed down the ranks)."""
    weights = np.arange(1, count + 1, dtype=float) ** -skew
    probability = np.zeros(count)
    free = np.ones(count, dtype=bool)
    for _ in range(count):
        scale = (top_k - np.sum(probability[~free])) / np.sum(weights[free])
        probability[free] = weights[free] * scale
        over = free & (probability > 1)
        if not over.any():
            break
        probability[over] = 1.0
        free &= ~over
    return probability
