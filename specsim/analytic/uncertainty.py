"""An interval on a predicted speedup, from what is known about its inputs' errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from specsim.acceptance.law import Array
from specsim.cost.step import StepTime

#: Standard normal quantile of a two-sided 95 % interval.
Z95 = 1.96


@dataclass(frozen=True, kw_only=True, slots=True)
class CostError:
    """Relative standard errors of predicted times.

    `verify_ratio` is that of verify time over baseline time (the errors that the two
    share cancel in a speedup), `draft` that of draft time over baseline time, `overhead`
    that of the runtime's host time. `stack` is that of the speedup itself: versions,
    settings and workloads that the engine's constants do not know.
    """

    verify_ratio: float
    draft: float
    overhead: float
    stack: float


EXACT = CostError(verify_ratio=0.0, draft=0.0, overhead=0.0, stack=0.0)

#: Standard error of the speedup that an engine leaves, chosen so that 95 % intervals cover
#: 95 % of published speedups on GSM8K, MT-Bench and InstructCoder (vLLM, SGLang), and of
#: those over Transformers; `python -m validation published` prints the coverage of the
#: other tasks, which were not used.
STACK_ERROR = {"vllm": 0.105, "sglang": 0.105, "ideal": 0.0}
OTHER_STACK_ERROR = 0.18


def cost_error(engine: str) -> CostError:
    """The errors of the roofline with fitted constants, for a runtime's engine."""
    stack = STACK_ERROR.get(engine, OTHER_STACK_ERROR)
    return CostError(verify_ratio=0.04, draft=0.15, overhead=0.30, stack=stack)


def speedup_interval(
    speedup: Any, step: StepTime, baseline: StepTime, error: CostError, *,
    drafting: Any, routing_error: Any, tau: Any, tau_low: Any, tau_high: Any,
) -> tuple[Array, Array]:  # fmt: skip
    """95 % interval of S = τ·T/(D + V + O), by the delta method on log S.

    Independent relative errors: of V/T, D/T, the host time O (which is in T and in the
    step), how tokens spread over experts (`routing_error`, of S itself) and τ, whose own
    interval (None if unknown) may be lopsided. Where `drafting` is false the step is the
    baseline and has no interval. Shapes: those of `speedup`.
    """
    s = np.asarray(speedup, dtype=float)
    seconds, base = step.seconds, baseline.seconds
    verify = error.verify_ratio * step.verify.seconds / seconds
    draft = error.draft * step.draft.seconds / seconds
    host = error.overhead * np.abs(baseline.overhead_s / base - step.overhead_s / seconds)
    cost = np.where(drafting, verify**2 + draft**2 + host**2 + error.stack**2, 0.0)
    cost = cost + np.where(drafting, np.asarray(routing_error) ** 2, 0.0)
    down = 0.0 if tau_low is None else np.log(tau / tau_low) / Z95
    up = 0.0 if tau_high is None else np.log(tau_high / tau) / Z95
    return (
        np.asarray(s * np.exp(-Z95 * np.sqrt(cost + down**2))),
        np.asarray(s * np.exp(Z95 * np.sqrt(cost + up**2))),
    )
