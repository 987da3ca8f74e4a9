"""The search: every draft, K, policy, batch limit, parallel degree and GPU, in closed form."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from specsim import catalogue
from specsim.cost.memory import memory
from specsim.deployment import Deployment
from specsim.errors import DoesNotFitError, ScenarioError
from specsim.planner.candidate import Candidate, slots_of
from specsim.planner.drafts import DraftOption, draft_options
from specsim.planner.problem import Problem, middle_price
from specsim.planner.service import (
    Policy,
    at_batch,
    best_schedule,
    capacity,
    components,
    curve,
    demanded,
    fixed,
    proposed,
    steps_per_request,
)
from specsim.planner.step_model import batch_grid, step_model
from specsim.scenario.document import Scenario
from specsim.scenario.resolve import resolve_cost_source, resolve_deployment

#: Batch limits (max_num_seqs) that are tried; the scenario's own joins them.
BATCH_LIMITS = (64, 256, 512)
TENSOR_PARALLEL = (1, 2, 4, 8)
#: Share of a replica's closed-form capacity that is counted on: the simulator finds 5 to
#: 20 % less (queues and bursts).
MARGIN = 0.8
#: Dtypes of weights that are smaller than a scenario's.
SMALLER_WEIGHTS = {"bf16": "fp8, int4", "fp8": "int4", "int8": "int4"}
#: Plans that are handed to the simulator.
MAX_FRONT = 6


@dataclass(frozen=True, kw_only=True)
class Found:
    """All candidates of a search, best first, and the best without speculation."""

    candidates: tuple[Candidate, ...]
    baseline: Candidate
    #: What was left out since a request of the sample is longer than its KV cache, and why.
    too_small: tuple[str, ...] = ()

    @property
    def best(self) -> Candidate:
        """The first."""
        return self.candidates[0]


def search(problem: Problem) -> Found:
    """Evaluate everything.

    Raises:
        DoesNotFitError: if the target fits on no allowed number of GPUs; says what would.
        ScenarioError: if the search space is empty.
    """
    options: list[DraftOption | None] = [None, *draft_options(problem)]
    candidates: list[Candidate] = []
    fits_anywhere = False
    for base in placements(problem):
        for option in options:
            for degree in draft_degrees(option, base):
                try:
                    scenario = placed_scenario(base, option, degree)
                    deployment = resolve_deployment(scenario)
                except ScenarioError:
                    continue  # this draft does not go with this placement
                if memory(deployment, 0, math.ceil(problem.mean_length)).fits:
                    fits_anywhere = True
                    candidates += evaluated(problem, scenario, deployment, option, degree)
    if not fits_anywhere:
        raise DoesNotFitError(_does_not_fit(problem))
    baselines = [c for c in candidates if not c.speculates and c.option is None]
    if not baselines:
        raise DoesNotFitError(_does_not_fit(problem))
    return Found(candidates=tuple(sorted(candidates, key=rank)), baseline=min(baselines, key=rank))


def rank(found: Candidate) -> tuple[float, ...]:
    """Sort key, best first: what the SLO allows; with no SLO to meet, or none met, the
    share attained at the demand; then speed at the demand, then simplicity."""
    # two objectives within a thousandth are the same
    rounded = round(math.log(found.objective), 3) if found.objective > 0 else -math.inf
    return (
        -rounded, -round(found.demand.attained, 3), not found.demand.stable,
        round(math.log(found.demand.tpot_s), 2), found.speculates,
        found.policy.kind == "batch-schedule", found.largest_k,
    )  # fmt: skip


def placements(problem: Problem) -> Iterator[Scenario]:
    """The scenario on each GPU type and parallel degree that the budget allows."""
    own = problem.scenario.hardware.tensor_parallel
    for name in problem.gpus:
        gpu = catalogue.gpu(name)
        most = gpu_budget(problem, name)
        for degree in sorted({*TENSOR_PARALLEL, own}):
            if most is not None and degree > most:
                continue
            data = problem.scenario.to_dict()
            data["hardware"] |= {"gpu": gpu.name, "tensor_parallel": degree}
            scenario = Scenario.from_dict(data, "plan")
            try:
                resolve_deployment(placed_scenario(scenario, None, None))
            except ScenarioError:
                continue  # the degree does not divide the heads
            yield scenario


def gpu_budget(problem: Problem, gpu: str) -> int | None:
    """How many GPUs of a type one may use; None for any number."""
    limits = [] if problem.max_gpus is None else [problem.max_gpus]
    price = catalogue.gpu(gpu).price_usd_per_h
    if problem.budget_usd_per_h is not None and price is not None:
        # a budget of three prices buys three, whatever the last bit says
        limits.append(int(problem.budget_usd_per_h / middle_price(price) + 1e-9))
    return min(limits) if limits else None


def draft_degrees(option: DraftOption | None, base: Scenario) -> list[int | None]:
    """Parallel degrees of the draft: on one GPU, or spread like the target (None: as the
    scenario or the engine has it)."""
    if option is None or not option.has_model:
        return [None]
    if "tensor_parallel" in option.keys:
        return [None]
    degree = base.hardware.tensor_parallel
    return [1] if degree == 1 else [1, degree]


def placed_scenario(
    base: Scenario, option: DraftOption | None, draft_tensor_parallel: int | None
) -> Scenario:
    """The scenario with a draft section in place of its own."""
    data = base.to_dict()
    draft: dict[str, Any] = {"method": "none"} if option is None else dict(option.keys)
    if draft_tensor_parallel is not None:
        draft["tensor_parallel"] = draft_tensor_parallel
    data["draft"] = draft
    data["speculation"] = {"policy": "fixed"}
    return Scenario.from_dict(data, "plan")


def evaluated(
    problem: Problem, scenario: Scenario, deployment: Deployment, option: DraftOption | None,
    degree: int | None,
) -> list[Candidate]:  # fmt: skip
    """The best fixed K and the best schedule (or plain decoding) on one deployment."""
    source = resolve_cost_source(scenario, deployment)
    limits = sorted({*BATCH_LIMITS, problem.scenario.engine.max_num_seqs})
    plain = memory(dataclasses.replace(deployment, max_num_seqs=limits[0]), 0,
                   math.ceil(problem.mean_length))  # fmt: skip
    batch = batch_grid(max(1, min(limits[-1], plain.max_concurrency)))
    tokens = draft_tokens(problem, option)
    prompts = np.concatenate([c.prompts for c in problem.classes])
    laws: Mapping[str, Any] = {c.name: NO_LAW for c in problem.classes}
    drafted = None
    if option is not None:
        laws = option.laws
        drafted = proposed(problem, deployment.draft, laws, tokens)
    model = step_model(deployment, source, tokens, batch, problem.context, prompts, drafted)
    parts = tuple(components(problem, laws, model.draft_tokens))
    common = {"option": option, "deployment": deployment, "source": source, "model": model,
              "parts": parts, "draft_tensor_parallel": degree}  # fmt: skip
    if option is None:
        return [_served(problem, common, fixed(model, 0), limits)]
    found = [_served(problem, common, fixed(model, k), limits) for k in tokens]
    best = min(found, key=rank)
    if option.keys.get("tree"):
        return [best]
    steps = steps_per_request(problem, list(parts))
    schedule = best_schedule(model, steps)
    if len(np.unique(schedule.rows)) == 1:
        return [best]
    return [best, _served(problem, common, schedule, limits)]


class _NoLaw:
    """Acceptance where nothing is drafted."""

    def components(self) -> list[tuple[float, _NoLaw]]:
        return [(1.0, self)]

    def acceptance_length(self, num_draft_tokens: int) -> float:
        return 1.0

    def variance(self, num_draft_tokens: int) -> float:
        return 0.0

    def survival_interval(self, num_draft_tokens: int) -> None:
        return None


NO_LAW: Any = _NoLaw()


def draft_tokens(problem: Problem, option: DraftOption | None) -> tuple[int, ...]:
    """K that an option is tried with."""
    if option is None:
        return ()
    tree = option.keys.get("tree")
    if tree:
        return (int(tree["nodes"]),)
    limit = option.max_draft_tokens or max(problem.draft_tokens)
    kept = tuple(k for k in problem.draft_tokens if k <= limit)
    return kept or problem.draft_tokens[:1]


def _served(
    problem: Problem, common: dict[str, Any], policy: Policy, limits: list[int]
) -> Candidate:
    """The candidate at the batch limit that serves most."""
    model, deployment = common["model"], common["deployment"]
    largest = max(model.draft_tokens[row] for row in np.unique(policy.rows))
    slots = {
        slots_of(dataclasses.replace(deployment, max_num_seqs=limit), largest,
                 problem.mean_length, limit)
        for limit in limits
    }  # fmt: skip
    tried = []
    for count in sorted(slots - {0}) or [1]:
        served = curve(problem, model, list(common["parts"]), policy, count)
        tried.append((capacity(problem, served, count), count, served))
    best, most, found = max(tried, key=lambda t: (t[0].rate_per_s if t[0] else -1.0, t[1]))
    replicas = replicas_of(problem, deployment, best.rate_per_s if best else None)
    if problem.rate_per_s is not None:
        at = demanded(problem, found, most, problem.rate_per_s / replicas)
    else:
        at = at_batch(found, min((problem.concurrency or 1) / replicas, most))
    if problem.has_slo:
        objective = best.goodput_per_s / _unit_cost(problem, deployment) if best else 0.0
    else:
        objective = 1 / at.tpot_s if at.stable else 0.0
    return Candidate(
        **common, replicas=replicas, policy=policy, slots=most, curve=found, capacity=best,
        demand=at, objective=objective,
    )  # fmt: skip


def _unit_cost(problem: Problem, deployment: Deployment) -> float:
    """What goodput is divided by: GPUs, or their price where types compete on a budget."""
    price = deployment.gpu.price_usd_per_h
    if by_price(problem) and price is not None:
        return deployment.num_gpus * middle_price(price)
    return float(deployment.num_gpus)


def by_price(problem: Problem) -> bool:
    """Whether plans compete per dollar: on a budget, or between GPU types with prices."""
    prices = [catalogue.gpu(name).price_usd_per_h for name in problem.gpus]
    return problem.budget_usd_per_h is not None or (
        len(prices) > 1 and all(price is not None for price in prices)
    )


def objective_name(problem: Problem) -> str:
    """The objective in words, with its unit."""
    if not problem.has_slo:
        return "output tokens per second of one request, at the demanded load (no SLO is given)"
    unit = "USD/h" if by_price(problem) else "GPU"
    share = f"{problem.attained:.0%} of every class"
    return f"requests/s per {unit} within the SLO ({share})"


def replicas_of(problem: Problem, deployment: Deployment, rate_per_s: float | None) -> int:
    """As many as the demand needs with a margin, within the limit; all of the scenario's
    own GPUs."""
    most = gpu_budget(problem, deployment.gpu.name)
    limit = None if most is None else max(1, most // deployment.num_gpus)
    if problem.use_all and limit is not None:
        return limit
    if problem.rate_per_s is None or not rate_per_s:
        wanted = problem.scenario.hardware.replicas
    else:
        wanted = max(1, math.ceil(problem.rate_per_s / (MARGIN * rate_per_s)))
    return wanted if limit is None else min(wanted, limit)


def front(found: Found) -> list[Candidate]:
    """Plans worth simulating: the best of each draft, of which none is better in both
    objective and speed at the demand; the best without speculation is always there."""
    per_draft: dict[tuple[str, str], Candidate] = {}
    for candidate in found.candidates:
        per_draft.setdefault((candidate.label, candidate.policy.kind), candidate)
    rivals = list(per_draft.values())
    kept = [c for c in rivals if not any(_dominates(o, c) for o in rivals if o is not c)]
    kept = sorted(kept, key=rank)[: MAX_FRONT - 1]
    for own in rivals:  # a measured draft is never left to the closed form
        if own.option is not None and own.option.measured and own not in kept:
            kept = [*kept[: MAX_FRONT - 2], own]
            break
    return [*(c for c in kept if c is not found.baseline), found.baseline]


#: Policies beyond a fixed K and a schedule that an engine offers; they follow the load by
#: themselves, so only the simulator can tell them from a schedule.
ENGINE_POLICIES = {"sglang": ("adaptive",), "ideal": ("goodput", "per-request")}


def with_own_policies(plans: list[Candidate]) -> list[Candidate]:
    """The plans and, for the best that drafts a chain, the policies of its engine."""
    best = next((c for c in plans if c.speculates and not c.deployment.draft.tree), None)
    if best is None:
        return plans
    kinds = ENGINE_POLICIES.get(best.deployment.runtime.engine, ())
    own = [
        dataclasses.replace(best, policy=dataclasses.replace(best.policy, kind=kind))
        for kind in kinds
    ]
    return [*plans[:-1], *own, plans[-1]]


def front_that_serves(
    found: Found, refusal: Callable[[Candidate], str | None]
) -> tuple[Found, list[Candidate]]:
    """The front of those that can serve every request, and what was found without the others
    of the first fronts. `refusal` says why a candidate cannot, or None.

    Raises:
        DoesNotFitError: if nothing without speculation can; says what is too long.
    """
    while True:
        plans = front(found)
        refused = [(c, why) for c in plans if (why := refusal(c)) is not None]
        if not refused:
            return found, plans
        lost = {id(c) for c, _ in refused}
        kept = tuple(c for c in found.candidates if id(c) not in lost)
        baselines = [c for c in kept if not c.speculates and c.option is None]
        if not baselines:
            raise DoesNotFitError(next(why for c, why in refused if c.option is None))
        reasons = [
            f"{c.label} on {c.num_gpus} x {c.deployment.gpu.name}: {why}" for c, why in refused
        ]
        found = dataclasses.replace(
            found, candidates=kept, baseline=min(baselines, key=rank),
            too_small=tuple(dict.fromkeys([*found.too_small, *reasons])),
        )  # fmt: skip


def _dominates(a: Candidate, b: Candidate) -> bool:
    better = a.objective >= b.objective and a.demand.tpot_s <= b.demand.tpot_s
    return better and (a.objective > b.objective or a.demand.tpot_s < b.demand.tpot_s)


def _does_not_fit(problem: Problem) -> str:
    """What the smallest deployment lacks, and what would do."""
    scenario = problem.scenario
    target = catalogue.model(scenario.target.model)
    name = problem.gpus[0]
    most = gpu_budget(problem, name)
    needed = None
    for degree in (1, 2, 4, 8, 16, 32):
        data = scenario.to_dict()
        data["hardware"] |= {"gpu": name, "tensor_parallel": degree}
        try:
            deployment = resolve_deployment(
                placed_scenario(Scenario.from_dict(data, "plan"), None, None)
            )
        except ScenarioError:
            continue
        room = memory(deployment, 0, math.ceil(problem.mean_length))
        if room.fits:
            needed = degree
            break
    allowed = "any number of" if most is None else f"{most} ×"
    would = (
        f"{needed} × {name} would hold it" if needed
        else "no parallel degree up to 32 holds it on this GPU"
    )  # fmt: skip
    smaller = SMALLER_WEIGHTS.get(scenario.target.weights)
    hint = "" if smaller is None else f", or use smaller weights (target.weights: {smaller})"
    return (
        f"{target.name} in {scenario.target.weights} with one sequence of "
        f"{problem.mean_length:.0f} tokens does not fit on {allowed} {name}; {would}{hint}"
    )
