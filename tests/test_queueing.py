"""With degenerate settings the engine is a queue that theory knows.

A single seat makes it a single server (service = prompt tokens times a constant); many
seats with a step time that ignores the batch are many servers; a step time proportional
to the batch is processor sharing. Means (and the tail, where it is known) must be within
3 standard errors, from 20 independent replications of each case or more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from simulator_setups import ONE_SECOND, PER_TOKEN, SINGLE_SERVER, requests, run, setup

from specsim.cost.linear import Linear
from specsim.simulator.setup import Limits, Setup
from specsim.workload import ArrivalProcess, LengthLaw, TrafficMix, generate

REPLICATIONS = 20
Array = np.ndarray

GEOMETRIC = LengthLaw(distribution="geometric", mean=ONE_SECOND)
ONE_TOKEN = LengthLaw(distribution="constant", value=1)


def stays(given_setup: Setup, warmup: int) -> Array:
    ledger = run(given_setup).ledger
    return (ledger.finish_s - ledger.arrival_s)[warmup:]


def replications(
    build: Callable[[int], Setup], statistic: Callable[[Array], float], warmup: int,
    count: int = REPLICATIONS,
) -> tuple[float, float]:  # fmt: skip
    """Mean of a statistic of the time in the system, and its standard error."""
    found = np.array([statistic(stays(build(seed), warmup)) for seed in range(count)])
    return float(found.mean()), float(found.std(ddof=1) / math.sqrt(count))


def single_server(rate: float, service: LengthLaw, count: int) -> Callable[[int], Setup]:
    """M/G/1, first come first served."""

    def build(seed: int) -> Setup:
        return _open(rate, service, ONE_TOKEN, count, seed, SINGLE_SERVER, PER_TOKEN)

    return build


def _open(
    rate: float, prompt: LengthLaw, output: LengthLaw, count: int, seed: int, limits: Limits,
    source: Linear,
) -> Setup:  # fmt: skip
    arrivals = ArrivalProcess(process="poisson", rate_per_s=rate)
    drawn = requests(count, arrivals=arrivals, prompt=prompt, output=output, seed=seed)
    return replace(setup(limits=limits, source=source, seed=seed), requests=drawn,
                   arrivals=arrivals)  # fmt: skip


def moments(law: LengthLaw) -> tuple[float, float]:
    """E[S] and E[S²] in seconds."""
    if law.distribution == "constant":
        mean, variance = float(law.value), 0.0
    elif law.distribution == "uniform":
        mean = (law.low + law.high) / 2
        variance = ((law.high - law.low + 1) ** 2 - 1) / 12
    elif law.distribution == "geometric":
        mean, variance = law.mean, law.mean * (law.mean - 1)
    else:
        weights = np.array(law.weights) / sum(law.weights or (1,))
        values = np.array(law.values, dtype=float)
        mean = float(weights @ values)
        variance = float(weights @ values**2) - mean**2
    scale = PER_TOKEN.token_s
    return mean * scale, (variance + mean**2) * scale**2


CASES = {
    "M/M/1": (GEOMETRIC, 0.7),
    "M/D/1": (LengthLaw(distribution="constant", value=ONE_SECOND), 0.8),
    "M/G/1 uniform": (LengthLaw(distribution="uniform", low=1, high=2 * ONE_SECOND - 1), 0.8),
    "M/G/1 two-point": (
        LengthLaw(distribution="empirical", values=(250, 4000), weights=(4.0, 1.0)), 0.6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_single_server(name: str) -> None:
    """Pollaczek–Khinchine: W = E[S] + λ E[S²] / (2 (1 − ρ))."""
    law, rate = CASES[name]
    mean, second = moments(law)
    expected = mean + rate * second / (2 * (1 - rate * mean))
    found, error = replications(single_server(rate, law, 3500), np.mean, 500, 40)
    assert error < 0.06 * expected
    assert abs(found - expected) < 3 * error


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_mm1_tail(q: float) -> None:
    """The time in an M/M/1 queue is exponential with rate μ − λ."""
    rate = 0.6
    expected = -math.log(1 - q) / (1 - rate)
    found, error = replications(
        single_server(rate, GEOMETRIC, 4000), lambda x: float(np.quantile(x, q)), 500
    )
    assert abs(found - expected) < 3 * error


def erlang_c(servers: int, load: float) -> float:
    """P(an arrival waits) in M/M/c with offered load a = λ E[S] (Erlang's C formula)."""
    term, below = 1.0, 1.0
    for n in range(1, servers):
        term *= load / n
        below += term
    last = term * load / servers * servers / (servers - load)
    return last / (below + last)


@pytest.mark.parametrize("servers", [2, 5])
def test_many_servers(servers: int) -> None:
    """M/M/c: seats are servers when a step takes the same time whatever the batch. Service
    is a geometric number of steps; an arrival meets a step half done, which is the bias
    of one step (1 %) that is allowed on top of 3 standard errors."""
    tokens = 100
    step_s = 1.0 / tokens
    rate = 0.7 * servers
    limits = Limits(max_num_seqs=servers, max_tokens=10_000, num_blocks=10**7, watermark=0.0)
    source = Linear(base_s=step_s)

    def build(seed: int) -> Setup:
        output = LengthLaw(distribution="geometric", mean=tokens)
        return _open(rate, ONE_TOKEN, output, 1500, seed, limits, source)

    wait = erlang_c(servers, rate) / (servers - rate)
    found, error = replications(build, np.mean, 300)
    assert abs(found - (1.0 + wait)) < 3 * error + step_s


@pytest.mark.parametrize("distribution", ["constant", "geometric"])
def test_processor_sharing(distribution: str) -> None:
    """A step takes as long as its batch: M/G/1-PS, W = E[S]/(1 − ρ) whatever the law of
    the service. An arrival waits for the step that runs, about ρ/(1 − ρ) tokens' time."""
    tokens = 60
    rate = 0.6
    source = Linear(base_s=0.0, token_s=1.0 / tokens)
    limits = Limits(max_num_seqs=10_000, max_tokens=10_000, num_blocks=10**7, watermark=0.0)
    output = (
        LengthLaw(distribution="constant", value=tokens) if distribution == "constant"
        else LengthLaw(distribution="geometric", mean=tokens)
    )  # fmt: skip

    def build(seed: int) -> Setup:
        return _open(rate, ONE_TOKEN, output, 1500, seed, limits, source)

    expected = 1.0 / (1 - rate)
    found, error = replications(build, np.mean, 300)
    assert abs(found - expected) < 3 * error + rate / (1 - rate) / tokens


def test_two_classes_against_ciw() -> None:
    """Two classes of traffic, one server, first come first served: mean time in the system
    of each class equals what the library Ciw simulates, within 3 standard errors of the
    difference (20 replications each)."""
    ciw = pytest.importorskip("ciw")
    rates, means = (0.35, 0.15), (0.8, 2.4)
    count, warmup = 4000, 400

    def ours(seed: int) -> list[float]:
        mix = tuple(
            TrafficMix(name=str(i), weight=rates[i], output_tokens=ONE_TOKEN,
                       prompt_tokens=LengthLaw(distribution="geometric", mean=means[i] * 1000))
            for i in range(2)
        )  # fmt: skip
        arrivals = ArrivalProcess(process="poisson", rate_per_s=sum(rates))
        drawn = generate(arrivals=arrivals, classes=mix, num_requests=count, seed=seed)
        base = setup(limits=SINGLE_SERVER, source=PER_TOKEN)
        given_setup = replace(base, requests=drawn, arrivals=arrivals, laws=(base.laws[0],) * 2)
        time = stays(given_setup, warmup)
        return [float(time[drawn.traffic_class[warmup:] == i].mean()) for i in range(2)]

    def theirs(seed: int) -> list[float]:
        network = ciw.create_network(
            arrival_distributions={
                f"Class {i}": [ciw.dists.Exponential(rate=rates[i])] for i in range(2)
            },
            service_distributions={
                f"Class {i}": [ciw.dists.Exponential(rate=1 / means[i])] for i in range(2)
            },
            number_of_servers=[1],
        )
        ciw.seed(seed)
        simulation = ciw.Simulation(network)
        simulation.simulate_until_max_customers(count)
        found = sorted(simulation.get_all_records(), key=lambda r: r.arrival_date)[warmup:]
        return [
            float(np.mean([r.exit_date - r.arrival_date for r in found
                           if r.customer_class == f"Class {i}"]))
            for i in range(2)
        ]  # fmt: skip

    mine = np.array([ours(seed) for seed in range(REPLICATIONS)])
    other = np.array([theirs(seed) for seed in range(REPLICATIONS)])
    error = np.sqrt((mine.var(axis=0, ddof=1) + other.var(axis=0, ddof=1)) / REPLICATIONS)
    assert np.all(np.abs(mine.mean(axis=0) - other.mean(axis=0)) < 3 * error)
    # and both are M/G/1: the wait is the same for both classes
    second = sum(2 * r * m * m for r, m in zip(rates, means, strict=True))
    wait = second / (2 * (1 - sum(r * m for r, m in zip(rates, means, strict=True))))
    own = mine.std(axis=0, ddof=1) / math.sqrt(REPLICATIONS)
    assert np.all(np.abs(mine.mean(axis=0) - (wait + np.array(means))) < 3 * own)
