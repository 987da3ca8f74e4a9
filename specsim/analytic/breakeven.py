"""Where speculation starts and stops to pay: in acceptance, in batch, in context."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from specsim.acceptance.law import Array, Law
from specsim.acceptance.trees import tree_law
from specsim.analytic.drafted import drafted_tokens
from specsim.analytic.formulas import acceptance_length, paying_ranges
from specsim.cost.source import CostSource
from specsim.cost.step import decode_step
from specsim.deployment import Deployment, Tree

#: Batches that are looked at, one by one. Engines run a few hundred sequences a replica.
MAX_SCANNED_BATCH = 1024
#: Contexts that are looked at before the edges are found to the token.
NUM_SCANNED_CONTEXTS = 129

Pays = Callable[[npt.NDArray[Any]], npt.NDArray[np.bool_]]


def break_even_alpha(
    num_draft_tokens: Sequence[int], step_s: Array, baseline_s: float, tree: Tree | None = None
) -> float | None:
    """The smallest i.i.d. α at which some K ≥ 1 is as fast as no speculation.

    `step_s[i]` is the step time at `num_draft_tokens[i]`, shapes (K,). With a `tree`, α is
    that of its first children. None if even α = 1 does not pay. Monotone in α, hence
    bisection.
    """
    ks = np.asarray(num_draft_tokens, dtype=float)
    drafting = ks >= 1
    if not drafting.any():
        return None

    def gain(alpha: float) -> float:
        if tree is None:
            tau = acceptance_length(alpha, ks[drafting])
        else:
            law = tree_law(alpha, steps=tree.steps, topk=tree.topk, nodes=tree.nodes)
            tau = np.array([law.acceptance_length(int(k)) for k in ks[drafting]])
        return float(np.max(tau * baseline_s / np.asarray(step_s)[drafting]))

    if gain(1.0) < 1:
        return None
    low, high = 0.0, 1.0
    if gain(low) >= 1:
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if gain(middle) < 1 else (low, middle)
    return high


def paying(
    deployment: Deployment, source: CostSource, law: Law, num_draft_tokens: Sequence[int],
    batch: Any, context: Any,
) -> npt.NDArray[np.bool_]:  # fmt: skip
    """Whether the best K beats no speculation, at each batch and context (broadcast)."""
    ks = np.array([k for k in num_draft_tokens if k >= 1])
    plain = decode_step(deployment.without_draft(), source, 0, batch, context).seconds
    if not len(ks):
        return np.zeros(np.shape(plain), dtype=bool)
    first_axis = (-1,) + (1,) * max(np.ndim(batch), np.ndim(context))
    drafted = drafted_tokens(deployment.draft, law, ks).reshape(first_axis)
    step = decode_step(deployment, source, ks.reshape(first_axis), batch, context, drafted).seconds
    tau = np.array([law.acceptance_length(int(k)) for k in ks]).reshape(first_axis)
    return np.asarray(np.max(tau * plain / step, axis=0) > 1)


def paying_batches(
    deployment: Deployment, source: CostSource, law: Law, num_draft_tokens: Sequence[int],
    context: int, max_batch: int = MAX_SCANNED_BATCH,
) -> list[list[int]]:  # fmt: skip
    """Ranges of batch size, 1..max_batch, in which speculation pays; exact, but for the
    padding of CUDA graphs, whose staircase would cut the edges into single batches."""
    deployment = unpadded(deployment)
    batches = np.arange(1, max_batch + 1)
    return paying_ranges(
        batches, paying(deployment, source, law, num_draft_tokens, batches, context)
    )


def unpadded(deployment: Deployment) -> Deployment:
    """The deployment with a CUDA graph for every number of tokens."""
    sizes = deployment.runtime.graph_sizes
    every = tuple(range(1, max(sizes, default=0) + 1))
    runtime = dataclasses.replace(deployment.runtime, graph_sizes=every)
    return dataclasses.replace(deployment, runtime=runtime)


def paying_contexts(
    deployment: Deployment, source: CostSource, law: Law, num_draft_tokens: Sequence[int],
    batch: int, max_context: int,
) -> list[list[int]]:  # fmt: skip
    """Ranges of context, 1..max_context, in which speculation pays.

    Scanned on a geometric grid; the edges are then found to the token by bisection.
    """

    def pays(contexts: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        return paying(deployment, source, law, num_draft_tokens, batch, contexts)

    scanned = np.geomspace(1, max(max_context, 2), NUM_SCANNED_CONTEXTS).astype(int)
    # a set, because np.unique imports numpy.ma, a tenth of the command's start
    grid = np.array(sorted({int(c) for c in scanned if c <= max_context}))
    return [
        [_edge(pays, grid, low, outside=-1), _edge(pays, grid, high, outside=1)]
        for low, high in paying_ranges(grid, pays(grid))
    ]


def _edge(pays: Pays, grid: npt.NDArray[Any], inside: int, *, outside: int) -> int:
    """The last integer that pays on the way from `inside` to its neighbour in the grid."""
    index = int(np.searchsorted(grid, inside)) + outside
    if not 0 <= index < len(grid):
        return inside
    good, bad = inside, int(grid[index])
    while abs(good - bad) > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if bool(pays(np.array([middle]))[0]) else (good, middle)
    return good
