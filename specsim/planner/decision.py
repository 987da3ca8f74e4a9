"""`specsim.plan`: the decision, with its reasons and how sure it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specsim.analytic.caveats import Caveat
from specsim.planner.answers import Answer, Facts, all_answers
from specsim.planner.candidate import Candidate, scenario_of
from specsim.planner.cautions import cautions
from specsim.planner.problem import BUILT_IN, DEFAULT_ATTAINED, Problem, make_problem
from specsim.planner.search import (
    Found,
    front,
    front_that_serves,
    objective_name,
    rank,
    search,
    with_own_policies,
)
from specsim.planner.simulated import NUM_REQUESTS, Simulated, refusal, simulated
from specsim.planner.uncertainty import (
    Bar,
    interval,
    objective_draws,
    outcome,
    tornado,
    tpot_draws,
)
from specsim.scenario.document import Scenario
from specsim.units import human_seconds

if TYPE_CHECKING:
    import pandas as pd

#: Objectives that differ by less than the resolution of a simulated capacity are equal.
TIE = 0.02
#: Called with one line about what is being done.
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A candidate after simulation: `objective` with its 95 % interval, `regret` the share
    of the best plan's objective that it loses."""

    candidate: Candidate
    objective: float
    low: float
    high: float
    regret: float
    simulated: Simulated | None

    def to_dict(self, problem: Problem) -> dict[str, Any]:
        """As in `plan --json`."""
        found = self.candidate
        return {
            "scenario": scenario_of(problem, found).to_dict(), "draft": found.label,
            "policy": found.policy.kind, "num_draft_tokens": found.largest_k,
            "gpus": found.total_gpus, "objective": self.objective, "low": self.low,
            "high": self.high, "regret": self.regret,
            "tpot_s": self.demand_tpot_s, "simulated": self.simulated is not None,
        }  # fmt: skip

    @property
    def demand_tpot_s(self) -> float:
        """Time per output token at the demanded load, simulated where it was."""
        return self.simulated.demand.tpot_s if self.simulated else self.candidate.demand.tpot_s

    @property
    def capacity_per_s(self) -> float | None:
        """Requests/s of one replica within the SLO."""
        if self.simulated is not None and self.simulated.capacity_per_s is not None:
            return self.simulated.capacity_per_s
        return self.candidate.capacity.rate_per_s if self.candidate.capacity else None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run. `best` is a scenario; `answers` are the ten questions of a planner;
    `probability_better_than_off` is that of the best speculative plan (None without one)."""

    problem: Problem
    found: Found
    ranked: tuple[Ranked, ...]
    baseline: Ranked
    probability_better_than_off: float | None
    sensitivity: tuple[Bar, ...]
    answers: tuple[Answer, ...]
    warnings: tuple[Caveat, ...]
    facts: Facts

    @property
    def chosen(self) -> Ranked:
        """The plan behind `best`."""
        return self.ranked[0]

    @cached_property
    def best(self) -> Scenario:
        """The scenario to run."""
        return scenario_of(self.problem, self.chosen.candidate)

    @property
    def objective(self) -> str:
        """What plans are ranked by, with its unit."""
        return objective_name(self.problem)

    @property
    def schedule(self) -> list[list[int]]:
        """[batch_lo, batch_hi, K] rows; one row with K = 0 when speculation is off."""
        return self.chosen.candidate.schedule()

    @cached_property
    def table(self) -> pd.DataFrame:
        """Every candidate that was evaluated, the chosen first: one row each, from the
        closed form, with the simulator's columns where it was run."""
        import pandas as pd

        replayed = {id(r.candidate): r for r in (*self.ranked, self.baseline)}
        chosen = self.chosen.candidate
        order = sorted(self.found.candidates, key=lambda c: (c is not chosen, rank(c)))
        return pd.DataFrame([_row(c, replayed.get(id(c))) for c in order])

    def to_dict(self) -> dict[str, Any]:
        """The keys of `plan --json`."""
        return {
            "best": self.best.to_dict(),
            "objective": {"name": self.objective, "value": self.chosen.objective,
                          "low": self.chosen.low, "high": self.chosen.high},
            "alternatives": [r.to_dict(self.problem) for r in self.ranked[1:]],
            "baseline": self.baseline.to_dict(self.problem),
            "answers": [a.to_dict() for a in self.answers],
            "schedule": self.schedule,
            "probability_better_than_off": self.probability_better_than_off,
            "sensitivity": [
                {"parameter": b.parameter, "low": b.low, "high": b.high,
                 "objective_low": b.objective_low, "objective_high": b.objective_high,
                 "range": b.range_text}
                for b in self.sensitivity
            ],
            "candidates": len(self.found.candidates),
            "warnings": [{"code": w.code, "message": w.message} for w in self.warnings],
        }  # fmt: skip

    def plot(self, ax: Any = None) -> Any:
        """Rate against time per output token for each plan and for no speculation."""
        from specsim.plots import plan_curves

        return plan_curves(self.curves(), self.limits(), ax=ax)

    def curves(self) -> list[dict[str, Any]]:
        """Arrays for figures: one curve per ranked plan and the baseline."""
        plans = list({id(r.candidate): r.candidate
                      for r in (*self.ranked[:4], self.baseline)}.values())  # fmt: skip
        return [
            {
                "label": f"{c.label}, {c.policy.kind}" if c.speculates else "no speculation",
                "speculates": c.speculates,
                "rate_per_s_per_gpu": c.curve.rate_per_s / c.num_gpus,
                "tpot_s": c.curve.tpot_s, "ttft_s": c.curve.ttft_s,
                "attained": c.curve.attained.min(axis=0), "batch": c.curve.batch,
                "slots": c.slots,
            }
            for c in plans
        ]  # fmt: skip

    def limits(self) -> dict[str, Any]:
        """The tightest TPOT limit and the demanded rate per GPU, for figures."""
        tpot = [c.objective.tpot_s for c in self.problem.classes if c.objective.tpot_s]
        rate = self.problem.rate_per_s
        return {
            "tpot_s": min(tpot, default=None),
            "rate_per_s_per_gpu": None if rate is None
            else rate / self.chosen.candidate.total_gpus,
        }  # fmt: skip

    def to_html(self, path: str | Path | None = None) -> str:
        """One self-contained page with figures; also written to `path` if given.

        Raises:
            ScenarioError: if it cannot be written.
        """
        from specsim.planner.report import html_report, write

        text = html_report(self)
        if path is not None:
            write(text, Path(path))
        return text

    def _repr_html_(self) -> str:
        from specsim.planner.report import html_fragment

        return html_fragment(self)


def plan(
    scenario: Scenario | None = None, *, gpus: Sequence[str] | None = None,
    max_gpus: int | None = None, budget_usd_per_h: float | None = None,
    drafts: Iterable[str] | None = None, attained: float = DEFAULT_ATTAINED,
    simulate: bool = True, num_requests: int = NUM_REQUESTS, progress: Progress | None = None,
) -> Plan:  # fmt: skip
    """Choose draft, K, policy, batch limit, parallel degree and GPUs for a scenario.

    Args:
        scenario: traffic, SLO, target and GPUs; the article's 70B chat service without one.
            Its draft and acceptance are the measured ones; other drafts get estimates.
        gpus: GPU types to choose from (the scenario's). Several with known prices compete
            per dollar.
        max_gpus: at most so many GPUs, as few as the demand needs; `budget_usd_per_h`
            limits their price instead. Without either, all of the scenario's are used
            (tensor_parallel × replicas).
        drafts: narrows the drafts: names or methods. None means all that go with the target.
        attained: share of every class's requests that must meet its SLO.
        simulate: replay the best plans in the simulator; otherwise the closed form decides.
        num_requests: of one simulated run.

    Returns:
        A `Plan`: `.best` (a Scenario), `.table`, `.answers`, `.plot()`, `.to_html()`.

    Raises:
        DoesNotFitError: if the target does not fit on the GPUs, or not with the longest
            simulated request.
        SpecsimError: for names and limits that are not valid.

    Example:
        >>> import specsim as ss
        >>> scenario = ss.Scenario.from_dict({
        ...     "target": {"model": "llama-3.1-8b"}, "draft": {"model": "llama-3.2-1b"},
        ...     "hardware": {"gpu": "h100-sxm"}, "acceptance": {"alpha": 0.75},
        ...     "workload": {"arrivals": {"process": "poisson", "rate_per_s": 2.0}},
        ...     "slo": {"tpot_s": 0.03},
        ... })
        >>> plan = ss.plan(scenario, drafts=["llama-3.2-1b"], simulate=False)
        >>> plan.best.draft.model, len(plan.answers)
        ('llama-3.2-1b', 10)
    """
    say = progress or (lambda line: None)
    chosen = Scenario.from_dict(BUILT_IN, "built-in scenario") if scenario is None else scenario
    problem = make_problem(chosen, gpus=gpus, max_gpus=max_gpus, drafts=drafts,
                           budget_usd_per_h=budget_usd_per_h, attained=attained)  # fmt: skip
    say("closed form over drafts, K, batch limits and parallel degrees")
    found = search(problem)
    if simulate:
        found, plans = front_that_serves(found, partial(refusal, problem))
        plans = with_own_policies(plans)
    else:
        plans = front(found)
    replays: dict[int, Simulated] = {}
    if simulate:
        start = time.perf_counter()
        for done, candidate in enumerate(plans):
            left = ""
            if done:
                each = (time.perf_counter() - start) / done
                left = f", {human_seconds(each * (len(plans) - done))} left"
            say(f"simulating {done + 1} of {len(plans)}: {candidate.label}, "
                f"{candidate.policy.kind}{left}")  # fmt: skip
            replays[id(candidate)] = simulated(problem, candidate, num_requests)
    say("uncertainty")
    return decided(problem, found, plans, replays)


def decided(
    problem: Problem, found: Found, plans: list[Candidate], replays: dict[int, Simulated]
) -> Plan:
    """The plan, given what was simulated."""
    objective = {id(c): c.objective * _replayed_share(problem, c, replays.get(id(c)))
                 for c in plans}  # fmt: skip
    sampled = {id(c): _sampled(problem, c, objective[id(c)]) for c in plans}
    ordered = _ordered(plans, objective, replays)
    off = found.baseline
    spec = next((c for c in ordered if c.speculates), None)
    probability = None if spec is None else _probability(problem, spec, off, sampled)
    if probability is not None and probability < 0.5:  # the odds decide
        ordered = [off, *(c for c in ordered if c is not off)]
    top = max(objective[id(ordered[0])], 1e-12)
    ranked = tuple(
        _ranked(c, objective[id(c)], top, sampled[id(c)], replays.get(id(c))) for c in ordered
    )
    baseline = next(r for r in ranked if r.candidate is off)
    subject = spec or off
    here = off_here(found, subject)
    bars = tuple(tornado(problem, subject, here)) if spec is not None else ()
    facts = Facts(
        problem=problem, found=found, best=ordered[0], spec=spec, off=here, overall_off=off,
        replays=replays, objective=objective, sampled=sampled, bars=bars,
        probability=probability,
    )  # fmt: skip
    return Plan(
        problem=problem, found=found, ranked=ranked, baseline=baseline,
        probability_better_than_off=probability, sensitivity=bars,
        answers=tuple(all_answers(facts)), warnings=tuple(cautions(facts)), facts=facts,
    )  # fmt: skip


def _ordered(
    plans: list[Candidate], objective: dict[int, float], replays: dict[int, Simulated]
) -> list[Candidate]:
    """By objective; those too near to the best to tell apart by speed at the demand."""
    top = max(objective.values())

    def key(c: Candidate) -> tuple[Any, ...]:
        value = objective[id(c)]
        level = -top if value >= (1 - TIE) * top else -value
        replay = replays.get(id(c))
        tpot = replay.demand.tpot_s if replay else c.demand.tpot_s
        return level, round(float(np.log(tpot)), 2), rank(c)

    return sorted(plans, key=key)


def off_here(found: Found, subject: Candidate) -> Candidate:
    """No speculation on the same GPUs as `subject`: the baseline of a speedup."""
    target = subject.deployment.target
    for candidate in found.candidates:
        same = candidate.deployment.gpu.name == subject.deployment.gpu.name
        if candidate.option is None and same and \
                candidate.deployment.target.tensor_parallel == target.tensor_parallel:  # fmt: skip
            return candidate
    return found.baseline


def _sampled(problem: Problem, candidate: Candidate, objective: float) -> Any:
    """Draws of the objective, scaled so that the unshifted inputs give `objective`."""
    nominal = outcome(problem, candidate).objective
    values = objective_draws(problem, candidate)
    return values * (objective / nominal) if nominal > 0 else values


def _probability(
    problem: Problem, spec: Candidate, off: Candidate, sampled: dict[int, Any]
) -> float:
    """Share of the draws in which speculation does better; in speed at the demand in those
    in which neither meets the SLO at any load."""
    with_it, without = sampled[id(spec)], sampled[id(off)]
    better = with_it > without
    neither = (with_it <= 0) & (without <= 0)
    if np.any(neither):
        better = np.where(neither, tpot_draws(problem, spec) < tpot_draws(problem, off), better)
    return float(np.mean(better))


def _replayed_share(problem: Problem, candidate: Candidate, replay: Simulated | None) -> float:
    """Simulated over predicted objective."""
    if replay is None:
        return 1.0
    if not problem.has_slo:
        return candidate.demand.tpot_s / replay.demand.tpot_s if replay.demand.tpot_s else 1.0
    if replay.capacity_per_s is None or candidate.capacity is None:
        return 1.0
    return replay.capacity_per_s / candidate.capacity.rate_per_s


def _ranked(
    candidate: Candidate, objective: float, top: float, sampled: Any, replay: Simulated | None
) -> Ranked:
    low, high = interval(sampled)
    return Ranked(candidate=candidate, objective=objective, low=low, high=high,
                  regret=1 - objective / top, simulated=replay)  # fmt: skip


def _row(candidate: Candidate, ranked: Ranked | None) -> dict[str, Any]:
    capacity, replay = candidate.capacity, ranked.simulated if ranked else None
    return {
        "draft": candidate.label, "policy": candidate.policy.kind,
        "num_draft_tokens": candidate.largest_k, "gpu": candidate.deployment.gpu.name,
        "tensor_parallel": candidate.deployment.target.tensor_parallel,
        "draft_tensor_parallel": candidate.draft_tensor_parallel,
        "replicas": candidate.replicas, "gpus": candidate.total_gpus,
        "max_num_seqs": candidate.batch_limit, "objective": candidate.objective,
        "capacity_per_s": capacity.rate_per_s if capacity else None,
        "demand_tpot_s": candidate.demand.tpot_s, "demand_ttft_s": candidate.demand.ttft_s,
        "demand_batch": candidate.demand.batch, "demand_attained": candidate.demand.attained,
        "max_concurrency": candidate.slots,
        "acceptance": "none" if candidate.option is None
        else ("given" if candidate.option.measured else "estimate"),
        "simulated_capacity_per_s": replay.capacity_per_s if replay else None,
        "simulated_tpot_s": replay.demand.tpot_s if replay else None,
        "simulated_ttft_s": replay.demand.ttft_s if replay else None,
    }  # fmt: skip
