"""Laws with memory: requests that differ, and easy and hard stretches of output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from specsim.acceptance.chains import Iid, check_probability
from specsim.acceptance.law import (
    MAX_RUN,
    Array,
    Law,
    Runs,
    check_num_draft_tokens,
    renewal_steps_pmf,
    runs_from_accepts,
)


def step_weighted(parts: Sequence[tuple[float, Array]]) -> Array:
    """Average of survival vectors over steps, for requests of equal length.

    A request of N tokens takes N/τ steps, so a component with share w of the requests
    has a share ∝ w/τ of the steps; with that weight 1 + Σ s_i is the harmonic mean of
    the components' τ, which is tokens over steps. Shapes (K,).
    """
    weights = np.array([share / (1.0 + s.sum()) for share, s in parts])
    survivals = np.stack([s for _, s in parts])
    return np.asarray(weights @ survivals / weights.sum())


@dataclass(frozen=True)
class Mixture(Law):
    """Every request draws one of several laws (domains: code, factual, creative).

    `parts` are (share of requests, law); shares must sum to 1.
    """

    parts: tuple[tuple[float, Law], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("a mixture needs at least one part")
        for share, _ in self.parts:
            check_probability("share of a mixture", share)
        total = math.fsum(share for share, _ in self.parts)
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            raise ValueError(f"shares of the mixture sum to {total}, not 1")

    @property
    def measured_to(self) -> int | None:  # type: ignore[override]
        """The smallest K that any part was measured for."""
        known = [law.measured_to for _, law in self.parts if law.measured_to is not None]
        return min(known, default=None)

    @property
    def knows_drafted(self) -> bool:  # type: ignore[override]
        """Whether any part knows how often its drafter proposes."""
        return any(law.knows_drafted for _, law in self.parts)

    def components(self) -> Sequence[tuple[float, Law]]:
        """Parts of parts, flattened."""
        return tuple(
            (share * inner, law) for share, part in self.parts for inner, law in part.components()
        )

    def survival(self, num_draft_tokens: int) -> Array:
        """Average over steps, see `step_weighted`."""
        check_num_draft_tokens(num_draft_tokens)
        parts = self.components()
        return step_weighted([(w, law.survival(num_draft_tokens)) for w, law in parts])

    def expected_drafted(self, num_draft_tokens: int) -> float:
        """Average over steps."""
        k = num_draft_tokens
        weights = [w / law.acceptance_length(k) for w, law in self.components()]
        drafted = [law.expected_drafted(k) for _, law in self.components()]
        return float(np.average(drafted, weights=weights))

    def sample_runs(self, rng: np.random.Generator, num_tokens: int) -> Runs:
        """One part for the whole request."""
        shares = np.cumsum([share for share, _ in self.parts])
        index = min(int(np.searchsorted(shares, rng.random(), "right")), len(self.parts) - 1)
        return self.parts[index][1].sample_runs(rng, num_tokens)


#: Nodes of the Gauss–Jacobi rule over a request's α; exact for polynomials to degree 63.
BETA_NODES = 32


def _gauss_jacobi(num_nodes: int, alpha: float, beta: float) -> tuple[Array, Array]:
    """Nodes and weights (summing to 1) for (1 − x)^α (1 + x)^β on [−1, 1].

    Golub and Welsch 1969: eigenvalues of the Jacobi matrix, squared first components of
    its eigenvectors. scipy's rule overflows at the large exponents of a narrow Beta, because
    it computes the weight function's integral, which cancels here. Shapes (num_nodes,).
    """
    k = np.arange(1, num_nodes, dtype=float)
    total = 2 * k + alpha + beta
    first = (beta - alpha) / (alpha + beta + 2)
    diagonal = np.concatenate(([first], (beta**2 - alpha**2) / (total * (total + 2))))
    # k = 1 apart: its general form is 0/0 where α + β = −1
    squares = 4 * k * (k + alpha) * (k + beta) * (k + alpha + beta)
    squares[1:] /= total[1:] ** 2 * (total[1:] + 1) * (total[1:] - 1)
    squares[0] = 4 * (1 + alpha) * (1 + beta) / (total[0] ** 2 * (total[0] + 1))
    off = np.sqrt(squares)
    matrix = np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1)
    nodes, vectors = np.linalg.eigh(matrix)
    return nodes, vectors[0] ** 2


@dataclass(frozen=True)
class BetaRequests(Law):
    """α drawn once per request from Beta(a, b), i.i.d. within it."""

    a: float
    b: float

    def __post_init__(self) -> None:
        for name in ("a", "b"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"Beta parameter {name}={value} is not > 0")

    @staticmethod
    def from_mean(mean: float, standard_deviation: float) -> BetaRequests:
        """From mean and standard deviation of α over requests.

        Raises:
            ValueError: if no Beta distribution has them.
        """
        check_probability("mean of alpha", mean)
        limit = mean * (1 - mean)
        if not 0 < standard_deviation**2 < limit:
            raise ValueError(
                f"standard deviation {standard_deviation} is not between 0 and "
                f"{math.sqrt(limit):.4f}, the largest a mean of {mean} allows"
            )
        concentration = limit / standard_deviation**2 - 1
        return BetaRequests(mean * concentration, (1 - mean) * concentration)

    @cached_property
    def _nodes(self) -> tuple[tuple[float, Law], ...]:
        x, weights = _gauss_jacobi(BETA_NODES, self.b - 1, self.a - 1)
        alphas = np.clip((1 + x) / 2, 0.0, 1.0)
        pairs = zip(weights, alphas, strict=True)
        return tuple((float(p), Iid(float(alpha))) for p, alpha in pairs)

    def components(self) -> Sequence[tuple[float, Law]]:
        """Nodes of the Gauss–Jacobi quadrature."""
        return self._nodes

    def survival(self, num_draft_tokens: int) -> Array:
        """E[α^i/τ(α)] / E[1/τ(α)]: average over steps."""
        check_num_draft_tokens(num_draft_tokens)
        return step_weighted([(w, law.survival(num_draft_tokens)) for w, law in self._nodes])

    def sample_runs(self, rng: np.random.Generator, num_tokens: int) -> Runs:
        """α first, then one uniform per output position."""
        alpha = rng.beta(self.a, self.b)
        return runs_from_accepts(rng.random(num_tokens + MAX_RUN) < alpha, num_tokens)


@dataclass(frozen=True)
class Markov(Law):
    """Two hidden states over output positions: easy stretches and hard ones.

    Token t is accepted with `alpha_easy` or `alpha_hard` by the state of its position;
    a stretch lasts `easy_length` or `hard_length` tokens on average (geometric). The
    states follow the text, not the steps, so the law is independent of K: a long accepted
    jump consumes the easy stretch, and the first position's hazard falls as K grows.
    """

    alpha_easy: float
    alpha_hard: float
    easy_length: float
    hard_length: float

    def __post_init__(self) -> None:
        check_probability("alpha_easy", self.alpha_easy)
        check_probability("alpha_hard", self.alpha_hard)
        for name in ("easy_length", "hard_length"):
            value = getattr(self, name)
            if not (value >= 1 and math.isfinite(value)):
                raise ValueError(f"{name}={value} is not >= 1 token")

    @property
    def _transition(self) -> Array:
        leave_easy, leave_hard = 1 / self.easy_length, 1 / self.hard_length
        return np.array([[1 - leave_easy, leave_easy], [leave_hard, 1 - leave_hard]])

    @property
    def stationary(self) -> Array:
        """Share of output positions in easy and hard stretches; shape (2,)."""
        both = self.easy_length + self.hard_length
        return np.asarray([self.easy_length / both, self.hard_length / both], dtype=float)

    def kernel(self, num_draft_tokens: int) -> Array:
        """P(accept a, state at the next step's start | state at this one's), (K + 1, 2, 2).

        The token after the accepted ones is emitted whatever its state (correction or
        bonus), which moves the state once more.
        """
        check_num_draft_tokens(num_draft_tokens)
        move = self._transition
        accept = np.diag([self.alpha_easy, self.alpha_hard])
        reject = np.eye(2) - accept
        reached = np.eye(2)
        kernel = np.empty((num_draft_tokens + 1, 2, 2))
        for accepted in range(num_draft_tokens):
            kernel[accepted] = reached @ reject @ move
            reached = reached @ accept @ move
        kernel[num_draft_tokens] = reached @ move
        return kernel

    def step_start(self, num_draft_tokens: int) -> Array:
        """Share of steps that start in an easy or a hard stretch; shape (2,)."""
        step = self.kernel(num_draft_tokens).sum(axis=0)
        to_hard, to_easy = step[0, 1], step[1, 0]
        if to_hard + to_easy == 0:  # both states absorb: the text decides once
            return self.stationary
        return np.asarray(np.array([to_easy, to_hard]) / (to_hard + to_easy))

    def survival(self, num_draft_tokens: int) -> Array:
        """Average over the steps of a long request."""
        kernel = self.kernel(num_draft_tokens)
        pmf = self.step_start(num_draft_tokens) @ kernel.sum(axis=2).T
        return np.asarray(np.cumsum(pmf[::-1])[::-1][1:])

    def _steps_pmf_one(self, num_tokens: int, num_draft_tokens: int) -> Array:
        return renewal_steps_pmf(self.kernel(num_draft_tokens), self.stationary, num_tokens)

    def sample_runs(self, rng: np.random.Generator, num_tokens: int) -> Runs:
        """States of the output positions first, then one uniform per position."""
        length = num_tokens + MAX_RUN
        states = self._sample_states(rng, length)
        alpha = np.where(states == 0, self.alpha_easy, self.alpha_hard)
        return runs_from_accepts(rng.random(length) < alpha, num_tokens)

    def _sample_states(self, rng: np.random.Generator, length: int) -> Runs:
        """0 (easy) or 1 (hard) for each position: alternating geometric stretches."""
        first = int(rng.random() >= self.stationary[0])
        state, filled = first, 0
        states = np.empty(length, dtype=np.int64)
        means = (self.easy_length, self.hard_length)
        while filled < length:
            stretch = int(rng.geometric(1 / means[state]))
            states[filled : filled + stretch] = state
            filled += stretch
            state = 1 - state
        return states
