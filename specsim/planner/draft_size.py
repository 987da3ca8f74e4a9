"""Acceptance against draft size, for drafts that nobody has run yet: always an estimate.

log(1 − α) = level of the task + slope · log(target size / draft size)

The slope is shared by all tasks, the level differs between them (and with temperature),
so a measurement with one draft moves every other draft of that task along the line. An
unmeasured task takes the mean level of the published tasks, and the spread of their levels
is in its interval. Our own drafts say how α grows with size, not how high it is: they saw a
million tokens, a released draft trillions.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from specsim.catalogue.specs import ModelSpec
from specsim.errors import ConfigError

#: α of drafts against their size, with sources; rows of our own drafts can be added there.
PATH = Path(__file__).with_name("draft_sizes.csv")
#: Who measured a pair.
PROVENANCES = ("published", "measured by us")
COLUMNS = ("group", "target_parameters", "draft_parameters", "alpha", "standard_error",
           "provenance", "source")  # fmt: skip
#: Standard error of a published α where its source gives none (as in the catalogue).
PUBLISHED_ALPHA_ERROR = 0.015
Z95 = 1.96


class Pair(NamedTuple):
    """One draft of one target on one task. A group is one target family, task and
    temperature: its pairs lie on one line. Sizes are parameters, α is per token."""

    group: str
    target: float
    draft: float
    alpha: float
    standard_error: float = PUBLISHED_ALPHA_ERROR
    provenance: str = "published"
    source: str = ""


@functools.cache
def draft_pairs(path: Path = PATH) -> tuple[Pair, ...]:
    """The pairs of a file; an empty standard error is that of a published α.

    Raises:
        ConfigError: naming file, line, column and value, and what was expected.
    """
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ConfigError(f"{path}: expected the columns {', '.join(COLUMNS)}")
        return tuple(_pair(row, f"{path}:{line}") for line, row in enumerate(reader, start=2))


def _pair(row: dict[str, str], where: str) -> Pair:
    def number(column: str, low: float, high: float) -> float:
        try:
            value = float(row[column])
        except (TypeError, ValueError):
            value = math.nan
        if not low < value < high:
            raise ConfigError(f"{where}: {column} = {row[column]!r}: expected a number between "
                              f"{low:g} and {high:g}")  # fmt: skip
        return value

    if None in row or None in row.values():  # what csv makes of too many and too few
        raise ConfigError(f"{where}: expected {len(COLUMNS)} values")
    for column in ("group", "source"):
        if not row[column]:
            raise ConfigError(f"{where}: {column} is empty")
    if row["provenance"] not in PROVENANCES:
        raise ConfigError(f"{where}: provenance = {row['provenance']!r}: expected one of "
                          f"{', '.join(PROVENANCES)}")  # fmt: skip
    target = number("target_parameters", 0, math.inf)
    return Pair(
        group=row["group"], target=target, draft=number("draft_parameters", 0, target),
        alpha=number("alpha", 0, 1),
        standard_error=number("standard_error", 0, 1) if row["standard_error"]
        else PUBLISHED_ALPHA_ERROR,
        provenance=row["provenance"], source=row["source"],
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AlphaEstimate:
    """α with its 95 % prediction interval; `standard_error` is half of it over 1.96."""

    alpha: float
    low: float
    high: float
    source: str

    @property
    def standard_error(self) -> float:
        """Of α, for a law that takes one number."""
        return (self.high - self.low) / (2 * Z95)


@dataclass(frozen=True, kw_only=True)
class DraftSizeModel:
    """The fitted line in log(1 − α). `residual` is the standard deviation around a task's
    own line, `between` that of the levels of the `num_groups` tasks that have one, known
    best at `centre`, their mean log(target size / draft size)."""

    slope: float
    slope_error: float
    level: float
    between: float
    centre: float
    residual: float
    num_pairs: int
    num_groups: int
    num_own: int = 0  # pairs that we measured

    @property
    def basis(self) -> str:
        """How many pairs it rests on, by who measured them."""
        own = f" and {self.num_own} of our own" if self.num_own else ""
        return f"{self.num_pairs - self.num_own} published pairs{own}"

    def from_anchor(
        self, ratio: float, anchor_ratio: float, anchor_alpha: float, anchor_error: float
    ) -> AlphaEstimate:
        """α at size ratio `ratio`, given that it is `anchor_alpha` at `anchor_ratio` on the
        same traffic. Sizes are target over draft.

        Raises:
            ValueError: for a ratio ≤ 0 or an α outside [0, 1].
        """
        self._check(ratio, anchor_alpha)
        self._check(anchor_ratio, anchor_alpha)
        along = math.log(ratio / anchor_ratio)
        rejected = max(1 - anchor_alpha, 1e-3)
        spread = math.hypot(anchor_error / rejected, self.slope_error * along)
        if along:
            spread = math.hypot(spread, math.sqrt(2) * self.residual)
        text = (
            f"draft-size model from alpha {anchor_alpha:.3f} at 1/{anchor_ratio:.3g} of the "
            f"target's size, slope {self.slope:.3f} ({self.basis})"
        )
        return _estimate(math.log(rejected) + self.slope * along, spread, text)

    def unanchored(self, ratio: float) -> AlphaEstimate:
        """α at size ratio `ratio` for traffic of which nothing was measured.

        Raises:
            ValueError: for a ratio ≤ 0.
        """
        self._check(ratio, 0.5)
        along = math.log(ratio)
        tilt = self.slope_error * (along - self.centre)
        spread = math.hypot(self.between, self.residual, tilt)
        text = (
            f"draft-size model, nothing measured on this traffic: mean of "
            f"{self.num_groups} tasks ({self.basis})"
        )
        return _estimate(self.level + self.slope * along, spread, text)

    @staticmethod
    def _check(ratio: float, alpha: float) -> None:
        if not ratio > 0:
            raise ValueError(f"size ratio {ratio} is not > 0")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha} outside [0, 1]")


def _estimate(log_rejected: float, spread: float, source: str) -> AlphaEstimate:
    alpha, low, high = (
        min(max(1 - math.exp(log_rejected + z * spread), 0.0), 0.999) for z in (0.0, Z95, -Z95)
    )
    return AlphaEstimate(alpha=alpha, low=low, high=high, source=source)


def fit_pairs(pairs: Sequence[Pair] | None = None) -> DraftSizeModel:
    """Least squares with one level per group and one slope; `draft_pairs()` by default.

    The residual has the pairs' own errors as its floor; the mean level weighs groups
    equally and leaves out those that we measured, unless there are no others.

    Raises:
        ValueError: if no group has two drafts of different size.
    """
    pairs = draft_pairs() if pairs is None else [Pair(*pair) for pair in pairs]
    groups = sorted({pair.group for pair in pairs})
    index = np.array([groups.index(pair.group) for pair in pairs])
    x = np.array([math.log(pair.target / pair.draft) for pair in pairs])
    y = np.array([math.log(1 - pair.alpha) for pair in pairs])
    count = np.bincount(index)
    mean_x, mean_y = (np.bincount(index, weights=v) / count for v in (x, y))
    dx, dy = x - mean_x[index], y - mean_y[index]
    if not np.any(dx):
        raise ValueError("no group has drafts of two sizes: a slope needs them")
    slope = float(dx @ dy / (dx @ dx))
    levels = mean_y - slope * mean_x
    freedom = max(len(pairs) - len(groups) - 1, 1)
    floor = float(np.mean([pair.standard_error for pair in pairs]) / np.exp(y).mean())
    left = float(np.sqrt(np.sum((dy - slope * dx) ** 2) / freedom))
    residual = max(left, floor)
    # slopes of the groups differ by more than their residuals say: their spread is the error
    own = [float(dx[index == g] @ dy[index == g] / (dx[index == g] @ dx[index == g]))
           for g in range(len(groups)) if np.any(dx[index == g])]  # fmt: skip
    spread = float(np.std(own, ddof=1)) if len(own) > 1 else abs(slope)
    published = {pair.group for pair in pairs if pair.provenance == PROVENANCES[0]}
    known = np.array([group in published or not published for group in groups])
    levels = levels[known]
    between = float(np.std(levels, ddof=1)) if len(levels) > 1 else abs(float(levels[0]))
    return DraftSizeModel(
        slope=slope, slope_error=max(residual / float(np.sqrt(dx @ dx)), spread),
        level=float(levels.mean()), between=between * math.sqrt(1 + 1 / len(levels)),
        centre=float(mean_x[known].mean()),
        residual=residual, num_pairs=len(pairs), num_groups=len(levels),
        num_own=sum(pair.provenance == PROVENANCES[1] for pair in pairs),
    )  # fmt: skip


@functools.cache
def size_model() -> DraftSizeModel:
    """The fit to `draft_pairs()`."""
    return fit_pairs()


def effective_size(spec: ModelSpec) -> float:
    """Parameters that stand for a model's quality: for a mixture of experts the geometric
    mean of all and active ones (a common rule of thumb, not a measurement)."""
    return math.sqrt(float(spec.num_parameters) * float(spec.num_active_parameters)) \
        if spec.is_moe else float(spec.num_parameters)  # fmt: skip


def size_ratio(target: ModelSpec, draft: ModelSpec) -> float:
    """Target over draft."""
    return effective_size(target) / effective_size(draft)
