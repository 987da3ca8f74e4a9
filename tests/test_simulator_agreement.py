"""Simulator and closed form answer the same question: they agree.

Exactly where acceptance is deterministic, within standard errors where it is drawn.
"""

from __future__ import annotations

import numpy as np
import pytest
from simulator_setups import H100, deployment, length, run, setup

from specsim.acceptance import BetaRequests, Empirical, Iid, Markov, PerPosition, replay
from specsim.acceptance.law import Law
from specsim.cost.roofline import Roofline
from specsim.cost.step import decode_step, prefill_seconds
from specsim.metrics import Served, e2e, tpot, ttft
from specsim.simulator.cluster import Cluster
from specsim.simulator.montecarlo import count_accepted
from specsim.simulator.result import served_columns
from specsim.simulator.setup import Limits

SOURCE = Roofline(gpu=H100)
PROMPT = 256  # a CUDA-graph size: padding changes nothing


def served(cluster: Cluster) -> Served:
    return served_columns(cluster, worst_gaps=False)


@pytest.mark.parametrize("runtime", ["ideal", "vllm"])
@pytest.mark.parametrize("k", [0, 1, 4])
def test_one_request_alone_is_the_closed_form_exactly(k: int, runtime: str) -> None:
    """α = 1: every step emits K + 1 tokens. TTFT is one prefill, the rest decode steps."""
    steps = 12
    output = 1 + steps * (k + 1)
    placed = deployment(k, runtime=runtime)
    cluster = run(
        setup(k=k, rate=None, count=1, law=Iid(1.0), placed=placed, prompt=length(PROMPT),
              output=length(output))
    )  # fmt: skip
    found = served(cluster)
    expected = sum(
        float(decode_step(placed, SOURCE, k, 1, PROMPT + i * (k + 1)).seconds) for i in range(steps)
    )
    per_token = expected / (output - 1)
    assert tpot(found)[0] == pytest.approx(per_token, rel=1e-9)
    first = float(prefill_seconds(placed, SOURCE, PROMPT)) + placed.runtime.sequence_s.value
    assert ttft(found)[0] == pytest.approx(first, rel=1e-9)
    assert e2e(found)[0] == pytest.approx(first + expected, rel=1e-9)


@pytest.mark.parametrize("batch", [1, 7, 32])
@pytest.mark.parametrize("k", [0, 3])
def test_saturated_batch_is_the_closed_form_exactly(k: int, batch: int) -> None:
    """α = 1 and B equal requests in lockstep: every step is `decode_step` at batch B."""
    steps = 10
    limits = Limits(max_num_seqs=batch, max_tokens=16_384, num_blocks=100_000)
    placed = deployment(k, runtime="vllm")
    cluster = run(
        setup(k=k, rate=None, count=batch, concurrency=batch, law=Iid(1.0), placed=placed,
              prompt=length(PROMPT), output=length(1 + steps * (k + 1)), limits=limits)
    )  # fmt: skip
    ends = np.frombuffer(cluster.replicas[0].step_end_s)
    expected = [
        float(decode_step(placed, SOURCE, k, batch, PROMPT + i * (k + 1)).seconds)
        for i in range(steps)
    ]
    assert np.diff(ends).tolist() == pytest.approx(expected, rel=1e-9)


def test_ngram_verifies_what_it_proposes() -> None:
    """The closed form's step at the mean number of proposed tokens, to the rounding of
    tokens to whole ones; and a step that proposes all K where the law says so."""
    from specsim.analytic.drafted import drafted_tokens
    from specsim.scenario import Scenario
    from specsim.simulator.run import make_setup

    data = {
        "target": {"model": "llama-3.1-8b"}, "draft": {"method": "ngram", "num_draft_tokens": 4},
        "acceptance": {"alpha": 0.2}, "engine": {"max_num_seqs": 32},
        "workload": {
            "arrivals": {"process": "closed", "concurrency": 32}, "num_requests": 32,
            "prompt_tokens": {"distribution": "constant", "value": PROMPT},
            "output_tokens": {"distribution": "constant", "value": 60},
        },
    }  # fmt: skip
    given_setup, _ = make_setup(Scenario.from_dict(data))
    mean = float(drafted_tokens(given_setup.deployment.draft, Iid(0.2), [4])[0])
    assert given_setup.proposed is not None
    assert given_setup.proposed[4] == pytest.approx(mean)
    assert mean < 1
    cluster = run(given_setup)
    first = float(np.diff(np.frombuffer(cluster.replicas[0].step_end_s))[0])
    closed = decode_step(given_setup.deployment, given_setup.source, 4, 32, PROMPT, mean)
    assert first == pytest.approx(float(closed.seconds), rel=0.005)


LAWS: list[Law] = [
    Iid(0.5), Iid(0.9), PerPosition((0.8, 0.6, 0.3)), BetaRequests(6.0, 3.0),
    Markov(0.95, 0.35, 10.0, 5.0),
]  # fmt: skip


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_steps_per_request_follow_the_law(law: Law, k: int) -> None:
    """Steps of a request of N tokens: mean within 4 standard errors of `steps_pmf`, which
    knows that the last step is cut."""
    tokens, count = 120, 600
    cluster = run(setup(k=k, count=count, rate=200.0, law=law, output=length(1 + tokens)))
    steps = cluster.ledger.num_steps
    pmf = law.steps_pmf(tokens, k)
    values = np.arange(len(pmf))
    mean = float(np.sum(values * pmf))
    deviation = float(np.sqrt(np.sum(values**2 * pmf) - mean**2))
    assert abs(steps.mean() - mean) < 4 * deviation / np.sqrt(count) + 1e-9


@pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)
def test_saturated_throughput_is_tau_over_step_time(law: Law) -> None:
    """A fixed batch: tokens per second = B·τ(K)/T(B, K, mean context), within 4 standard
    errors of the drawn tokens plus 1 % for the spread of contexts and the cut last steps."""
    k, batch, tokens = 4, 16, 600
    limits = Limits(max_num_seqs=batch, max_tokens=16_384, num_blocks=100_000)
    placed = deployment(k)
    cluster = run(
        setup(k=k, rate=None, count=batch, concurrency=batch, law=law, placed=placed,
              prompt=length(PROMPT), output=length(tokens), limits=limits)
    )  # fmt: skip
    replica = cluster.replicas[0]
    full = np.flatnonzero(np.frombuffer(replica.decoding, dtype=np.int32) == batch)
    ends = np.frombuffer(replica.step_end_s)
    seconds = ends[full[-1]] - ends[full[0] - 1]
    # where everybody still runs, contexts are the prompt and what was said so far
    emitted = replica.batch.accepted + replica.batch.steps
    tau = emitted / replica.batch.steps
    context = PROMPT + tau * len(full) / 2
    expected = batch * tau / float(decode_step(placed, SOURCE, k, batch, context).seconds)
    assert batch * tau * len(full) / seconds == pytest.approx(expected, rel=0.01)
    error = np.sqrt(law.variance(k) / replica.batch.steps) / law.acceptance_length(k)
    # requests of one run share a drawn α or a state: 16 of them, not thousands of steps
    spread = 0.15 if isinstance(law, BetaRequests) else 0.02 if isinstance(law, Markov) else 0.0
    assert tau == pytest.approx(law.acceptance_length(k), rel=4 * error + spread)


def test_recorded_runs_are_replayed() -> None:
    """A trace in place of a law: the same line of code, step for step."""
    rng = np.random.default_rng(0)
    recorded = tuple(rng.integers(0, 6, size=90) for _ in range(5))
    law = Empirical(recorded)
    cluster = run(setup(k=3, count=30, law=law, output=length(90)))
    sampler = cluster._sampler
    assert sampler is not None
    for request in range(30):
        runs = np.frombuffer(sampler.runs(request, 0, 90), np.uint8)
        assert any(np.array_equal(runs, np.asarray(r)) for r in recorded)
        assert cluster.ledger.num_steps[request] == len(replay(runs[1:].astype(np.int64), 3))


def test_acceptance_length_counts_whole_steps() -> None:
    """The last step of an answer is cut, its acceptance is not: τ is unbiased."""
    law = Iid(0.8)
    cluster = run(setup(k=4, count=3000, rate=300.0, law=law, output=length(9)))
    batch = cluster.replicas[0].batch
    tau = 1 + batch.accepted / batch.steps
    error = np.sqrt(law.variance(4) / batch.steps)
    # short answers are met in a length-biased way: 4 errors plus half a percent
    assert tau == pytest.approx(law.acceptance_length(4), abs=4 * error + 0.02)


@pytest.mark.parametrize("law", [Iid(0.75), PerPosition((0.9, 0.5, 0.3, 0.1))])
def test_pure_monte_carlo(law: Law) -> None:
    """One uniform a step against K thresholds: counts within 4.5 standard errors."""
    steps, k = 2_000_000, 4
    counts = count_accepted(law, k, steps, seed=3)
    assert counts.sum() == steps
    pmf = law.pmf(k)
    error = np.sqrt(pmf * (1 - pmf) * steps)
    assert np.all(np.abs(counts - pmf * steps) < 4.5 * error + 1)


def test_monte_carlo_refuses_laws_with_memory() -> None:
    with pytest.raises(ValueError, match="independent steps"):
        count_accepted(Markov(0.9, 0.2, 5.0, 5.0), 3, 10, seed=0)
