"""Draft trees against exhaustive search and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specsim.acceptance import (
    Iid,
    TreeShape,
    best_tree,
    rank_acceptance,
    tree_acceptance_length,
    tree_law,
    tree_survival,
)
from specsim.acceptance.trees import node_survival


def rank_vectors() -> st.SearchStrategy[tuple[float, ...]]:
    def normalise(values: list[float]) -> tuple[float, ...]:
        total = max(sum(values), 1.0)
        return tuple(v / total for v in values)

    return st.lists(st.floats(0, 1), min_size=1, max_size=3).map(normalise)


def all_trees(num_nodes: int, max_ranks: int) -> list[TreeShape]:
    """Every tree of n nodes in which a child of rank k has all ranks before it."""
    found = [TreeShape((), ())]
    for _ in range(num_nodes):
        grown = {}
        for shape in found:
            size = len(shape.parents)
            for parent in range(-1, size):
                rank = sum(p == parent for p in shape.parents)
                if rank < max_ranks:
                    bigger = TreeShape((*shape.parents, parent), (*shape.ranks, rank))
                    grown[bigger.parents] = bigger
        found = list(grown.values())
    return found


@given(rank_vectors(), st.integers(0, 5))
@settings(max_examples=60)
def test_best_tree_is_the_best_of_all(ranks: tuple[float, ...], num_nodes: int) -> None:
    every = all_trees(num_nodes, len(ranks))
    best = max((tree_acceptance_length(t, ranks) for t in every), default=1.0)
    assert tree_acceptance_length(best_tree(ranks, num_nodes), ranks) == pytest.approx(best)


@given(rank_vectors(), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3))
def test_best_tree_respects_its_limits(
    ranks: tuple[float, ...], nodes: int, depth: int, width: int
) -> None:
    tree = best_tree(ranks, nodes, max_depth=depth, max_width=width)
    assert len(tree.parents) <= nodes
    assert max(tree.depths, default=0) <= depth
    assert max(tree.ranks, default=0) < width


def test_a_chain_is_the_iid_law() -> None:
    chain = TreeShape((-1, 0, 1, 2), (0, 0, 0, 0))
    ranks = rank_acceptance(0.8, 3)
    np.testing.assert_allclose(tree_survival(chain, ranks), Iid(0.8).survival(4))


def test_expected_length_by_simulation() -> None:
    """Walk down the tree: at each node at most one child is accepted."""
    ranks = tuple(rank_acceptance(0.7, 3))
    tree = best_tree(ranks, 8)
    rng, lengths = np.random.default_rng(5), []
    for _ in range(20_000):
        node, depth = -1, 0
        while True:
            rank = int(np.searchsorted(np.cumsum(ranks), rng.random(), "right"))
            child = [i for i, (p, r) in enumerate(zip(tree.parents, tree.ranks, strict=True))
                     if p == node and r == rank]  # fmt: skip
            if not child:
                break
            node, depth = child[0], depth + 1
        lengths.append(depth)
    error = np.std(lengths) / np.sqrt(len(lengths))
    assert 1 + np.mean(lengths) == pytest.approx(tree_acceptance_length(tree, ranks), abs=4 * error)


def test_a_tree_beats_a_chain_of_as_many_nodes() -> None:
    ranks = rank_acceptance(0.6, 4)
    chain = TreeShape(tuple(range(-1, 7)), (0,) * 8)
    tree = best_tree(ranks, 8)
    assert tree_acceptance_length(tree, ranks) > tree_acceptance_length(chain, ranks)


def test_tree_law_has_the_trees_length() -> None:
    ranks = rank_acceptance(0.75, 4)
    shape = best_tree(ranks, 16, max_depth=5)
    law = tree_law(0.75, steps=5, topk=4, nodes=16)
    assert law.acceptance_length(16) == pytest.approx(tree_acceptance_length(shape, ranks))
    assert law.survival(16)[5:].max() == 0  # no path is deeper than the tree


@given(st.floats(0, 1), st.integers(1, 10))
def test_rank_acceptance_is_a_subdistribution(alpha: float, ranks: int) -> None:
    p = rank_acceptance(alpha, ranks)
    assert p[0] == pytest.approx(alpha)
    assert np.all(p >= 0)
    assert p.sum() <= 1 + 1e-12


@pytest.mark.parametrize(
    "build",
    [
        lambda: TreeShape((0,), (0,)),
        lambda: TreeShape((-1,), ()),
        lambda: node_survival(TreeShape((-1,), (3,)), (0.5,)),
        lambda: best_tree((0.7, 0.7), 3),
        lambda: best_tree((), 3),
        lambda: best_tree((0.5,), -1),
        lambda: rank_acceptance(1.5, 3),
        lambda: rank_acceptance(0.5, 0),
    ],
)
def test_refused(build) -> None:
    with pytest.raises(ValueError, match=r"."):
        build()
