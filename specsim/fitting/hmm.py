"""Hidden chains over output positions, fitted to step sequences by EM (Baum–Welch).

A step that drafts K tokens at position t and sees a of them accepted tells, position by
position: t..t+a−1 accepted (at depths 0..a−1), t+a rejected (at depth a), or, when all K
were accepted, nothing about t+K: the bonus token was never drafted. So a request is a
binary sequence with gaps, each entry with its depth, and the text's state is hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specsim.acceptance.law import Array, Runs

#: Outcome of a position: rejected, accepted, never drafted, beyond the request's end.
REJECTED, ACCEPTED, UNSEEN, ABSENT = 0, 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """Requests as columns of positions; shapes (positions, requests)."""

    outcome: npt.NDArray[np.int8]
    depth: npt.NDArray[np.int16]

    @property
    def num_requests(self) -> int:
        """Columns."""
        return int(self.outcome.shape[1])

    def pick(self, index: npt.NDArray[np.intp]) -> Outcomes:
        """Some of the requests."""
        return Outcomes(outcome=self.outcome[:, index], depth=self.depth[:, index])


def outcomes(steps: Sequence[tuple[Runs, Runs]]) -> Outcomes:
    """From (accepted, drafted limit K) per step, one pair of arrays per request."""
    length = max(int(np.sum(accepted + 1)) for accepted, _ in steps)
    outcome = np.full((length, len(steps)), ABSENT, dtype=np.int8)
    depth = np.zeros((length, len(steps)), dtype=np.int16)
    for column, (accepted, limits) in enumerate(steps):
        at = 0
        for a, limit in zip(accepted, limits, strict=True):
            outcome[at : at + a, column] = ACCEPTED
            outcome[at + a, column] = REJECTED if a < limit else UNSEEN
            depth[at : at + a + 1, column] = np.arange(a + 1)
            at += int(a) + 1
    return Outcomes(outcome=outcome, depth=depth)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Parameters: initial (S,), transition (S, S), accept (S, D)."""

    initial: Array
    transition: Array
    accept: Array


def _categories(data: Outcomes, depths: int) -> npt.NDArray[np.intp]:
    """One number per position: rejected or accepted at each of `depths` depths, or neither."""
    level = np.minimum(data.depth, depths - 1).astype(np.intp)
    tested = data.outcome <= ACCEPTED
    return np.where(tested, 2 * level + data.outcome, 2 * depths)


def _emission(chain: Chain, categories: npt.NDArray[np.intp]) -> Array:
    """P(outcome | state) for every position; shape (positions, requests, S)."""
    states, depths = chain.accept.shape
    table = np.ones((2 * depths + 1, states))
    table[0 : 2 * depths : 2] = 1 - chain.accept.T
    table[1 : 2 * depths : 2] = chain.accept.T
    return np.asarray(table[categories])


def _forward(chain: Chain, emission: Array) -> tuple[Array, Array]:
    """Scaled forward variables (positions, requests, S) and scales (positions, requests)."""
    length, requests, states = emission.shape
    forward = np.empty((length, requests, states))
    scale = np.empty((length, requests))
    current = chain.initial[None, :] * emission[0]
    for t in range(length):
        if t:
            current = (forward[t - 1] @ chain.transition) * emission[t]
        total = current.sum(axis=1)
        scale[t] = total
        forward[t] = current / total[:, None]
    return forward, scale


def log_likelihood(chain: Chain, data: Outcomes) -> Array:
    """Log-likelihood of each request; shape (requests,)."""
    categories = _categories(data, chain.accept.shape[1])
    _, scale = _forward(chain, _emission(chain, categories))
    return np.asarray(np.log(scale).sum(axis=0))


def _expectations(
    chain: Chain, categories: npt.NDArray[np.intp], present: Array
) -> tuple[Array, Array, Array]:
    """Posterior states (positions, requests, S), expected transitions (S, S), and the
    log-likelihood of each request. `present` is 1 up to the end of each request."""
    emission = _emission(chain, categories)
    forward, scale = _forward(chain, emission)
    emission /= scale[:, :, None]
    back = np.ascontiguousarray(chain.transition.T)
    backward = np.ones_like(forward[0])
    moves = np.zeros_like(chain.transition)
    for t in range(len(emission) - 1, 0, -1):
        weighted = emission[t] * backward
        moves += forward[t - 1].T @ (weighted * present[t][:, None])
        backward = weighted @ back
        forward[t - 1] *= backward
    return forward * present[:, :, None], moves * chain.transition, np.log(scale).sum(axis=0)


#: Pseudo-observations added to every estimate: keeps probabilities inside (0, 1).
PRIOR = 0.5


def fit_chain(
    data: Outcomes, start: Chain, *, max_iterations: int = 200, tolerance: float = 1e-6,
) -> tuple[Chain, float]:  # fmt: skip
    """Maximum (penalised) likelihood from a starting point; entries of `transition` that
    are zero stay zero, which keeps classes of requests apart.

    Returns the chain and the log-likelihood of the data.
    """
    chain, last = start, -np.inf
    states, depths = start.accept.shape
    categories = _categories(data, depths)
    flat = categories.ravel()
    present = (data.outcome != ABSENT).astype(float)
    allowed = start.transition > 0
    for _ in range(max_iterations):
        posterior, moves, likelihood = _expectations(chain, categories, present)
        total = float(likelihood.sum())
        if total - last < tolerance * abs(total):
            break
        last = total
        seen = np.stack([
            np.bincount(flat, weights=posterior[:, :, z].ravel(), minlength=2 * depths + 1)
            for z in range(states)
        ])  # fmt: skip
        lost, won = seen[:, 0 : 2 * depths : 2] + PRIOR, seen[:, 1 : 2 * depths : 2] + PRIOR
        moves = np.where(allowed, moves + PRIOR / states, 0.0)
        first = posterior[0].sum(axis=0) + PRIOR / states
        chain = Chain(
            initial=first / first.sum(), transition=moves / moves.sum(axis=1, keepdims=True),
            accept=won / (won + lost),
        )  # fmt: skip
    return chain, last
