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

import simpy

from specsim.simulator.kv_cache import BlockPool
from specsim.simulator.ledger import close_segment
from specsim.simulator.prompts import Chunks, Prompts
from specsim.simulator.request import Request
from specsim.simulator.roster import Roster
from specsim.simulator.setup import Limits
from specsim.simulator.speculation import Policy
from specsim.simulator.step_cost import StepCost
from specsim.simulator.step_timer import StepTimer
from specsim.simulator.timetable import Timetable
from specsim.simulator.trace_log import StepLog

#: Called with a request and the time.
Notify = Callable[[Request, float], None]


class Replica:
    """Queues, running batch and KV cache of one replica.

    `on_finish` hears of requests that are done; `on_prefilled`, where given, takes every
    request whose prompt is computed (a replica that only prefills). What is reported is
    read from `step_end_s`, `decoding`, `timer` and the other totals when the run is over.
    """

    def __init__(
        self, *, index: int, env: simpy.Environment, limits: Limits, policy: Policy,
        cost: StepCost, on_finish: Notify, on_prefilled: Notify | None = None,
        log: StepLog | None = None, force_roster: bool = False,
        proposed: tuple[float, ...] | None = None,
    ) -> None:  # fmt: skip
        self.index = index
        self.env = env
        self.limits = limits
        self.alive = True
        self.process: simpy.Process | None = None
        self.pool = BlockPool(limits.num_blocks, limits.prefix_blocks)
        k = policy.constant
        overlapped = limits.overlapped and policy.kind != "off"
        self.batch: Timetable | Roster
        if k is None or force_roster or overlapped:
            self.batch = Roster(policy.largest + 1, limits.block_size, policy.initial_share)
        else:
            self.batch = Timetable(k, limits.block_size)
        self.prompts = Prompts(limits, self.pool, k or 0)
        self.timer = StepTimer(
            self.batch, policy, cost, max_tokens=limits.max_tokens, overlapped=overlapped,
            proposed=proposed,
        )  # fmt: skip
        self.arriving: deque[Request] = deque()  # computed elsewhere, waiting for a seat
        self.step_end_s = array("d")
        self.decoding = array("i")  # decoding sequences of each step
        self.entered: dict[int, int] = {}  # step → those of them that came from elsewhere
        self.occupancy_s = 0.0  # integral of the KV blocks in use
        self.preemptions = 0
        self._fresh: list[Request] = []  # let in for the step that runs
        self._on_finish = on_finish
        self._on_prefilled = on_prefilled
        self._log = log
        self._running: dict[int, Request] = {}  # decoding, by id, in the order they joined
        self._wake: simpy.Event | None = None
        self._stepping = False
        self._tokens_in = 0

    # --- what a router sees -------------------------------------------------------------

    @property
    def waiting(self) -> deque[Request]:
        """Requests that wait for a seat."""
        return self.prompts.waiting

    def num_waiting(self) -> int:
        """How many requests wait."""
        return len(self.prompts.waiting) + len(self.arriving)

    def num_outstanding(self) -> int:
        """Requests that wait or run."""
        return self.num_waiting() + self.num_running()

    def outstanding_tokens(self) -> int:
        """Prompt and output tokens of everything that waits or runs."""
        return self._tokens_in

    def matched_units(self, prefix: tuple[int, ...]) -> int:
        """Leading units of a prefix in the cache."""
        return self.pool.matched(prefix)

    def num_running(self) -> int:
        """Requests that hold KV blocks."""
        return len(self.prompts.in_progress) + self.batch.count

    # --- the process --------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """A request arrives at this replica."""
        self._receive(request)
        self.prompts.waiting.append(request)

    def submit_computed(self, request: Request) -> None:
        """A request arrives whose prompt was computed elsewhere, with its KV cache."""
        self._receive(request)
        request.to_prefill = request.context
        self.arriving.append(request)

    def _receive(self, request: Request) -> None:
        request.replica = self.index
        self._tokens_in += request.prompt_tokens + request.output_tokens
        if self._wake is not None:
            wake, self._wake = self._wake, None
            wake.succeed()

    def run(self) -> Generator[simpy.Event, None, None]:
        """Steps for ever; waits where there is nothing to do."""
        env, batch, prompts, timeout = self.env, self.batch, self.prompts, self.env.timeout
        while True:
            # (what woke it may be gone again: a fault takes the queue in the same moment)
            while not (batch.count or prompts.waiting or prompts.in_progress or self.arriving):
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

    def _start_step(self) -> tuple[float, Any, Chunks | None]:
        """Decide what the next step computes and how long it takes."""
        batch, prompts, timer = self.batch, self.prompts, self.timer
        if self.arriving:
            self._let_in()
        k = timer.choose_k(self._num_prompts)
        preempted = False
        if batch.count:
            growth = batch.growth(k)
            if growth:
                if growth > self.pool.free:
                    preempted = True
                    growth = self._make_room(k)
                    k = timer.choose_k()  # of those that are left
                self.pool.take(growth)
        load, num_drafted = timer.decode_load(k)
        filled = None
        if prompts.in_progress or prompts.waiting:
            filled = prompts.fill(
                self.limits.max_tokens - load.tokens, batch.count,
                admit=not (preempted and batch.count),
            )  # fmt: skip
        if filled is None:
            if not batch.count:
                raise RuntimeError(f"replica {self.index}: nothing fits of {self.waiting!r}")
            chunks, prompt_load = None, None
        else:
            chunks, prompt_load = filled
        seconds = timer.seconds(k, load, num_drafted, prompt_load)
        if self._log is not None:
            self._log.step(self, k, load.tokens, prompt_load, *timer.last)
        return seconds, k, chunks

    def _num_prompts(self, decode_tokens: int) -> int:
        """How many prompts a step has room for beside so many decoding tokens."""
        if not (self.prompts.in_progress or self.prompts.waiting):
            return 0
        free = self.pool.free - self.batch.growth(0)  # (a roster's does not depend on K)
        return self.prompts.count(self.limits.max_tokens - decode_tokens, self.batch.count, free)

    def _let_in(self) -> None:
        """Seat requests that come with their KV cache: they decode in this very step."""
        while self.arriving and self.prompts.may_enter(self.arriving[0], self.num_running()):
            request = self.arriving.popleft()
            self.prompts.take_seat(request)
            request.prefilled = request.to_prefill
            request.first_step = len(self.step_end_s)
            self._fresh.append(request)
            request.has_prompt_chunk = False
            self._running[request.id] = request
            self.batch.join(request)

    def _end_step(self, k: Any, chunks: Chunks | None, seconds: float) -> None:
        """Deliver the step's tokens, free what is finished, let prompts join."""
        now = self.env.now
        step = len(self.step_end_s)
        self.step_end_s.append(now)
        self.decoding.append(self.batch.count)
        self.occupancy_s += seconds * self.pool.used
        if self._fresh:  # (one that was preempted at once is not among the running)
            self.entered[step] = sum(request.id in self._running for request in self._fresh)
            self._fresh.clear()
        finished = self.batch.advance(k)
        self.timer.observe(k)
        for request in finished:
            del self._running[request.id]
            self._finish(request, now)
        if chunks is not None:
            for request, taken in chunks:
                request.prefilled += taken
                if request.prefilled == request.to_prefill:
                    self._prompt_done(request, step, now)

    def _prompt_done(self, request: Request, step: int, now: float) -> None:
        """The prompt's last chunk yields a token; the request decodes from the next step."""
        self.prompts.in_progress.remove(request)
        request.first_step = step
        request.has_prompt_chunk = True
        request.context = request.to_prefill
        request.emitted += 1
        request.num_steps = 0
        request.plan = request.drafts = None
        if request.first_s < 0:
            request.first_s = now
        if request.emitted >= request.output_tokens:
            self._finish(request, now)
        elif self._on_prefilled is not None:
            close_segment(request)
            self._leave(request)
            self._on_prefilled(request, now)
        else:
            self._running[request.id] = request
            self.batch.join(request)

    def _finish(self, request: Request, now: float) -> None:
        self._leave(request)
        self._on_finish(request, now)

    def _leave(self, request: Request) -> None:
        self.prompts.free(request)
        self._tokens_in -= request.prompt_tokens + request.output_tokens

    # --- preemption and faults ----------------------------------------------------------

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
                [*self.prompts.in_progress, *self._running.values()], key=lambda r: r.order
            )
            if self.num_running() == 1:
                raise RuntimeError(f"{newest!r} outgrows the KV cache of replica {self.index}")
            self.preempt(newest)

    def preempt(self, request: Request) -> None:
        """Take a request's KV cache away; it starts over at the head of the queue."""
        if request.id in self._running:
            del self._running[request.id]
            self.batch.leave(request)
        else:
            self.prompts.in_progress.remove(request)
        close_segment(request)
        self.prompts.free(request)
        start_over(request)
        self.preemptions += 1
        self.prompts.waiting.appendleft(request)

    def stop(self) -> list[Request]:
        """The replica dies; what it held, to be started over, in the order it came."""
        self.alive = False
        if self._stepping and self.process is not None:
            self.process.interrupt()
        for request in [*self._running.values(), *self.prompts.in_progress]:
            self.preempt(request)
        for request in self.arriving:
            start_over(request)
        held = sorted([*self.waiting, *self.arriving], key=lambda request: request.id)
        self.waiting.clear()
        self.arriving.clear()
        self._fresh.clear()
        self._tokens_in = 0
        self.pool.clear()  # what the lost step had reserved, and every cached prefix
        return held

    def restart(self) -> None:
        """The replica is back, its KV cache empty."""
        self.alive = True


def start_over(request: Request) -> None:
    """All KV is lost: prompt and everything said must be computed again."""
    request.preemptions += 1
    request.to_prefill = request.prompt_tokens + request.emitted
    request.prefilled = 0
