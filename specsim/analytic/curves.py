"""Curves for figures: speedup against batch and context, as plain arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from specsim.analytic.breakeven import unpadded
from specsim.analytic.grid import evaluate
from specsim.analytic.prediction import Prediction


def speedup_over_batch(prediction: Prediction, max_batch: int | None = None) -> dict[str, Any]:
    """Speedup of the best K (chosen anew at each batch), and of the K that is best at the
    prediction's own batch, for batches 1..max_batch (what fits, if left out).

    Returns arrays `batch`, `best_speedup`, `best_k`, `fixed_speedup` of equal shape, and
    the scalar `fixed_k`. CUDA-graph padding is smoothed out, as in the break-even ranges.
    """
    ks = [k for k in prediction.grid.num_draft_tokens if k >= 1]
    batches = np.unique(np.geomspace(1, max_batch or prediction.max_batch, 121).astype(int))
    grid = evaluate(
        unpadded(prediction.deployment), prediction.source, prediction.law, ks, batches,
        prediction.grid.context[0],
    )  # fmt: skip
    speedup = grid.speedup[:, :, 0]
    fixed_k = prediction.best["num_draft_tokens"] or ks[0]
    return {
        "batch": batches,
        "best_speedup": np.maximum(speedup.max(axis=0), 1.0),
        "best_k": np.where(speedup.max(axis=0) > 1, np.asarray(ks)[speedup.argmax(axis=0)], 0),
        "fixed_speedup": speedup[ks.index(fixed_k)],
        "fixed_k": fixed_k,
    }
