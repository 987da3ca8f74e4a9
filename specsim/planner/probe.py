"""Closing the loop with the user's own GPU: which few benchmarks would settle a plan, and
what the plan is once they were run.

vLLM can accept drafts by chance (`rejection_sample_method: synthetic`), so step times can
be measured with any checkpoint of the draft's shape, before a good draft exists.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from specsim.calibration import ObservedStep
from specsim.cost.memory import memory
from specsim.errors import CalibrationError, ScenarioError
from specsim.interop.export import VLLM_METHOD
from specsim.interop.serving_plan import serving_plan
from specsim.planner.candidate import Candidate, scenario_of
from specsim.planner.probe_model import Belief, d_optimal, features, prior, updated
from specsim.planner.problem import Problem
from specsim.planner.service import steps_per_request
from specsim.planner.uncertainty import shifted_parts

if TYPE_CHECKING:
    from specsim.planner.decision import Plan

Array = npt.NDArray[np.float64]

#: Even a plan that looks settled is checked at a few points.
FEWEST_POINTS, MAX_POINTS = 4, 12
#: Relative error of a benchmarked mean step time.
MEASURED_ERROR = 0.03
PROBE_TOKENS = (0, 1, 2, 3, 4, 6, 8, 12)
PROBE_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PROBE_CONTEXTS = (1, 4, 16)  # multiples of the plan's context
#: A plan counts as settled when its expected regret stays under this in 9 of 10 cases, and
#: the crossover is known to this share.
SETTLED_REGRET, SETTLED_SPREAD = 0.01, 0.25
NUM_SAMPLES, SEED = 400, 7
MAX_BATCH = 512


@dataclass(frozen=True, kw_only=True)
class Point:
    """One benchmark: K = 0 is a server without speculation."""

    num_draft_tokens: int
    batch: int
    context: int
    expected_s: float


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Points to measure, in the order of what they tell. `expected_regret` is the 90th
    percentile of the regret that is left after them."""

    points: tuple[Point, ...]
    expected_regret: float
    candidate: Candidate
    problem: Problem

    def commands(self) -> Iterator[str]:
        """Server and client of every point, ready for a shell."""
        servers: dict[int, list[Point]] = {}
        for point in self.points:
            servers.setdefault(point.num_draft_tokens, []).append(point)
        for k, points in sorted(servers.items()):
            yield serve_command(self.problem, self.candidate, k)
            for point in points:
                yield bench_command(point)

    def to_dict(self) -> dict[str, Any]:
        """As in `plan --probe vllm --json`."""
        return {
            "points": [
                {"num_draft_tokens": p.num_draft_tokens, "batch": p.batch, "context": p.context,
                 "expected_s": p.expected_s}
                for p in self.points
            ],
            "expected_regret": self.expected_regret, "commands": list(self.commands()),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settled:
    """The plan after a probe: K at the demand with the regret it may have, the schedule,
    and the last batch at which speculation pays, with 95 % intervals."""

    num_draft_tokens: int
    regret: float
    regret_low: float
    regret_high: float
    schedule: list[list[int]]
    crossover: int
    crossover_low: int
    crossover_high: int
    belief: Belief
    num_points: int

    def to_dict(self) -> dict[str, Any]:
        """As in `plan --measured FILE --json`."""
        return {
            "num_draft_tokens": self.num_draft_tokens, "schedule": self.schedule,
            "regret": {"value": self.regret, "low": self.regret_low, "high": self.regret_high},
            "crossover": {"batch": self.crossover, "low": self.crossover_low,
                          "high": self.crossover_high},
            "points": self.num_points,
        }  # fmt: skip


def probe_points(plan: Plan, max_points: int = MAX_POINTS) -> Probe:
    """The smallest D-optimal set of points after which the plan's regret is settled.

    Raises:
        ScenarioError: if nothing drafts, or the engine is not vLLM.
    """
    found, problem = _subject(plan), plan.problem
    grid = candidate_points(problem, found)
    x = np.stack([_row(found, p.num_draft_tokens, p.batch, p.context) for p in grid])
    belief = prior(found.deployment)
    expected = x @ belief.mean
    question = _Question(problem, found)
    chosen: list[int] = []
    left = question.regret(belief, belief.mean)
    while len(chosen) < max_points:
        sure = left <= SETTLED_REGRET and question.spread(belief) <= SETTLED_SPREAD
        if sure and len(chosen) >= FEWEST_POINTS:
            break
        best = d_optimal(belief, x, expected, MEASURED_ERROR, chosen)
        chosen.append(best)
        belief = updated(belief, x[[best]], expected[[best]], MEASURED_ERROR)
        left = question.regret(belief, belief.mean)
    points = tuple(
        Point(num_draft_tokens=grid[i].num_draft_tokens, batch=grid[i].batch,
              context=grid[i].context, expected_s=float(expected[i]))
        for i in chosen
    )  # fmt: skip
    return Probe(points=points, expected_regret=left, candidate=found, problem=problem)


def candidate_points(problem: Problem, found: Candidate) -> list[Point]:
    """K × batch × context that the deployment can hold."""
    spec = found.deployment.target.spec
    largest = found.model.draft_tokens[-1]
    tree = found.deployment.draft.tree
    tokens = (0, tree.nodes) if tree else [k for k in PROBE_TOKENS if k <= largest]
    points = []
    for multiple in PROBE_CONTEXTS:
        context = round(problem.context * multiple / 16) * 16 or 16
        if context + 512 > spec.max_context:
            continue
        room = memory(found.deployment, largest, context + 256)
        points += [
            Point(num_draft_tokens=k, batch=b, context=context, expected_s=0.0)
            for k in tokens for b in PROBE_BATCHES if b <= max(room.max_concurrency, 1)
        ]  # fmt: skip
    return points


def settled(plan: Plan, steps: Sequence[ObservedStep]) -> Settled:
    """The plan with the measured step times of the user's engine.

    Raises:
        CalibrationError: if no step has its K and batch.
        ScenarioError: if the plan has no draft to settle.
    """
    found, problem = _subject(plan), plan.problem
    known = [s for s in steps if s.num_draft_tokens is not None and s.batch is not None]
    if not known:
        raise CalibrationError(
            f"{len(steps)} measured steps, none with its num_draft_tokens and batch; expected the "
            "benchmarks of `specsim plan --probe vllm`, read by `specsim fit`"
        )
    x = np.stack([
        _row(found, int(s.num_draft_tokens or 0), float(s.batch or 1),
             problem.context if s.context is None else s.context)
        for s in known
    ])  # fmt: skip
    seconds = np.array([s.seconds for s in known])
    errors = np.array([
        MEASURED_ERROR if not s.standard_error else max(s.standard_error / s.seconds, 0.005)
        for s in known
    ])  # fmt: skip
    belief = updated(prior(found.deployment), x, seconds, errors)
    return decide(problem, found, belief, len(known))


def decide(problem: Problem, found: Candidate, belief: Belief, num_points: int) -> Settled:
    """K, schedule and crossover under a belief about the constants."""
    question = _Question(problem, found)
    samples = belief.sample(NUM_SAMPLES, SEED)
    k = question.best_k(belief.mean)
    regrets = question.regrets(samples, k)
    lasts = question.crossovers(samples)
    last = int(question.crossovers(belief.mean[None, :])[0])
    return Settled(
        num_draft_tokens=k, regret=float(np.mean(regrets)),
        regret_low=float(np.quantile(regrets, 0.025)),
        regret_high=float(np.quantile(regrets, 0.975)),
        schedule=question.schedule(belief.mean, found.batch_limit), crossover=last,
        crossover_low=int(np.quantile(lasts, 0.025)),
        crossover_high=int(np.quantile(lasts, 0.975)), belief=belief, num_points=num_points,
    )  # fmt: skip


class _Question:
    """What the constants decide: the best K at the demand, and K over the batch.

    Speed at K is 1/(steps(K)·T(K, B, L)) up to a factor; steps(0) is one per token."""

    def __init__(self, problem: Problem, found: Candidate) -> None:
        self.ks = np.array(found.model.draft_tokens)
        self.batches = np.unique(
            np.concatenate([np.arange(1, 33), np.rint(np.geomspace(32, MAX_BATCH, 80))])
        )
        self.steps = steps_per_request(problem, shifted_parts(problem, found, 0.0))
        demand = np.array([max(1.0, round(found.demand.batch))])
        self.at_demand = _rows(found, self.ks, demand, problem.context)[:, 0, :]
        self.over_batch = _rows(found, self.ks, self.batches, problem.context)

    def best_k(self, theta: Array) -> int:
        """K with the least time per token at the demand."""
        return int(self.ks[int(np.argmin(self.steps * (self.at_demand @ theta)))])

    def regrets(self, samples: Array, k: int) -> Array:
        """Share of the speed that K loses if the constants are a sample; (samples,)."""
        work = self.steps[:, None] * (self.at_demand @ samples.T)
        mine = work[list(self.ks).index(k)]
        return np.asarray(1 - work.min(axis=0) / mine)

    def regret(self, belief: Belief, theta: Array) -> float:
        """90th percentile of the regret of choosing under `theta`."""
        samples = belief.sample(NUM_SAMPLES, SEED)
        return float(np.quantile(self.regrets(samples, self.best_k(theta)), 0.9))

    def crossovers(self, samples: Array) -> Array:
        """The last batch at which the best K ≥ 1 beats none; 0 if none does; (samples,)."""
        times = np.einsum("kbi,si->skb", self.over_batch, samples)
        work = self.steps[None, :, None] * times
        pays = work[:, 1:].min(axis=1) < work[:, 0]
        last = np.where(pays.any(axis=1), pays.shape[1] - 1 - pays[:, ::-1].argmax(axis=1), -1)
        return np.where(last >= 0, self.batches[last], 0.0)

    def spread(self, belief: Belief) -> float:
        """Width of the middle 80 % of the crossover over its middle; 0 where all samples
        are at an end of the batches."""
        low, middle, high = np.quantile(
            self.crossovers(belief.sample(NUM_SAMPLES, SEED)), (0.1, 0.5, 0.9)
        )
        return float((high - low) / max(middle, 1.0))

    def schedule(self, theta: Array, limit: int) -> list[list[int]]:
        """[batch_lo, batch_hi, K] rows, 1 to `limit`; a K stays while it loses under 1 %."""
        work = self.steps[:, None] * (self.over_batch @ theta)
        rows: list[list[int]] = []
        current = int(np.argmin(work[:, 0]))
        for j, batch in enumerate(self.batches):
            if batch > limit:
                break
            best = int(np.argmin(work[:, j]))
            if work[current, j] > 1.01 * work[best, j]:
                current = best
            k = int(self.ks[current])
            if not rows or rows[-1][2] != k:
                if rows:
                    rows[-1][1] = int(batch) - 1
                rows.append([int(batch), limit, k])
        return rows


def _rows(found: Candidate, ks: Array, batches: Array, context: float) -> Array:
    """Features (K, batch, 8); K = 0 without a drafter."""
    return features(found.deployment, found.source, ks[:, None], batches[None, :], context)


def _row(found: Candidate, k: int, batch: float, context: float) -> Array:
    return features(found.deployment, found.source, k, batch, context)


def _subject(plan: Plan) -> Candidate:
    """The speculative plan whose constants are in question.

    Raises:
        ScenarioError: if there is none, or another engine runs it.
    """
    spec = plan.facts.spec
    if spec is None:
        raise ScenarioError("probe: no draft pays at any load, so there is nothing to settle")
    if spec.deployment.runtime.engine not in ("vllm", "ideal"):
        raise ScenarioError(
            f"engine.runtime = {spec.deployment.runtime.name!r}: --probe vllm needs vllm"
        )
    return spec


def serve_command(problem: Problem, found: Candidate, k: int) -> str:
    """`vllm serve` for one K, drafts accepted by chance as often as the plan assumes."""
    deployment = found.deployment
    names = serving_plan(scenario_of(problem, found))
    parts = ["vllm", "serve", names.target]
    parts += ["--tensor-parallel-size", str(deployment.target.tensor_parallel)]
    parts += ["--max-num-seqs", str(MAX_BATCH)]
    if k:
        method = found.deployment.draft.method
        config: dict[str, Any] = {"method": VLLM_METHOD.get(method, method)}
        if deployment.draft.model is not None and method != "mtp":
            config["model"] = names.draft or f"<a checkpoint shaped like {found.label}>"
        config |= {"num_speculative_tokens": k, "rejection_sample_method": "synthetic",
                   "synthetic_acceptance_rates": _survival(problem, found, k)}  # fmt: skip
        parts += ["--speculative-config", json.dumps(config)]
    return shlex.join(parts)


def bench_command(point: Point) -> str:
    """`vllm bench serve` at a fixed number of requests in flight."""
    name = f"probe-k{point.num_draft_tokens}-b{point.batch}-c{point.context}.json"
    return shlex.join([
        "vllm", "bench", "serve", "--dataset-name", "random", "--random-input-len",
        str(max(point.context - 128, 1)), "--random-output-len", "256", "--ignore-eos",
        "--max-concurrency", str(point.batch), "--num-prompts", str(max(4 * point.batch, 16)),
        "--save-result", "--result-filename", name,
    ])  # fmt: skip


def _survival(problem: Problem, found: Candidate, k: int) -> list[float]:
    """Survival by position over the whole traffic, weighed by steps."""
    assert found.option is not None
    weights, vectors = [], []
    for traffic in problem.classes:
        law = found.option.laws[traffic.name]
        weights.append(traffic.share * traffic.mean_output / law.acceptance_length(k))
        vectors.append(law.survival(k))
    mean = np.average(np.stack(vectors), axis=0, weights=weights)
    return [round(float(s), 4) for s in mean]
