"""The closed form over a whole grid: K × batch × context, vectorised."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from specsim.acceptance.law import Array, Law
from specsim.analytic.uncertainty import COST_ERROR, CostError, speedup_interval
from specsim.cost.source import BOUNDS, CostSource, ForwardTime
from specsim.cost.step import StepTime, decode_step
from specsim.deployment import Deployment


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Step times and speedups; arrays are (K, batch, context), baselines (batch, context).

    `tokens_per_s` counts all sequences of the batch.
    """

    num_draft_tokens: tuple[int, ...]
    batch: Array
    context: Array
    baseline: StepTime
    steps: tuple[StepTime, ...]
    acceptance_length: Array  # (K,)
    acceptance_low: Array | None
    acceptance_high: Array | None
    cost_error: CostError

    @property
    def step_s(self) -> Array:
        """Seconds per step."""
        return np.stack([self._full(step.seconds) for step in self.steps])

    @property
    def baseline_tokens_per_s(self) -> Array:
        """Tokens per second without speculation, (batch, context)."""
        return self._full(self.batch[:, None] / self.baseline.seconds)

    @property
    def tokens_per_s(self) -> Array:
        """Tokens per second of the whole batch."""
        return self.batch[:, None] * self.acceptance_length[:, None, None] / self.step_s

    @property
    def speedup(self) -> Array:
        """Tokens per second over the baseline's."""
        return np.asarray(self.tokens_per_s / self.baseline_tokens_per_s)

    def interval(self) -> tuple[Array, Array]:
        """95 % interval of the speedup, from acceptance and cost uncertainty."""
        low, high = [], []
        for i, step in enumerate(self.steps):
            bounds = speedup_interval(
                self.speedup[i], step, self.baseline, self.cost_error,
                tau=float(self.acceptance_length[i]),
                tau_low=None if self.acceptance_low is None else float(self.acceptance_low[i]),
                tau_high=None if self.acceptance_high is None else float(self.acceptance_high[i]),
            )  # fmt: skip
            low.append(self._full(bounds[0]))
            high.append(self._full(bounds[1]))
        return np.stack(low), np.stack(high)

    def _full(self, value: Any) -> Array:
        return np.broadcast_to(np.asarray(value, dtype=float), (len(self.batch), len(self.context)))

    def part(self, name: str) -> Array:
        """`draft`, `verify` or `overhead` seconds, (K, batch, context)."""
        if name == "overhead":
            return np.stack([self._full(step.overhead_s) for step in self.steps])
        return np.stack([self._full(getattr(step, name).seconds) for step in self.steps])

    def verify_bound(self) -> np.ndarray[Any, np.dtype[np.object_]]:
        """What binds the verify pass: memory, compute or latency, (K, batch, context)."""
        codes = [
            np.broadcast_to(step.verify.bound_code, (len(self.batch), len(self.context)))
            for step in self.steps
        ]
        return np.asarray(BOUNDS, dtype=object)[np.stack(codes)]


def evaluate(
    deployment: Deployment, source: CostSource, law: Law, num_draft_tokens: Iterable[int],
    batch: Any, context: Any, cost_error: CostError = COST_ERROR,
) -> Grid:  # fmt: skip
    """Every K at every batch and context.

    Shapes: `batch` (B,) or scalar, `context` (L,) or scalar. Costs are computed once per
    (K, batch, context) and broadcast lazily, acceptance once per K.

    Raises:
        ValueError: for K < 0, batch < 1 or context < 0.
    """
    ks = tuple(int(k) for k in num_draft_tokens)
    batches = np.atleast_1d(np.asarray(batch, dtype=float))
    contexts = np.atleast_1d(np.asarray(context, dtype=float))
    b, c = batches[:, None], contexts[None, :]
    steps = tuple(decode_step(deployment, source, k, b, c) for k in ks)
    baseline = decode_step(deployment.without_draft(), source, 0, b, c)
    bounds = [law.survival_interval(k) for k in ks]
    known = all(pair is not None for pair in bounds)
    return Grid(
        num_draft_tokens=ks, batch=batches, context=contexts, baseline=baseline, steps=steps,
        acceptance_length=np.array([law.acceptance_length(k) for k in ks]),
        acceptance_low=np.array([1 + p[0].sum() for p in bounds if p]) if known else None,
        acceptance_high=np.array([1 + p[1].sum() for p in bounds if p]) if known else None,
        cost_error=cost_error,
    )  # fmt: skip


def components(time: ForwardTime) -> dict[str, float]:
    """Seconds of a scalar pass by what binds them."""
    return {
        "memory_s": float(np.max(time.memory_s)),
        "compute_s": float(np.max(time.compute_s)),
        "latency_s": float(np.max(time.latency_s)),
    }
