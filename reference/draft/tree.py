"""What a drafter proposes: a tree of tokens, of which a chain is the simplest."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from reference.cache import TreeRows
from reference.sampling import Randomness, Warp, one_hot, without


@dataclass
class Draft:
    """Drafted tokens; node i continues node parents[i], the root being the last token.

    tokens, parents: (N,), parents before children, siblings in the order drawn.
    probs: (N + 1,), entry i + 1 is the distribution (V,) that the children of node i were
        drawn from (entry 0: the root's), or None where they were not drawn but fixed.
    distinct: siblings were drawn without replacement.
    """

    ROOT: ClassVar[int] = -1
    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    probs: list[Tensor | None] = field(default_factory=lambda: [None])
    distinct: bool = False

    def add(self, parent: int, token: int) -> int:
        """Append a child of `parent`; its index."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.probs.append(None)
        return len(self.tokens) - 1

    def children(self, node: int) -> list[int]:
        """Indices of a node's children, in the order they were drawn."""
        return [i for i, parent in enumerate(self.parents) if parent == node]

    @property
    def is_chain(self) -> bool:
        return all(parent == i - 1 for i, parent in enumerate(self.parents))

    @property
    def depths(self) -> list[int]:
        """1 for the root's children, and so on (N,)."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == self.ROOT else depths[parent] + 1)
        return depths

    @property
    def depth(self) -> int:
        """Length of the longest path: the most tokens that one step can accept."""
        return max(self.depths, default=0)

    def q(self, position: int, p: Tensor) -> Tensor:
        """The draft's distribution at a chain position; one-hot where the token was fixed."""
        q = self.probs[position]
        if q is None:
            token = torch.tensor(self.tokens[position], device=p.device)
            return one_hot(token, p.shape[-1])
        return q

    def ancestors(self) -> Tensor:
        """(N, N) bool: which nodes each node sees, itself included."""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        for i, parent in enumerate(self.parents):
            if parent != self.ROOT:
                seen[i] |= seen[parent]
        return seen

    def target_rows(self) -> TreeRows | None:
        """How [last token, node 0, …] see each other in the target; None for a chain."""
        if self.is_chain:
            return None
        n = len(self.tokens) + 1
        visible = torch.zeros(n, n, dtype=torch.bool)
        visible[:, 0] = True
        visible[1:, 1:] = self.ancestors()
        return TreeRows([0, *self.depths], visible)

    def level_rows(self, nodes: list[int]) -> TreeRows | None:
        """How one level's nodes see the nodes before them in the draft's own cache."""
        if self.is_chain:
            return None
        visible = self.ancestors()[nodes, : nodes[-1] + 1]
        depths = self.depths
        return TreeRows([depths[i] - 1 for i in nodes], visible)


def draw_children(
    draft: Draft,
    parent: int,
    logits: Tensor,
    count: int,
    warp: Warp,
    randomness: Randomness,
) -> list[int]:
    """Add up to `count` children of `parent` drawn from warped logits (V,); their indices.

    Greedy children are the `count` likeliest tokens: fixed, so they carry no q.
    """
    if warp.greedy:
        best = [int(logits.argmax())] if count == 1 else _likeliest(logits, count)
        return [draft.add(parent, token) for token in best]
    q = warp.probabilities(logits)
    draft.probs[parent + 1] = q  # the very distribution drawn from, for the verifier
    children, left = [], q
    for _ in range(min(count, int((q > 0).sum())) if draft.distinct else count):
        token = randomness.categorical(left)
        children.append(draft.add(parent, token))
        if draft.distinct and len(children) < count:
            left = without(left, token)
    return children


def _likeliest(logits: Tensor, count: int) -> list[int]:
    """The `count` likeliest tokens that the draft knows at all (−∞ marks the others)."""
    values, indices = logits.topk(min(count, logits.shape[-1]))
    return [i for i, x in zip(indices.tolist(), values.tolist(), strict=True) if x > -math.inf]
