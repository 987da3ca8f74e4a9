"""The interface between the decoder and a drafter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from reference.cache import KVCache
from reference.draft.tree import Draft
from reference.model import Model
from reference.sampling import Randomness, Warp


class Row(Protocol):
    """What a drafter may know of a request: its tokens so far, and its randomness."""

    tokens: list[int]
    randomness: Randomness


class Drafter:
    """Proposes tokens for each row; this base class proposes nothing and keeps no state.

    `shape` is the number of children a level: (1, 1, 1, 1) is a chain of K = 4, (3, 2) a
    tree with 3 children of the root and 2 of each of those, () asks for nothing.
    """

    name = "none"
    feature_layers: Sequence[int] = ()  # which hidden states `observe` wants
    max_positions: int | None = None

    def bind(self, target: Model, cache: KVCache, rows: int, capacity: int) -> None:
        """Allocate state for `rows` sequences beside the target and its cache."""

    def propose(
        self, rows: Sequence[Row], shapes: Sequence[tuple[int, ...]], warp: Warp
    ) -> list[Draft]:
        """One draft a row (rows 0..A-1), within its shape."""
        return [Draft() for _ in rows]

    def catch_up(self, rows: Sequence[Row], active: Sequence[bool]) -> None:
        """Read the tokens not yet seen of the active rows (after a prompt's prefill)."""

    def observe(self, row: int, features: Tensor) -> None:
        """Features (m, F) of the m tokens that the target's cache just gained for a row."""

    def rollback(self, row: int, length: int) -> None:
        """The row now has length + 1 tokens; state beyond the first `length` is wrong."""

    def clear(self, row: int) -> None:
        """A new sequence takes this row."""

    def move_row(self, source: int, target: int) -> None:
        """Row `source` becomes row `target`."""

    @property
    def cache_bytes(self) -> int:
        """Memory held for keys and values of the drafter's own."""
        return 0
