"""The comparisons by name: what each one compares, and the function that yields its rows."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from validation.rows import Row

#: Name → (module, what it compares). A module has `rows() -> list[Row]`; a comparison whose
#: data is absent yields rows with `passed` None, never True.
COMPARISONS: dict[str, tuple[str, str]] = {
    "silicon": ("validation.silicon", "the roofline against measured GPU kernels"),
    "full_steps": ("validation.full_steps", "whole engine steps against published times"),
    "published": ("validation.published", "speedups against published ones"),
    "acceptance": ("validation.acceptance", "acceptance laws against recorded runs"),
    "host": ("validation.host", "the real decoder on a CPU, costs and acceptance held out"),
    "serving": ("validation.serving", "real continuous batching on a CPU against the simulator"),
    "serving_h100": ("validation.serving_h100", "vLLM on an H100 against the simulator"),
    "queueing": ("validation.queueing", "the simulator against queueing theory"),
    "threads": ("validation.threads", "what users found against what the planner says"),
    "claims": ("validation.claims", "the article's ten claims"),
    "peers": ("validation.peers", "other estimators beside ours"),
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One comparison, run. `passed` is None when nothing in it could be tested."""

    name: str
    rows: tuple[Row, ...]

    @property
    def errors(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """|error| of the rows that compare one prediction with one observation."""
        found = [abs(r.error) for r in self.rows if r.error is not None and r.observed is not None]
        return np.asarray(found, dtype=float)

    @property
    def passed(self) -> bool | None:
        """False if a bound is missed, None if no bound could be tested."""
        verdicts = [row.passed for row in self.rows if row.passed is not None]
        return all(verdicts) if verdicts else None

    def as_dict(self) -> dict[str, Any]:
        """The keys of the validation JSON."""
        errors = self.errors
        return {
            "name": self.name,
            "rows": [row.as_dict() for row in self.rows],
            "median_error": float(np.median(errors)) if len(errors) else None,
            "p90_error": float(np.quantile(errors, 0.9)) if len(errors) else None,
            "passed": self.passed,
        }


def available() -> list[str]:
    """Comparisons that exist in this checkout."""
    return [name for name, (module, _) in COMPARISONS.items() if importlib.util.find_spec(module)]


def run(name: str) -> Comparison:
    """Run one comparison.

    Raises:
        KeyError: for a name that is not in `COMPARISONS`.
    """
    module = importlib.import_module(COMPARISONS[name][0])
    return Comparison(name=name, rows=tuple(module.rows()))


def own_figures(name: str, folder: Path) -> list[Path]:
    """Figures that a comparison draws itself (`figures(folder)` of its module)."""
    draw = getattr(importlib.import_module(COMPARISONS[name][0]), "figures", None)
    return [] if draw is None else list(draw(folder))
