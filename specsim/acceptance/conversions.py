"""The four numbers that people call "the acceptance rate", converted by name.

    α  constant conditional acceptance (i.i.d. law)
    h  conditional acceptance by position, P(i | i − 1)
    s  survival by position, P(at least i): what engines print "per position"
    r  draft acceptance rate, accepted over drafted tokens
    τ  acceptance length, tokens per step with the bonus token

Nothing here guesses which one a number is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from specsim.acceptance.chains import Iid, PerPosition, check_probability
from specsim.acceptance.law import Law, check_num_draft_tokens, hazard_of

#: How to spell each figure on the command line and in YAML.
FIGURES: Mapping[str, str] = {
    "alpha": "i.i.d. conditional acceptance",
    "conditional": "P(token i accepted | token i-1 was), per position",
    "survival": "P(at least i accepted), per position: what engines print",
    "acceptance_length": "tokens per step, bonus included (needs at_k)",
    "draft_acceptance_rate": "accepted / drafted tokens (needs at_k)",
}

AMBIGUOUS = "'acceptance rate' may mean four different numbers; say which one: " + "; ".join(
    f"{key} = {meaning}" for key, meaning in FIGURES.items()
)


def survival_from_conditional(conditional: Sequence[float]) -> list[float]:
    """s_i = h_1 ⋯ h_i.

    >>> survival_from_conditional([0.5, 0.5])
    [0.5, 0.25]

    Raises:
        ValueError: if a value is outside [0, 1].
    """
    for i, h in enumerate(conditional, start=1):
        check_probability(f"conditional acceptance at position {i}", h)
    return [float(s) for s in np.cumprod(np.asarray(conditional, dtype=float))]


def conditional_from_survival(survival: Sequence[float]) -> list[float]:
    """h_i = s_i / s_{i−1}; 0 after survival has reached 0.

    >>> conditional_from_survival([0.5, 0.25])
    [0.5, 0.5]

    Raises:
        ValueError: if a value is outside [0, 1] or survival rises.
    """
    if not len(survival):
        raise ValueError("survival is empty")
    previous = 1.0
    for i, s in enumerate(survival, start=1):
        check_probability(f"survival at position {i}", s)
        if s > previous:
            raise ValueError(
                f"survival rises from {previous} to {s} at position {i}; "
                "it cannot: if these are P(i | i-1), pass them as conditional"
            )
        previous = s
    return [float(h) for h in hazard_of(np.asarray(survival, dtype=float))]


def acceptance_length_from_alpha(alpha: float, num_draft_tokens: int) -> float:
    """τ = (1 − α^{K+1})/(1 − α), Leviathan et al. 2023, equation 1."""
    return Iid(alpha).acceptance_length(num_draft_tokens)


def alpha_from_acceptance_length(acceptance_length: float, num_draft_tokens: int) -> float:
    """The α whose i.i.d. law has this τ at K: the inverse of equation 1.

    >>> round(alpha_from_acceptance_length(3.3616, 4), 4)
    0.8

    Raises:
        ValueError: unless 1 ≤ τ ≤ K + 1.
    """
    check_num_draft_tokens(num_draft_tokens)
    if not 1 <= acceptance_length <= num_draft_tokens + 1:
        raise ValueError(
            f"acceptance_length={acceptance_length} outside [1, {num_draft_tokens + 1}], the "
            f"range for K={num_draft_tokens} (the bonus token counts)"
        )
    return _solve(
        lambda alpha: acceptance_length_from_alpha(alpha, num_draft_tokens), acceptance_length
    )


def alpha_from_draft_acceptance_rate(rate: float, num_draft_tokens: int) -> float:
    """The α whose i.i.d. law accepts this share of K drafted tokens.

    >>> round(alpha_from_draft_acceptance_rate(0.5904, 4), 4)
    0.8

    Raises:
        ValueError: unless 0 ≤ r ≤ 1 and K ≥ 1.
    """
    check_probability("draft_acceptance_rate", rate)
    if num_draft_tokens < 1:
        raise ValueError(f"num_draft_tokens={num_draft_tokens} < 1: nothing was drafted")
    return alpha_from_acceptance_length(1 + rate * num_draft_tokens, num_draft_tokens)


def _solve(increasing: Callable[[float], float], value: float) -> float:
    """Root of `increasing(x) = value` on [0, 1] by bisection, to the last bit."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if increasing(middle) < value:
            low = middle
        else:
            high = middle
    return low if increasing(low) == value else high


def law_from_figure(
    kind: str,
    values: Sequence[float],
    *,
    at_num_draft_tokens: int | None = None,
    standard_error: float | None = None,
) -> Law:
    """The law behind one reported figure (`kind` is a key of `FIGURES`).

    τ and r are one number measured at one K: the i.i.d. law that reproduces it.
    `standard_error` is that of α, or of every conditional acceptance alike.

    >>> law_from_figure("survival", [0.7, 0.5]).acceptance_length(2)
    2.2

    Raises:
        ValueError: for an unknown or ambiguous kind, an impossible value, or a missing K.
    """
    if kind not in FIGURES:
        raise ValueError(AMBIGUOUS if "rate" in kind else f"unknown acceptance figure {kind!r}")
    if kind in ("conditional", "survival"):
        if kind == "survival":
            return PerPosition.from_survival(values)
        law = PerPosition(tuple(float(v) for v in values))
        return law if standard_error is None else law.within(1.96 * standard_error)
    if len(values) != 1:
        raise ValueError(f"{kind} is one number, not {len(values)}")
    value = float(values[0])
    if kind == "alpha":
        return Iid(value, standard_error=standard_error)
    if at_num_draft_tokens is None:
        raise ValueError(f"{kind}={value} needs the K it was measured at (at_k)")
    if kind == "acceptance_length":
        alpha = alpha_from_acceptance_length(value, at_num_draft_tokens)
    else:
        alpha = alpha_from_draft_acceptance_rate(value, at_num_draft_tokens)
    return Iid(alpha, measured_to=at_num_draft_tokens)
