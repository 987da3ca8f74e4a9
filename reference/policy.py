"""How much to draft in the next step: plain functions of what a request has seen so far.

A policy may look only at tokens already emitted and at past acceptances, so any policy is
lossless: whatever K it picks, the next tokens still have the target's distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]  # children a level; (1,) * k is a chain of k tokens


@dataclass(frozen=True)
class History:
    """Drafted and accepted counts of each past step of one request."""

    drafted: Sequence[int] = ()
    accepted: Sequence[int] = ()


Policy = Callable[[History], Shape]


def fixed(k: int) -> Policy:
    """K drafted tokens a step.

    Raises:
        ValueError: if k < 0.
    """
    if k < 0:
        raise ValueError(f"k={k} < 0 drafted tokens")
    return lambda history: (1,) * k


def tree(*branching: int) -> Policy:
    """The same tree each step: `tree(3, 2)` has 3 children of the root, 2 of each of them."""
    if not branching or min(branching) < 1:
        raise ValueError(f"tree {branching}: every level needs at least one child")
    return lambda history: branching


def schedule(ks: Sequence[int]) -> Policy:
    """ks[i] tokens in step i, the last for all later steps."""
    if not ks or min(ks) < 0:
        raise ValueError(f"schedule {ks} needs at least one K, none below 0")
    return lambda history: (1,) * ks[min(len(history.drafted), len(ks) - 1)]


def adaptive(lowest: int = 1, highest: int = 16, start: int = 4) -> Policy:
    """Two more after a step that accepted everything, one fewer after any other.

    Additive increase and decrease, as in Hugging Face's assisted generation. Steps that
    drafted nothing (no n-gram found) do not count.
    """
    if not 0 <= lowest <= start <= highest:
        raise ValueError(f"adaptive K: {lowest} <= {start} <= {highest} does not hold")

    def policy(history: History) -> Shape:
        k = start
        for drafted, accepted in zip(history.drafted, history.accepted, strict=True):
            if drafted:
                k = min(k + 2, highest) if accepted == drafted else max(k - 1, lowest)
        return (1,) * k

    return policy


def clamp(shape: Shape, levels: int, nodes: int) -> Shape:
    """The first levels of a shape: at most `levels`, with at most `nodes` nodes in all."""
    kept: list[int] = []
    total, width = 0, 1
    for branching in shape[: max(levels, 0)]:
        width *= branching
        total += width
        if total > nodes:
            break
        kept.append(branching)
    return tuple(kept)
