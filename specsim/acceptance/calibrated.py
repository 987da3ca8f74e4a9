"""A fitted law with what the calibration file knows about it: errors and range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specsim.acceptance.law import Array, Law, Runs

Z95 = 1.96


@dataclass(frozen=True)
class Calibrated(Law):
    """`inner`, measured up to K = `measured_to`, with the standard errors of τ at K = 1, 2,
    … in `length_errors` (beyond the last, the relative error of τ − 1 stays), at contexts
    in `context_range` tokens."""

    inner: Law
    length_errors: tuple[float, ...] = ()
    measured_to: int | None = None
    context_range: tuple[float, float] | None = None

    def outside(self, context: Any) -> list[str]:
        """What of the contexts lies outside the measured range, in words."""
        known = self.context_range
        low, high = float(np.min(context)), float(np.max(context))
        if known is None or (known[0] <= low and high <= known[1]):
            return []
        return [f"context {low:g}..{high:g} outside {known[0]:g}..{known[1]:g}"]

    def survival(self, num_draft_tokens: int) -> Array:
        """That of the fitted law."""
        return self.inner.survival(num_draft_tokens)

    def components(self) -> Sequence[tuple[float, Law]]:
        """Those of the fitted law."""
        return self.inner.components()

    def expected_drafted(self, num_draft_tokens: int) -> float:
        """That of the fitted law."""
        return self.inner.expected_drafted(num_draft_tokens)

    def sample_runs(self, rng: np.random.Generator, num_tokens: int) -> Runs:
        """Those of the fitted law."""
        return self.inner.sample_runs(rng, num_tokens)

    def standard_error(self, num_draft_tokens: int) -> float | None:
        """Standard error of τ at K; None where it is not known."""
        k = num_draft_tokens
        if not self.length_errors:
            return None
        if k == 0:
            return 0.0
        if k <= len(self.length_errors):
            return self.length_errors[k - 1]
        last = len(self.length_errors)
        known = self.inner.mean(last)
        return self.length_errors[-1] * (self.inner.mean(k) / known if known > 0 else 1.0)

    def survival_interval(self, num_draft_tokens: int) -> tuple[Array, Array] | None:
        """Survival scaled so that τ is 1.96 standard errors lower or higher."""
        error = self.standard_error(num_draft_tokens)
        if error is None:
            return self.inner.survival_interval(num_draft_tokens)
        s = self.survival(num_draft_tokens)
        mean = float(s.sum())
        if mean == 0:  # nothing was accepted: all that is known is an upper bound
            high = np.zeros_like(s)
            high[:1] = min(1.0, Z95 * error)
            return s, high
        low = np.clip(s * max(0.0, 1 - Z95 * error / mean), 0.0, 1.0)
        high = np.clip(s * (1 + Z95 * error / mean), 0.0, 1.0)
        return low, high

    def steps_pmf(self, num_tokens: int, num_draft_tokens: int) -> Array:
        """That of the fitted law."""
        return self.inner.steps_pmf(num_tokens, num_draft_tokens)
