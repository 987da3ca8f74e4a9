"""Closed forms over plain numbers and arrays, in units of one target forward pass.

Leviathan et al. 2023: with acceptance length τ, K draft passes that cost c each and a
verify pass that costs v (all in target passes), a step takes K·c + v and emits τ tokens
where plain decoding emits one per pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from specsim.acceptance.law import Array, Law, check_num_draft_tokens


def acceptance_length(alpha: Any, num_draft_tokens: Any) -> Array:
    """τ = (1 − α^{K+1})/(1 − α) of the i.i.d. law; K + 1 at α = 1.

    Leviathan et al. 2023, equation 1. Shapes broadcast.

    >>> acceptance_length(0.8, [1, 4, 8]).round(3).tolist()
    [1.8, 3.362, 4.329]

    Raises:
        ValueError: if α is outside [0, 1] or K < 0 anywhere.
    """
    a, k = np.asarray(alpha, dtype=float), np.asarray(num_draft_tokens, dtype=float)
    if not np.all((a >= 0) & (a <= 1)):
        raise ValueError(f"alpha={alpha} outside [0, 1]")
    if not np.all(k >= 0):
        raise ValueError(f"num_draft_tokens={num_draft_tokens} < 0")
    # −expm1((K+1)·log α)/(1 − α) keeps its digits near α = 1, where 1 − α^{K+1} loses them
    safe = np.where((a > 0) & (a < 1), a, 0.5)
    geometric = -np.expm1((k + 1) * np.log(safe)) / (1 - safe)
    return np.where(a == 0, 1.0, np.where(a == 1, k + 1, geometric))


def speedup(
    acceptance_length: Any, num_draft_tokens: Any, cost_ratio: Any, verify_ratio: Any = 1.0
) -> Array:
    """τ / (K·c + v): Leviathan et al. 2023, Theorem 3.8, with v = 1 there. Shapes
    broadcast; K = 0 gives 1 (no draft, an ordinary pass).

    >>> float(speedup(acceptance_length(0.8, 4), 4, cost_ratio=0.1).round(2))
    2.4
    """
    tau = np.asarray(acceptance_length, dtype=float)
    k = np.asarray(num_draft_tokens, dtype=float)
    verify = np.where(k == 0, 1.0, verify_ratio)
    return np.asarray(tau / (k * np.asarray(cost_ratio, dtype=float) + verify))


def break_even_cost_ratio(
    acceptance_length: float, num_draft_tokens: int, wanted: float = 1.0, verify_ratio: float = 1.0
) -> float:
    """The largest c with which K drafts still reach the speedup `wanted` (negative: none).

    >>> round(break_even_cost_ratio(3.362, 4), 3)
    0.591

    Raises:
        ValueError: if K < 1.
    """
    if num_draft_tokens < 1:
        raise ValueError(f"num_draft_tokens={num_draft_tokens} < 1")
    return (acceptance_length / wanted - verify_ratio) / num_draft_tokens


def tpot_distribution(
    law: Law, num_draft_tokens: int, step_s: float, num_tokens: int
) -> tuple[Array, Array]:
    """Time per output token over requests of N tokens that decode at a constant step time.

    TPOT = step_s · (steps after the first token) / (N − 1); the first token comes from
    the prefill. Returns (values in s, probabilities), shapes (N,): value j belongs to j
    steps. The last step is cut at the request's end.

    Raises:
        ValueError: if N < 2.
    """
    check_num_draft_tokens(num_draft_tokens)
    if num_tokens < 2:
        raise ValueError(f"num_tokens={num_tokens} < 2: no time per output token")
    pmf = law.steps_pmf(num_tokens - 1, num_draft_tokens)
    steps = np.arange(len(pmf))
    return np.asarray(step_s * steps / (num_tokens - 1)), pmf


def quantile(values: Array, probabilities: Array, q: float) -> float:
    """The smallest value whose cumulative probability reaches q."""
    cumulative = np.cumsum(probabilities)
    return float(values[min(int(np.searchsorted(cumulative, q - 1e-12)), len(values) - 1)])


def paying_ranges(points: Any, pays: Any) -> list[list[int]]:
    """Runs of consecutive `points` where `pays` holds, as [[first, last], …].

    `points` rise; a mixture-of-experts target can have two runs. Shapes (n,).
    """
    where = np.flatnonzero(np.diff(np.concatenate(([0], np.asarray(pays, dtype=int), [0]))))
    xs = np.asarray(points)
    return [[int(xs[a]), int(xs[b - 1])] for a, b in zip(where[::2], where[1::2], strict=True)]
