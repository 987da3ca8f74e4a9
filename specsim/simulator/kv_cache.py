"""Paged KV cache of one replica: blocks by count, and shared prefixes by name.

A cached prefix block that no request uses stays until its room is needed; the least
recently used goes first (vLLM's automatic prefix caching, SGLang's radix cache).
"""

from __future__ import annotations

from collections import OrderedDict


class BlockPool:
    """`total` blocks; `used` by requests. Named prefix units are `unit` blocks each.

    Idle cached units count as free: they are evicted when blocks are asked for.
    """

    def __init__(self, total: int, unit: int = 0) -> None:
        self.total = total
        self.used = 0
        self.unit = unit
        self.evictions = 0
        self._references: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def free(self) -> int:
        """Blocks that can be had, idle cached ones included."""
        return self.total - self.used

    def take(self, blocks: int) -> None:
        """Blocks for one request.

        Raises:
            RuntimeError: if there are not that many (callers ask `free` first).
        """
        if blocks > self.total - self.used:
            raise RuntimeError(f"{blocks} blocks asked, {self.free} of {self.total} free")
        self.used += blocks
        if self._idle:
            self._evict()

    def give(self, blocks: int) -> None:
        """Blocks back from a request.

        Raises:
            RuntimeError: if more come back than were taken.
        """
        self.used -= blocks
        if self.used < 0:
            raise RuntimeError(f"{-self.used} more blocks returned than taken")

    def matched(self, prefix: tuple[int, ...]) -> int:
        """Leading units of `prefix` that are in the cache."""
        count = 0
        for name in prefix:
            if name not in self._references and name not in self._idle:
                break
            count += 1
        return count

    def blocks_to_revive(self, prefix: tuple[int, ...]) -> int:
        """Blocks that stop being free when these cached units are used again."""
        return self.unit * sum(name in self._idle for name in prefix)

    def refer(self, prefix: tuple[int, ...]) -> None:
        """A request uses these units: cached ones, or new ones (which must be free)."""
        for name in prefix:
            references = self._references.get(name, 0)
            self._references[name] = references + 1
            if references:
                continue
            self.used += self.unit
            self._idle.pop(name, None)
        if self.used > self.total:
            raise RuntimeError(f"{self.used} blocks used of {self.total}")
        if self._idle:
            self._evict()

    def release(self, prefix: tuple[int, ...], computed: int) -> None:
        """A request is done with these units; the last user leaves them cached, but for
        those after the first `computed` ones: nothing is in them yet."""
        for index in reversed(range(len(prefix))):  # the end is evicted before the start
            name = prefix[index]
            references = self._references[name] - 1
            if references:
                self._references[name] = references
                continue
            del self._references[name]
            if index < computed:
                self._idle[name] = None
            self.used -= self.unit

    def clear(self) -> None:
        """All is lost (a replica died): nothing is used, nothing cached."""
        self.used = 0
        self._references.clear()
        self._idle.clear()

    def _evict(self) -> None:
        while self._idle and self.used + self.unit * len(self._idle) > self.total:
            self._idle.popitem(last=False)
            self.evictions += 1
