"""Drafts from a network: a smaller model, or the first layers of the target itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reference.cache import Batch, KVCache, TreeRows, make_batch
from reference.draft.base import Drafter, Row
from reference.draft.tree import Draft, draw_children
from reference.model import Model, Output
from reference.sampling import Warp


class NeuralDrafter(Drafter):
    """Expands a tree level by level: one forward pass of the draft a level.

    The draft's cache holds a prefix of each row's tokens. Drafting first feeds what is
    missing (one token, or two when every drafted token was accepted, since the last one
    was drawn but never fed), then each level's nodes but the last's.

    Args:
        distinct: siblings are drawn without replacement.
        stop_below: stop after a token whose q is below this. The token itself stays in the
            draft: dropping it, once seen, would bias what is emitted.
    """

    cache: KVCache

    def __init__(self, *, distinct: bool = False, stop_below: float = 0.0) -> None:
        self.distinct, self.stop_below = distinct, stop_below

    def forward(self, batch: Batch, select: Tensor, parents: list[list[int]] | None) -> Tensor:
        """Logits (selected, V) over the target's vocabulary; fills the draft's cache."""
        raise NotImplementedError

    def propose(
        self, rows: Sequence[Row], shapes: Sequence[tuple[int, ...]], warp: Warp
    ) -> list[Draft]:
        drafts = [Draft(distinct=self.distinct) for _ in rows]
        unseen = [self._unseen(b, row, bool(shapes[b])) for b, row in enumerate(rows)]
        if not any(unseen):
            return drafts
        # Nothing to read, nothing to continue: EAGLE before the target's first pass.
        shapes = [shape if new else () for shape, new in zip(shapes, unseen, strict=True)]
        frontiers = [[Draft.ROOT] if shape else [] for shape in shapes]
        logits = self._feed(unseen)
        for level in range(max(len(shape) for shape in shapes)):
            for b, row in enumerate(rows):
                width = shapes[b][level] if level < len(shapes[b]) else 0
                nodes = zip(frontiers[b], logits[b], strict=True) if width else ()
                frontiers[b] = [
                    child
                    for node, line in nodes
                    for child in draw_children(drafts[b], node, line, width, warp, row.randomness)
                ]
            going = [
                [] if level + 1 >= len(shapes[b]) or self._unsure(drafts[b]) else frontiers[b]
                for b in range(len(rows))
            ]
            if not any(going):
                break
            logits, frontiers = self._extend(drafts, going), going
        return drafts

    def catch_up(self, rows: Sequence[Row], active: Sequence[bool]) -> None:
        unseen = [self._unseen(b, row, active[b])[:-1] for b, row in enumerate(rows)]
        if any(unseen):
            self._feed(unseen)

    def _unseen(self, b: int, row: Row, wanted: bool) -> list[int]:
        return row.tokens[self.cache.lengths[b] :] if wanted else []

    def _unsure(self, draft: Draft) -> bool:
        if not self.stop_below or not draft.tokens:
            return False
        q = draft.probs[draft.parents[-1] + 1]
        return q is not None and float(q[draft.tokens[-1]]) < self.stop_below

    def _extend(self, drafts: list[Draft], frontiers: list[list[int]]) -> list[Tensor]:
        """Feed one level's nodes; the logits at each of them."""
        tokens = [[d.tokens[i] for i in nodes] for d, nodes in zip(drafts, frontiers, strict=True)]
        parents = [
            [d.parents[i] for i in nodes] for d, nodes in zip(drafts, frontiers, strict=True)
        ]
        trees = [
            d.level_rows(nodes) if nodes else None
            for d, nodes in zip(drafts, frontiers, strict=True)
        ]
        return self._feed(tokens, parents, trees)

    def _feed(
        self,
        tokens: list[list[int]],
        parents: list[list[int]] | None = None,
        trees: list[TreeRows | None] | None = None,
    ) -> list[Tensor]:
        """Forward pass; logits a row, at its last token (context) or all (a tree level)."""
        trees = trees if trees is not None and any(t is not None for t in trees) else None
        batch = make_batch(tokens, self.cache, trees=trees)
        counts = [len(row) for row in tokens]
        ends = torch.tensor(counts).cumsum(0).tolist()
        if parents is None:
            select, counts = (
                [end - 1 for end, n in zip(ends, counts, strict=True) if n],
                [min(1, n) for n in counts],
            )
        else:
            select = list(range(ends[-1]))
        index = torch.tensor(select, device=self.cache.device)
        return list(torch.split(self.forward(batch, index, parents), counts))

    def rollback(self, row: int, length: int) -> None:
        self.cache.rollback(row, length)

    def clear(self, row: int) -> None:
        self.cache.rollback(row, 0)

    def move_row(self, source: int, target: int) -> None:
        self.cache.move_row(source, target)

    @property
    def cache_bytes(self) -> int:
        return self.cache.num_bytes


class DraftModelDrafter(NeuralDrafter):
    """Any smaller model with the target's vocabulary (Leviathan et al. 2023)."""

    name = "draft-model"

    def __init__(self, model: Model, *, distinct: bool = False, stop_below: float = 0.0) -> None:
        super().__init__(distinct=distinct, stop_below=stop_below)
        self.model = model
        self.max_positions = model.config.max_positions

    def bind(self, target: Model, cache: KVCache, rows: int, capacity: int) -> None:
        ours, theirs = self.model.config.vocab_size, target.config.vocab_size
        if ours != theirs:
            raise ValueError(
                f"the draft has {ours} tokens, the target {theirs}: they must share one vocabulary"
            )
        self.cache = self.model.new_cache(rows, capacity)

    def forward(self, batch: Batch, select: Tensor, parents: list[list[int]] | None) -> Tensor:
        out: Output = self.model(batch, self.cache, select=select)
        return out.logits


class EarlyExitDrafter(NeuralDrafter):
    """The target's own first layers, then its norm and head (draft & verify, Zhang et al. 2024).

    It shares the target's cache: those layers' keys and values are what verification would
    write anyway, so there is never anything to catch up with but the last token.
    """

    name = "early-exit"

    def __init__(self, num_layers: int, *, distinct: bool = False, stop_below: float = 0.0) -> None:
        super().__init__(distinct=distinct, stop_below=stop_below)
        self.num_layers = num_layers

    def bind(self, target: Model, cache: KVCache, rows: int, capacity: int) -> None:
        if not 1 <= self.num_layers < target.config.num_layers:
            raise ValueError(
                f"early exit after {self.num_layers} layers; the target has "
                f"{target.config.num_layers}, so 1 to {target.config.num_layers - 1}"
            )
        self.model, self.target_cache = target, cache
        self.cache = cache.first_layers(self.num_layers)

    def propose(
        self, rows: Sequence[Row], shapes: Sequence[tuple[int, ...]], warp: Warp
    ) -> list[Draft]:
        self.cache.lengths[:] = self.target_cache.lengths
        return super().propose(rows, shapes, warp)

    def catch_up(self, rows: Sequence[Row], active: Sequence[bool]) -> None:
        """Nothing: the target's prefill wrote these layers."""

    def move_row(self, source: int, target: int) -> None:
        """Nothing: the target's cache moves the shared memory, and owns the lengths."""

    @property
    def cache_bytes(self) -> int:
        return 0

    def forward(self, batch: Batch, select: Tensor, parents: list[list[int]] | None) -> Tensor:
        out: Output = self.model(batch, self.cache, select=select, num_layers=self.num_layers)
        return out.logits
