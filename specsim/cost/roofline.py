"""The roofline: an operation takes as long as its bytes or its FLOPs, plus a fixed time.

Williams et al. 2009, with the shares of peak bandwidth and peak compute that kernels of
each GPU were measured to reach (`catalogue/constants.toml`) in place of datasheet peaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from specsim.catalogue.specs import GpuSpec
from specsim.cost.operations import Operation, Work, operations
from specsim.cost.source import ForwardTime, OperationTime, total
from specsim.deployment import PlacedModel
from specsim.units import dtype_bytes

#: Exponent of the smooth maximum at the ridge: (m^p + c^p)^(1/p). Overlap of loads and
#: products is not perfect near the ridge; p → ∞ is the sharp roofline.
RIDGE_EXPONENT = 4.0


def compute_dtype(gpu: GpuSpec, weights: str) -> str:
    """The dtype the tensor cores multiply in: that of the weights where the GPU has such
    units, otherwise bf16 (weights are widened in registers, as Marlin does).

    4-bit integer weights are always widened; there are no int4 units to speak of."""
    return weights if weights in gpu.peak_flops and weights != "int4" else "bf16"


@dataclass(frozen=True, kw_only=True, slots=True)
class Roofline:
    """A cost source: roofline of one GPU."""

    gpu: GpuSpec

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
        gpu = self.gpu
        if op.kind == "allreduce":
            # ring: each GPU sends and receives 2(g − 1)/g of the message
            moved = 2 * (op.group - 1) / op.group * op.activation_bytes
            link = moved / gpu.link_bytes_per_s
            return OperationTime.of(
                op, memory_s=0.0, compute_s=0.0, link_s=link,
                fixed_s=gpu.link_latency_s, exponent=RIDGE_EXPONENT,
            )  # fmt: skip
        share = gpu.attention_share if op.kind == "attention" else gpu.bandwidth_share
        memory = op.num_bytes / (gpu.bandwidth_bytes_per_s * share)
        peak = gpu.peak_flops[compute_dtype(gpu, op.dtype)] * gpu.compute_share
        return OperationTime.of(
            op, memory_s=memory, compute_s=op.flops / peak, link_s=0.0,
            fixed_s=gpu.fixed_s, exponent=RIDGE_EXPONENT,
        )  # fmt: skip


def ridge_tokens(gpu: GpuSpec, weights: str) -> float:
    """Tokens in one pass at which a weight matrix turns from memory- to compute-bound:
    2·m FLOPs per weight against its bytes, at the shares that kernels reach."""
    peak = gpu.peak_flops[compute_dtype(gpu, weights)] * gpu.compute_share
    bandwidth = gpu.bandwidth_bytes_per_s * gpu.bandwidth_share
    return float(np.divide(peak * dtype_bytes(weights), 2 * bandwidth))
