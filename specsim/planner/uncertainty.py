"""How sure a plan is: draws from the stated errors, and one parameter at a time.

The errors are those of the closed form (`analytic.uncertainty.cost_error`: verify and draft
passes, host time, and what the engine's stack leaves unexplained), of the acceptance laws,
and of the GPU's effective bandwidth. A plan and its baseline see the same draws, so that
what they share cancels in their comparison.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specsim.analytic.uncertainty import cost_error
from specsim.planner.candidate import Candidate
from specsim.planner.problem import Problem
from specsim.planner.search import NO_LAW
from specsim.planner.service import (
    Component,
    Point,
    at_batch,
    capacity,
    components,
    curve,
    demanded,
)
from specsim.planner.step_model import StepModel

Array = npt.NDArray[np.float64]

NUM_DRAWS = 240
SEED = 20260517
#: Relative standard error of the bandwidth that a model's pass reaches (the roofline's
#: share is fitted to kernels; whole passes of engines lie within about 5 %).
BANDWIDTH_ERROR = 0.05
#: Further standard error of a speedup on a mixture of experts: the eleven measured points of
#: Qwen3-30B-A3B with EAGLE-3 in two threads (`python -m validation threads`, SpecForge 339
#: and AngelSlim 163) miss by 0.28 in the logarithm, 0.105 of which the stack's error explains.
EXPERTS_ERROR = 0.26
#: The load of a tornado's bar: half and twice the demand.
LOAD_RANGE = (0.5, 2.0)
Z95 = 1.96


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Multiples of the standard errors by which the inputs are moved; `load` multiplies
    the demand."""

    alpha: float = 0.0
    verify: float = 0.0
    draft: float = 0.0
    overhead: float = 0.0
    bandwidth: float = 0.0
    stack: float = 0.0
    load: float = 1.0


NO_SHIFT = Shift()


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of the tornado: the gain over no speculation at the ends of a parameter, the
    smaller one first.

    `low`, `high` are gains in speed (TPOT without over TPOT with speculation) at the
    demanded load, `objective_*` gains in the plan's objective."""

    parameter: str
    low: float
    high: float
    objective_low: float
    objective_high: float
    range_text: str

    @property
    def swing(self) -> float:
        """Width in log speed."""
        return abs(float(np.log(self.high / self.low)))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a shifted candidate does."""

    objective: float
    demand: Point


def outcome(problem: Problem, found: Candidate, shift: Shift = NO_SHIFT) -> Outcome:
    """The candidate's objective (requests/s of a replica within the SLO, or 1/TPOT) and its
    behaviour at the demand, with inputs shifted."""
    model = moved(found.model, found, shift)
    served = curve(problem, model, shifted_parts(problem, found, shift.alpha), found.policy,
                   found.slots)  # fmt: skip
    if problem.rate_per_s is not None:
        point = demanded(problem, served, found.slots,
                         shift.load * problem.rate_per_s / found.replicas)  # fmt: skip
    else:
        clients = shift.load * (problem.concurrency or 1) / found.replicas
        point = at_batch(served, min(clients, found.slots))
    if not problem.has_slo:
        return Outcome(objective=1 / point.tpot_s if point.stable else 0.0, demand=point)
    best = capacity(problem, served, found.slots)
    objective = best.goodput_per_s / found.num_gpus if best else 0.0
    return Outcome(objective=objective, demand=point)


def moved(model: StepModel, found: Candidate, shift: Shift) -> StepModel:
    """Step times with the errors of `found`'s engine applied. The stack's error is that of
    the speedup, so it stretches the whole of a speculative step."""
    error = cost_error(found.deployment.runtime.engine)
    stack = math.exp(shift.stack * stack_error(found))
    return model.scaled(
        draft=math.exp(shift.draft * error.draft),
        verify=math.exp(shift.verify * error.verify_ratio),
        overhead=math.exp(shift.overhead * error.overhead),
        bandwidth=math.exp(shift.bandwidth * BANDWIDTH_ERROR), stack=stack,
    )  # fmt: skip


def stack_error(found: Candidate) -> float:
    """Standard error of a speedup that the engine's stack leaves, more for experts."""
    error = cost_error(found.deployment.runtime.engine)
    experts = EXPERTS_ERROR if found.deployment.target.spec.is_moe else 0.0
    return math.hypot(error.stack, experts)


def shifted_parts(problem: Problem, found: Candidate, alpha: float) -> list[Component]:
    """The candidate's requests with their acceptance moved by `alpha` standard errors."""
    if not alpha:
        return list(found.parts)
    laws = {c.name: NO_LAW if found.option is None else found.option.laws[c.name]
            for c in problem.classes}  # fmt: skip
    return components(problem, laws, found.model.draft_tokens, shift=alpha)


def draws(count: int = NUM_DRAWS) -> list[Shift]:
    """The same draws for every plan."""
    z = np.random.default_rng(SEED).standard_normal((count, 6))
    return [Shift(alpha=float(a), verify=float(v), draft=float(d), overhead=float(o),
                  bandwidth=float(b), stack=float(s)) for a, v, d, o, b, s in z]  # fmt: skip


def objective_draws(problem: Problem, found: Candidate, count: int = NUM_DRAWS) -> Array:
    """The objective under every draw; (count,)."""
    return np.array([outcome(problem, found, shift).objective for shift in draws(count)])


def tpot_draws(problem: Problem, found: Candidate, count: int = NUM_DRAWS) -> Array:
    """Time per output token at the demand under every draw, seconds; (count,)."""
    return np.array([outcome(problem, found, shift).demand.tpot_s for shift in draws(count)])


def tornado(problem: Problem, found: Candidate, off: Candidate) -> list[Bar]:
    """Each input at both ends of its 95 % interval, the widest first."""
    error, stack = cost_error(found.deployment.runtime.engine), stack_error(found)
    ends = {
        "acceptance": (Shift(alpha=-Z95), Shift(alpha=Z95), "95 % interval of the acceptance"),
        "overhead": (Shift(overhead=Z95), Shift(overhead=-Z95),
                     f"host time ±{Z95 * error.overhead:.0%}"),
        "bandwidth": (Shift(bandwidth=-Z95), Shift(bandwidth=Z95),
                      f"memory bandwidth ±{Z95 * BANDWIDTH_ERROR:.0%}"),
        "draft time": (Shift(draft=Z95), Shift(draft=-Z95),
                       f"draft passes ±{Z95 * error.draft:.0%}"),
        "verify ratio": (Shift(verify=Z95), Shift(verify=-Z95),
                         f"verify over plain pass ±{Z95 * error.verify_ratio:.0%}"),
        "engine stack": (Shift(stack=Z95), Shift(stack=-Z95),
                         f"versions and settings, speedup ±{Z95 * stack:.0%}"),
        "load": (Shift(load=LOAD_RANGE[1]), Shift(load=LOAD_RANGE[0]),
                 "twice and half the demand"),
    }  # fmt: skip
    if not stack:
        del ends["engine stack"]
    bars = []
    for name, (low, high, text) in ends.items():
        pairs = [(outcome(problem, found, s), outcome(problem, off, s)) for s in (low, high)]
        speeds = [o.demand.tpot_s / f.demand.tpot_s for f, o in pairs]
        gains = [_ratio(f.objective, o.objective) for f, o in pairs]
        bars.append(Bar(parameter=name, low=min(speeds), high=max(speeds),
                        objective_low=min(gains), objective_high=max(gains),
                        range_text=text))  # fmt: skip
    return sorted(bars, key=lambda bar: -bar.swing)


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else (float("inf") if a > 0 else 1.0)


def interval(values: Array) -> tuple[float, float]:
    """2.5 % and 97.5 % quantiles of what is finite."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return float("nan"), float("nan")
    return float(np.quantile(finite, 0.025)), float(np.quantile(finite, 0.975))
