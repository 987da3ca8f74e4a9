"""Prompt lookup (Saxena 2023): copy what followed the last time these tokens occurred."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from reference.draft.base import Drafter, Row
from reference.draft.tree import Draft
from reference.sampling import Warp


class NgramDrafter(Drafter):
    """Drafts the continuation of the latest earlier occurrence of the longest suffix.

    The drafted tokens are fixed by the context, so they carry no q. Costs a dictionary
    look-up a token: each n-gram of the emitted tokens is indexed once, when it is seen.
    """

    name = "ngram"

    def __init__(self, longest: int = 3, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(
                f"n-gram lengths {shortest}..{longest} are not 1 <= shortest <= longest"
            )
        self.sizes = range(longest, shortest - 1, -1)
        self._indices: WeakKeyDictionary[Row, _Index] = WeakKeyDictionary()

    def propose(
        self, rows: Sequence[Row], shapes: Sequence[tuple[int, ...]], warp: Warp
    ) -> list[Draft]:
        return [self._lookup(row, len(shape)) for row, shape in zip(rows, shapes, strict=True)]

    def _lookup(self, row: Row, k: int) -> Draft:
        draft = Draft()
        if k == 0:
            return draft
        index = self._indices.setdefault(row, _Index(self.sizes))
        start = index.find(row.tokens)
        if start is None:
            return draft
        # Reading on into the draft itself repeats a short loop ("ha ha ha").
        known = list(row.tokens)
        for i in range(k):
            known.append(known[start + i])
            draft.add(i - 1, known[-1])
        return draft


class _Index:
    """Where each n-gram of a growing token list last ended (the index just after it)."""

    def __init__(self, sizes: range) -> None:
        self.sizes = sizes
        self.ends: dict[tuple[int, ...], int] = {}
        self.num_indexed = 0

    def find(self, tokens: list[int]) -> int | None:
        """End of the latest earlier occurrence of the longest suffix, if there is one."""
        for end in range(max(self.num_indexed, 1), len(tokens)):
            for size in self.sizes:
                if size <= end:
                    self.ends[tuple(tokens[end - size : end])] = end
        self.num_indexed = len(tokens)  # the suffix itself is indexed by the next call
        for size in self.sizes:
            end = self.ends.get(tuple(tokens[-size:]), 0) if size <= len(tokens) else 0
            if end:
                return end
        return None
