"""Small runs for the simulator's tests: plain objects, no scenario file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from specsim import catalogue
from specsim.acceptance import Iid
from specsim.catalogue.specs import Estimate
from specsim.cost.linear import Linear
from specsim.cost.roofline import Roofline
from specsim.deployment import Deployment, Draft, PlacedModel
from specsim.simulator.cluster import Cluster
from specsim.simulator.setup import Limits, Setup
from specsim.simulator.speculation import Policy
from specsim.workload import ArrivalProcess, LengthLaw, TrafficMix, generate
from specsim.workload.requests import Requests

H100 = catalogue.gpu("h100-sxm")
IDEAL = catalogue.runtime("ideal")


def deployment(
    k: int = 0, *, target: str = "llama-3.1-8b", runtime: str = "ideal", host_s: float = 0.0
) -> Deployment:
    """An 8B target, a 1B draft if anything is drafted."""
    draft = Draft(method="none")
    if k:
        draft = Draft(method="draft-model", model=PlacedModel(spec=catalogue.model("llama-3.2-1b")))
    chosen = catalogue.runtime(runtime)
    if host_s:
        chosen = replace(chosen, step_s=Estimate(host_s, host_s, host_s))
    return Deployment(
        target=PlacedModel(spec=catalogue.model(target)), draft=draft, gpu=H100, runtime=chosen
    )


def length(mean: int, distribution: str = "constant") -> LengthLaw:
    if distribution == "constant":
        return LengthLaw(distribution="constant", value=mean)
    if distribution == "lognormal":
        return LengthLaw(distribution="lognormal", mean=mean, cv=1.0, maximum=8 * mean)
    return LengthLaw(distribution="geometric", mean=mean)


def requests(
    count: int, *, arrivals: ArrivalProcess, prompt: LengthLaw, output: LengthLaw, seed: int = 0,
    **more: Any,
) -> Requests:  # fmt: skip
    mix = (TrafficMix(name="", prompt_tokens=prompt, output_tokens=output),)
    return generate(arrivals=arrivals, classes=mix, num_requests=count, seed=seed, **more)


def setup(
    *, k: int = 0, count: int = 50, rate: float | None = 5.0, concurrency: int = 1,
    prompt: LengthLaw | None = None, output: LengthLaw | None = None, seed: int = 0,
    policy: Policy | None = None, law: Any = None, limits: Limits | None = None,
    source: Any = None, placed: Deployment | None = None, **more: Any,
) -> Setup:  # fmt: skip
    """A run; `rate=None` is a closed loop of `concurrency`."""
    process = (
        ArrivalProcess(process="closed", concurrency=concurrency) if rate is None
        else ArrivalProcess(process="poisson", rate_per_s=rate)
    )  # fmt: skip
    drawn = requests(
        count, arrivals=process, prompt=prompt or length(64), output=output or length(32), seed=seed
    )
    return Setup(
        deployment=placed or deployment(k), source=source or Roofline(gpu=H100),
        laws=(law or Iid(0.7),), requests=drawn, arrivals=process,
        limits=limits or Limits(max_tokens=512, num_blocks=4000),
        policy=policy or Policy(kind="fixed" if k else "off", num_draft_tokens=k),
        seed=seed, **more,
    )  # fmt: skip


def run(given: Setup, **more: Any) -> Cluster:
    cluster = Cluster(given, **more)
    cluster.run()
    return cluster


def timings(cluster: Cluster) -> bytes:
    """Everything that a run decides, as bytes."""
    ledger = cluster.ledger
    return b"".join(
        np.ascontiguousarray(column).tobytes()
        for column in (
            ledger.arrival_s, ledger.first_s, ledger.finish_s, ledger.replica, ledger.first_step,
            ledger.num_steps, ledger.preemptions, ledger.failed,
        )
    )  # fmt: skip


#: Service by the prompt alone: `prompt` tokens cost as many seconds times SERVICE_S.
SERVICE_S = 1e-3
PER_TOKEN = Linear(base_s=0.0, token_s=SERVICE_S)
ONE_SECOND = 1000  # prompt tokens of one second of service
#: One seat: requests are served one after the other, each prompt in one step.
SINGLE_SERVER = Limits(max_num_seqs=1, max_tokens=1_000_000, num_blocks=1_000_000, watermark=0.0)
