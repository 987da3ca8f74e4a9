"""Laws whose steps are independent within a request: i.i.d., per position, n-gram."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specsim.acceptance.law import (
    MAX_RUN,
    Array,
    Law,
    Runs,
    check_num_draft_tokens,
    runs_from_accepts,
)


def check_probability(name: str, value: float) -> float:
    """`value` as a float; ValueError unless 0 ≤ value ≤ 1."""
    if not 0 <= value <= 1:  # also refuses NaN
        raise ValueError(f"{name}={value} outside [0, 1]")
    return float(value)


@dataclass(frozen=True)
class Iid(Law):
    """Every drafted token is accepted with the same probability α, independently.

    Leviathan et al. 2023, equation 1: τ = (1 − α^{K+1}) / (1 − α). `standard_error` is
    that of α, where it was measured; `measured_to` the K of a single τ or r behind it.

    >>> Iid(0.8).survival(3).round(3).tolist()
    [0.8, 0.64, 0.512]
    >>> round(Iid(0.8).acceptance_length(4), 3)
    3.362
    """

    alpha: float
    standard_error: float | None = None
    measured_to: int | None = None

    def __post_init__(self) -> None:
        check_probability("alpha", self.alpha)
        if self.standard_error is not None and not 0 <= self.standard_error < 1:
            raise ValueError(f"standard_error={self.standard_error} outside [0, 1)")

    def survival(self, num_draft_tokens: int) -> Array:
        """s_i = α^i."""
        check_num_draft_tokens(num_draft_tokens)
        return np.asarray(self.alpha ** np.arange(1, num_draft_tokens + 1), dtype=float)

    def sample_runs(self, rng: np.random.Generator, num_tokens: int) -> Runs:
        """Token t is accepted if the t-th uniform is below α."""
        return runs_from_accepts(rng.random(num_tokens + MAX_RUN) < self.alpha, num_tokens)

    def survival_interval(self, num_draft_tokens: int) -> tuple[Array, Array] | None:
        """From the standard error of α."""
        if self.standard_error is None:
            return None
        reach = 1.96 * self.standard_error
        low, high = max(0.0, self.alpha - reach), min(1.0, self.alpha + reach)
        return Iid(low).survival(num_draft_tokens), Iid(high).survival(num_draft_tokens)


@dataclass(frozen=True)
class PerPosition(Law):
    """Conditional acceptance h_1, h_2, … by position in the draft.

    Beyond the last given position the last hazard goes on (an extrapolation:
    `measured_to` tells where it starts), unless the draft `ends` there: then nothing
    beyond it is accepted (a tree of that depth). `low` and `high` bound the hazards.

    >>> PerPosition((0.8, 0.9)).survival(3).round(3).tolist()
    [0.8, 0.72, 0.648]
    """

    conditional: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None
    ends: bool = False

    def __post_init__(self) -> None:
        if not self.conditional:
            raise ValueError("conditional acceptance is empty")
        for vector in (self.conditional, self.low, self.high):
            if vector is None:
                continue
            if len(vector) != len(self.conditional):
                raise ValueError(f"{len(vector)} bounds for {len(self.conditional)} positions")
            for i, h in enumerate(vector, start=1):
                check_probability(f"conditional acceptance at position {i}", h)

    @property
    def measured_to(self) -> int | None:  # type: ignore[override]
        """Number of positions given; None where the draft ends with them."""
        return None if self.ends else len(self.conditional)

    @staticmethod
    def from_survival(survival: Sequence[float]) -> PerPosition:
        """From s_1, s_2, … (what engines print per position).

        Raises:
            ValueError: outside [0, 1], or rising.
        """
        from specsim.acceptance.conversions import conditional_from_survival

        return PerPosition(tuple(conditional_from_survival(survival)))

    def within(self, reach: float) -> PerPosition:
        """With hazards that may all lie `reach` lower or higher."""
        low, high = (
            tuple(min(max(h + shift, 0.0), 1.0) for h in self.conditional)
            for shift in (-reach, reach)
        )
        return dataclasses.replace(self, low=low, high=high)

    def _extended(self, vector: Sequence[float], num_positions: int) -> Array:
        known = np.asarray(vector[:num_positions], dtype=float)
        beyond = 0.0 if self.ends else vector[-1]
        return np.concatenate((known, np.full(num_positions - len(known), beyond)))

    def survival(self, num_draft_tokens: int) -> Array:
        """s_i = h_1 · … · h_i."""
        check_num_draft_tokens(num_draft_tokens)
        return np.asarray(np.cumprod(self._extended(self.conditional, num_draft_tokens)))

    def survival_interval(self, num_draft_tokens: int) -> tuple[Array, Array] | None:
        """From the bounds of the hazards."""
        if self.low is None or self.high is None:
            return None
        return (
            np.asarray(np.cumprod(self._extended(self.low, num_draft_tokens))),
            np.asarray(np.cumprod(self._extended(self.high, num_draft_tokens))),
        )

    def sample_runs(self, rng: np.random.Generator, num_tokens: int) -> Runs:
        """The i-th drafted token is accepted if the uniform of its output position is
        below h_i."""
        uniforms = rng.random(num_tokens + MAX_RUN)
        hazards = self._extended(self.conditional, MAX_RUN)
        runs = np.zeros(num_tokens, dtype=np.int64)
        alive = np.arange(num_tokens)
        for depth in range(MAX_RUN):
            alive = alive[uniforms[alive + depth] < hazards[depth]]
            if not len(alive):
                break
            runs[alive] += 1
        return runs


@dataclass(frozen=True)
class Proposing(Law):
    """A drafter that does not always propose K tokens (n-gram look-up, confidence stop).

    `drafted_pmf[d]` = P(it proposes d tokens), d = 0, 1, …; `accepted` is the law of
    what is proposed, with independent steps. s_i = P(d ≥ i) · h_1 ⋯ h_i, so that
    τ = 1 + P(drafted > 0) · E[accepted | drafted > 0].
    """

    accepted: Iid | PerPosition
    drafted_pmf: tuple[float, ...]
    knows_drafted = True

    def __post_init__(self) -> None:
        for d, p in enumerate(self.drafted_pmf):
            check_probability(f"P(drafted = {d})", p)
        total = math.fsum(self.drafted_pmf)
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            raise ValueError(f"drafted_pmf sums to {total}, not 1")

    def _at_least(self, num_draft_tokens: int) -> Array:
        """P(drafted ≥ i) for i = 1..K; shape (K,)."""
        tail = np.cumsum(np.asarray(self.drafted_pmf)[::-1])[::-1][1:]
        tail = tail[:num_draft_tokens]
        return np.concatenate((tail, np.zeros(num_draft_tokens - len(tail))))

    def expected_drafted(self, num_draft_tokens: int) -> float:
        """E[min(drafted, K)]."""
        return float(np.sum(self._at_least(num_draft_tokens)))

    def survival(self, num_draft_tokens: int) -> Array:
        """s_i = P(drafted ≥ i) · Π h."""
        inner = self.accepted.survival(num_draft_tokens)
        return np.asarray(inner * self._at_least(num_draft_tokens))

    def sample_runs(self, rng: np.random.Generator, num_tokens: int) -> Runs:
        """min(accepted run, drafted), the number drafted drawn per output position."""
        drafted = np.searchsorted(np.cumsum(self.drafted_pmf), rng.random(num_tokens), "right")
        drafted = np.minimum(drafted, len(self.drafted_pmf) - 1)
        return np.minimum(self.accepted.sample_runs(rng, num_tokens), drafted)
