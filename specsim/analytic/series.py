"""Series for figures and notebooks: a pass by operation, on the roofline, laws over K."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from specsim.acceptance.law import Law
from specsim.cost.operations import Work
from specsim.cost.roofline import Roofline, ridge_tokens
from specsim.deployment import Deployment

#: Operations below this share of a pass are counted together.
SMALL_SHARE = 0.02


def pass_operations(
    deployment: Deployment, new_tokens: int, batch: int, context: int
) -> list[dict[str, Any]]:
    """One target pass by operation, the longest first.

    Returns rows of `name`, `seconds`, `share` (they sum to 1), `bound` (memory, compute or
    latency); what takes less than 2 % is one row, `other`.
    """
    work = Work.uniform(batch, new_tokens, context)
    found = Roofline(gpu=deployment.gpu).explain(deployment.target, work)
    whole = float(sum(np.max(t.seconds) for t in found))
    rows, other = [], 0.0
    for time in sorted(found, key=lambda t: -float(np.max(t.seconds))):
        seconds = float(np.max(time.seconds))
        if seconds < SMALL_SHARE * whole:
            other += seconds
            continue
        name = time.operation.name.removesuffix(" (full)").removesuffix("_proj")
        row = {"name": name, "seconds": seconds, "share": seconds / whole}
        rows.append({**row, "bound": time.bound})
    rows.append({"name": "other", "seconds": other, "share": other / whole, "bound": "latency"})
    return rows


def on_the_roofline(
    deployment: Deployment, num_draft_tokens: Iterable[int], batches: Sequence[int], context: int
) -> dict[str, Any]:
    """Where passes lie under the roofline of one GPU.

    Returns `peak_flops` (FLOP/s) and `bandwidth_bytes_per_s` as on the datasheet, the
    `ridge_tokens` at which a weight matrix turns compute-bound, and `points`: label →
    arrays `intensity` (FLOPs per byte) and `flops` (FLOP/s reached), one entry per batch.
    """
    gpu, target = deployment.gpu, deployment.target
    source, points = Roofline(gpu=gpu), {}
    for k in num_draft_tokens:
        found = source.explain(target, Work.uniform(np.asarray(batches, float), k + 1, context))
        flops = sum(t.operation.count * np.asarray(t.operation.flops) for t in found)
        moved = sum(t.operation.count * np.asarray(t.operation.num_bytes) for t in found)
        seconds = sum(np.asarray(t.seconds) for t in found)
        label = "decode" if k == 0 else f"verify, K = {k}"
        points[label] = {"intensity": flops / moved, "flops": flops / seconds}
    return {
        "peak_flops": gpu.peak_flops["bf16"],
        "bandwidth_bytes_per_s": gpu.bandwidth_bytes_per_s,
        "ridge_tokens": ridge_tokens(gpu, target.weights),
        "batch": np.asarray(batches),
        "points": points,
    }


def pass_growth(
    deployment: Deployment, new_tokens: Sequence[int], batches: Sequence[int], context: int
) -> dict[str, Any]:
    """A pass over n tokens per sequence in units of a pass over one: label per batch →
    ratios, shape (len(new_tokens),)."""
    source = Roofline(gpu=deployment.gpu)
    widths = np.asarray(new_tokens, dtype=float)
    return {
        f"batch {batch}": np.asarray(
            source.forward_time(deployment.target, batch, widths, context).seconds
            / source.forward_time(deployment.target, batch, 1, context).seconds
        )
        for batch in batches
    }


def accepted_over_k(laws: Mapping[str, Law], num_draft_tokens: Sequence[int]) -> dict[str, Any]:
    """Accepted tokens per step, τ − 1, at each K: label → array, shape (number of K,)."""
    return {label: np.array([law.mean(k) for k in num_draft_tokens]) for label, law in laws.items()}


def intervals_over_k(
    laws: Mapping[str, Law], num_draft_tokens: Sequence[int]
) -> dict[str, tuple[Any, Any]]:
    """95 % intervals of `accepted_over_k` for the laws that know one: label → (low, high).

    The ends of P(at least i accepted) are added up: exact if these rise and fall together,
    otherwise a little wide.
    """
    found = {}
    for label, law in laws.items():
        ends = [law.survival_interval(k) for k in num_draft_tokens]
        known = [end for end in ends if end is not None]
        if len(known) == len(ends):
            found[label] = (
                np.array([low.sum() for low, _ in known]),
                np.array([high.sum() for _, high in known]),
            )
    return found


def hazards(laws: Mapping[str, Law], num_draft_tokens: int) -> dict[str, Any]:
    """Conditional acceptance by draft position, label → array, shape (K,)."""
    return {label: law.hazard(num_draft_tokens) for label, law in laws.items()}
