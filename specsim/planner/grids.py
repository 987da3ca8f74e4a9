"""The grid of a sweep: which keys vary over which values, in which order."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from specsim.errors import ScenarioError
from specsim.scenario.document import Scenario, assign
from specsim.yaml_text import parse_yaml

#: More points than this are a mistake more often than a plan.
MAX_POINTS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class SweepGrid:
    """A base scenario and the values of each varied key; the last key varies fastest."""

    base: Scenario
    keys: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]

    def __len__(self) -> int:
        count = 1
        for values in self.values:
            count *= len(values)
        return count

    def points(self) -> Iterator[tuple[Any, ...]]:
        """The values of every point, in grid order."""
        return itertools.product(*self.values)

    def scenario(self, point: Sequence[Any]) -> Scenario:
        """The scenario of one point.

        Raises:
            ScenarioError: if the values do not go together.
        """
        data = self.base.to_dict()
        for key, value in zip(self.keys, point, strict=True):
            assign(data, key, value)
        where = ", ".join(f"{k} = {v!r}" for k, v in zip(self.keys, point, strict=True))
        return Scenario.from_dict(data, f"sweep at {where}" if where else "sweep")


def make_grid(base: Scenario, vary: Mapping[str, Sequence[Any]]) -> SweepGrid:
    """Check every value of every key alone, so that a wrong one is an error before
    anything runs.

    Raises:
        ScenarioError: for no key, no values, a key that does not exist, or a value of
            another type.
    """
    if not vary:
        raise ScenarioError("sweep: nothing varies; expected --vary key=values at least once")
    values = tuple(tuple(v) for v in vary.values())
    for key, choices in zip(vary, values, strict=True):
        if not choices:
            raise ScenarioError(f"--vary {key}: no values")
        if len({repr(c) for c in choices}) != len(choices):
            raise ScenarioError(f"--vary {key}: a value occurs twice")
    grid = SweepGrid(base=base, keys=tuple(vary), values=values)
    if len(grid) > MAX_POINTS:
        raise ScenarioError(f"sweep: {len(grid)} points; expected at most {MAX_POINTS}")
    first = [choices[0] for choices in values]
    grid.scenario(first)
    for index, choices in enumerate(values):
        for choice in choices[1:]:
            data = base.to_dict()
            for key, value in zip(grid.keys, [*first[:index], choice, *first[index + 1 :]],
                                  strict=True):  # fmt: skip
                assign(data, key, value)
            Scenario.from_dict(data, f"--vary {grid.keys[index]}={choice}")
    return grid


def parse_vary(texts: Sequence[str]) -> dict[str, list[Any]]:
    """`key=1:8`, `key=0:64:8` (both ends included) or `key=a,b,c` → values.

    Raises:
        ScenarioError: for anything else.
    """
    found: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, right = text.partition("=")
        key = key.strip()
        if not equals or not key or not right.strip():
            raise ScenarioError(f"--vary {text!r}: expected key=1:8 or key=a,b,c")
        if key in found:
            raise ScenarioError(f"--vary {text!r}: {key} is given twice")
        found[key] = _range(text, right) or [_value(text, part) for part in _split(right)]
    return found


def _range(text: str, right: str) -> list[Any] | None:
    parts = right.split(":")
    if len(parts) not in (2, 3) or not all(re.fullmatch(r"\s*-?[0-9]+\s*", p) for p in parts):
        return None
    low, high, step = (int(p) for p in (*parts, "1")[:3])
    if step < 1 or high < low:
        raise ScenarioError(f"--vary {text!r}: expected low:high or low:high:step, rising")
    values = range(low, high + 1, step)
    if high - low >= MAX_POINTS * step:  # before a list of them fills the memory
        raise ScenarioError(f"--vary {text!r}: more than {MAX_POINTS} values")
    return list(values)


def _split(right: str) -> list[str]:
    """At commas outside brackets, so that lists and mappings are values too."""
    parts, depth = [""], 0
    for char in right:
        depth += (char in "[{") - (char in "]}")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _value(text: str, part: str) -> Any:
    try:
        return parse_yaml(part)
    except ValueError as error:
        raise ScenarioError(f"--vary {text!r}: {error}") from None
