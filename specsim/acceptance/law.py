"""What every acceptance law answers, and the long-run arithmetic they share.

Acceptance is a process over the output tokens of a request. A law therefore gives, for
every output position, the *accepted run*: how many drafted tokens a step starting there
would see accepted, if it drafted enough of them. A step that drafts K tokens at position
t emits `min(run[t], K) + 1` tokens and the next step starts after them. What engines
report (survival per position, acceptance length) are averages over the steps of that
process; they depend on K wherever acceptance is correlated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Runs = npt.NDArray[np.int64]

#: Longest accepted run that laws sample; no engine drafts more tokens a step.
MAX_RUN = 64


def check_num_draft_tokens(num_draft_tokens: int) -> None:
    """Raises ValueError unless K is an integer ≥ 0."""
    if int(num_draft_tokens) != num_draft_tokens or num_draft_tokens < 0:
        raise ValueError(f"num_draft_tokens={num_draft_tokens} is not an integer >= 0")


def t95(num_clusters: int) -> float:
    """Standard errors on either side of a 95 % interval whose error was estimated from
    `num_clusters` ≥ 2 independent sums: Student's t, 1.96 for many of them.

    >>> round(t95(8), 2)
    2.36
    """
    from scipy.special import stdtrit

    return float(stdtrit(num_clusters - 1, 0.975))


class Law(ABC):
    """How many drafted tokens survive a step, averaged over the steps of many requests.

    `components` are the laws among which a request draws once (one for a law without
    differences between requests). Averages over steps weigh a component by its share of
    steps: for requests of equal length that is its share of requests over its τ.
    """

    #: Largest K that the figures behind the law were measured for; None if a model.
    measured_to: int | None = None
    #: Whether `expected_drafted` is part of the law; otherwise every step drafts K tokens.
    knows_drafted: bool = False

    @abstractmethod
    def survival(self, num_draft_tokens: int) -> Array:
        """s_1..s_K: P(at least i of K drafted tokens are accepted); shape (K,).

        Raises:
            ValueError: if K is negative or not an integer.
        """

    @abstractmethod
    def sample_runs(self, rng: np.random.Generator, num_tokens: int) -> Runs:
        """Accepted run from each of `num_tokens` output positions of one request.

        Shape (num_tokens,), values 0..MAX_RUN. Position t uses the t-th uniform of `rng`
        whatever K is, so that runs with different K are coupled.
        """

    def components(self) -> Sequence[tuple[float, Law]]:
        """(share of requests, law of such a request); shares sum to 1."""
        return ((1.0, self),)

    def expected_drafted(self, num_draft_tokens: int) -> float:
        """E[tokens drafted] in a step asked for K."""
        return float(num_draft_tokens)

    def survival_interval(self, num_draft_tokens: int) -> tuple[Array, Array] | None:
        """95 % interval of `survival`, where the law carries one; shapes (K,)."""
        return None

    # The rest follows from the survival function.

    def pmf(self, num_draft_tokens: int) -> Array:
        """P(a tokens accepted) for a = 0..K; shape (K + 1,)."""
        s = np.concatenate(([1.0], self.survival(num_draft_tokens), [0.0]))
        return s[:-1] - s[1:]

    def hazard(self, num_draft_tokens: int) -> Array:
        """h_1..h_K: P(token i accepted | tokens before it were); shape (K,); 0 where
        position i is never reached."""
        return hazard_of(self.survival(num_draft_tokens))

    def mean(self, num_draft_tokens: int) -> float:
        """E[accepted tokens] of a step."""
        return float(np.sum(self.survival(num_draft_tokens)))

    def variance(self, num_draft_tokens: int) -> float:
        """Var[accepted tokens] of a step: E[a²] = Σ (2i − 1) s_i."""
        s = self.survival(num_draft_tokens)
        second = float(np.sum((2 * np.arange(1, len(s) + 1) - 1) * s))
        return second - self.mean(num_draft_tokens) ** 2

    def acceptance_length(self, num_draft_tokens: int) -> float:
        """τ = 1 + Σ s_i: tokens emitted per step, bonus token included."""
        return 1.0 + self.mean(num_draft_tokens)

    def draft_acceptance_rate(self, num_draft_tokens: int) -> float:
        """r: accepted over drafted tokens.

        Raises:
            ValueError: if nothing is drafted.
        """
        drafted = self.expected_drafted(num_draft_tokens)
        if drafted == 0:
            raise ValueError("nothing is drafted; the draft acceptance rate is undefined")
        return self.mean(num_draft_tokens) / drafted

    def steps_pmf(self, num_tokens: int, num_draft_tokens: int) -> Array:
        """P(a request of `num_tokens` tokens takes j steps), j = 0..num_tokens.

        The last step cannot emit more than is left. Exact for renewal laws (steps
        independent within a request) and mixtures of them; shape (num_tokens + 1,).
        """
        if num_tokens < 0:
            raise ValueError(f"num_tokens={num_tokens} < 0")
        pmf = np.zeros(num_tokens + 1)
        for share, law in self.components():
            pmf += share * law._steps_pmf_one(num_tokens, num_draft_tokens)
        return pmf

    def _steps_pmf_one(self, num_tokens: int, num_draft_tokens: int) -> Array:
        emitted = self.pmf(num_draft_tokens)[:, None, None]  # one state: (K + 1, 1, 1)
        return renewal_steps_pmf(emitted, np.ones(1), num_tokens)


def hazard_of(survival: Array) -> Array:
    """h_i = s_i / s_{i−1}; shape (K,), 0 after survival has reached 0."""
    before = np.concatenate(([1.0], survival[:-1])) if len(survival) else survival
    return np.divide(survival, before, out=np.zeros_like(survival), where=before > 0)


def renewal_steps_pmf(kernel: Array, start: Array, num_tokens: int) -> Array:
    """Distribution of the number of steps that emit `num_tokens` tokens.

    `kernel[a]` is the (states × states) matrix of P(accept a, next state | state), shape
    (K + 1, S, S); `start` the distribution of the first state, shape (S,). Follows the
    Markov renewal equation; shape of the result (num_tokens + 1,).
    """
    longest, num_states = kernel.shape[0], kernel.shape[1]
    result = np.zeros(num_tokens + 1)
    if num_tokens == 0:
        result[0] = 1.0
        return result
    # alive[n, z]: P(n tokens emitted so far, n < num_tokens, now in state z)
    alive = np.zeros((num_tokens, num_states))
    alive[0] = start
    done = 0.0
    for step in range(1, num_tokens + 1):
        following = np.zeros_like(alive)
        for accepted in range(longest):
            emitted = accepted + 1
            if emitted < num_tokens:
                following[emitted:] += alive[:-emitted] @ kernel[accepted]
        still = float(following.sum())
        result[step] = max(0.0, 1.0 - done - still)
        done += result[step]
        alive = following
    return result


def runs_from_accepts(accepts: npt.NDArray[np.bool_], num_tokens: int) -> Runs:
    """Accepted runs when token t is accepted or not whatever step it is drafted in.

    `accepts` has at least `num_tokens` entries; runs are cut at its end.
    Shape (num_tokens,).
    """
    length = len(accepts)
    position = np.arange(length)
    next_reject = np.where(accepts, length, position)
    next_reject = np.minimum.accumulate(next_reject[::-1])[::-1]
    return np.minimum(next_reject - position, MAX_RUN)[:num_tokens].astype(np.int64)


def replay(runs: Runs, num_draft_tokens: int) -> Runs:
    """Accepted tokens of each step of one request, replayed from its accepted runs.

    A step at position t emits min(run[t], K) + 1 tokens; the last one is cut at the end
    of the request. Shape (number of steps,).
    """
    accepted: list[int] = []
    position, length = 0, len(runs)
    while position < length:
        count = min(int(runs[position]), num_draft_tokens)
        accepted.append(count)
        position += count + 1
    return np.asarray(accepted, dtype=np.int64)
