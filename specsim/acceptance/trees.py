"""Draft trees: expected accepted length, and the best tree of n nodes.

Acceptance is described by a rank vector p: p_k is the probability that, at a node whose
token was accepted, the child of rank k is the one accepted (children are tried in order
and exclude each other, so Σ p_k ≤ 1). Under Sequoia's positional acceptance assumption
(Chen et al. 2024, §3) a node survives with the product of the p along its path, and a
tree's expected accepted length is the sum of that over its nodes, the root left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from heapq import heappop, heappush
from itertools import count, pairwise

import numpy as np

from specsim.acceptance.chains import PerPosition
from specsim.acceptance.law import Array, hazard_of


def rank_acceptance(alpha: float, num_ranks: int) -> Array:
    """p_1..p_R for a draft whose first child is accepted with probability α.

    An assumption, for use until the vector has been measured: given that the children
    before it were rejected, the child of rank k is accepted with probability α/k. At
    α = 0.6 five children are accepted 83 % of the time, at α = 0.75 four 90 %: the size
    that Medusa (Cai et al. 2024) and Sequoia (Chen et al. 2024, figure 3) report.
    Non-increasing; shape (num_ranks,).
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} outside [0, 1]")
    if num_ranks < 1:
        raise ValueError(f"num_ranks={num_ranks} < 1")
    conditional = alpha / np.arange(1, num_ranks + 1.0)
    reached = np.concatenate(([1.0], np.cumprod(1 - conditional)[:-1]))
    return np.asarray(conditional * reached)


def _check_ranks(ranks: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(p) for p in ranks)
    if not values or min(values) < 0 or sum(values) > 1 + 1e-9:
        raise ValueError(f"rank acceptance {values} must be >= 0 and sum to at most 1")
    return values


@dataclass(frozen=True, slots=True)
class TreeShape:
    """A tree as parents and ranks of its nodes, root left out; parent −1 is the root.

    Nodes come after their parents; `ranks[i]` is 0 for a first child.
    """

    parents: tuple[int, ...]
    ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.parents) != len(self.ranks):
            raise ValueError(f"{len(self.parents)} parents but {len(self.ranks)} ranks")
        for i, parent in enumerate(self.parents):
            if not -1 <= parent < i:
                raise ValueError(f"node {i} has parent {parent}; expected -1..{i - 1}")

    @property
    def depths(self) -> tuple[int, ...]:
        """Depth of each node (children of the root: 1)."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent < 0 else depths[parent] + 1)
        return tuple(depths)


def node_survival(shape: TreeShape, ranks: Sequence[float]) -> Array:
    """P(each node is accepted): product of rank acceptances on its path; shape (nodes,)."""
    p = _check_ranks(ranks)
    result: list[float] = []
    for parent, rank in zip(shape.parents, shape.ranks, strict=True):
        if rank >= len(p):
            raise ValueError(f"a node has rank {rank} but only {len(p)} ranks are known")
        result.append(p[rank] * (1.0 if parent < 0 else result[parent]))
    return np.asarray(result)


def tree_survival(shape: TreeShape, ranks: Sequence[float]) -> Array:
    """P(at least i drafted tokens are accepted), i = 1..depth: the chain law of a tree."""
    nodes, depths = node_survival(shape, ranks), np.asarray(shape.depths)
    return np.array([nodes[depths == d].sum() for d in range(1, max(depths, default=0) + 1)])


def tree_acceptance_length(shape: TreeShape, ranks: Sequence[float]) -> float:
    """τ of a tree: 1 + Σ over nodes of the probability that they are accepted."""
    return 1.0 + float(node_survival(shape, ranks).sum())


def best_tree(
    ranks: Sequence[float], num_nodes: int, *, max_depth: int | None = None,
    max_width: int | None = None,
) -> TreeShape:  # fmt: skip
    """The tree of `num_nodes` nodes with the longest expected acceptance.

    A child of rank k needs all ranks before it. `max_depth` bounds the draft passes,
    `max_width` the children of a node. With fewer possible nodes than asked for the tree is
    as large as it can be. Non-increasing rank vectors are solved greedily, others by
    dynamic programming (Sequoia, Algorithm 1).
    """
    p = _check_ranks(ranks)[: max_width or None]
    if num_nodes < 0:
        raise ValueError(f"num_nodes={num_nodes} < 0")
    depth = num_nodes if max_depth is None else min(max_depth, num_nodes)
    if all(a >= b for a, b in pairwise(p)):
        return _greedy_tree(p, num_nodes, depth)
    return _optimal_tree(p, num_nodes, depth)


def _greedy_tree(p: tuple[float, ...], num_nodes: int, depth_limit: int) -> TreeShape:
    """The likeliest nodes: no node is likelier than its parent or its earlier sibling, so
    the n likeliest form a tree."""
    parents: list[int] = []
    ranks: list[int] = []
    # (−probability, tie-break, parent, rank, depth, probability of the parent)
    order = count()
    heap = [(-p[0], next(order), -1, 0, 1, 1.0)] if depth_limit and num_nodes else []
    while heap and len(parents) < num_nodes:
        negative, _, parent, rank, depth, above = heappop(heap)
        parents.append(parent)
        ranks.append(rank)
        if rank + 1 < len(p):
            heappush(heap, (-above * p[rank + 1], next(order), parent, rank + 1, depth, above))
        if depth < depth_limit:
            node = len(parents) - 1
            heappush(heap, (negative * p[0], next(order), node, 0, depth + 1, -negative))
    return TreeShape(tuple(parents), tuple(ranks))


def _optimal_tree(p: tuple[float, ...], num_nodes: int, depth_limit: int) -> TreeShape:
    """Dynamic programming over (nodes, depth left, ranks from k on): F(n, d, k) = max over
    the size m of the subtree hung at rank k of p_k·(1 + F(m − 1, d − 1, 0)) +
    F(n − m, d, k + 1)."""

    @cache
    def best(nodes: int, depth: int, rank: int) -> tuple[float, int]:
        """(expected accepted tokens, size of the subtree at `rank`)."""
        if nodes == 0 or depth == 0 or rank == len(p):
            return 0.0, 0
        top, size = 0.0, 0
        for m in range(1, nodes + 1):
            below = best(m - 1, depth - 1, 0)[0]
            beside = best(nodes - m, depth, rank + 1)[0]
            value = p[rank] * (1 + below) + beside
            if value > top:
                top, size = value, m
        return top, size

    parents: list[int] = []
    node_ranks: list[int] = []

    def build(parent: int, nodes: int, depth: int) -> None:
        rank = 0
        while nodes and depth and rank < len(p):
            size = best(nodes, depth, rank)[1]
            if size == 0:
                return
            parents.append(parent)
            node_ranks.append(rank)
            build(len(parents) - 1, size - 1, depth - 1)
            nodes, rank = nodes - size, rank + 1

    build(-1, num_nodes, depth_limit)
    return TreeShape(tuple(parents), tuple(node_ranks))


def tree_law(alpha: float, *, steps: int, topk: int, nodes: int) -> PerPosition:
    """The law of the accepted depth in the best tree of `nodes` nodes, at most `steps`
    deep and `topk` wide, when first children are accepted with probability α.

    As conditional acceptance by depth, so that closed form and simulator take it like any
    chain; it ends with the tree, since no path is deeper.
    """
    ranks = tuple(rank_acceptance(alpha, topk))
    shape = best_tree(ranks, nodes, max_depth=steps)
    hazard = hazard_of(tree_survival(shape, ranks))
    return PerPosition(tuple(min(1.0, float(h)) for h in hazard), ends=True)
