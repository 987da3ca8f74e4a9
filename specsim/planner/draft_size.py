"""Acceptance against draft size, for drafts that nobody has run yet: always an estimate.

log(1 − α) = level of the task + slope · log(target size / draft size)

The slope is shared by all tasks, the level differs between them (and with temperature),
so a measurement with one draft moves every other draft of that task along the line. An
unmeasured task takes the mean level, and the spread of levels is in its interval.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from specsim.catalogue.specs import ModelSpec

#: α of a draft against its size: (group, target parameters, draft parameters, α). A group
#: is one target family, task and temperature. T5: Leviathan et al. 2023 (arXiv 2211.17192),
#: tables 2 and 4, α per token as the paper defines it, on T5-XXL (11 B). Llama-2: MagicDec
#: (arXiv 2408.11049), τ = 2.18 at K = 2 of TinyLlama-1.1B for Llama-2-7B on PG-19, which is
#: α = 0.696 of the i.i.d. law.
PAIRS: tuple[tuple[str, float, float, float], ...] = (
    ("t5 translation, greedy", 11e9, 77e6, 0.75),
    ("t5 translation, greedy", 11e9, 250e6, 0.80),
    ("t5 translation, greedy", 11e9, 800e6, 0.82),
    ("t5 translation, sampled", 11e9, 77e6, 0.62),
    ("t5 translation, sampled", 11e9, 250e6, 0.68),
    ("t5 translation, sampled", 11e9, 800e6, 0.71),
    ("t5 summarisation, greedy", 11e9, 77e6, 0.65),
    ("t5 summarisation, greedy", 11e9, 250e6, 0.73),
    ("t5 summarisation, greedy", 11e9, 800e6, 0.74),
    ("t5 summarisation, sampled", 11e9, 77e6, 0.53),
    ("t5 summarisation, sampled", 11e9, 250e6, 0.55),
    ("t5 summarisation, sampled", 11e9, 800e6, 0.56),
    ("llama-2 books, greedy", 6.74e9, 1.10e9, 0.696),
)
#: Standard error of a published α where its source gives none (as in the catalogue).
PUBLISHED_ALPHA_ERROR = 0.015
Z95 = 1.96


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
    own line, `between` that of the levels of tasks."""

    slope: float
    slope_error: float
    level: float
    between: float
    residual: float
    num_pairs: int
    num_groups: int

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
            f"target's size, slope {self.slope:.3f} ({self.num_pairs} published pairs)"
        )
        return _estimate(math.log(rejected) + self.slope * along, spread, text)

    def unanchored(self, ratio: float) -> AlphaEstimate:
        """α at size ratio `ratio` for traffic of which nothing was measured.

        Raises:
            ValueError: for a ratio ≤ 0.
        """
        self._check(ratio, 0.5)
        along = math.log(ratio)
        spread = math.hypot(self.between, self.residual)
        text = (
            f"draft-size model, nothing measured on this traffic: mean of "
            f"{self.num_groups} published tasks"
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


def fit_pairs(pairs: tuple[tuple[str, float, float, float], ...] = PAIRS) -> DraftSizeModel:
    """Least squares with one level per group and one slope.

    The residual has the error of a published α as its floor; the mean level weighs groups
    equally.

    Raises:
        ValueError: if no group has two drafts of different size.
    """
    groups = sorted({name for name, *_ in pairs})
    index = np.array([groups.index(name) for name, *_ in pairs])
    x = np.array([math.log(target / draft) for _, target, draft, _ in pairs])
    y = np.array([math.log(1 - alpha) for *_, alpha in pairs])
    count = np.bincount(index)
    mean_x, mean_y = (np.bincount(index, weights=v) / count for v in (x, y))
    dx, dy = x - mean_x[index], y - mean_y[index]
    if not np.any(dx):
        raise ValueError("no group has drafts of two sizes: a slope needs them")
    slope = float(dx @ dy / (dx @ dx))
    levels = mean_y - slope * mean_x
    freedom = max(len(pairs) - len(groups) - 1, 1)
    floor = PUBLISHED_ALPHA_ERROR / float(np.exp(y).mean())
    left = float(np.sqrt(np.sum((dy - slope * dx) ** 2) / freedom))
    residual = max(left, floor)
    # slopes of the groups differ by more than their residuals say: their spread is the error
    own = [float(dx[index == g] @ dy[index == g] / (dx[index == g] @ dx[index == g]))
           for g in range(len(groups)) if np.any(dx[index == g])]  # fmt: skip
    spread = float(np.std(own, ddof=1)) if len(own) > 1 else abs(slope)
    between = float(np.std(levels, ddof=1)) if len(levels) > 1 else abs(float(levels[0]))
    return DraftSizeModel(
        slope=slope, slope_error=max(residual / float(np.sqrt(dx @ dx)), spread),
        level=float(levels.mean()), between=between * math.sqrt(1 + 1 / len(levels)),
        residual=residual, num_pairs=len(pairs), num_groups=len(groups),
    )  # fmt: skip


@functools.cache
def published_model() -> DraftSizeModel:
    """The fit to `PAIRS`."""
    return fit_pairs()


def effective_size(spec: ModelSpec) -> float:
    """Parameters that stand for a model's quality: for a mixture of experts the geometric
    mean of all and active ones (a common rule of thumb, not a measurement)."""
    return math.sqrt(float(spec.num_parameters) * float(spec.num_active_parameters)) \
        if spec.is_moe else float(spec.num_parameters)  # fmt: skip


def size_ratio(target: ModelSpec, draft: ModelSpec) -> float:
    """Target over draft."""
    return effective_size(target) / effective_size(draft)
