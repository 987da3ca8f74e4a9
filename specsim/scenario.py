"""A scenario: one frozen description of a run, in names and numbers only.

YAML in, YAML out, unchanged. Everything is validated here, once: an unknown key, an
impossible value or an ambiguous acceptance figure is a `ScenarioError` that names file,
key, value and what was expected. `resolve` turns names into a `Deployment`, a law and a
cost source. The sections below are the scenario file's, see docs/scenario.md.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from specsim.deployment import METHODS
from specsim.errors import ScenarioError

#: Largest K that a range may name; engines draft at most a few dozen tokens.
MAX_DRAFT_TOKENS = 64
AUTO_DRAFT_TOKENS = range(1, 17)

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, lt=math.inf)]
Count = Annotated[int, Field(ge=1, le=10**9)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Target(_Section):
    """The model whose output is wanted: a catalogue name or a config.json."""

    model: str = "llama-3.1-70b"
    weights: Literal["bf16", "fp16", "fp32", "fp8", "int8", "int4", "fp4"] = "bf16"
    kv: Literal["bf16", "fp16", "fp8", "int8"] = "bf16"


class TreeShapeKeys(_Section):
    """A draft tree: depth, branches a step, nodes verified."""

    steps: Count
    topk: Count
    nodes: Count


class DraftKeys(_Section):
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

    @field_validator("num_draft_tokens")
    @classmethod
    def _range(cls, value: int | str) -> int | str:
        draft_token_range(value)
        return value

    @field_validator("tree", mode="before")
    @classmethod
    def _tree_text(cls, value: Any) -> Any:
        """`steps=5,topk=4,nodes=16`, as on the command line."""
        if not isinstance(value, str):
            return value
        pairs = dict(part.partition("=")[::2] for part in value.split(","))
        return {key.strip(): text.strip() for key, text in pairs.items()}

    @property
    def effective_method(self) -> str:
        """`method`, or what `model` implies: a draft model, or nothing."""
        if self.method is not None:
            return self.method
        return "none" if self.model is None else "draft-model"


class Hardware(_Section):
    """GPUs of one replica, and how many replicas."""

    gpu: str = "h100-sxm"
    tensor_parallel: Count = 1
    replicas: Count = 1


class AcceptanceKeys(_Section):
    """Exactly one source of acceptance; `at_k` belongs to τ and r."""

    alpha: Probability | None = None
    conditional: tuple[Probability, ...] | None = None
    survival: tuple[Probability, ...] | None = None
    acceptance_length: Annotated[float, Field(ge=1)] | None = None
    draft_acceptance_rate: Probability | None = None
    at_k: Count | None = None
    preset: str | None = None
    calibration: str | None = None
    trace: str | None = None
    trace_drafter: str | None = None
    mixture: tuple[MixturePart, ...] | None = None
    beta: BetaKeys | None = None
    markov: MarkovKeys | None = None
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
        if self.standard_error is not None and given != ["alpha"]:
            raise ValueError("standard_error belongs to alpha")
        return self

    @property
    def given(self) -> list[str]:
        """The sources that are set."""
        return [key for key in ACCEPTANCE_SOURCES if getattr(self, key) is not None]


ACCEPTANCE_SOURCES = (
    "alpha", "conditional", "survival", "acceptance_length", "draft_acceptance_rate",
    "preset", "calibration", "trace", "mixture", "beta", "markov",
)  # fmt: skip


class MixturePart(_Section):
    """One domain of a mixture: its share of requests and its own acceptance."""

    weight: Probability
    acceptance: AcceptanceKeys


class BetaKeys(_Section):
    """α drawn per request from a Beta distribution."""

    mean: Probability
    standard_deviation: Probability


class MarkovKeys(_Section):
    """Easy and hard stretches of output."""

    alpha_easy: Probability
    alpha_hard: Probability
    easy_length: Annotated[float, Field(ge=1)]
    hard_length: Annotated[float, Field(ge=1)]


class Arrivals(_Section):
    """When requests arrive. `cv` is for gamma, `concurrency` and `think_time_s` for closed."""

    process: Literal["poisson", "gamma", "constant", "closed", "trace"] = "poisson"
    rate_per_s: Positive | None = None
    cv: Positive | None = None
    concurrency: Count | None = None
    think_time_s: Annotated[float, Field(ge=0)] = 0.0
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


class Lengths(_Section):
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


class Slo(_Section):
    """Service-level objective of a request: all that are given must hold."""

    ttft_s: Positive | None = None
    tpot_s: Positive | None = None
    itl_s: Positive | None = None
    e2e_s: Positive | None = None


class TrafficClass(_Section):
    """One kind of traffic, with its own lengths, acceptance and SLO."""

    name: str
    weight: Positive = 1.0
    prompt_tokens: Lengths | None = None
    output_tokens: Lengths | None = None
    acceptance: AcceptanceKeys | None = None
    slo: Slo | None = None


class Workload(_Section):
    """Arrivals and lengths, one class or several."""

    arrivals: Arrivals = Arrivals(process="poisson", rate_per_s=4.0)
    prompt_tokens: Lengths = Lengths(distribution="lognormal", mean=1024, cv=1.0)
    output_tokens: Lengths = Lengths(distribution="lognormal", mean=256, cv=1.0)
    num_requests: Count = 1000
    shared_prefix_tokens: Annotated[int, Field(ge=0)] = 0
    classes: tuple[TrafficClass, ...] = ()

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: tuple[TrafficClass, ...]) -> tuple[TrafficClass, ...]:
        names = [c.name for c in value]
        if len(set(names)) != len(names):
            raise ValueError(f"class names {names} are not distinct")
        return value


class Engine(_Section):
    """The serving engine and its limits."""

    runtime: str = "vllm"
    max_num_seqs: Count = 256
    max_num_batched_tokens: Count = 8192
    chunked_prefill: bool = True
    prefix_caching: bool = False
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    block_size: Count = 16
    watermark: Annotated[float, Field(ge=0, lt=1)] = 0.01


class Speculation(_Section):
    """When to speculate, and how many tokens."""

    policy: Literal["off", "fixed", "batch-schedule", "goodput", "per-request", "adaptive"] = (
        "fixed"
    )
    schedule: tuple[tuple[int, int, int], ...] | None = None
    count_prefills: bool = True
    candidate_steps: tuple[Annotated[int, Field(ge=0)], ...] = (1, 3, 7)

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


class Routing(_Section):
    """Spread of tokens over experts; None keeps the sourced default of the cost model."""

    skew: Annotated[float, Field(ge=0)] | None = None
    overlap: Probability | None = None


class CostKeys(_Section):
    """Where step times come from: roofline, kernels or a calibration file; or the bare
    ratios c and v without any model (target forward pass = 1)."""

    source: str = "roofline"
    cost_ratio: Annotated[float, Field(ge=0)] | None = None
    verify_ratio: Positive = 1.0
    routing: Routing = Routing()


class OperatingPoint(_Section):
    """The batch and context that the closed form is asked about."""

    batch: Count = 1
    context: Annotated[int, Field(ge=0, le=10**9)] = 1024


class Scenario(_Section):
    """One run. Every section has defaults; see the classes above."""

    target: Target = Target()
    draft: DraftKeys = DraftKeys()
    hardware: Hardware = Hardware()
    acceptance: AcceptanceKeys = AcceptanceKeys()
    workload: Workload = Workload()
    engine: Engine = Engine()
    speculation: Speculation = Speculation()
    slo: Slo = Slo()
    cost: CostKeys = CostKeys()
    point: OperatingPoint = OperatingPoint()
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @staticmethod
    def from_dict(data: Mapping[str, Any], where: str = "scenario") -> Scenario:
        """Validate a nested mapping of scenario keys.

        Raises:
            ScenarioError: `where: key = value: what was expected`.
        """
        try:
            return Scenario.model_validate(data)
        except ValidationError as error:
            raise ScenarioError(f"{where}: {_first_error(error)}") from None

    @staticmethod
    def load(path: str | Path) -> Scenario:
        """Read a YAML scenario file.

        Raises:
            ScenarioError: if it cannot be read or is not valid.
        """
        return Scenario.from_dict(read_yaml(path), str(path))

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values; keys left at None are dropped."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_yaml(self) -> str:
        """YAML that `load` reads back to an equal scenario."""
        import yaml

        return str(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True))

    def with_set(self, assignments: Iterable[str]) -> Scenario:
        """The scenario with `key=value` assignments applied (`--set a.b=c`).

        Raises:
            ScenarioError: for a key that does not exist or a value of another type.
        """
        data = self.to_dict()
        for text in assignments:
            key, value = parse_assignment(text)
            assign(data, key, value)
        return Scenario.from_dict(data, "--set")

    @property
    def draft_tokens(self) -> range:
        """The values of K to consider."""
        return draft_token_range(self.draft.num_draft_tokens)


AcceptanceKeys.model_rebuild()
Scenario.model_rebuild()


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


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that must hold a mapping.

    Raises:
        ScenarioError: if it cannot be read, is not YAML, or holds something else.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        data = yaml.safe_load(text)
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: not a UTF-8 text file ({error.reason})") from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        problem = " ".join(str(error).split())
        raise ScenarioError(f"{path}: not valid YAML ({problem})") from None
    if data is None:
        raise ScenarioError(f"{path}: empty file; expected a mapping of scenario keys")
    if not isinstance(data, dict):
        raise ScenarioError(f"{path}: expected a mapping of keys, found {type(data).__name__}")
    return data


def parse_assignment(text: str) -> tuple[str, Any]:
    """`a.b=c` → (`a.b`, YAML value of c).

    Raises:
        ScenarioError: if there is no `=` or the value is not YAML.
    """
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ScenarioError(f"--set {text!r}: expected key=value")
    try:
        return key.strip(), yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:
        raise ScenarioError(f"--set {text!r}: {' '.join(str(error).split())}") from None


def assign(data: dict[str, Any], key: str, value: Any) -> None:
    """Set the nested key `a.b.c` in place. Setting one acceptance source drops the others,
    and a law's old measuring point with them.

    Raises:
        ScenarioError: if a part of the path is not a section.
    """
    parts = key.split(".")
    node: Any = data
    for part in parts[:-1]:
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
            continue
        if not isinstance(node, dict):
            raise ScenarioError(f"{key}: {part!r} is not a section")
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
    if not isinstance(node, dict):
        raise ScenarioError(f"{key}: no such key")
    if len(parts) >= 2 and parts[-2] == "acceptance" and parts[-1] in ACCEPTANCE_SOURCES:
        for other in (*ACCEPTANCE_SOURCES, "at_k", "standard_error"):
            if other not in node or other == parts[-1]:
                continue
            if other == "at_k" and parts[-1] in ("acceptance_length", "draft_acceptance_rate"):
                continue
            del node[other]
    node[parts[-1]] = value


def _first_error(error: ValidationError) -> str:
    """The first problem as `key = value: expected …`, with the nearest known key."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location) or "scenario"
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}{_nearest_key(location)}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if first["type"] == "value_error" and isinstance(first["input"], Mapping):
        return f"{key}: {message}"
    value = repr(first["input"])
    if len(value) > 80:
        value = value[:77] + "…"
    return f"{key} = {value}: {message}"


def _nearest_key(location: list[str]) -> str:
    section: Any = Scenario
    for part in location[:-1]:
        if part.isdigit():
            continue
        section = _section_type(section, part)
        if section is None:
            return ""
    known = list(section.model_fields)
    near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(known)}"


def _section_type(section: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The section class behind a field, looking through Optional and tuple."""
    field = section.model_fields.get(name)
    if field is None:
        return None
    pending: list[Any] = [field.annotation]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
        pending.extend(getattr(annotation, "__args__", ()))
    return None
