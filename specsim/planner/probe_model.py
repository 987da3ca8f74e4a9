"""A runtime's step time as a line in a few constants, and what benchmarks say of them.

    T(K, B, L) = a·memory + b·compute + c·waiting + d·draft + s + s_B·B + s_BK·B·K + s_D·[K > 0]

`memory`, `compute` and `waiting` are the parts of the predicted verify pass and `draft` the
predicted draft round, so a, b, c and d are 1 where the cost model is right; the rest is
host time, whose predicted values are the runtime's row of the catalogue. The prior is that
of the catalogue's intervals; measured steps with a relative error update it (linear, hence
a normal posterior).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from specsim.catalogue.specs import Estimate
from specsim.cost.source import CostSource
from specsim.cost.step import decode_step
from specsim.deployment import Deployment

Array = npt.NDArray[np.float64]

#: Prior standard errors of a, b, c and d: whole passes of an engine against the roofline.
PASS_ERRORS = (0.10, 0.20, 0.30, 0.25)
#: A host constant is at least this uncertain, whatever its interval says (versions).
HOST_ERROR, LEAST_HOST_S = 0.4, 1e-6
#: What the line itself misses (padding, caches), relative to a step; beside the noise.
LINE_ERROR = 0.01
NUM_CONSTANTS = 8


@dataclass(frozen=True, kw_only=True)
class Belief:
    """A normal belief about the eight constants."""

    mean: Array  # (8,)
    covariance: Array  # (8, 8)

    def sample(self, count: int, seed: int) -> Array:
        """Draws, shape (count, 8); constants below zero are cut to zero."""
        rng = np.random.default_rng(seed)
        root = np.linalg.cholesky(self.covariance + 1e-18 * np.eye(NUM_CONSTANTS))
        drawn = self.mean + rng.standard_normal((count, NUM_CONSTANTS)) @ root.T
        return np.maximum(drawn, 0.0)


def features(deployment: Deployment, source: CostSource, k: Any, batch: Any, context: Any) -> Array:
    """x(K, B, L) with T = x·θ; shapes broadcast, the eight in the last axis.

    K = 0 is plain decoding without a drafter.
    """
    ks, b, c = np.broadcast_arrays(
        np.asarray(k), np.asarray(batch, dtype=float), np.asarray(context, dtype=float)
    )
    step = decode_step(deployment, source, ks, b, c)
    drafting = (ks > 0).astype(float)
    draft = np.where(ks > 0, np.broadcast_to(step.draft.seconds, ks.shape), 0.0)
    parts = [step.verify.memory_s, step.verify.compute_s, step.verify.latency_s]
    return np.stack(
        [*(np.broadcast_to(p, ks.shape) for p in parts), draft, np.ones(ks.shape), b, b * ks,
         drafting], axis=-1,
    )  # fmt: skip


def prior(deployment: Deployment) -> Belief:
    """What is believed before anything was measured."""
    runtime = deployment.runtime
    host = (runtime.step_s, runtime.sequence_s, runtime.token_s, runtime.draft_step_s)
    mean = np.array([1.0, 1.0, 1.0, 1.0, *(e.value for e in host)])
    error = np.array([*PASS_ERRORS, *(_host_error(e) for e in host)])
    return Belief(mean=mean, covariance=np.diag(error**2))


def _host_error(estimate: Estimate) -> float:
    half = (estimate.high - estimate.low) / 4
    return max(half, HOST_ERROR * estimate.value, LEAST_HOST_S)


def updated(belief: Belief, x: Array, seconds: Array, relative_error: Any) -> Belief:
    """The belief after steps with features `x` (n, 8) took `seconds` (n,), each known to
    `relative_error`.

    Raises:
        ValueError: if a time or an error is not positive.
    """
    if not np.all(seconds > 0):
        raise ValueError(f"step of {np.min(seconds)} s: expected a time > 0")
    error = np.hypot(np.asarray(relative_error, dtype=float), LINE_ERROR) * seconds
    if not np.all(error > 0):
        raise ValueError("a measured time without an error")
    # scaled by the prior, so that seconds and ratios are of one size
    scale = np.sqrt(np.diag(belief.covariance))
    design = x * scale / error[:, None]
    inner = np.linalg.inv(belief.covariance / np.outer(scale, scale))
    precision = inner + design.T @ design
    covariance = np.linalg.inv(precision)
    shift = covariance @ design.T @ ((seconds - x @ belief.mean) / error)
    return Belief(mean=belief.mean + scale * shift, covariance=covariance * np.outer(scale, scale))


def d_optimal(
    belief: Belief, x: Array, seconds: Array, relative_error: float, chosen: Sequence[int] = ()
) -> int:
    """The candidate row of `x` (n, 8) that shrinks the belief's volume most.

    det of the posterior precision grows by 1 + x'Cx/σ², so the best next point is the one
    whose prediction is least sure relative to its noise; rows in `chosen` are left out.
    """
    error = np.hypot(relative_error, LINE_ERROR) * seconds
    gain = np.einsum("ni,ij,nj->n", x, belief.covariance, x) / error**2
    gain[list(chosen)] = -np.inf
    return int(np.argmax(gain))
