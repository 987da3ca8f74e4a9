"""One replica of the engine: a process that runs one step after the other.

A step is what vLLM v1 and SGLang do in an iteration: every running sequence decodes (K + 1
tokens each), and what is left of the token budget goes to prompts, in order of arrival.
docs/engine.md walks through it.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import simpy

from specsim.simulator.batching import (
    blocks_for,
    cached_units,
    chunk_tokens,
    max_running,
    may_admit,
)
from specsim.simulator.kv_cache import BlockPool
from specsim.simulator.ledger import close_segment
from specsim.simulator.request import Request
from specsim.simulator.roster import Roster
from specsim.simulator.setup import Limits
from specsim.simulator.speculation import Controller, Policy
from specsim.simulator.step_cost import Load, StepCost
from specsim.simulator.timetable import Timetable
from specsim.simulator.trace_log import StepLog


class Replica:
    """Waiting queue, prompts in progress, running batch and KV cache of one replica.

    Totals (seconds by kind, sequence-steps, occupancy) are kept as plain attributes and
    read when the run is over.
    """

    def __init__(
        self, *, index: int, env: simpy.Environment, limits: Limits, policy: Policy,
        cost: StepCost, on_finish: Callable[[Request, float], None],
        log: StepLog | None = None, force_roster: bool = False,
        proposed: tuple[float, ...] | None = None,
    ) -> None:  # fmt: skip
        self.index = index
        self.env = env
        self.limits = limits
        self.policy = policy
        self.cost = cost
        self.alive = True
        self.waiting: deque[Request] = deque()
        self.prefilling: list[Request] = []
        self.pool = BlockPool(limits.num_blocks, limits.prefix_blocks)
        self._on_finish = on_finish
        self._log = log
        self._proposed = None if proposed is None else np.array(proposed)
        self._wake: simpy.Event | None = None
        self._admitted = 0
        self._tokens_in = 0
        self._stepping = False
        self.process: simpy.Process | None = None
        self._running: dict[int, Request] = {}  # decoding, by id, in the order they joined
        self._watermark = int(limits.watermark * limits.num_blocks)
        self._overlapped = limits.overlapped and policy.kind != "off"
        k = policy.constant
        use_roster = k is None or force_roster or self._overlapped
        self.batch: Timetable | Roster
        if use_roster:
            self.batch = Roster(policy.largest + 1, limits.block_size, policy.initial_share)
        else:
            self.batch = Timetable(int(k or 0), limits.block_size)
        self._controller = Controller(policy, limits.max_tokens) if k is None else None
        self._fixed_k = int(k or 0)
        self._seats = max_running(limits.max_num_seqs, limits.max_tokens, self._fixed_k)
        # what is reported
        self.step_end_s = array("d")
        self.decoding = array("i")
        self.draft_s = self.verify_s = self.prefill_s = self.host_s = 0.0
        self.occupancy_s = 0.0  # integral of the used share of the KV cache
        self.drafted = 0
        self.preemptions = self.switches = 0
        self.prefill_tokens = self.cached_tokens = 0
        self.overlap_wasted_s = 0.0
        self.samples: list[tuple[int, int, int, float, float]] = []
        self._sample_every = 1
        self._last_k: Any = self._fixed_k

    # --- what a router sees -------------------------------------------------------------

    def num_waiting(self) -> int:
        """Requests that wait."""
        return len(self.waiting)

    def num_outstanding(self) -> int:
        """Requests that wait or run."""
        return len(self.waiting) + len(self.prefilling) + self.batch.count

    def outstanding_tokens(self) -> int:
        """Prompt and output tokens of everything that waits or runs."""
        return self._tokens_in

    def matched_units(self, prefix: tuple[int, ...]) -> int:
        """Leading units of a prefix in the cache."""
        return self.pool.matched(prefix)

    # --- the process --------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """A request arrives at this replica."""
        request.replica = self.index
        self._tokens_in += request.prompt_tokens + request.output_tokens
        self.waiting.append(request)
        wake = self._wake
        if wake is not None:
            self._wake = None
            wake.succeed()

    def run(self) -> Generator[simpy.Event, None, None]:
        """Steps for ever; waits where there is nothing to do."""
        env, batch, timeout = self.env, self.batch, self.env.timeout
        while True:
            if not (batch.count or self.waiting or self.prefilling):
                self._wake = env.event()
                yield self._wake
            seconds, k, chunks = self._start_step()
            self._stepping = True
            try:
                yield timeout(seconds)
            except simpy.Interrupt:
                continue  # the replica stopped meanwhile, and the step is lost
            finally:
                self._stepping = False
            self._end_step(k, chunks, seconds)

    def _start_step(self) -> tuple[float, Any, list[tuple[Request, int]] | None]:
        """Decide what the next step computes and how long it takes."""
        batch, limits, cost = self.batch, self.limits, self.cost
        k = self._fixed_k if self._controller is None else self._choose_k()
        preempted = False
        if batch.count:
            growth = batch.growth(k)
            if growth:
                if growth > self.pool.free:
                    preempted = True
                    growth = self._make_room(k)
                self.pool.take(growth)
        count, context = batch.count, batch.context_sum
        load, num_drafted = self._decode_load(k, count, context)
        chunks: list[tuple[Request, int]] | None = None
        prefill = None
        if (self.prefilling or self.waiting) and not (preempted and count):
            chunks, prefill = self._prefill(limits.max_tokens - load.tokens)
        if prefill is None:
            if not count:
                raise RuntimeError(f"replica {self.index}: nothing fits; {self.waiting[0]!r}")
            target = cost.target_s(
                load.tokens, count, load.rows, load.kv_tokens, load.pairs
            )  # fmt: skip
            verify, prefill_s, prompt_draft = target, 0.0, 0.0
            host = cost.host_s(count, num_drafted)
        else:
            tokens = load.tokens + prefill.tokens
            target = cost.target_s(
                tokens, count + prefill.sequences, load.rows + prefill.rows,
                load.kv_tokens + prefill.kv_tokens, load.pairs + prefill.pairs,
            )  # fmt: skip
            # a mixed pass is split by tokens; the drafter's pass over prompts is prefill
            verify = target * load.tokens / tokens
            prompt_draft = cost.draft_prefill_s(prefill) if self.policy.kind != "off" else 0.0
            prefill_s = target - verify + prompt_draft
            host = cost.host_s(count + prefill.sequences, num_drafted)
            self.prefill_tokens += prefill.tokens
        draft = 0.0
        if count and self.policy.kind != "off":
            draft = self._draft_seconds(k, count, context, target)
        self.draft_s += draft
        self.verify_s += verify
        self.prefill_s += prefill_s
        self.host_s += host
        self.drafted += num_drafted
        steps = len(self.step_end_s)
        if steps % self._sample_every == 0:
            self._sample(load, prefill, count)
        if self._log is not None:
            self._log.step(self, k, load.tokens, prefill, draft, target + prompt_draft, host)
        return draft + target + prompt_draft + host, k, chunks

    def _decode_load(self, k: Any, count: int, context: int) -> tuple[Load, int]:
        """New tokens of the decoding sequences (each K drafted ones and the last emitted),
        and how many of them were drafted."""
        if isinstance(k, int) and self._proposed is None:
            new = k + 1
            tokens = count * new
            pairs = new * context + tokens * (new + 1) / 2
            return Load(tokens, count, tokens, context + tokens, pairs), count * k
        return self._uneven_load(k, count, context)

    def _uneven_load(self, k: Any, count: int, context: int) -> tuple[Load, int]:
        """The same where K differs by sequence, or fewer than K tokens are proposed."""
        if self._proposed is not None:
            k = self._proposed[k]
        if np.ndim(k) == 0:
            tokens = round(count * (1 + float(k)))
            new = tokens / max(count, 1)
            pairs = new * context + tokens * (new + 1) / 2
        else:
            assert isinstance(self.batch, Roster)
            each = k + 1
            tokens = round(float(each.sum()))
            pairs = float(np.sum(each * (self.batch.contexts + (each + 1) / 2)))
        return Load(tokens, count, tokens, context + tokens, pairs), tokens - count

    def _draft_seconds(self, k: Any, count: int, context: int, target_s: float) -> float:
        """Time that drafting adds to the step. A scheduled K = 0 still keeps the drafter's
        cache current; a graph of another K is switched to at a price."""
        cost = self.cost
        longest = k if isinstance(k, int) else int(k.max(initial=0))
        if longest == 0:
            seconds = cost.keep_current_s(count, context) if self.policy.largest else 0.0
        elif self._overlapped:
            seconds = self._overlapped_seconds(longest, count, context, target_s)
        else:
            drafting = count if isinstance(k, int) else int(np.count_nonzero(k))
            seconds = cost.draft_s(longest, drafting, context * drafting / count)
        if longest != self._last_k:
            if len(self.step_end_s):
                self.switches += 1
                seconds += self.policy.switch_s
            self._last_k = longest
        return seconds

    def _overlapped_seconds(self, k: int, count: int, context: int, target_s: float) -> float:
        """PEARL: the next block is drafted while this one is verified, and is good where
        the whole block is accepted. Sequences without a good block draft first; then
        verification and the drafting of all next blocks run side by side."""
        assert isinstance(self.batch, Roster)
        ready = self.batch.num_ready
        lacking = count - ready
        before = self.cost.draft_s(k, lacking, context * lacking / count)
        beside = self.cost.draft_s(k, count, context)
        if lacking:  # what was drafted ahead for them during the last verification
            self.overlap_wasted_s += beside * lacking / count
        return before + max(0.0, beside - target_s)

    def _choose_k(self) -> Any:
        assert self._controller is not None
        roster = self.batch
        assert isinstance(roster, Roster)
        count = roster.count
        if count == 0:
            return 0
        scheduled = count + len(self.prefilling) + min(len(self.waiting), 1)

        def step_s(k: int) -> float:
            load, drafted = self._decode_load(k, count, roster.context_sum)
            target = self.cost.target_s(
                load.tokens, count, load.rows, load.kv_tokens, load.pairs
            )  # fmt: skip
            draft = (
                self.cost.draft_s(k, count, roster.context_sum) if k
                else self.cost.keep_current_s(count, roster.context_sum)
            )  # fmt: skip
            return draft + target + self.cost.host_s(count, drafted)

        return self._controller.choose(roster, scheduled, step_s)

    # --- prompts ------------------------------------------------------------------------

    def _prefill(self, budget: int) -> tuple[list[tuple[Request, int]] | None, Load | None]:
        """Give the token budget to prompts in progress, then to waiting ones."""
        chunks: list[tuple[Request, int]] = []
        load = Load()
        chunked = self.limits.chunked_prefill
        for request in self.prefilling:
            taken = chunk_tokens(request.to_prefill - request.prefilled, budget, chunked)
            if taken == 0:
                break
            self._add_chunk(request, taken, chunks, load)
            budget -= taken
        while self.waiting and budget > 0 and self._admissible(self.waiting[0], budget):
            request = self.waiting.popleft()
            self._admit(request)
            taken = chunk_tokens(request.to_prefill - request.prefilled, budget, chunked)
            self.prefilling.append(request)
            self._add_chunk(request, taken, chunks, load)
            budget -= taken
        return (chunks, load) if chunks else (None, None)

    def _add_chunk(
        self, request: Request, taken: int, chunks: list[tuple[Request, int]], load: Load
    ) -> None:
        cached = request.prefilled
        load.tokens += taken
        load.sequences += 1
        load.rows += 1
        load.kv_tokens += cached + taken
        load.pairs += taken * (cached + (taken + 1) / 2)
        chunks.append((request, taken))

    def _admissible(self, request: Request, budget: int) -> bool:
        """A seat, room in the KV cache, and (unchunked) the whole prompt in the budget."""
        running = self.batch.count + len(self.prefilling)
        if running >= self._seats:
            return False
        pool, size = self.pool, self.limits.block_size
        skipped, units = 0, 0
        needed = blocks_for(request.to_prefill, size)
        if request.prefix and pool.unit:
            prefix = self._prefix_of(request)
            matched = pool.matched(prefix)
            units = cached_units(matched, self.limits.prefix_tokens, request.to_prefill)
            skipped = units * self.limits.prefix_tokens
            needed -= matched * pool.unit
            needed += pool.blocks_to_revive(prefix[:matched])
        if not chunk_tokens(request.to_prefill - skipped, budget, self.limits.chunked_prefill):
            return False
        return may_admit(needed, pool.free, self._watermark, running == 0)

    def _prefix_of(self, request: Request) -> tuple[int, ...]:
        """The units of the prompt that are full and can be shared."""
        return request.prefix[: request.prompt_tokens // self.limits.prefix_tokens]

    def _admit(self, request: Request) -> None:
        pool, size = self.pool, self.limits.block_size
        private = request.blocks = blocks_for(request.to_prefill, size)
        request.prefilled = 0
        if request.prefix and pool.unit:
            prefix = self._prefix_of(request)
            units = cached_units(
                pool.matched(prefix), self.limits.prefix_tokens, request.to_prefill
            )
            pool.refer(prefix)
            request.shared = prefix
            private -= len(prefix) * pool.unit
            request.prefilled = units * self.limits.prefix_tokens
            self.cached_tokens += request.prefilled
        pool.take(private)
        self._admitted += 1
        request.order = self._admitted
        request.first_step = -1

    # --- the end of a step --------------------------------------------------------------

    def _end_step(self, k: Any, chunks: list[tuple[Request, int]] | None, seconds: float) -> None:
        """Deliver the step's tokens, free what is finished, let prompts join."""
        now = self.env.now
        step = len(self.step_end_s)
        self.step_end_s.append(now)
        self.decoding.append(self.batch.count)
        self.occupancy_s += seconds * self.pool.used
        finished = self.batch.advance(k)
        if self._controller is not None:
            self._controller.observe(self.batch, k)  # type: ignore[arg-type]
        for request in finished:
            del self._running[request.id]
            self._finish(request, now)
        if chunks is None:
            return
        for request, taken in chunks:
            request.prefilled += taken
            if request.prefilled < request.to_prefill:
                continue
            self.prefilling.remove(request)
            request.first_step = step
            request.context = request.to_prefill
            request.emitted += 1
            request.num_steps = 0
            request.plan = request.drafts = None
            if request.first_s < 0:
                request.first_s = now
            if request.emitted >= request.output_tokens:
                self._finish(request, now)
            else:
                self._running[request.id] = request
                self.batch.join(request)

    def _finish(self, request: Request, now: float) -> None:
        self._free(request)
        self._tokens_in -= request.prompt_tokens + request.output_tokens
        self._on_finish(request, now)

    def _free(self, request: Request) -> None:
        blocks = request.blocks
        if request.shared:
            blocks -= len(request.shared) * self.pool.unit
            self.pool.release(request.shared)
            request.shared = ()
        self.pool.give(blocks)
        request.blocks = 0

    def _make_room(self, k: Any) -> int:
        """Preempt the newest requests until the running ones can grow; the growth left.

        Raises:
            RuntimeError: if one request alone does not fit (validated before the run).
        """
        while True:
            growth = self.batch.growth(k)
            if growth <= self.pool.free:
                return growth
            newest = max(
                [*self.prefilling, *self._running.values()], key=lambda request: request.order
            )
            if self.num_running() == 1:
                raise RuntimeError(f"{newest!r} outgrows the KV cache of replica {self.index}")
            self.preempt(newest)

    def num_running(self) -> int:
        """Requests that hold KV blocks."""
        return len(self.prefilling) + self.batch.count

    def preempt(self, request: Request) -> None:
        """Take a request's KV cache away; it starts over at the head of the queue."""
        if request.id in self._running:
            del self._running[request.id]
            self.batch.leave(request)
        else:
            self.prefilling.remove(request)
        close_segment(request)
        self._free(request)
        request.preemptions += 1
        request.to_prefill = request.prompt_tokens + request.emitted
        request.prefilled = 0
        self.preemptions += 1
        self.waiting.appendleft(request)

    def stop(self) -> list[Request]:
        """The replica dies; what it held, to be started over, in the order it came."""
        self.alive = False
        if self._stepping and self.process is not None:
            self.process.interrupt()
        for request in [*self._running.values(), *self.prefilling]:
            self.preempt(request)
        held = sorted(self.waiting, key=lambda request: request.id)
        self.waiting.clear()
        self._tokens_in = 0
        return held

    def restart(self) -> None:
        """The replica is back, its KV cache empty."""
        self.alive = True
        self.pool = BlockPool(self.limits.num_blocks, self.limits.prefix_blocks)

    def _sample(self, load: Load, prefill: Load | None, count: int) -> None:
        """Keep every n-th pass for what binds it; n doubles so that few are kept."""
        extra = prefill or Load()
        self.samples.append(
            (load.tokens + extra.tokens, count + extra.sequences, load.rows + extra.rows,
             load.kv_tokens + extra.kv_tokens, load.pairs + extra.pairs)
        )  # fmt: skip
        if len(self.samples) >= 256:
            del self.samples[1::2]
            self._sample_every *= 2
