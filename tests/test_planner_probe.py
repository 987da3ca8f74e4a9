"""The probe: hidden constants behind noisy benchmarks are found well enough to decide."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from specsim.calibration import ObservedStep
from specsim.cost.roofline import Roofline
from specsim.cost.step import decode_step
from specsim.deployment import Deployment
from specsim.errors import CalibrationError, ScenarioError
from specsim.planner import probe_model
from specsim.planner.decision import Plan, plan
from specsim.planner.probe import FEWEST_POINTS, MAX_POINTS, Probe, probe_points, settled
from specsim.planner.service import steps_per_request
from specsim.scenario.document import Scenario

SERVICE = {
    "target": {"model": "llama-3.1-8b"},
    "draft": {"method": "draft-model", "model": "llama-3.2-1b"},
    "hardware": {"gpu": "h100-sxm"},
    "acceptance": {"alpha": 0.7},
    "workload": {
        "arrivals": {"process": "poisson", "rate_per_s": 4.0},
        "prompt_tokens": {"distribution": "constant", "value": 512},
        "output_tokens": {"distribution": "constant", "value": 256},
    },
    "slo": {"tpot_s": 0.02},
}
HOST = ("step_s", "sequence_s", "token_s", "draft_step_s", "draft_pass_s", "draft_layer_s")
NOISE = 0.03


@pytest.fixture(scope="module")
def decided() -> Plan:
    return plan(Scenario.from_dict(SERVICE), drafts=["llama-3.2-1b"], simulate=False)


@pytest.fixture(scope="module")
def probe(decided: Plan) -> Probe:
    return probe_points(decided)


def hidden(found: Deployment, rng: np.random.Generator) -> tuple[Deployment, Roofline]:
    """Another engine on another specimen of the GPU: everything the probe must find out,
    moved in the full, nonlinear model."""
    gpu = dataclasses.replace(
        found.gpu,
        bandwidth_share=found.gpu.bandwidth_share * float(np.exp(0.08 * rng.standard_normal())),
        compute_share=found.gpu.compute_share * float(np.exp(0.12 * rng.standard_normal())),
    )
    changes = {}
    for name in HOST:
        estimate = getattr(found.runtime, name)
        value = estimate.value * float(np.exp(0.3 * rng.standard_normal()))
        changes[name] = dataclasses.replace(estimate, value=value)
    runtime = dataclasses.replace(found.runtime, **changes)
    return dataclasses.replace(found, gpu=gpu, runtime=runtime), Roofline(gpu=gpu)


def truth(decided: Plan, found: Deployment, source: Roofline) -> tuple[np.ndarray, int]:
    """Time per token of each K at the demand, and the last batch at which any K pays."""
    spec, problem = decided.facts.spec, decided.problem
    assert spec is not None
    steps = steps_per_request(problem, list(spec.parts))
    ks = np.array(spec.model.draft_tokens)
    at = max(1.0, round(spec.demand.batch))
    work = steps * decode_step(found, source, ks, at, problem.context).seconds
    batches = np.unique(np.concatenate([np.arange(1, 33), np.rint(np.geomspace(32, 512, 80))]))
    over = decode_step(found, source, ks[:, None], batches[None, :], problem.context).seconds
    pays = (steps[:, None] * over)[1:].min(axis=0) < (steps[:, None] * over)[0]
    return work, int(batches[np.flatnonzero(pays)[-1]]) if pays.any() else 0


def measured(probe: Probe, found: Deployment, source: Roofline, rng: np.random.Generator):
    return [
        ObservedStep(
            num_draft_tokens=p.num_draft_tokens, batch=p.batch, context=p.context,
            standard_error=None,
            seconds=float(decode_step(found, source, p.num_draft_tokens, p.batch,
                                      p.context).seconds * np.exp(NOISE * rng.standard_normal())),
        )
        for p in probe.points
    ]  # fmt: skip


def trials(decided: Plan, probe: Probe, count: int) -> tuple[np.ndarray, float]:
    """Regret of the chosen K in each trial, and how often the crossover's interval covers."""
    rng = np.random.default_rng(11)
    spec = decided.facts.spec
    assert spec is not None
    regrets, covered = [], 0
    for _ in range(count):
        found, source = hidden(spec.deployment, rng)
        work, last = truth(decided, found, source)
        after = settled(decided, measured(probe, found, source, rng))
        chosen = work[list(spec.model.draft_tokens).index(after.num_draft_tokens)]
        regrets.append(1 - work.min() / chosen)
        covered += after.crossover_low <= last <= after.crossover_high
    return np.array(regrets), covered / count


def test_hidden_constants_are_found_well_enough(decided: Plan, probe: Probe) -> None:
    regrets, coverage = trials(decided, probe, 200)
    assert np.median(regrets) <= 0.02
    assert np.quantile(regrets, 0.9) <= 0.05
    assert coverage >= 0.90


def test_at_most_twelve_distinct_points_with_and_without_a_drafter(probe: Probe) -> None:
    assert FEWEST_POINTS <= len(probe.points) <= MAX_POINTS
    assert len(set(probe.points)) == len(probe.points)
    assert {p.num_draft_tokens == 0 for p in probe.points} == {True, False}
    commands = list(probe.commands())
    config = next(c for c in commands if "--speculative-config" in c)
    body = json.loads(config.split("--speculative-config ")[1].strip("'"))
    assert body["rejection_sample_method"] == "synthetic"
    rates = body["synthetic_acceptance_rates"]
    assert rates == sorted(rates, reverse=True)
    assert len(rates) == body["num_speculative_tokens"]


def test_points_are_better_than_random_ones(decided: Plan, probe: Probe) -> None:
    """D-optimal: the belief after them is tighter than after as many drawn at random."""
    spec = decided.facts.spec
    assert spec is not None
    start = probe_model.prior(spec.deployment)

    def volume(points) -> float:
        x = np.stack([
            probe_model.features(spec.deployment, spec.source, p.num_draft_tokens, p.batch,
                                 p.context)
            for p in points
        ])  # fmt: skip
        after = probe_model.updated(start, x, x @ start.mean, NOISE)
        scale = np.sqrt(np.diag(start.covariance))
        return float(np.linalg.slogdet(after.covariance / np.outer(scale, scale))[1])

    from specsim.planner.probe import candidate_points

    grid = candidate_points(decided.problem, spec)
    rng = np.random.default_rng(0)
    random = [
        volume([grid[i] for i in rng.choice(len(grid), len(probe.points), replace=False)])
        for _ in range(50)
    ]
    assert volume(probe.points) < min(random)


def test_exact_measurements_give_the_constants_back(decided: Plan) -> None:
    spec = decided.facts.spec
    assert spec is not None
    start = probe_model.prior(spec.deployment)
    theta = start.mean * np.array([1.1, 0.9, 1.2, 0.8, 1.3, 0.7, 1.2, 1.1])
    ks, batches = np.meshgrid([0, 1, 3, 6, 9], [1, 4, 16, 64, 256])
    x = probe_model.features(spec.deployment, spec.source, ks.ravel(), batches.ravel(), 2000.0)
    found = start
    for _ in range(400):  # repeated until the prior is forgotten
        found = probe_model.updated(found, x, x @ theta, 1e-4)
    np.testing.assert_allclose(x @ found.mean, x @ theta, rtol=2e-3)


def test_the_line_is_the_model_where_its_constants_are_the_catalogues(decided: Plan) -> None:
    """x·θ with the prior's mean is `decode_step`, to the last digit."""
    spec = decided.facts.spec
    assert spec is not None
    ks, batches = np.array([0, 1, 4, 8])[:, None], np.array([1.0, 16.0, 200.0])
    x = probe_model.features(spec.deployment, spec.source, ks, batches, 1000.0)
    step = decode_step(spec.deployment, spec.source, ks, batches, 1000.0)
    np.testing.assert_allclose(x @ probe_model.prior(spec.deployment).mean, step.seconds, rtol=1e-9)


def test_results_without_k_and_batch_are_refused(decided: Plan) -> None:
    step = ObservedStep(num_draft_tokens=None, batch=4.0, seconds=0.01)
    with pytest.raises(CalibrationError, match="num_draft_tokens"):
        settled(decided, [step])


def test_another_engine_has_no_synthetic_acceptance() -> None:
    scenario = Scenario.from_dict({**SERVICE, "engine": {"runtime": "sglang"}})
    other = plan(scenario, drafts=["llama-3.2-1b"], simulate=False)
    with pytest.raises(ScenarioError, match="vllm"):
        probe_points(other)
