"""The sections of a scenario file, as pydantic models: names and numbers, validated once."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from specsim.deployment import METHODS

#: Largest K that a range may name; engines draft at most a few dozen tokens.
MAX_DRAFT_TOKENS = 64
AUTO_DRAFT_TOKENS = range(1, 17)
#: More requests than this do not fit in memory.
MAX_REQUESTS = 10**7

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, lt=math.inf)]
Count = Annotated[int, Field(ge=1, le=10**9)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's yes and true would pass as 1 otherwise."""
        field = cls.model_fields[info.field_name or ""]
        if field.annotation is not bool and _holds_truth_value(value):
            raise ValueError("expected no truth value (YAML reads yes, no, on, off as such)")
        return value


def _holds_truth_value(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_truth_value(item) for item in value)
    return isinstance(value, bool)


class Target(Section):
    """The model whose output is wanted: a catalogue name or a config.json."""

    model: str = "llama-3.1-70b"
    weights: Literal["bf16", "fp16", "fp32", "fp8", "int8", "int4", "fp4"] = "bf16"
    kv: Literal["bf16", "fp16", "fp8", "int8"] = "bf16"


class TreeShapeKeys(Section):
    """A draft tree: depth, branches a step, nodes verified."""

    steps: Count
    topk: Count
    nodes: Count


class DraftKeys(Section):
    """How tokens are drafted. `method` follows from `model` when it is left out."""

    method: str | None = None
    model: str | None = None
    num_draft_tokens: int | str = "auto"
    weights: str | None = None
    kv: str | None = None
    tensor_parallel: Count | None = None
    kv_budget: Count | None = None
    tree: TreeShapeKeys | None = None
    exit_layer: Count | None = None
    placement: Literal["target-gpus", "own-gpus", "overlapped"] = "target-gpus"

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str | None) -> str | None:
        if value is not None and value not in METHODS:
            near = difflib.get_close_matches(value, METHODS, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"expected one of {', '.join(METHODS)}{hint}")
        return value

    @field_validator("num_draft_tokens", mode="before")
    @classmethod
    def _range(cls, value: Any) -> int | str:
        draft_token_range(value)
        return value if isinstance(value, str) and not value.isdigit() else int(value)

    @field_validator("tree", mode="before")
    @classmethod
    def _tree_text(cls, value: Any) -> Any:
        """`steps=5,topk=4,nodes=16`, as on the command line."""
        if not isinstance(value, str):
            return value
        parts = [part.partition("=") for part in value.split(",")]
        return {key.strip(): text.strip() for key, _, text in parts}

    @property
    def effective_method(self) -> str:
        """`method`, or what `model` implies: a draft model, or nothing."""
        if self.method is not None:
            return self.method
        return "none" if self.model is None else "draft-model"


class Hardware(Section):
    """GPUs of one replica (of which `expert_parallel` groups hold different experts), how
    many replicas, and which of them gets a request. With
    `prefill_replicas` prompts are computed on so many more replicas, and their KV cache is
    sent on at `kv_link_bytes_per_s` per GPU (the GPU's own link when left out)."""

    gpu: str = "h100-sxm"
    tensor_parallel: Count = 1
    expert_parallel: Count = 1
    replicas: Count = 1
    router: Literal["round-robin", "least-loaded", "shortest-queue", "prefix-aware"] = "round-robin"
    prefill_replicas: Annotated[int, Field(ge=0, le=10**6)] = 0
    kv_link_bytes_per_s: Positive | None = None


class AcceptanceKeys(Section):
    """Exactly one source of acceptance; `at_k` belongs to τ and r."""

    alpha: Probability | None = None
    conditional: tuple[Probability, ...] | None = None
    survival: tuple[Probability, ...] | None = None
    acceptance_length: Annotated[float, Field(ge=1)] | None = None
    draft_acceptance_rate: Probability | None = None
    at_k: Annotated[int, Field(ge=1, le=1024)] | None = None
    preset: str | None = None
    calibration: str | None = None
    trace: str | None = None
    trace_drafter: str | None = None
    mixture: tuple[MixturePart, ...] | None = None
    beta: BetaKeys | None = None
    markov: MarkovKeys | None = None
    chain: ChainKeys | None = None
    standard_error: Annotated[float, Field(ge=0, lt=1)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None

    @field_validator("conditional", "survival", mode="before")
    @classmethod
    def _list_text(cls, value: Any) -> Any:
        """`0.8,0.6,0.4`, as on the command line; one number is a list of one."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return (value,)
        return tuple(value.split(",")) if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _no_ambiguous_rate(cls, data: Any) -> Any:
        from specsim.acceptance.conversions import AMBIGUOUS

        if isinstance(data, Mapping):
            for key in ("rate", "acceptance_rate", "acceptance"):
                if key in data:
                    raise ValueError(AMBIGUOUS)
        return data

    @model_validator(mode="after")
    def _exactly_one(self) -> AcceptanceKeys:
        given = self.given
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given; expected exactly one of them")
        needs_k = given and given[0] in ("acceptance_length", "draft_acceptance_rate")
        if needs_k and self.at_k is None:
            raise ValueError(f"{given[0]} needs at_k, the K it was measured at")
        if self.at_k is not None and not needs_k:
            raise ValueError("at_k belongs to acceptance_length or draft_acceptance_rate")
        if self.standard_error is not None and given not in (["alpha"], ["conditional"]):
            raise ValueError("standard_error belongs to alpha or conditional")
        return self

    @property
    def given(self) -> list[str]:
        """The sources that are set."""
        return [key for key in ACCEPTANCE_SOURCES if getattr(self, key) is not None]


ACCEPTANCE_SOURCES = (
    "alpha", "conditional", "survival", "acceptance_length", "draft_acceptance_rate",
    "preset", "calibration", "trace", "mixture", "beta", "markov", "chain",
)  # fmt: skip


class MixturePart(Section):
    """One domain of a mixture: its share of requests and its own acceptance."""

    weight: Probability
    acceptance: AcceptanceKeys


class BetaKeys(Section):
    """α drawn per request from a Beta distribution."""

    mean: Probability
    standard_deviation: Probability


class MarkovKeys(Section):
    """Easy and hard stretches of output."""

    alpha_easy: Probability
    alpha_hard: Probability
    easy_length: Annotated[float, Field(ge=1)]
    hard_length: Annotated[float, Field(ge=1)]


class ChainKeys(Section):
    """Hidden states of the output positions, as `specsim fit` finds them."""

    transition: tuple[tuple[Probability, ...], ...]
    accept: tuple[tuple[Probability, ...], ...]
    initial: tuple[Probability, ...] | None = None
    horizon: Count | None = None


class Arrivals(Section):
    """When requests arrive. `cv` is for gamma, `concurrency` and `think_time_s` for closed;
    `max_in_flight` holds requests back while so many are open (as load generators do)."""

    process: Literal["poisson", "gamma", "constant", "closed", "trace"] = "poisson"
    rate_per_s: Positive | None = None
    cv: Positive | None = None
    concurrency: Count | None = None
    think_time_s: Annotated[float, Field(ge=0)] = 0.0
    max_in_flight: Count | None = None
    file: str | None = None
    rate_scale: Positive = 1.0
    start_s: Annotated[float, Field(ge=0)] = 0.0
    end_s: Positive | None = None

    @model_validator(mode="after")
    def _complete(self) -> Arrivals:
        needed = {
            "poisson": "rate_per_s", "gamma": "rate_per_s", "constant": "rate_per_s",
            "closed": "concurrency", "trace": "file",
        }[self.process]  # fmt: skip
        if getattr(self, needed) is None:
            raise ValueError(f"process {self.process!r} needs {needed}")
        if self.process == "gamma" and self.cv is None:
            raise ValueError("process 'gamma' needs cv")
        return self


class Lengths(Section):
    """How many tokens. `value` for constant, mean and cv for lognormal, low and high for
    uniform, values (and weights) for empirical; trace takes them from the arrivals' file."""

    distribution: Literal["constant", "uniform", "lognormal", "empirical", "trace"]
    value: Count | None = None
    mean: Positive | None = None
    cv: Annotated[float, Field(ge=0)] | None = None
    low: Count | None = None
    high: Count | None = None
    values: tuple[Count, ...] | None = None
    weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    maximum: Count | None = None

    @model_validator(mode="after")
    def _complete(self) -> Lengths:
        needed = {
            "constant": ("value",), "lognormal": ("mean", "cv"), "uniform": ("low", "high"),
            "empirical": ("values",), "trace": (),
        }[self.distribution]  # fmt: skip
        for key in needed:
            if getattr(self, key) is None:
                raise ValueError(f"distribution {self.distribution!r} needs {key}")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low={self.low} above high={self.high}")
        if self.weights is not None and len(self.weights) != len(self.values or ()):
            raise ValueError(f"{len(self.weights)} weights for {len(self.values or ())} values")
        return self

    @property
    def mean_tokens(self) -> float | None:
        """Mean before any `maximum`; None for a trace."""
        if self.distribution == "constant":
            return float(self.value or 0)
        if self.distribution == "uniform":
            return ((self.low or 0) + (self.high or 0)) / 2
        if self.distribution == "empirical":
            return float(np.average(self.values or (0,), weights=self.weights))
        return self.mean


class Slo(Section):
    """Service-level objective of a request: all that are given must hold."""

    ttft_s: Positive | None = None
    tpot_s: Positive | None = None
    itl_s: Positive | None = None
    e2e_s: Positive | None = None


class TrafficClass(Section):
    """One kind of traffic, with its own lengths, acceptance and SLO."""

    name: str
    weight: Positive = 1.0
    prompt_tokens: Lengths | None = None
    output_tokens: Lengths | None = None
    acceptance: AcceptanceKeys | None = None
    slo: Slo | None = None


class Workload(Section):
    """Arrivals and lengths, one class or several."""

    arrivals: Arrivals = Arrivals(process="poisson", rate_per_s=4.0)
    prompt_tokens: Lengths = Lengths(distribution="lognormal", mean=1024, cv=1.0)
    output_tokens: Lengths = Lengths(distribution="lognormal", mean=256, cv=1.0)
    num_requests: Annotated[int, Field(ge=1, le=MAX_REQUESTS)] = 1000
    shared_prefix_tokens: Annotated[int, Field(ge=0)] = 0
    classes: tuple[TrafficClass, ...] = ()

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: tuple[TrafficClass, ...]) -> tuple[TrafficClass, ...]:
        names = [c.name for c in value]
        if len(set(names)) != len(names):
            raise ValueError(f"class names {names} are not distinct")
        return value


class Engine(Section):
    """The serving engine and its limits."""

    runtime: str = "vllm"
    max_num_seqs: Count = 256
    max_num_batched_tokens: Count = 8192
    chunked_prefill: bool = True
    prefix_caching: bool = False
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    block_size: Count = 16
    watermark: Annotated[float, Field(ge=0, lt=1)] = 0.01


class Speculation(Section):
    """When to speculate, and how many tokens.

    `threshold` belongs to per-request: draft while the estimated survival stays above it.
    `candidate_steps`, `up_hysteresis` and `down_hysteresis` belong to adaptive.
    `switch_s` is paid by a step whose K differs from the last one's (another graph).
    """

    policy: Literal["off", "fixed", "batch-schedule", "goodput", "per-request", "adaptive"] = (
        "fixed"
    )
    schedule: tuple[tuple[int, int, int], ...] | None = None
    count_prefills: bool = True
    candidate_steps: Annotated[
        tuple[Annotated[int, Field(ge=1, le=MAX_DRAFT_TOKENS)], ...], Field(min_length=1)
    ] = (1, 3, 7)
    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.3
    up_hysteresis: float = 0.0
    down_hysteresis: float = -0.25
    switch_s: Annotated[float, Field(ge=0, lt=60)] = 0.0

    @field_validator("policy", mode="before")
    @classmethod
    def _off_is_false_in_yaml(cls, value: Any) -> Any:
        return "off" if value is False else value

    @model_validator(mode="after")
    def _schedule(self) -> Speculation:
        if self.policy == "batch-schedule" and not self.schedule:
            raise ValueError("policy 'batch-schedule' needs schedule [[batch_lo, batch_hi, K], …]")
        previous = 0
        for low, high, k in self.schedule or ():
            if not (low == previous + 1 and high >= low and 0 <= k <= MAX_DRAFT_TOKENS):
                raise ValueError(
                    f"schedule row [{low}, {high}, {k}]: expected batch_lo = {previous + 1}, "
                    f"batch_hi >= batch_lo and K in 0..{MAX_DRAFT_TOKENS}"
                )
            previous = high
        return self


class FaultKeys(Section):
    """A replica stops at `stop_s` and is back at `restart_s`; its requests start over
    (`recompute`) or are reported failed (`fail`)."""

    replica: Annotated[int, Field(ge=0)] = 0
    stop_s: Annotated[float, Field(ge=0, lt=math.inf)]
    restart_s: Positive
    requests: Literal["recompute", "fail"] = "recompute"

    @model_validator(mode="after")
    def _in_order(self) -> FaultKeys:
        if self.restart_s <= self.stop_s:
            raise ValueError(f"restart_s={self.restart_s} is not after stop_s={self.stop_s}")
        return self


class Routing(Section):
    """Spread of tokens over experts; None keeps the sourced default of the cost model."""

    skew: Annotated[float, Field(ge=0)] | None = None
    overlap: Probability | None = None


class CostKeys(Section):
    """Where step times come from: roofline, kernels or a calibration file; or the bare
    ratios c and v without any model (target forward pass = 1)."""

    source: str = "roofline"
    cost_ratio: Annotated[float, Field(ge=0)] | None = None
    verify_ratio: Positive = 1.0
    routing: Routing = Routing()


class OperatingPoint(Section):
    """The batch and context that the closed form is asked about."""

    batch: Count = 1
    context: Annotated[int, Field(ge=0, le=10**9)] = 1024


def draft_token_range(value: int | str) -> range:
    """`4`, `"1:12"` (both ends included) or `"auto"` → the range of K.

    Raises:
        ValueError: for anything else.
    """
    expected = f"expected K, lo:hi or auto, with 0 <= K <= {MAX_DRAFT_TOKENS}"
    if value == "auto":
        return AUTO_DRAFT_TOKENS
    low_text, _, high_text = str(value).partition(":")
    try:
        low = int(low_text)
        high = int(high_text) if ":" in str(value) else low
    except ValueError:
        raise ValueError(expected) from None
    if not 0 <= low <= high <= MAX_DRAFT_TOKENS:
        raise ValueError(expected)
    return range(low, high + 1)


AcceptanceKeys.model_rebuild()
