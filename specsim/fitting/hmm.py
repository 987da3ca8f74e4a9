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


def _emission(chain: Chain, data: Outcomes) -> Array:
    """P(outcome | state) for every position; shape (positions, requests, S)."""
    depths = chain.accept.shape[1]
    alpha = chain.accept.T[np.minimum(data.depth, depths - 1)]
    outcome = data.outcome[:, :, None]
    return np.asarray(
        np.where(outcome == ACCEPTED, alpha, np.where(outcome == REJECTED, 1 - alpha, 1.0))
    )


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
    _, scale = _forward(chain, _emission(chain, data))
    return np.asarray(np.log(scale).sum(axis=0))


def _expectations(chain: Chain, data: Outcomes) -> tuple[Array, Array, Array]:
    """Posterior states (positions, requests, S), expected transitions (S, S), and the
    log-likelihood of each request."""
    emission = _emission(chain, data)
    forward, scale = _forward(chain, emission)
    length = len(emission)
    present = (data.outcome != ABSENT)[:, :, None]
    backward = np.ones_like(forward[0])
    posterior = np.empty_like(forward)
    moves = np.zeros_like(chain.transition)
    posterior[-1] = forward[-1]
    for t in range(length - 1, 0, -1):
        weighted = emission[t] * backward / scale[t][:, None]
        moves += forward[t - 1].T @ (weighted * present[t])
        backward = weighted @ chain.transition.T
        posterior[t - 1] = forward[t - 1] * backward
    return posterior * present, moves * chain.transition, np.log(scale).sum(axis=0)


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
    depths = start.accept.shape[1]
    level = np.minimum(data.depth, depths - 1)
    masks = [
        ((data.outcome == ACCEPTED) & (level == d), (data.outcome == REJECTED) & (level == d))
        for d in range(depths)
    ]
    allowed = start.transition > 0
    for _ in range(max_iterations):
        posterior, moves, likelihood = _expectations(chain, data)
        total = float(likelihood.sum())
        if total - last < tolerance * abs(total):
            break
        last = total
        accept = np.empty_like(chain.accept)
        for d, (hit, miss) in enumerate(masks):
            won = posterior[hit].sum(axis=0) + PRIOR
            lost = posterior[miss].sum(axis=0) + PRIOR
            accept[:, d] = won / (won + lost)
        moves = np.where(allowed, moves + PRIOR / len(moves), 0.0)
        first = posterior[0].sum(axis=0) + PRIOR / len(moves)
        chain = Chain(
            initial=first / first.sum(), transition=moves / moves.sum(axis=1, keepdims=True),
            accept=accept,
        )  # fmt: skip
    return chain, last
