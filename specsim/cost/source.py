"""The protocol of a cost source, and what it returns.

A cost source answers "how long does one forward pass of this placed model take, and
what binds it": `roofline.Roofline`, `kernels.Kernels` (measured tables) and
`table.Table` (a calibration file) are interchangeable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from specsim.cost.operations import Array, Operation, Work
from specsim.deployment import PlacedModel

#: Order of the codes in `ForwardTime.bound_code`.
BOUNDS = ("memory", "compute", "latency")


def smooth_maximum(a: Any, b: Any, exponent: float) -> Any:
    """(a^p + b^p)^(1/p) for a, b ≥ 0, without overflow; p → ∞ is the maximum."""
    longest, shortest = np.maximum(a, b), np.minimum(a, b)
    ratio = np.divide(shortest, longest, out=np.zeros_like(longest * 1.0), where=longest > 0)
    return longest * (1 + ratio**exponent) ** (1 / exponent)


@dataclass(frozen=True, kw_only=True, slots=True)
class OperationTime:
    """One operation, `operation.count` times: seconds in all, and by limit.

    `memory_s` and `compute_s` are what each limit alone would take; `seconds` is their
    smooth maximum plus link and fixed time.
    """

    operation: Operation
    seconds: Any
    memory_s: Any
    compute_s: Any
    link_s: Any
    fixed_s: Any

    @staticmethod
    def of(
        operation: Operation, *, memory_s: Any, compute_s: Any, link_s: Any, fixed_s: Any,
        exponent: float,
    ) -> OperationTime:  # fmt: skip
        """Combine the limits of one operation and multiply by its count."""
        n = operation.count
        busy = smooth_maximum(memory_s, compute_s, exponent)
        return OperationTime(
            operation=operation, seconds=n * (busy + link_s + fixed_s), memory_s=n * memory_s,
            compute_s=n * compute_s, link_s=n * link_s, fixed_s=n * fixed_s,
        )  # fmt: skip

    @property
    def bound(self) -> str:
        """What binds a scalar operation."""
        limits = (self.memory_s, self.compute_s, self.link_s + self.fixed_s)
        return BOUNDS[int(np.argmax([float(x) for x in limits]))]


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardTime:
    """Time of one forward pass. All fields are seconds and broadcast together.

    `memory_s`, `compute_s`, `latency_s` say how much of `seconds` is spent in operations
    that each limit binds; they add up to `seconds`.
    """

    seconds: Array
    memory_s: Array
    compute_s: Array
    latency_s: Array

    @property
    def bound_code(self) -> npt.NDArray[np.intp]:
        """Index into `BOUNDS` of the limit that most of the time is spent under."""
        stacked = np.stack(np.broadcast_arrays(self.memory_s, self.compute_s, self.latency_s))
        return np.asarray(np.argmax(stacked, axis=0))

    @property
    def bound(self) -> str:
        """What binds a scalar pass."""
        return BOUNDS[int(self.bound_code)]

    def __add__(self, other: ForwardTime) -> ForwardTime:
        """One pass after the other."""
        return ForwardTime(
            seconds=self.seconds + other.seconds,
            memory_s=self.memory_s + other.memory_s,
            compute_s=self.compute_s + other.compute_s,
            latency_s=self.latency_s + other.latency_s,
        )

    def __mul__(self, times: Any) -> ForwardTime:
        """The same pass `times` times."""
        return ForwardTime(
            seconds=self.seconds * times,
            memory_s=self.memory_s * times,
            compute_s=self.compute_s * times,
            latency_s=self.latency_s * times,
        )


def latency(seconds: Any) -> ForwardTime:
    """Time in which the GPU waits (host, launches)."""
    value = np.asarray(seconds, dtype=float)
    zero = np.zeros_like(value)
    return ForwardTime(seconds=value, memory_s=zero, compute_s=zero, latency_s=value)


ZERO = latency(0.0)


def total(times: Sequence[OperationTime]) -> ForwardTime:
    """Sum of a pass; each operation's busy time goes to the limit that binds it."""
    seconds = np.zeros(())
    parts = [np.zeros(()), np.zeros(()), np.zeros(())]
    for time in times:
        waiting = time.link_s + time.fixed_s
        busy = time.seconds - waiting
        memory_bound = np.asarray(time.memory_s) >= np.asarray(time.compute_s)
        seconds = seconds + time.seconds
        parts[0] = parts[0] + np.where(memory_bound, busy, 0.0)
        parts[1] = parts[1] + np.where(memory_bound, 0.0, busy)
        parts[2] = parts[2] + waiting
    return ForwardTime(
        seconds=np.asarray(seconds), memory_s=parts[0], compute_s=parts[1], latency_s=parts[2]
    )


class CostSource(Protocol):
    """Anything that tells the time of a forward pass."""

    @property
    def name(self) -> str:
        """Printed as the prediction's `sources.cost`."""
        ...

    def forward_time(
        self, model: PlacedModel, batch: Any, new_tokens: Any, context: Any
    ) -> ForwardTime:
        """T(B, n, L): B sequences, n new tokens each, context L; shapes broadcast."""
        ...

    def work_time(self, model: PlacedModel, work: Work) -> ForwardTime:
        """The same for any mix of prefill and decode."""
        ...
