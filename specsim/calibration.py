"""The calibration file: what was measured, with its errors and the range it holds for.

`specsim fit` writes it, every command reads it (`--calibration FILE`, `--cost-source
FILE`, `acceptance: {calibration: FILE}`). Acceptance keys are those of a scenario's
acceptance section, so that they can be pasted there. Times are seconds.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from specsim import __version__
from specsim.errors import CalibrationError

#: Acceptance keys of which exactly one says what the law is.
LAW_KEYS = ("alpha", "conditional", "survival", "beta", "markov", "chain", "mixture")

Probability = Annotated[float, Field(ge=0, le=1)]
Error = Annotated[float, Field(ge=0, lt=math.inf)]
Seconds = Annotated[float, Field(gt=0, lt=math.inf)]
Count = Annotated[int, Field(ge=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LawKeys(_Part):
    """One law in the keys of a scenario's acceptance section; the scenario checks what is
    inside `beta`, `markov`, `chain` and `mixture`."""

    alpha: Probability | None = None
    conditional: tuple[Probability, ...] | None = None
    survival: tuple[Probability, ...] | None = None
    beta: dict[str, Any] | None = None
    markov: dict[str, Any] | None = None
    chain: dict[str, Any] | None = None
    mixture: tuple[dict[str, Any], ...] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> LawKeys:
        given = [key for key in LAW_KEYS if getattr(self, key) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"expected exactly one of {', '.join(LAW_KEYS)}; found {found}")
        return self

    @property
    def source(self) -> tuple[str, Any]:
        """The key that is given, and its value as plain data."""
        dumped = self.model_dump(mode="json", exclude_none=True)
        return next((key, dumped[key]) for key in LAW_KEYS if key in dumped)


class MeasuredLength(_Part):
    """Tokens per step as counted at one K."""

    num_draft_tokens: Count
    acceptance_length: Annotated[float, Field(ge=1)]
    standard_error: Error | None = None
    num_steps: Annotated[int, Field(ge=0)] | None = None


class AcceptanceFit(LawKeys):
    """A fitted law.

    `standard_errors` holds one entry per parameter and `acceptance_length`: those of τ at
    K = 1, 2, …; beyond the last one the relative error stays. `law` names the family,
    `rule` says how it was chosen. `num_tokens` counts emitted tokens; `num_requests` is
    None where the source does not tell requests apart. `by_k` has what was counted at each
    K, where there are several.
    """

    law: str = "as given"
    rule: str = ""
    standard_errors: dict[str, Any] = Field(default_factory=dict)
    acceptance_length: Annotated[float, Field(ge=1)] | None = None  # measured, at at_k
    at_k: Count | None = None
    num_tokens: Annotated[int, Field(ge=0)] | None = None
    num_steps: Annotated[int, Field(ge=0)] | None = None
    num_requests: Annotated[int, Field(ge=0)] | None = None
    method: str | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    by_k: tuple[MeasuredLength, ...] = ()
    by_domain: dict[str, AcceptanceFit] = Field(default_factory=dict)

    @field_validator("standard_errors")
    @classmethod
    def _errors(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key, error in value.items():
            for item in _flat(error):
                number = isinstance(item, (int, float)) and not isinstance(item, bool)
                if not number or not 0 <= item < math.inf:
                    raise ValueError(
                        f"standard_errors.{key} = {item!r}: expected finite numbers >= 0"
                    )
        return {key: _plain(error) for key, error in value.items()}

    @property
    def length_errors(self) -> tuple[float, ...]:
        """Standard errors of τ at K = 1, 2, …; empty where they are not known."""
        return tuple(float(x) for x in _flat(self.standard_errors.get("acceptance_length", ())))


class ForwardTimeRow(_Part):
    """One measured forward pass T(batch, new_tokens, context)."""

    model: str
    batch: Count
    new_tokens: Count
    context: Annotated[int, Field(ge=0)]
    seconds: Seconds
    standard_error: Error | None = None


class LinearConstants(_Part):
    """T = fixed_s + token_s · B·n + kv_token_s · B·(L + n), all ≥ 0."""

    fixed_s: Error
    token_s: Error
    kv_token_s: Error
    standard_errors: dict[str, Error] = Field(default_factory=dict)


class HostTime(_Part):
    """Time of a step that is neither drafting nor verifying."""

    step_s: Error
    standard_error: Error | None = None


class ObservedStep(_Part):
    """Whole decoding steps as an engine reported them: draft, verify and host together."""

    num_draft_tokens: Annotated[int, Field(ge=0)] | None = None
    batch: Annotated[float, Field(gt=0)] | None = None
    context: Annotated[float, Field(ge=0)] | None = None
    seconds: Seconds
    standard_error: Error | None = None
    num_steps: Annotated[int, Field(ge=0)] | None = None


class CostFit(_Part):
    """Measured times: forward passes as a table, the same as constants per model, host
    time, and whole steps of an engine."""

    forward: tuple[ForwardTimeRow, ...] = ()
    constants: dict[str, LinearConstants] = Field(default_factory=dict)
    host: HostTime | None = None
    steps: tuple[ObservedStep, ...] = ()
    device: str = ""


Range = tuple[float, float]


class MeasuredRange(_Part):
    """[lowest, highest] of what was measured; None where the source does not say."""

    num_draft_tokens: tuple[int, int] | None = None
    batch: Range | None = None
    context: Range | None = None

    @field_validator("num_draft_tokens", "batch", "context")
    @classmethod
    def _ordered(cls, value: Range | None) -> Range | None:
        if value is not None and not 0 <= value[0] <= value[1]:
            raise ValueError("expected [lowest, highest], both >= 0")
        return value


class Source(_Part):
    """One input of a fit."""

    file: str
    format: str
    device: str = ""


class Calibration(_Part):
    """A whole calibration file."""

    schema_version: Literal[1] = 1
    specsim_version: str = __version__
    acceptance: AcceptanceFit | None = None
    cost: CostFit | None = None
    range: MeasuredRange = MeasuredRange()
    sources: tuple[Source, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values without what is None or empty."""
        dumped: dict[str, Any] = _without_empty(self.model_dump(mode="json", exclude_none=True))
        return dumped

    def to_yaml(self) -> str:
        """YAML that `load` reads back to an equal calibration."""
        import yaml

        text: str = yaml.safe_dump(
            self.to_dict(), sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
        )
        return text

    def save(self, path: str | Path) -> None:
        """Write the file, replacing an existing one atomically.

        Raises:
            CalibrationError: if it cannot be written.
        """
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_text(self.to_yaml(), encoding="utf-8")
            partial.replace(path)
        except OSError as error:
            raise CalibrationError(f"{path}: {error.strerror or error}") from None


def load(path: str | Path) -> Calibration:
    """Read a calibration file.

    Raises:
        CalibrationError: naming file, key, value and what was expected.
    """
    from specsim.yaml_text import parse_yaml

    path = Path(path)
    try:
        data = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CalibrationError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path}: not a UTF-8 text file ({error.reason})") from None
    except ValueError as error:
        raise CalibrationError(f"{path}: not valid YAML ({error})") from None
    if not isinstance(data, dict) or ("acceptance" not in data and "cost" not in data):
        raise CalibrationError(
            f"{path}: not a calibration file: expected the keys acceptance or cost "
            "(make one with `specsim fit`)"
        )
    try:
        return Calibration.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "file"
        message = first["msg"].removeprefix("Value error, ")
        value = "" if isinstance(first["input"], dict) else f" = {str(first['input'])[:60]!r}"
        raise CalibrationError(f"{path}: {key}{value}: {message}") from None


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [item for part in value for item in _flat(part)]
    return [value]


def _plain(value: Any) -> Any:
    """Tuples as lists at any depth, as YAML reads them back."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _without_empty(value: Any) -> Any:
    """Mappings without empty strings, lists and mappings, at any depth."""
    if not isinstance(value, dict):
        return [_without_empty(item) for item in value] if isinstance(value, list) else value
    cleaned = {key: _without_empty(item) for key, item in value.items()}
    return {key: item for key, item in cleaned.items() if item not in ("", [], {})}
