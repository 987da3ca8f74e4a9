"""The plans that matter, replayed request by request: the simulator's word on capacity.

Every plan sees the same requests: arrivals (scaled to the rate), lengths and acceptance
are keyed by seed and request, so differences between plans are not noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specsim.errors import DoesNotFitError, RequestTooLongError
from specsim.metrics import meets
from specsim.planner.candidate import Candidate, scenario_of
from specsim.planner.problem import Problem
from specsim.planner.service import steps_per_request
from specsim.scenario.document import Scenario
from specsim.simulator.cluster import check_feasible
from specsim.simulator.result import Result
from specsim.simulator.run import make_setup, simulate

#: Requests of one run: enough for a share of 90 % to be known within about 2 %.
NUM_REQUESTS = 800
#: Where few sequences share a step (long contexts) a request costs many of them: at most so
#: many steps a run, but never fewer than so many requests.
MAX_STEPS, FEWEST_REQUESTS = 30_000, 250
#: The first requests meet an empty replica and are not counted.
WARMUP_SHARE = 0.15
#: First step of the search for the capacity, and how finely it ends.
FIRST_STEP, FINEST = 1.2, 1.03
MAX_RUNS = 8


@dataclass(frozen=True, kw_only=True)
class Served:
    """One simulated load of one replica."""

    rate_per_s: float
    attained: float
    tpot_s: float
    ttft_s: float
    acceptance_length: float | None
    mean_batch: float | None


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What the simulator says of a candidate.

    `capacity_per_s` is the largest rate of one replica at which every class attains its
    SLO, between `low` and `high` (the last rate that did and the first that did not);
    None without an SLO. `demand` is the run at the demanded load.
    """

    demand: Served
    capacity_per_s: float | None
    low: float | None
    high: float | None
    runs: int


def simulated(problem: Problem, found: Candidate, num_requests: int = NUM_REQUESTS) -> Simulated:
    """Run a candidate at the demanded load and, with an SLO, up to its capacity."""
    scenario = scenario_of(problem, found)
    num_requests = affordable(problem, found, num_requests)
    demand_rate = None if problem.rate_per_s is None else problem.rate_per_s / found.replicas
    demand = serve(problem, scenario, demand_rate, num_requests, found.replicas)
    if not problem.has_slo or found.capacity is None or problem.rate_per_s is None:
        return Simulated(demand=demand, capacity_per_s=None, low=None, high=None, runs=1)
    good: list[Served] = []
    bad: list[Served] = []
    (good if demand.attained >= problem.attained else bad).append(demand)
    rate, runs = found.capacity.rate_per_s, 1
    while runs < MAX_RUNS:
        run = serve(problem, scenario, rate, num_requests, found.replicas)
        runs += 1
        (good if run.attained >= problem.attained else bad).append(run)
        low = max((r.rate_per_s for r in good), default=None)
        high = min((r.rate_per_s for r in bad if low is None or r.rate_per_s > low), default=None)
        if low is None and high is not None:
            rate = high / FIRST_STEP**2
        elif high is None and low is not None:
            rate = low * FIRST_STEP
        elif low is not None and high is not None:
            if high / low < FINEST:
                break
            rate = float(np.sqrt(low * high))
    return _edge(problem, demand, good, bad, runs)


def refusal(problem: Problem, found: Candidate) -> str | None:
    """Why a candidate cannot serve some request of the scenario; None if it can."""
    try:
        check_feasible(make_setup(scenario_of(problem, found))[0])
    except (RequestTooLongError, DoesNotFitError) as error:
        return str(error)
    return None


def affordable(problem: Problem, found: Candidate, num_requests: int) -> int:
    """`num_requests`, or fewer if they would take more than MAX_STEPS."""
    batch = max((found.capacity or found.demand).batch, 1.0)
    k = found.k_at(batch)
    each = float(steps_per_request(problem, list(found.parts))[found.model.draft_tokens.index(k)])
    return min(num_requests, max(FEWEST_REQUESTS, int(MAX_STEPS * batch / max(each, 1.0))))


def _edge(
    problem: Problem, demand: Served, good: list[Served], bad: list[Served], runs: int
) -> Simulated:
    """The rate at which the attained share crosses the wanted one, by interpolation."""
    if not good:
        return Simulated(demand=demand, capacity_per_s=0.0, low=0.0,
                         high=min(r.rate_per_s for r in bad), runs=runs)  # fmt: skip
    last = max(good, key=lambda r: r.rate_per_s)
    beyond = [r for r in bad if r.rate_per_s > last.rate_per_s]
    if not beyond:
        return Simulated(demand=demand, capacity_per_s=last.rate_per_s, low=last.rate_per_s,
                         high=None, runs=runs)  # fmt: skip
    first = min(beyond, key=lambda r: r.rate_per_s)
    share = (last.attained - problem.attained) / max(last.attained - first.attained, 1e-9)
    edge = last.rate_per_s + share * (first.rate_per_s - last.rate_per_s)
    return Simulated(demand=demand, capacity_per_s=float(edge), low=last.rate_per_s,
                     high=first.rate_per_s, runs=runs)  # fmt: skip


def serve(
    problem: Problem, scenario: Scenario, rate_per_s: float | None, num_requests: int,
    replicas: int,
) -> Served:  # fmt: skip
    """One replica under `rate_per_s` (None: its share of a closed loop's clients)."""
    data = scenario.to_dict()
    data["hardware"]["replicas"] = 1
    arrivals = data["workload"]["arrivals"]
    if rate_per_s is None:
        arrivals["concurrency"] = max(1, (problem.concurrency or 1) // replicas)
    elif arrivals["process"] == "trace":
        assert problem.rate_per_s is not None
        arrivals["rate_scale"] = arrivals.get("rate_scale", 1.0) * rate_per_s / problem.rate_per_s
    else:
        arrivals["rate_per_s"], arrivals["rate_scale"] = rate_per_s, 1.0
    data["workload"]["num_requests"] = num_requests
    result = simulate(Scenario.from_dict(data, "plan")).whole()
    summary = result.summary()
    service = summary.service
    return Served(
        rate_per_s=rate_per_s or service.throughput_requests_per_s,
        attained=attained_share(result), tpot_s=service.tpot_s.mean or 0.0,
        ttft_s=service.ttft_s.mean or 0.0, acceptance_length=summary.acceptance_length,
        mean_batch=summary.mean_batch,
    )  # fmt: skip


def attained_share(result: Result) -> float:
    """The smallest share over classes of requests that meet their SLO, warm-up left out."""
    served = result.served
    met = meets(served, result.objectives)
    counted = np.arange(len(met)) >= WARMUP_SHARE * len(met)
    shares = []
    for index in range(len(served.class_names)):
        mine = counted & (served.traffic_class == index)
        if mine.any():
            shares.append(float(met[mine].mean()))
    return min(shares)
