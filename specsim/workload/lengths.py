"""How many tokens a prompt or an answer has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]
Distribution = Literal["constant", "uniform", "lognormal", "empirical", "geometric"]

#: No prompt or answer is longer than this: longer draws are cut to it, and a law that
#: asks for longer ones is refused.
LONGEST = 1_000_000


@dataclass(frozen=True, kw_only=True)
class LengthLaw:
    """constant `value`; uniform `low`..`high` (both included); lognormal with `mean` and
    `cv` of the tokens themselves, rounded; empirical `values` with `weights`; geometric
    with `mean`, at least 1. Draws are cut to 1..`maximum`."""

    distribution: Distribution
    value: int = 0
    low: int = 0
    high: int = 0
    mean: float = 0.0
    cv: float = 0.0
    values: tuple[int, ...] = ()
    weights: tuple[float, ...] | None = None
    maximum: int | None = None

    def __post_init__(self) -> None:
        kind = self.distribution
        if kind == "constant" and self.value < 1:
            raise ValueError(f"constant length {self.value} < 1")
        if kind == "uniform" and not 1 <= self.low <= self.high:
            raise ValueError(f"uniform length low={self.low}, high={self.high}: 1 <= low <= high")
        if kind in ("lognormal", "geometric") and not (self.mean > 0 and math.isfinite(self.mean)):
            raise ValueError(f"{kind} length: mean={self.mean} is not > 0")
        if self.cv < 0:
            raise ValueError(f"cv={self.cv} < 0")
        if kind == "empirical":
            if not self.values or min(self.values) < 1:
                raise ValueError("empirical length: expected values >= 1")
            if self.weights is not None and sum(self.weights) <= 0:
                raise ValueError("empirical length: weights sum to 0")
        asked = max(self.value, self.high, self.mean, *self.values)
        if asked > LONGEST:
            raise ValueError(f"{kind} length of {asked:.0f} tokens: at most {LONGEST}")
        if self.maximum is not None and self.maximum < 1:
            raise ValueError(f"maximum length {self.maximum} < 1")


def draw_lengths(law: LengthLaw, rng: np.random.Generator, count: int) -> Tokens:
    """`count` lengths in tokens, each in 1..maximum; shape (count,)."""
    kind = law.distribution
    if kind == "constant":
        drawn: npt.NDArray[np.float64] | Tokens = np.full(count, law.value, dtype=np.int64)
    elif kind == "uniform":
        drawn = rng.integers(law.low, law.high, size=count, endpoint=True)
    elif kind == "lognormal":
        variance = math.log1p(law.cv**2)
        drawn = rng.lognormal(math.log(law.mean) - variance / 2, math.sqrt(variance), count)
    elif kind == "geometric":
        drawn = rng.geometric(1 / max(law.mean, 1.0), count)
    else:
        weights = None
        if law.weights is not None:
            weights = np.asarray(law.weights, dtype=float) / sum(law.weights)
        drawn = rng.choice(np.asarray(law.values), size=count, p=weights)
    return np.clip(np.rint(drawn), 1, law.maximum or LONGEST).astype(np.int64)
