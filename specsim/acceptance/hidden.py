"""A chain of hidden states over output positions: how easy the text is just there.

The general form of `correlated.Markov`: S states, and a hazard that may also depend on
how deep in the draft a token stands. The states follow the text, not the steps, so one
law serves every K.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from specsim.acceptance.chains import check_probability
from specsim.acceptance.law import (
    MAX_RUN,
    Array,
    Law,
    Runs,
    check_num_draft_tokens,
    renewal_steps_pmf,
)


@dataclass(frozen=True)
class HiddenChain(Law):
    """`transition[z][y]`: P(next position is in state y | this one in z), rows sum to 1.
    `accept[z][d]`: P(a token drafted at depth d + 1 is accepted | its position is in z);
    beyond the last depth the last value goes on. `initial`: state of a request's first
    position; the chain's stationary distribution when left out.

    `survival` averages over the steps of a request of `horizon` output tokens, which
    matters where states last about as long as a request; over the long run without it.
    """

    transition: tuple[tuple[float, ...], ...]
    accept: tuple[tuple[float, ...], ...]
    initial: tuple[float, ...] | None = None
    horizon: int | None = None

    def __post_init__(self) -> None:
        states = len(self.transition)
        if not states or len(self.accept) != states:
            raise ValueError(f"{states} rows of transition but {len(self.accept)} of accept")
        for z, row in enumerate(self.transition):
            self._check_distribution(f"transition row {z}", row)
        if self.initial is not None:
            self._check_distribution("initial", self.initial)
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"horizon={self.horizon} < 1 token")
        depth = len(self.accept[0])
        for z, row in enumerate(self.accept):
            if not row or len(row) != depth:
                raise ValueError(f"accept row {z} has {len(row)} depths; expected {depth} >= 1")
            for d, value in enumerate(row, start=1):
                check_probability(f"accept of state {z} at depth {d}", value)

    def _check_distribution(self, name: str, row: Sequence[float]) -> None:
        if len(row) != len(self.transition):
            raise ValueError(f"{name} has {len(row)} entries for {len(self.transition)} states")
        for value in row:
            check_probability(name, value)
        if abs(sum(row) - 1) > 1e-6:
            raise ValueError(f"{name} sums to {sum(row)}, not 1")

    @cached_property
    def _move(self) -> Array:
        move = np.asarray(self.transition, dtype=float)
        return np.asarray(move / move.sum(axis=1, keepdims=True))

    def _accept_at(self, depth: int) -> Array:
        """P(accept | state) at depth 0, 1, …; shape (S,)."""
        table = np.asarray(self.accept, dtype=float)
        return np.asarray(table[:, min(depth, table.shape[1] - 1)])

    def kernel(self, num_draft_tokens: int) -> Array:
        """P(accept a, state at the next step's start | state at this one's), (K + 1, S, S)."""
        check_num_draft_tokens(num_draft_tokens)
        move, states = self._move, len(self.transition)
        reached = np.eye(states)
        kernel = np.empty((num_draft_tokens + 1, states, states))
        for accepted in range(num_draft_tokens):
            alpha = self._accept_at(accepted)
            kernel[accepted] = reached @ np.diag(1 - alpha) @ move
            reached = reached @ np.diag(alpha) @ move
        kernel[num_draft_tokens] = reached @ move
        return kernel

    def step_start(self, num_draft_tokens: int) -> Array:
        """Share of steps that start in each state; shape (S,)."""
        kernel = self.kernel(num_draft_tokens)
        if self.horizon is None:
            return stationary(kernel.sum(axis=0), self._start)
        # starts[n]: expected number of steps that start at position n, by state
        starts = np.zeros((self.horizon, len(self.transition)))
        starts[0] = self._start
        for n in range(1, self.horizon):
            back = min(n, len(kernel))  # steps that emitted 1, 2, … `back` tokens end here
            starts[n] = np.einsum("as,ast->t", starts[n - 1 :: -1][:back], kernel[:back])
        total = starts.sum(axis=0)
        return np.asarray(total / total.sum())

    @cached_property
    def _start(self) -> Array:
        if self.initial is not None:
            return np.asarray(self.initial, dtype=float) / sum(self.initial)
        states = len(self.transition)
        return stationary(self._move, np.full(states, 1 / states))

    def survival(self, num_draft_tokens: int) -> Array:
        """Average over the steps of a request, see the class."""
        kernel = self.kernel(num_draft_tokens)
        pmf = self.step_start(num_draft_tokens) @ kernel.sum(axis=2).T
        tail = np.cumsum(pmf[::-1])[::-1][1:]
        return np.asarray(np.clip(tail, 0.0, 1.0))

    def _steps_pmf_one(self, num_tokens: int, num_draft_tokens: int) -> Array:
        return renewal_steps_pmf(self.kernel(num_draft_tokens), self._start, num_tokens)

    def sample_runs(self, rng: np.random.Generator, num_tokens: int) -> Runs:
        """States of the output positions first, then one uniform per position."""
        length = num_tokens + MAX_RUN
        states = self._sample_states(rng, length)
        uniforms = rng.random(length)
        runs = np.zeros(num_tokens, dtype=np.int64)
        alive = np.arange(num_tokens)
        for depth in range(MAX_RUN):
            alpha = self._accept_at(depth)[states[alive + depth]]
            alive = alive[uniforms[alive + depth] < alpha]
            if not len(alive):
                break
            runs[alive] += 1
        return runs

    def _sample_states(self, rng: np.random.Generator, length: int) -> Runs:
        last = len(self.transition) - 1
        edges = [row[:-1] for row in np.cumsum(self._move, axis=1).tolist()]
        uniforms = rng.random(length).tolist()
        state = min(bisect_right(np.cumsum(self._start).tolist(), uniforms[0]), last)
        states = [state]
        for u in uniforms[1:]:
            state = bisect_right(edges[state], u)
            states.append(state)
        return np.asarray(states, dtype=np.int64)


def stationary(move: Array, start: Array) -> Array:
    """Long-run share of each state of a chain that begins in `start`; shape (S,).

    Averaged over a period, so that periodic and reducible chains have one too: the limit
    of the mean of start · move^t, by repeated squaring of the lazy chain.
    """
    lazy = (move + np.eye(len(move))) / 2
    for _ in range(60):
        lazy = lazy @ lazy
        lazy /= lazy.sum(axis=1, keepdims=True)
    return np.asarray(start @ lazy)
