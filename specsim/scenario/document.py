"""A scenario: one frozen description of a run; YAML in, YAML out, unchanged.

An unknown key, an impossible value or an ambiguous acceptance figure is a
`ScenarioError` that names file, key, value and what was expected.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from specsim.errors import ScenarioError
from specsim.scenario.sections import (
    ACCEPTANCE_SOURCES,
    AcceptanceKeys,
    CostKeys,
    DraftKeys,
    Engine,
    FaultKeys,
    Hardware,
    OperatingPoint,
    Section,
    Slo,
    Speculation,
    Target,
    Workload,
    draft_token_range,
)
from specsim.yaml_text import parse_yaml

if TYPE_CHECKING:
    from specsim.scenario.resolve import Resolved


class Scenario(Section):
    """One run. Every section has defaults; see the classes above.

    >>> scenario = Scenario.from_dict({"target": {"model": "llama-3.1-8b"}, "seed": 7})
    >>> scenario.with_set(["draft.num_draft_tokens=6"]).draft.num_draft_tokens
    6
    """

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
    faults: tuple[FaultKeys, ...] = ()
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

    def resolve(self) -> Resolved:
        """Names looked up: a deployment, acceptance laws, a cost source.

        Raises:
            SpecsimError: for an unknown name, or parts that do not go together.
        """
        from specsim.scenario.resolve import resolve

        return resolve(self)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file that must hold a mapping.

    Raises:
        ScenarioError: if it cannot be read, is not YAML, or holds something else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        data = parse_yaml(text)
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: not a UTF-8 text file ({error.reason})") from None
    except ValueError as error:
        raise ScenarioError(f"{path}: not valid YAML ({error})") from None
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
    key, equals, value = text.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise ScenarioError(f"--set {text!r}: expected key=value")
    try:
        return key.strip(), parse_yaml(value)
    except ValueError as error:
        raise ScenarioError(f"--set {text!r}: {error}") from None


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
    problems = error.errors()
    # a misspelt key is also a missing one: the spelling is what the user can mend
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    location = [str(part) for part in first["loc"]]
    key = ".".join(location) or "scenario"
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}{_nearest_key(location)}"
    if first["type"] == "invalid_key":
        place = ".".join(location[:-1]) or "scenario"
        return f"{place}: key {first['input']!r}: expected a name (quote on, off, yes and no)"
    if first["type"] == "missing":
        return f"{key} is required, but missing in {first['input']!r}"
    if first["type"] in ("model_type", "model_attributes_type"):
        section = _section_at(location)
        known = "" if section is None else f": {', '.join(section.model_fields)}"
        return f"{key} = {first['input']!r}: expected a section with keys{known}"
    if first["type"] == "tuple_type":
        return f"{key} = {first['input']!r}: expected a list"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if first["type"] == "value_error" and isinstance(first["input"], Mapping):
        return f"{key}: {message}"
    value = repr(first["input"])
    if len(value) > 80:
        value = value[:77] + "…"
    return f"{key} = {value}: {message}"


def _nearest_key(location: list[str]) -> str:
    section = _section_at(location[:-1])
    if section is None:
        return ""
    known = list(section.model_fields)
    near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(known)}"


def _section_at(location: Iterable[str]) -> type[BaseModel] | None:
    section: type[BaseModel] | None = Scenario
    for part in location:
        if section is not None and not part.isdigit():
            section = _section_type(section, part)
    return section


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
