"""The simulator against queueing theory, where its engine is a queue that theory knows.

One seat, and service in proportion to the prompt: a single server. Seats whose step takes
the same time whatever the batch: several servers. A step in proportion to its batch:
processor sharing. Means of 20 replications; the bound of a row is 3 standard errors (plus
one step where a step's length is what the discrete engine differs by from the queue).
`tests/test_queueing.py` has more cases, and Ciw.
"""

from __future__ import annotations

import math

import numpy as np

from specsim import catalogue
from specsim.acceptance.chains import Iid
from specsim.cost.linear import Linear
from specsim.deployment import NO_DRAFT, Deployment, PlacedModel
from specsim.simulator.cluster import Cluster
from specsim.simulator.setup import Limits, Setup
from specsim.simulator.speculation import Policy
from specsim.workload.arrivals import ArrivalProcess
from specsim.workload.lengths import LengthLaw
from specsim.workload.requests import TrafficMix, generate
from validation.rows import Row, comparison

REPLICATIONS, REQUESTS, WARMUP = 20, 2500, 400
SOURCE = "queueing theory: Pollaczek–Khinchine, Erlang C, processor sharing (Kleinrock 1976)"
#: Prompt tokens of one second of service; steps of one second where decoding is service.
TOKENS, STEPS = 1000, 60
ONE = LengthLaw(distribution="constant", value=1)


def rows() -> list[Row]:
    """Every row."""
    geometric = LengthLaw(distribution="geometric", mean=TOKENS)
    constant = LengthLaw(distribution="constant", value=TOKENS)
    steps = LengthLaw(distribution="geometric", mean=STEPS)
    served = Linear(base_s=0.0, token_s=1 / TOKENS)
    geometric_second = (TOKENS * (TOKENS - 1) + TOKENS**2) / TOKENS**2
    return [
        _row("M/M/1, load 0.7", _waiting(0.7, geometric_second), 0.7, geometric, ONE, served, 1),
        _row("M/D/1, load 0.8", _waiting(0.8, 1.0), 0.8, constant, ONE, served, 1),
        _row("M/M/2, load 0.7", 1 + _erlang_c(2, 1.4) / (2 - 1.4), 1.4, ONE, steps,
             Linear(base_s=1 / STEPS), 2, slack_s=1 / STEPS),
        _row("M/M/1-PS, load 0.6", 1 / (1 - 0.6), 0.6, ONE, steps,
             Linear(base_s=0.0, token_s=1 / STEPS), 10_000, slack_s=1.5 / STEPS),
    ]  # fmt: skip


def _waiting(load: float, second_moment: float) -> float:
    """Mean time in an M/G/1 queue with services of mean 1 s."""
    return 1 + load * second_moment / (2 * (1 - load))


def _erlang_c(servers: int, load: float) -> float:
    """P(an arrival waits) in M/M/c."""
    terms = [load**n / math.factorial(n) for n in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(terms) + last)


def _row(
    name: str, expected: float, rate: float, prompt: LengthLaw, output: LengthLaw,
    source: Linear, seats: int, slack_s: float = 0.0,
) -> Row:  # fmt: skip
    means = np.array(
        [_mean_stay(rate, prompt, output, source, seats, seed) for seed in range(REPLICATIONS)]
    )
    error = float(means.std(ddof=1)) / math.sqrt(REPLICATIONS)
    return comparison(f"{name}: mean time in the system", float(means.mean()), expected, "s",
                      bound=(3 * error + slack_s) / expected, provenance=SOURCE)  # fmt: skip


def _mean_stay(
    rate: float, prompt: LengthLaw, output: LengthLaw, source: Linear, seats: int, seed: int
) -> float:
    arrivals = ArrivalProcess(process="poisson", rate_per_s=rate)
    drawn = generate(
        arrivals=arrivals, num_requests=REQUESTS, seed=seed,
        classes=(TrafficMix(name="", prompt_tokens=prompt, output_tokens=output),),
    )  # fmt: skip
    deployment = Deployment(
        target=PlacedModel(spec=catalogue.model("llama-3.1-8b")), draft=NO_DRAFT,
        gpu=catalogue.gpu("h100-sxm"), runtime=catalogue.runtime("ideal"),
    )  # fmt: skip
    cluster = Cluster(
        Setup(
            deployment=deployment, source=source, laws=(Iid(0.0),), requests=drawn,
            arrivals=arrivals, policy=Policy(kind="off"), seed=seed,
            limits=Limits(max_num_seqs=seats, max_tokens=10**6, num_blocks=10**7, watermark=0.0),
        )
    )  # fmt: skip
    cluster.run()
    stays = cluster.ledger.finish_s - cluster.ledger.arrival_s
    return float(stays[WARMUP:].mean())
