"""The closed form over a whole grid: K × batch × context, vectorised."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from specsim.acceptance.law import Array, Law
from specsim.analytic.drafted import drafted_tokens
from specsim.analytic.uncertainty import Z95, CostError, cost_error, speedup_interval
from specsim.cost.experts import INTERVAL, TYPICAL
from specsim.cost.source import BOUNDS, CostSource, ForwardTime
from specsim.cost.step import StepTime, decode_step
from specsim.deployment import Deployment


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Step times and speedups; arrays are (K, batch, context), baselines (batch, context).

    `tokens_per_s` counts all sequences of the batch.
    """

    deployment: Deployment
    source: CostSource
    num_draft_tokens: tuple[int, ...]
    drafted: Array  # (K,) tokens really proposed
    batch: Array
    context: Array
    baseline: StepTime
    step: StepTime
    acceptance_length: Array  # (K,)
    acceptance_low: Array | None
    acceptance_high: Array | None
    cost_error: CostError
    routing_error: Array  # relative standard error of the speedup, from expert routing

    @property
    def shape(self) -> tuple[int, int, int]:
        """(K, batch, context)."""
        return len(self.num_draft_tokens), len(self.batch), len(self.context)

    def with_law(self, law: Law) -> Grid:
        """The same with another acceptance; costs are computed anew only if the law changes
        how many tokens are drafted."""
        drafted = drafted_tokens(self.deployment.draft, law, self.num_draft_tokens)
        if not np.array_equal(drafted, self.drafted):
            return evaluate(
                self.deployment, self.source, law, self.num_draft_tokens, self.batch,
                self.context, self.cost_error,
            )  # fmt: skip
        changes: dict[str, Any] = dict(_acceptance(law, self.num_draft_tokens))
        return dataclasses.replace(self, **changes)

    @cached_property
    def step_s(self) -> Array:
        """Seconds per step."""
        return np.broadcast_to(self.step.seconds, self.shape)

    @property
    def baseline_tokens_per_s(self) -> Array:
        """Tokens per second without speculation, (batch, context)."""
        return np.broadcast_to(self.batch[:, None] / self.baseline.seconds, self.shape[1:])

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
        low, high = (
            None if bound is None else bound[:, None, None]
            for bound in (self.acceptance_low, self.acceptance_high)
        )
        return speedup_interval(
            self.speedup, self.step, self.baseline, self.cost_error,
            drafting=np.asarray(self.num_draft_tokens)[:, None, None] > 0,
            routing_error=self.routing_error,
            tau=self.acceptance_length[:, None, None], tau_low=low, tau_high=high,
        )  # fmt: skip

    def part(self, name: str) -> Array:
        """`draft`, `verify` or `overhead` seconds, (K, batch, context)."""
        value = self.step.overhead_s if name == "overhead" else getattr(self.step, name).seconds
        return np.broadcast_to(value, self.shape)

    def verify_bound(self) -> np.ndarray[Any, np.dtype[np.object_]]:
        """What binds the verify pass: memory, compute or latency, (K, batch, context)."""
        codes = np.broadcast_to(self.step.verify.bound_code, self.shape)
        return np.asarray(BOUNDS, dtype=object)[codes]


def evaluate(
    deployment: Deployment, source: CostSource, law: Law, num_draft_tokens: Iterable[int],
    batch: Any, context: Any, error: CostError | None = None,
) -> Grid:  # fmt: skip
    """Every K at every batch and context.

    Shapes: `batch` (B,) or scalar, `context` (L,) or scalar. Costs broadcast lazily: what
    does not depend on context is computed once per K and batch.

    `error` replaces the cost errors that the deployment's engine is known to have.

    Raises:
        ValueError: for K < 0, batch < 1 or context < 0.
    """
    ks = tuple(int(k) for k in num_draft_tokens)
    batches = np.atleast_1d(np.asarray(batch, dtype=float))
    contexts = np.atleast_1d(np.asarray(context, dtype=float))
    k, b, c = np.asarray(ks)[:, None, None], batches[:, None], contexts[None, :]
    drafted = drafted_tokens(deployment.draft, law, ks)

    def times(placed: Deployment) -> tuple[StepTime, StepTime]:
        """(plain step, steps of every K)."""
        return (
            decode_step(placed.without_draft(), source, 0, b, c),
            decode_step(placed, source, k, b, c, drafted[:, None, None]),
        )

    baseline, step = times(deployment)
    return Grid(
        deployment=deployment, source=source, drafted=drafted, num_draft_tokens=ks,
        batch=batches, context=contexts, baseline=baseline, step=step,
        cost_error=error or cost_error(deployment.runtime.engine),
        routing_error=_routing_error(deployment, times), **_acceptance(law, ks),  # type: ignore[arg-type]
    )  # fmt: skip


def _routing_error(
    deployment: Deployment, times: Callable[[Deployment], tuple[StepTime, StepTime]]
) -> Array:
    """Half the log-range of the speedup between the cheapest and the dearest expert routing
    that reports support, as a standard error; 0 for dense targets, (K, batch, context)."""
    target = deployment.target
    if not target.spec.is_moe or target.routing != TYPICAL:
        return np.zeros(())  # dense, or the user has said how tokens spread
    ratios = []
    for routing in INTERVAL:
        placed = dataclasses.replace(target, routing=routing)
        plain, step = times(dataclasses.replace(deployment, target=placed))
        ratios.append(np.log(plain.seconds / step.seconds))
    return np.asarray(np.abs(ratios[0] - ratios[1]) / (2 * Z95))


def _acceptance(law: Law, ks: tuple[int, ...]) -> dict[str, Array | None]:
    """τ at every K and the ends of its interval, None where the law has none."""
    bounds = [law.survival_interval(k) for k in ks]
    known = all(pair is not None for pair in bounds)
    return {
        "acceptance_length": np.array([law.acceptance_length(k) for k in ks]),
        "acceptance_low": np.array([1 + p[0].sum() for p in bounds if p]) if known else None,
        "acceptance_high": np.array([1 + p[1].sum() for p in bounds if p]) if known else None,
    }


def components(time: ForwardTime) -> dict[str, float]:
    """Seconds of a scalar pass by what binds them."""
    return {
        "memory_s": float(np.max(time.memory_s)),
        "compute_s": float(np.max(time.compute_s)),
        "latency_s": float(np.max(time.latency_s)),
    }
