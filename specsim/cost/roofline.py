"""The roofline: an operation takes as long as its bytes or its FLOPs, plus a fixed time.

Williams et al. 2009, with constants per GPU fitted to measured kernels
(`catalogue/constants.toml`, made by `python -m validation.fit_constants`) in place of
datasheet peaks. docs/cost.md derives every term and lists the errors. For a product of
m×k by k×n, with bytes b and FLOPs f:

    memory  = b / (bandwidth · bandwidth_share · wide(m)) + loop
    compute = f / (peak · compute_share) + loop · (1 + loop_growth · m/128)
    loop    = loop_s · k / (1 + k/loop_depth)
    seconds = fixed_s + (memory^p + compute^p)^(1/p),  p = ridge_exponent
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from specsim.catalogue.specs import GpuSpec
from specsim.cost.operations import Operation, Work, operations
from specsim.cost.source import ForwardTime, OperationTime, smooth_maximum, total
from specsim.deployment import PlacedModel
from specsim.units import dtype_bytes

#: Rows of one tensor-core tile: up to here the same narrow kernels run.
NARROW_ROWS = 16.5
#: Rows by which `loop_growth` counts.
TILE_ROWS = 128.0
#: Keys of one attention tile; a context of d tiles is walked in log2(1 + d) rounds.
KEY_TILE = 256.0
#: Keys that each query is multiplied with in vain: blocks of keys are computed whole, also
#: where the causal mask cuts them, and the loop over them has to fill.
PADDED_KEYS = 128.0
#: Exponent of the smooth maximum for the grouped products of the experts.
EXPERT_EXPONENT = 3.0


def compute_dtype(gpu: GpuSpec, weights: str) -> str:
    """The dtype the tensor cores multiply in: that of the weights where the GPU has such
    units and they are faster, otherwise bf16 (weights are widened in registers, as Marlin
    does: they shrink, the arithmetic does not).

    4-bit integer weights are always widened; there are no int4 units to speak of."""
    if weights == "int4" or gpu.peak_flops.get(weights, 0.0) <= gpu.peak_flops["bf16"]:
        return "bf16"
    return weights


@dataclass(frozen=True, kw_only=True, slots=True)
class Roofline:
    """A cost source: roofline of one GPU.

    `warm` predicts a kernel that runs again and again on the same operands, as tables of
    measured kernels do; a model's own pass is cold.
    """

    gpu: GpuSpec
    warm: bool = False

    @property
    def name(self) -> str:
        """Which constants the prediction rests on."""
        return f"roofline ({self.gpu.name}, constants: {self.gpu.constants_source})"

    def forward_time(
        self, model: PlacedModel, batch: Any, new_tokens: Any, context: Any
    ) -> ForwardTime:
        """T(B, n, L) of one forward pass; shapes broadcast."""
        return self.work_time(model, Work.uniform(batch, new_tokens, context))

    def work_time(self, model: PlacedModel, work: Work) -> ForwardTime:
        """Time of a forward pass over any mix of prefill and decode."""
        return total(self.explain(model, work))

    def explain(self, model: PlacedModel, work: Work) -> list[OperationTime]:
        """Time of every operation of the pass, with what binds it."""
        return [self.operation_time(operation) for operation in operations(model, work)]

    def operation_time(self, op: Operation) -> OperationTime:
        """Roofline of `op.count` equal operations, in seconds."""
        if op.kind == "gemm":
            return _product(self.gpu, op, self.warm)
        if op.kind == "attention":
            return _attention(self.gpu, op, self.warm)
        if op.kind == "experts":
            return _experts(self.gpu, op)
        if op.kind == "allreduce":
            return _all_reduce(self.gpu, op)
        return _small(self.gpu, op)


def _product(gpu: GpuSpec, op: Operation, warm: bool) -> OperationTime:
    dtype = compute_dtype(gpu, op.dtype)
    narrow = dtype != "bf16"
    share = gpu.narrow_compute_share if narrow else gpu.compute_share
    loop = gpu.loop_s * op.k / (1 + op.k / gpu.loop_depth)
    memory = op.num_bytes / (gpu.bandwidth_bytes_per_s * gpu.bandwidth_share * _wide(gpu, op.m))
    if warm and gpu.warm_weights_saving:
        memory = memory * _warm(op.weight_bytes, gpu.warm_weights_bytes, gpu.warm_weights_saving, 4)
    compute = op.flops / (gpu.peak_flops[dtype] * share)
    fixed = gpu.fixed_s
    if narrow:  # the activations are quantised first, in a kernel of its own
        fixed = fixed + gpu.quantise_s + gpu.quantise_element_s * op.m * op.k
    return OperationTime.of(
        op,
        memory_s=memory + loop,
        compute_s=compute + loop * (1 + gpu.loop_growth * op.m / TILE_ROWS),
        link_s=0.0,
        fixed_s=fixed,
        exponent=gpu.ridge_exponent,
    )


def _wide(gpu: GpuSpec, m: Any) -> Any:
    """Share of the narrow kernels' bandwidth that kernels for many rows reach."""
    few = NARROW_ROWS / np.maximum(m, 1.0)
    return 1 - (1 - gpu.wide_share) / (1 + few * few * few * few)


def _attention(gpu: GpuSpec, op: Operation, warm: bool) -> OperationTime:
    """KV bytes against the tiles that read them, and both against the products.

    Several new tokens per sequence (verification) read the cache once and multiply more:
    no table has that, it follows from `tiles` and `flops`.
    """
    narrow = op.dtype != "bf16"
    share = gpu.attention_narrow_share if narrow else gpu.attention_share
    read = op.num_bytes / (gpu.bandwidth_bytes_per_s * share)
    if warm and gpu.warm_kv_saving:
        read = read * _warm(op.kv_bytes, gpu.warm_kv_bytes, gpu.warm_kv_saving, 8)
    tiles = gpu.attention_tile_s * op.tiles * (0.5 + op.k / 256)
    flops = op.flops + 4 * op.m * op.n * op.k * PADDED_KEYS
    walk = gpu.attention_depth_s * np.log2(1 + op.depth / KEY_TILE)
    fixed = gpu.attention_narrow_fixed_s if narrow else gpu.attention_fixed_s
    return OperationTime.of(
        op,
        memory_s=smooth_maximum(read, tiles, gpu.attention_exponent),
        compute_s=flops / (gpu.peak_flops["bf16"] * gpu.attention_compute_share),
        link_s=0.0,
        fixed_s=fixed + walk,
        exponent=gpu.ridge_exponent,
    )


def _experts(gpu: GpuSpec, op: Operation) -> OperationTime:
    dtype = compute_dtype(gpu, op.dtype)
    memory = op.num_bytes / (gpu.bandwidth_bytes_per_s * gpu.expert_share)
    compute = op.flops / (gpu.peak_flops[dtype] * gpu.expert_compute_share)
    return OperationTime.of(
        op, memory_s=memory, compute_s=compute, link_s=0.0, fixed_s=gpu.expert_fixed_s,
        exponent=EXPERT_EXPONENT,
    )  # fmt: skip


def _small(gpu: GpuSpec, op: Operation) -> OperationTime:
    memory = op.num_bytes / (gpu.bandwidth_bytes_per_s * gpu.bandwidth_share)
    return OperationTime.of(
        op, memory_s=memory, compute_s=0.0, link_s=0.0, fixed_s=gpu.small_s,
        exponent=gpu.ridge_exponent,
    )  # fmt: skip


def _all_reduce(gpu: GpuSpec, op: Operation) -> OperationTime:
    """A ring sends and receives 2(g − 1)/g of the message per GPU; a small message costs
    the latency of its hops, one of middling size does not fill the links."""
    moved = 2 * (op.group - 1) / op.group * op.activation_bytes
    moved = moved + np.sqrt(moved * gpu.link_ramp_bytes)
    return OperationTime.of(
        op, memory_s=0.0, compute_s=0.0,
        link_s=moved / (gpu.link_bytes_per_s * gpu.link_share),
        fixed_s=gpu.link_latency_s + gpu.link_hop_s * (op.group - 2),
        exponent=gpu.ridge_exponent,
    )  # fmt: skip


def _warm(num_bytes: Any, capacity: float, saving: float, steepness: int) -> Any:
    """Part of the memory time that is left when operands stay in the level-2 cache."""
    return 1 - saving / (1 + (num_bytes / capacity) ** steepness)


def ridge_tokens(gpu: GpuSpec, weights: str) -> float:
    """Tokens in one pass at which a weight matrix turns from memory- to compute-bound:
    2·m FLOPs per weight against its bytes, at the shares that kernels reach."""
    dtype = compute_dtype(gpu, weights)
    share = gpu.compute_share if dtype == "bf16" else gpu.narrow_compute_share
    bandwidth = gpu.bandwidth_bytes_per_s * gpu.bandwidth_share * gpu.wide_share
    return float(np.divide(gpu.peak_flops[dtype] * share * dtype_bytes(weights), 2 * bandwidth))
