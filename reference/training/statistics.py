"""Estimates over prompts: a prompt's tokens are alike, so prompts are what is counted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Z95 = 1.959963984540054


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, float]:
    """Σ a / Σ b over clusters, and its standard error (linearised, clusters independent).

    Raises:
        ValueError: for fewer than two clusters, or nothing in the denominator.
    """
    a, b = np.asarray(numerators, float), np.asarray(denominators, float)
    n = len(a)
    if n < 2 or b.sum() <= 0:
        raise ValueError(f"{n} clusters with a total weight of {b.sum():g}: at least 2 are needed")
    estimate = a.sum() / b.sum()
    residuals = a - estimate * b
    error = math.sqrt(n / (n - 1) * float((residuals**2).sum())) / b.sum()
    return float(estimate), error


def geometric_mean(values: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean of positive values and its 95 % interval (normal in the logarithm)."""
    logs = np.log(np.asarray(values, float))
    middle, error = float(logs.mean()), float(logs.std(ddof=1)) / math.sqrt(len(logs))
    return tuple(math.exp(middle + z * error) for z in (0.0, -Z95, Z95))  # type: ignore[return-value]


def learning_curve(
    tokens: Sequence[float], overlaps: Sequence[float], at: Sequence[float]
) -> list[tuple[float, float, float, float]]:
    """Extrapolates 1 − overlap = b · n^(−c), a straight line in logarithms.

    Args:
        tokens, overlaps: checkpoints; at: token counts to predict for.

    Returns:
        (tokens, overlap, low, high): 95 % prediction intervals from the residuals' spread.

    Raises:
        ValueError: for fewer than four checkpoints.
    """
    if len(tokens) < 4:
        raise ValueError(f"{len(tokens)} checkpoints: at least 4 are needed for a curve")
    from scipy import stats

    x, y = np.log(np.asarray(tokens, float)), np.log(1 - np.asarray(overlaps, float))
    fit = stats.linregress(x, y)
    residuals = y - fit.intercept - fit.slope * x
    freedom = len(x) - 2
    spread = math.sqrt(float((residuals**2).sum()) / freedom)
    quantile = float(stats.t.ppf(0.975, freedom))
    result = []
    for n in at:
        point = math.log(n)
        middle = fit.intercept + fit.slope * point
        scale = 1 + 1 / len(x) + (point - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum()
        half = quantile * spread * math.sqrt(float(scale))
        low, high = 1 - math.exp(middle + half), 1 - math.exp(middle - half)
        result.append((float(n), 1 - math.exp(middle), low, high))
    return result
