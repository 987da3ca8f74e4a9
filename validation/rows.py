"""What a comparison yields: rows with an error and the bound it must keep."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BOUNDS_PATH = Path(__file__).with_name("bounds.toml")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of a report.

    `predicted` and `observed` are in `unit`; a row that summarises many has neither, its
    `error` is the statistic that its name says. `error` is a fraction, `bound` what it
    must not exceed (None: reported only), `passed` None where there is no bound.
    """

    name: str
    error: float | None
    predicted: float | None = None
    observed: float | None = None
    unit: str = ""
    bound: float | None = None
    passed: bool | None = None
    provenance: str = ""
    tags: dict[str, float] = field(default_factory=dict)  # batch, K, …: what errors may follow

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@cache
def bounds(comparison: str) -> dict[str, Any]:
    """The bounds of one comparison from bounds.toml."""
    with BOUNDS_PATH.open("rb") as stream:
        section: dict[str, Any] = tomllib.load(stream)[comparison]
    return section


def statistic(name: str, error: Any, *, bound: float | None = None, provenance: str = "") -> Row:
    """A row that summarises many errors."""
    value = float(error)
    passed = None if bound is None else bool(np.isfinite(value) and value <= bound)
    return Row(name=name, error=value, bound=bound, passed=passed, provenance=provenance)


def comparison(
    name: str, predicted: float, observed: float, unit: str, *, bound: float | None = None,
    provenance: str = "",
) -> Row:  # fmt: skip
    """A row of one prediction beside what was observed; the error is signed."""
    error = predicted / observed - 1
    return Row(
        name=name, predicted=float(predicted), observed=float(observed), unit=unit,
        error=float(error), bound=bound, provenance=provenance,
        passed=None if bound is None else bool(abs(error) <= bound),
    )  # fmt: skip


def absolute_errors(predicted: Any, observed: Any) -> npt.NDArray[np.float64]:
    """|predicted/observed − 1|, elementwise."""
    return np.asarray(np.abs(np.asarray(predicted) / np.asarray(observed) - 1))


def cell(text: str) -> str:
    """Text that stays in its cell of a Markdown table: a bare `|` would end it."""
    return text.replace("|", "\\|")


def summary(rows: Iterable[Row]) -> str:
    """Rows as a Markdown table."""
    lines = ["| row | error | bound | |", "|---|---:|---:|---|"]
    for row in rows:
        error = "–" if row.error is None else f"{100 * row.error:.1f} %"
        bound = "" if row.bound is None else f"{100 * row.bound:g} %"
        mark = {True: "kept", False: "**missed**", None: ""}[row.passed]
        lines.append(f"| {cell(row.name)} | {error} | {bound} | {mark} |")
    return "\n".join(lines) + "\n"


def missed(rows: Sequence[Row]) -> list[Row]:
    """Rows that leave their bound."""
    return [row for row in rows if row.passed is False]
