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

from specsim.catalogue.specs import AttentionSpec, FeedForwardSpec, LayerGroup
from specsim.cost.experts import busiest_share, distinct_experts
from specsim.cost.work import Array, ArrayLike, Work
from specsim.deployment import PlacedModel, kv_elements_per_gpu
from specsim.units import dtype_bytes

__all__ = ["Array", "ArrayLike", "Operation", "Work", "distinct_experts", "operations"]

Kind = Literal["gemm", "attention", "experts", "small", "allreduce"]

#: Bytes of one activation element (16-bit activations, whatever the weights).
ACTIVATION_BYTES = 2.0
#: Fused small kernels per decoder layer in a current engine: two norms (with residual),
#: rotary embedding with cache write, activation. (vLLM's compiled Llama layer.)
SMALL_KERNELS_PER_LAYER = 4
#: Kernels over the logits of a row (to 32 bits, softmax, draw or arg max), and the bytes
#: each reads and writes per logit.
SAMPLING_KERNELS = 3
SAMPLING_BYTES = 6.0
#: Query rows (new tokens × query heads per key–value head) of one attention tile.
QUERY_TILE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One kind of kernel in a forward pass, `count` times; the rest is for one of them.

    `dtype` is what the GPU multiplies in if it can (`weights` of the model).

    gemm: a product `m` × `k` by `k` × `n`; `m` may be an array.
    attention: `dtype` of the cache, `tiles` (sequence, key–value head) pairs of `depth`
    keys each, `n` query heads of `k` elements over `kv_heads`, `m` queries of `batch`
    sequences.
    experts: `m` rows over all `experts`, `top_k` a token, `n` and `k` as in one's product.
    allreduce: `activation_bytes` of message among `group` GPUs.
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
    n: Any = 0
    k: Any = 0
    tiles: Any = 0.0
    depth: Any = 0.0
    batch: Any = 0.0
    kv_heads: Any = 0
    experts: Any = 0
    top_k: Any = 0
    group: Any = 1

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
    logits = work.logit_rows * spec.head_vocab_size
    result.append(
        Operation(
            name="sampling", kind="small", dtype="bf16", count=SAMPLING_KERNELS,
            activation_bytes=logits * SAMPLING_BYTES,
        )
    )  # fmt: skip
    if tp > 1:
        # a gather sends half of what an all-reduce of the same message does
        result.append(
            Operation(
                name="logits all-gather", kind="allreduce", count=1, dtype="bf16",
                activation_bytes=logits * ACTIVATION_BYTES / 2, group=tp,
            )
        )  # fmt: skip
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
            m=work.tokens, n=round(heads), k=attention.linear_value_dim,
            tiles=work.sequences * heads,
        )  # fmt: skip
    new = work.tokens / work.sequences
    limit = attention.window if attention.kind == "sliding" else attention.index_topk or None
    if limit is not None:
        # window plus the new tokens themselves; a sequence shorter than that reads all
        keys = np.minimum(keys, work.sequences * (limit + new - 1))
        pairs = np.minimum(pairs, work.tokens * limit)
    if attention.kind == "latent":
        # absorbed form: every head works on the shared latent vector
        width = 2 * attention.kv_lora_rank + attention.qk_rope_head_dim
        kv_heads, head_dim = 1, attention.kv_lora_rank
    else:
        width = attention.head_dim + (attention.v_head_dim or attention.head_dim)
        kv_heads, head_dim = max(1, -(-attention.num_kv_heads // tp)), attention.head_dim
    # queries that share their keys fill one tile before they need a second
    rows = np.maximum(1.0, new * heads / kv_heads / QUERY_TILE)
    in_out = 2 * work.tokens * heads * attention.head_dim * ACTIVATION_BYTES
    return Operation(
        name=f"attention ({attention.kind})", kind="attention", count=group.count, dtype=model.kv,
        flops=2.0 * heads * width * pairs, kv_bytes=kv_bytes_per_token * keys,
        activation_bytes=in_out, m=work.tokens, n=round(heads), k=head_dim,
        tiles=work.sequences * kv_heads * rows, depth=keys / work.sequences,
        batch=work.sequences, kv_heads=0 if attention.kind == "latent" else kv_heads,
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
    # whole experts spread over `ep` GPUs, each split over the remaining degree
    ep = model.expert_parallel
    split = tp / ep
    visited = distinct_experts(ff, work, model.routing)
    busiest = busiest_share(visited, ff, ep)
    rows = work.tokens * ff.experts_per_token * busiest / np.maximum(visited, 1e-9)
    width = ff.intermediate_size / split
    parameters = ff.expert_parameters(h) / split
    yield Operation(
        name="experts", kind="experts", count=group.count, dtype=dtype,
        flops=2.0 * rows * parameters, weight_bytes=busiest * parameters * dtype_bytes(dtype),
        activation_bytes=rows * (2 * h + 3 * width) * ACTIVATION_BYTES,
        m=rows, n=round(ff.num_matrices * width), k=h, experts=ff.num_experts // ep,
        top_k=ff.experts_per_token / ep,
    )  # fmt: skip
