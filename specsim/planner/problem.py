"""What a plan is asked: a scenario, the GPUs one may use, and what counts as served."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from specsim import catalogue
from specsim.errors import ScenarioError
from specsim.metrics import Objective
from specsim.scenario.document import Scenario
from specsim.scenario.resolve import named
from specsim.simulator.run import objectives, requests_of
from specsim.workload.traces import read_trace

Array = npt.NDArray[np.float64]

#: Requests that are drawn to learn the moments and quantiles of a workload's lengths.
NUM_DRAWN = 4000
#: Prompt and answer lengths of a class are represented by so many quantiles.
NUM_QUANTILES = 12
#: K that is looked at when the scenario names no range.
DEFAULT_DRAFT_TOKENS = range(1, 13)
#: Share of the requests of every class that must meet the SLO.
DEFAULT_ATTAINED = 0.9

#: The article's 70B chat service: code, factual and creative traffic. An 8B draft is the
#: "7B or less" of that article; bf16 weights need four GPUs.
BUILT_IN: dict[str, Any] = {
    "target": {"model": "llama-3.1-70b"},
    "draft": {"method": "draft-model", "model": "llama-3.1-8b"},
    "hardware": {"gpu": "h100-sxm", "tensor_parallel": 4, "replicas": 2},
    "acceptance": {"preset": "factual-qa"},
    "workload": {
        "arrivals": {"process": "poisson", "rate_per_s": 6.0},
        "num_requests": 1000,
        "classes": [
            {"name": "code", "weight": 1.0, "acceptance": {"preset": "code"},
             "prompt_tokens": {"distribution": "lognormal", "mean": 1500, "cv": 1.0},
             "output_tokens": {"distribution": "lognormal", "mean": 350, "cv": 0.8}},
            {"name": "factual", "weight": 1.0, "acceptance": {"preset": "factual-qa"},
             "prompt_tokens": {"distribution": "lognormal", "mean": 900, "cv": 1.0},
             "output_tokens": {"distribution": "lognormal", "mean": 200, "cv": 0.8}},
            {"name": "creative", "weight": 1.0, "acceptance": {"preset": "creative"},
             "prompt_tokens": {"distribution": "lognormal", "mean": 400, "cv": 1.0},
             "output_tokens": {"distribution": "lognormal", "mean": 600, "cv": 0.8}},
        ],
    },
    "slo": {"ttft_s": 1.0, "tpot_s": 0.04},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """One class: its share of requests, quantiles of its lengths (tokens), its SLO."""

    name: str
    share: float
    prompts: Array
    outputs: Array
    objective: Objective

    @property
    def mean_prompt(self) -> float:
        """Tokens."""
        return float(self.prompts.mean())

    @property
    def mean_output(self) -> float:
        """Tokens."""
        return float(self.outputs.mean())


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Everything a search needs to know.

    `rate_per_s` is the demand in requests per second (None for a closed loop, which has
    `concurrency`); `max_gpus` None means as many as it takes, and with `use_all` all of them
    are used, needed or not (the scenario's own); `drafts` None means every
    draft that goes with the target; `attained` is the share of each class's requests that
    must meet its SLO.
    """

    scenario: Scenario
    classes: tuple[Traffic, ...]
    rate_per_s: float | None
    concurrency: int | None
    gpus: tuple[str, ...]
    max_gpus: int | None
    use_all: bool
    budget_usd_per_h: float | None
    drafts: tuple[str, ...] | None
    draft_tokens: tuple[int, ...]
    attained: float

    @property
    def has_slo(self) -> bool:
        """Whether any class has an objective."""
        return any(
            limit is not None
            for c in self.classes
            for limit in (c.objective.ttft_s, c.objective.tpot_s, c.objective.itl_s,
                          c.objective.e2e_s)
        )  # fmt: skip

    @functools.cached_property
    def context(self) -> float:
        """Mean context of a decoding step, in tokens: a request contributes as many steps
        as it has output tokens, so long answers weigh more."""
        tokens = [(c.share, p, n) for c in self.classes
                  for p, n in zip(c.prompts, c.outputs, strict=True)]  # fmt: skip
        weight = sum(share * n for share, _, n in tokens)
        return float(sum(share * n * (p + n / 2) for share, p, n in tokens) / weight)

    @property
    def longest_context(self) -> float:
        """The 95th percentile of a finished request's length."""
        return max(float(np.quantile(c.prompts + c.outputs, 0.95)) for c in self.classes)

    @property
    def mean_length(self) -> float:
        """Tokens that a finished request holds in the KV cache, on average."""
        return sum(c.share * (c.mean_prompt + c.mean_output) for c in self.classes)

    @property
    def mean_output(self) -> float:
        """Output tokens per request."""
        return sum(c.share * c.mean_output for c in self.classes)


def middle_price(price: tuple[float, float]) -> float:
    """The geometric middle of a price range, USD/h."""
    return math.sqrt(price[0] * price[1])


def make_problem(
    scenario: Scenario, *, gpus: Sequence[str] | None = None, max_gpus: int | None = None,
    budget_usd_per_h: float | None = None, drafts: Iterable[str] | None = None,
    attained: float = DEFAULT_ATTAINED,
) -> Problem:  # fmt: skip
    """Read a scenario as a planning problem. `max_gpus` and the budget are limits; without
    either, the GPUs are the scenario's, tensor_parallel × replicas, and all are used.

    Raises:
        ScenarioError: for an impossible limit, naming it.
        UnknownNameError: for a GPU that the catalogue does not have.
    """
    if not 0 < attained < 1:
        raise ScenarioError(f"attained = {attained}: expected a share between 0 and 1")
    names = tuple(gpus) if gpus else (scenario.hardware.gpu,)
    specs = [named("gpus" if gpus else "hardware.gpu", catalogue.gpu, name) for name in names]
    if max_gpus is not None and max_gpus < 1:
        raise ScenarioError(f"max_gpus = {max_gpus}: expected at least 1 GPU")
    if budget_usd_per_h is not None:
        prices = {g.name: g.price_usd_per_h for g in specs}
        unknown = [name for name, price in prices.items() if price is None]
        if unknown:
            raise ScenarioError(f"budget: no price is known for {', '.join(unknown)}")
        cheapest = min(middle_price(price) for price in prices.values() if price is not None)
        if not budget_usd_per_h >= cheapest * (1 - 1e-9):
            raise ScenarioError(
                f"budget = {budget_usd_per_h:g} USD/h: below the price of one GPU, "
                f"{cheapest:.2f} USD/h (the middle of its range)"
            )
    use_all = max_gpus is None and budget_usd_per_h is None
    if use_all:
        max_gpus = scenario.hardware.tensor_parallel * scenario.hardware.replicas
    given = None if drafts is None else tuple(drafts)
    if given is not None and not given:
        raise ScenarioError("drafts: the search space is empty; expected at least one draft")
    arrivals = scenario.workload.arrivals
    return Problem(
        scenario=scenario, classes=traffic(scenario), rate_per_s=_rate(scenario),
        concurrency=arrivals.concurrency if arrivals.process == "closed" else None,
        gpus=tuple(g.name for g in specs), max_gpus=max_gpus, use_all=use_all,
        budget_usd_per_h=budget_usd_per_h, drafts=given,
        draft_tokens=_draft_tokens(scenario), attained=attained,
    )  # fmt: skip


def traffic(scenario: Scenario) -> tuple[Traffic, ...]:
    """The classes of a scenario with the quantiles of drawn lengths.

    Prompt and output quantiles are paired at random (fixed order), since lengths are
    independent within a class."""
    many = scenario.workload.model_copy(update={"num_requests": NUM_DRAWN})
    drawn, _ = requests_of(scenario.model_copy(update={"workload": many}), None)
    declared = scenario.workload.classes
    weights = np.array([c.weight for c in declared] or [1.0])
    found = []
    middle = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    # a fixed permutation without fixed points: prompts and outputs are uncorrelated
    shuffle = (np.arange(NUM_QUANTILES) * 5 + 2) % NUM_QUANTILES
    for index, (name, objective) in enumerate(
        zip(drawn.class_names, objectives(scenario), strict=True)
    ):
        mine = drawn.traffic_class == index
        if not mine.any():
            continue
        prompts = _quantiles(drawn.prompt_tokens[mine], middle)
        outputs = _quantiles(drawn.output_tokens[mine], middle)[shuffle]
        found.append(
            Traffic(
                name=name, share=float(weights[index] / weights.sum()), prompts=prompts,
                outputs=outputs, objective=objective,
            )
        )  # fmt: skip
    return tuple(found)


def _quantiles(values: npt.NDArray[np.int64], at: Array) -> Array:
    """Quantiles scaled to the sample's mean (a heavy tail is longer than its quantiles)."""
    points = np.quantile(values, at)
    return np.asarray(points * (values.mean() / points.mean()))


def _rate(scenario: Scenario) -> float | None:
    arrivals = scenario.workload.arrivals
    if arrivals.process == "closed":
        return None
    if arrivals.process != "trace":
        return float(arrivals.rate_per_s or 0.0) * arrivals.rate_scale
    trace = read_trace(str(arrivals.file)).window(arrivals.start_s, arrivals.end_s)
    span = float(trace.arrival_s[-1] - trace.arrival_s[0])
    if len(trace) < 2 or span <= 0:
        raise ScenarioError(f"{arrivals.file}: a trace of {len(trace)} requests has no rate")
    return (len(trace) - 1) / span * arrivals.rate_scale


def _draft_tokens(scenario: Scenario) -> tuple[int, ...]:
    """A range in the scenario is kept; one number does not narrow the choice of K."""
    keys = scenario.draft.num_draft_tokens
    given = [k for k in scenario.draft_tokens if k >= 1]
    if isinstance(keys, str) and keys != "auto":
        if not given:
            raise ScenarioError(
                f"draft.num_draft_tokens = {keys!r}: no K >= 1 to choose from; "
                "policy off needs no plan"
            )
        return tuple(given)
    largest = max([*DEFAULT_DRAFT_TOKENS, *(given if keys != "auto" else [])])
    return tuple(range(1, largest + 1))
