"""Prompts of one replica: who waits, who is being computed, and their KV blocks."""

from __future__ import annotations

from collections import deque

from specsim.simulator.batching import (
    blocks_for,
    cached_units,
    chunk_tokens,
    max_running,
    may_admit,
)
from specsim.simulator.kv_cache import BlockPool
from specsim.simulator.request import Request
from specsim.simulator.setup import Limits
from specsim.simulator.step_cost import Load

#: Prompt tokens that a step computes, by request.
Chunks = list[tuple[Request, int]]


class Prompts:
    """`waiting` requests in order of arrival (preempted ones first) and prompts
    `in_progress`, which hold their blocks."""

    def __init__(self, limits: Limits, pool: BlockPool, num_draft_tokens: int) -> None:
        self.limits = limits
        self.pool = pool
        self.waiting: deque[Request] = deque()
        self.in_progress: list[Request] = []
        self.cached_tokens = 0
        self._admitted = 0
        self._watermark = int(limits.watermark * limits.num_blocks)
        self._seats = max_running(limits.max_num_seqs, limits.max_tokens, num_draft_tokens)

    def fill(self, budget: int, decoding: int, *, admit: bool = True) -> tuple[Chunks, Load] | None:
        """Give the token budget of a step to prompts in progress, then (`admit`) to waiting
        ones; None if there is nothing that fits. `decoding` sequences have seats already."""
        chunks: Chunks = []
        load = Load()
        for request in self.in_progress:
            taken = chunk_tokens(
                request.to_prefill - request.prefilled, budget, self._chunked(request)
            )
            if taken == 0:
                break
            _add(request, taken, chunks, load)
            budget -= taken
        while admit and self.waiting and budget > 0:
            request = self.waiting[0]
            running = decoding + len(self.in_progress)
            needed, skipped = self._demand(request)
            if not self._admissible(request, needed, skipped, budget, running, self.pool.free):
                break
            self.waiting.popleft()
            self.take_seat(request)
            self.cached_tokens += request.prefilled
            taken = chunk_tokens(
                request.to_prefill - request.prefilled, budget, self._chunked(request)
            )
            self.in_progress.append(request)
            _add(request, taken, chunks, load)
            budget -= taken
        return (chunks, load) if chunks else None

    def count(self, budget: int, decoding: int, free: int) -> int:
        """How many prompts `fill` would give tokens to, with `free` blocks. (What waiting
        prompts share with each other, but not with the cache, is counted for each.)"""
        number, running = 0, decoding + len(self.in_progress)
        for request in self.in_progress:
            left = request.to_prefill - request.prefilled
            taken = chunk_tokens(left, budget, self._chunked(request))
            if taken == 0:
                return number
            number += 1
            budget -= taken
        for request in self.waiting:
            needed, skipped = self._demand(request)
            if budget == 0 or not self._admissible(request, needed, skipped, budget, running, free):
                break
            budget -= chunk_tokens(request.to_prefill - skipped, budget, self._chunked(request))
            free -= needed
            number += 1
            running += 1
        return number

    def _demand(self, request: Request) -> tuple[int, int]:
        """Blocks that a waiting request takes from the free ones, and the tokens of its
        prompt that are in the cache."""
        pool, unit = self.pool, self.limits.prefix_tokens
        skipped = 0
        needed = blocks_for(request.to_prefill, self.limits.block_size)
        if request.prefix and unit:
            prefix = self._prefix_of(request)
            matched = pool.matched(prefix)
            skipped = unit * cached_units(matched, unit, request.to_prefill)
            needed += pool.blocks_to_revive(prefix[:matched]) - matched * pool.unit
        return needed, skipped

    def _admissible(
        self, request: Request, needed: int, skipped: int, budget: int, running: int, free: int
    ) -> bool:
        """A seat, room in the KV cache, and (unchunked) the whole prompt in the budget."""
        if running >= self._seats:
            return False
        if not chunk_tokens(request.to_prefill - skipped, budget, self._chunked(request)):
            return False
        return may_admit(needed, free, self._watermark, running == 0)

    def _chunked(self, request: Request) -> bool:
        """Whether its prompt may be cut. With chunked prefill off only one that has grown
        beyond any step's budget (prompt and all it had said, after a preemption) is."""
        return self.limits.chunked_prefill or request.to_prefill > self.limits.max_tokens

    def may_enter(self, request: Request, running: int) -> bool:
        """Whether a request whose cache was computed elsewhere finds a seat and room."""
        needed = blocks_for(request.to_prefill, self.limits.block_size)
        return running < self._seats and may_admit(
            needed, self.pool.free, self._watermark, running == 0
        )

    def _prefix_of(self, request: Request) -> tuple[int, ...]:
        """The units of the prompt that are full and can be shared."""
        return request.prefix[: request.prompt_tokens // self.limits.prefix_tokens]

    def take_seat(self, request: Request) -> None:
        """Blocks for the whole prompt; cached units are used again and not computed."""
        pool, unit = self.pool, self.limits.prefix_tokens
        private = request.blocks = blocks_for(request.to_prefill, self.limits.block_size)
        request.prefilled = 0
        if request.prefix and unit:
            prefix = self._prefix_of(request)
            matched = pool.matched(prefix)
            pool.refer(prefix)
            request.shared = prefix
            private -= len(prefix) * pool.unit
            request.prefilled = unit * cached_units(matched, unit, request.to_prefill)
        pool.take(private)
        self._admitted += 1
        request.order = self._admitted
        request.first_step = -1

    def free(self, request: Request) -> None:
        """Give a request's blocks back; what it has computed of its prefix stays cached."""
        blocks = request.blocks
        if request.shared:
            blocks -= len(request.shared) * self.pool.unit
            self.pool.release(request.shared, request.prefilled // self.limits.prefix_tokens)
            request.shared = ()
        self.pool.give(blocks)
        request.blocks = 0


def _add(request: Request, taken: int, chunks: Chunks, load: Load) -> None:
    cached = request.prefilled
    load.tokens += taken
    load.sequences += 1
    load.rows += 1
    load.kv_tokens += cached + taken
    load.pairs += taken * (cached + (taken + 1) / 2)
    chunks.append((request, taken))
