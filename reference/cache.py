"""The key/value cache, and the packed batch of tokens that one forward pass feeds to it.

The cache is allocated once. Row b's slots 0..lengths[b]-1 are valid; what lies beyond is
garbage that no mask lets through, so rolling back is setting a length. The one invariant
of the decoder: a cache holds a prefix of its row's tokens, at most all but the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class KVCache:
    """Keys and values of `shape` (layers, rows, KV heads, capacity, head size)."""

    def __init__(
        self,
        shape: tuple[int, int, int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        *,
        window: int | None = None,
    ) -> None:
        # Zeros, not empty: masked slots have weight 0, and 0 · NaN would be NaN.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = [0] * shape[1]
        self.window = window

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    @property
    def device(self) -> torch.device:
        return self.keys.device

    @property
    def num_bytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()

    def rollback(self, row: int, length: int) -> None:
        """Forget everything from slot `length` on; keeps a shorter row as it is."""
        self.lengths[row] = min(self.lengths[row], length)

    def first_layers(self, num_layers: int) -> KVCache:
        """A view of the first layers: the same memory, lengths of its own."""
        view = object.__new__(KVCache)
        view.keys, view.values = self.keys[:num_layers], self.values[:num_layers]
        view.lengths, view.window = list(self.lengths), self.window
        return view

    def move_row(self, source: int, target: int) -> None:
        """Copy a row's valid slots over another row (keeps active rows in front)."""
        n = self.lengths[source]
        for store in (self.keys, self.values):
            store[:, target, :, :n] = store[:, source, :, :n]
        self.lengths[target] = n

    def keep_path(self, row: int, base: int, nodes: Sequence[int]) -> None:
        """Make slots base + nodes[i] contiguous from `base`: the accepted path of a tree."""
        index = torch.tensor([base + i for i in nodes], dtype=torch.long, device=self.device)
        for store in (self.keys, self.values):
            # Indexing copies, so overlapping source and target slots are safe.
            store[:, row, :, base : base + len(nodes)] = store[:, row, :, index]
        self.lengths[row] = base + len(nodes)


@dataclass(frozen=True)
class TreeRows:
    """Where a row's new tokens sit in a tree instead of a chain.

    depth: (n,) rotary position of each new token minus the row's context length.
    visible: (n, m) bool, over the last m slots up to the newest; earlier slots are seen.
    """

    depth: Sequence[int]
    visible: Tensor


@dataclass(frozen=True)
class Batch:
    """New tokens of A rows, packed one row after the other (T in all).

    tokens, rows, slots, positions: (T,); mask: (A, 1, width, key_length), True = visible,
    or None when every query sees every slot; grid: (T,) place of each packed token in the
    padded (A · width) rectangle, or None when rows are equally long.
    """

    tokens: Tensor
    rows: Tensor
    slots: Tensor
    positions: Tensor
    mask: Tensor | None
    grid: Tensor | None
    counts: tuple[int, ...]  # new tokens of each row
    width: int
    key_length: int
    span: tuple[int, int] | None = None  # slots of a single row, for a plain slice write

    @property
    def num_rows(self) -> int:
        return len(self.counts)

    def write(self, store: Tensor, x: Tensor) -> None:
        """(T, J, D) into the slots of one layer's (rows, J, capacity, D)."""
        if self.span is not None:
            store[0, :, self.span[0] : self.span[1]] = x.transpose(0, 1)
        else:
            store[self.rows, :, self.slots] = x

    def pad(self, x: Tensor) -> Tensor:
        """(T, …) → (A · width, …)."""
        if self.grid is None:
            return x
        padded = x.new_zeros((self.num_rows * self.width, *x.shape[1:]))
        padded[self.grid] = x
        return padded

    def unpad(self, x: Tensor) -> Tensor:
        """(A · width, …) → (T, …)."""
        return x if self.grid is None else x[self.grid]


def make_batch(
    tokens: Sequence[Sequence[int]],
    cache: KVCache,
    *,
    trees: Sequence[TreeRows | None] | None = None,
    key_length: int | None = None,
) -> Batch:
    """Pack each row's new tokens for the slots after its cached ones, and advance lengths.

    Args:
        tokens: one list a row (rows 0..A-1 of the cache); a row may be empty.
        trees: per row, how its new tokens see each other; None for a causal chain.
        key_length: attend over this many slots (static shapes, for CUDA graphs).

    Raises:
        ValueError: when a row does not fit in the cache, or every row is empty.
    """
    counts = [len(row) for row in tokens]
    starts = cache.lengths[: len(counts)]
    ends = [start + count for start, count in zip(starts, counts, strict=True)]
    if not any(counts):
        raise ValueError("a batch needs at least one token")
    if max(ends) > cache.capacity:
        raise ValueError(f"{max(ends)} tokens do not fit in a cache of {cache.capacity} slots")
    width, device = max(counts), cache.device
    slots = [start + i for start, count in zip(starts, counts, strict=True) for i in range(count)]
    rows = [b for b, count in enumerate(counts) for _ in range(count)]
    uniform = all(count == width for count in counts)
    grid = None if uniform else [b * width + i for b, n in enumerate(counts) for i in range(n)]
    length = max(ends) if key_length is None else key_length
    result = Batch(
        tokens=torch.tensor([t for row in tokens for t in row], device=device),
        rows=torch.tensor(rows, device=device),
        slots=torch.tensor(slots, device=device),
        positions=torch.tensor(_positions(starts, counts, trees), device=device),
        mask=_mask(starts, ends, width, length, cache, trees, static=key_length is not None),
        grid=None if grid is None else torch.tensor(grid, device=device),
        counts=tuple(counts),
        width=width,
        key_length=length,
        span=(starts[0], ends[0]) if len(counts) == 1 and key_length is None else None,
    )
    cache.lengths[: len(counts)] = ends
    return result


def _positions(
    starts: Sequence[int], counts: Sequence[int], trees: Sequence[TreeRows | None] | None
) -> list[int]:
    positions: list[int] = []
    for b, (start, count) in enumerate(zip(starts, counts, strict=True)):
        tree = trees[b] if trees else None
        if tree is None:
            positions += range(start, start + count)
        else:
            base = start + count - tree.visible.shape[1]
            positions += [base + depth for depth in tree.depth]
    return positions


def _mask(
    starts: Sequence[int],
    ends: Sequence[int],
    width: int,
    length: int,
    cache: KVCache,
    trees: Sequence[TreeRows | None] | None,
    *,
    static: bool,
) -> Tensor | None:
    """(A, 1, width, length) bool. Padded queries see what a longer row would: never nothing."""
    windowed = cache.window is not None and length > cache.window
    has_tree = trees is not None and any(tree is not None for tree in trees)
    if windowed and has_tree:
        raise ValueError("a draft tree past the model's sliding window is not supported")
    if not (static or windowed or has_tree) and width == 1 and len(set(ends)) == 1:
        return None
    query = torch.tensor(starts)[:, None] + torch.arange(width)  # (A, width): own slot
    slot = torch.arange(length)
    mask = slot <= query[:, :, None]  # (A, width, length)
    if windowed and cache.window is not None:
        mask &= slot > query[:, :, None] - cache.window
    for b, tree in enumerate(trees or ()):
        if tree is not None:
            n, m = tree.visible.shape
            mask[b, :n, ends[b] - m : ends[b]] = tree.visible
            mask[b, :n, : ends[b] - m] = True
    return mask[:, None].to(cache.device)
