"""Metrics over timestamps, worked out by hand and against numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specsim.metrics import (
    Objective,
    Served,
    batch_means_interval,
    distribution,
    e2e,
    little,
    mean_interval,
    meets,
    service_metrics,
    tpot,
    ttft,
    warmup_length,
    weighted_distribution,
    weighted_quantile,
)
from specsim.records import RequestRecord


def record(
    name: str, arrival: float, times: list[float], tokens: list[int], traffic: str = "",
    failed: bool = False,
) -> RequestRecord:  # fmt: skip
    return RequestRecord(
        request=name, arrival_s=arrival, prompt_tokens=10, output_tokens=sum(tokens),
        chunk_times_s=tuple(times), chunk_tokens=tuple(tokens), traffic_class=traffic,
        failed=failed,
    )  # fmt: skip


#: a: 6 tokens in chunks of 1, 3, 2 at 2, 3, 5 s; b: one token; c: failed.
RECORDS = [
    record("a", 1.0, [2.0, 3.0, 5.0], [1, 3, 2], "code"),
    record("b", 2.0, [2.5], [1], "chat"),
    record("c", 3.0, [], [], "chat", failed=True),
]


def test_by_hand() -> None:
    served = Served.from_records(RECORDS)
    assert ttft(served).tolist() == pytest.approx([1.0, 0.5, math.nan], nan_ok=True)
    assert tpot(served).tolist() == pytest.approx([3.0 / 5, math.nan, math.nan], nan_ok=True)
    assert e2e(served).tolist() == pytest.approx([4.0, 0.5, math.nan], nan_ok=True)
    got = service_metrics(served, [Objective(tpot_s=0.7), Objective(ttft_s=0.1)])
    assert (got.requests, got.completed, got.failed) == (3, 2, 1)
    assert got.duration_s == 4.0
    assert got.output_tokens == 7
    assert got.throughput_tokens_per_s == pytest.approx(7 / 4)
    assert got.throughput_requests_per_s == pytest.approx(2 / 4)
    # a keeps its objective, b's first token came after 0.5 s
    assert got.goodput_by_class == {"code": 0.25, "chat": 0.0}
    assert got.goodput_requests_per_s == 0.25
    assert got.itl_s.mean == pytest.approx((1.0 + 2.0) / 2)
    assert got.itl_s.p50 == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("objective", "kept"),
    [
        (Objective(), [True, True, False]),
        (Objective(itl_s=1.5), [False, True, False]),
        (Objective(itl_s=2.0), [True, True, False]),
        (Objective(e2e_s=1.0), [False, True, False]),
        (Objective(ttft_s=0.7, tpot_s=0.1), [False, True, False]),
    ],
)
def test_objectives(objective: Objective, kept: list[bool]) -> None:
    served = Served.from_records(RECORDS)
    assert meets(served, [objective, objective]).tolist() == kept


def test_a_bounded_gap_needs_gaps() -> None:
    served = Served.from_records(RECORDS)
    bare = Served(**{**served.__dict__, "worst_gap_s": None})
    with pytest.raises(ValueError, match="longest gaps were not computed"):
        meets(bare, [Objective(itl_s=1.0)])


def test_nothing_served() -> None:
    got = service_metrics(Served.from_records([record("c", 3.0, [], [], failed=True)]))
    assert got.completed == 0
    assert got.duration_s == 0
    assert got.throughput_tokens_per_s == 0
    assert got.ttft_s.mean is None
    assert got.ttft_s.to_dict()["ci95"] is None


@given(
    pairs=st.lists(st.tuples(st.floats(0, 100), st.integers(0, 9)), min_size=1, max_size=40),
    q=st.floats(0, 1),
)
def test_weighted_quantile_is_that_of_repeats(pairs: list[tuple[float, int]], q: float) -> None:
    values = np.array([v for v, _ in pairs])
    weights = np.array([float(w) for _, w in pairs])
    repeated = np.repeat(values, weights.astype(int))
    got = weighted_distribution(values, weights)
    if not len(repeated):
        assert got.mean is None
        return
    kept = weights > 0
    assert weighted_quantile(values[kept], weights[kept], q) == pytest.approx(
        float(np.quantile(repeated, q))
    )
    assert got.mean == pytest.approx(float(repeated.mean()))
    assert got.p90 == pytest.approx(float(np.quantile(repeated, 0.9)))


def correlated(rng: np.random.Generator, count: int, memory: float) -> np.ndarray:
    """A stationary autoregression of mean 0."""
    noise = rng.standard_normal(count) * math.sqrt(1 - memory**2)
    values = np.empty(count)
    values[0] = rng.standard_normal()
    for i in range(1, count):
        values[i] = memory * values[i - 1] + noise[i]
    return values


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_interval_covers_the_mean(memory: float) -> None:
    """95 % of 300 intervals hold the true mean, within 3.5 binomial standard errors below
    (batches of 200 values against a correlation time of about 10 to 20)."""
    rng = np.random.default_rng(8)
    hits = 0
    for _ in range(300):
        interval = batch_means_interval(correlated(rng, 4000, memory))
        assert interval is not None
        hits += interval[0] <= 0 <= interval[1]
    assert hits / 300 > 0.95 - 3.5 * math.sqrt(0.95 * 0.05 / 300)
    assert batch_means_interval(np.ones(100)) is None


def test_warmup_is_found_and_nothing_else_cut() -> None:
    """A start far from the steady state is cut; a steady series keeps nearly all."""
    rng = np.random.default_rng(4)
    steady = 10 + rng.standard_normal(5000)
    assert warmup_length(steady) < 1500
    start = steady.copy()
    start[:1000] += np.linspace(20, 0, 1000)
    assert 600 < warmup_length(start) < 1800
    assert warmup_length(start[:900]) == 0


def test_distribution_is_numpys() -> None:
    values = np.random.default_rng(0).exponential(1.0, 1000)
    got = distribution(np.append(values, np.nan))
    assert got.mean == pytest.approx(values.mean())
    assert got.p99 == pytest.approx(np.quantile(values, 0.99))
    assert got.ci95 is not None
    assert got.ci95[0] < 1.0 < got.ci95[1]


def test_little_by_hand() -> None:
    """One request from 0 to 4 and one from 2 to 3: 5 request-seconds in 4 s."""
    served = Served.from_records(
        [record("a", 0.0, [1.0, 4.0], [1, 1]), record("b", 2.0, [3.0], [1])]
    )
    assert little(served) == pytest.approx((5 / 4, 2 / 4 * 2.5))


def test_mean_of_independent_values() -> None:
    """By hand: 1, 2, 4 have mean 7/3 and standard error √(7/3/3); t₂ at 97.5 % is 4.303."""
    mean, error, interval = mean_interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert error == pytest.approx(math.sqrt(7) / 3)
    assert interval == pytest.approx((7 / 3 - 4.30265 * math.sqrt(7) / 3,
                                      7 / 3 + 4.30265 * math.sqrt(7) / 3), rel=1e-5)  # fmt: skip
    assert mean_interval([3.0]) == (3.0, None, None)
    assert mean_interval([]) == (None, None, None)
