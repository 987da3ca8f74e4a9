"""Running sequences at a fixed K: every later step is known when a request joins.

With K fixed, the accepted runs of a request decide in which of its steps how many tokens
come out and when its KV cache needs another block. A request that joins therefore writes
its whole future into per-step totals, and a step of the engine only reads them: its cost
does not depend on the batch. `roster.Roster` is the same thing step by step, for any
policy; tests hold the two equal bit for bit.
"""

from __future__ import annotations

import numpy as np

from specsim.simulator.request import Request
from specsim.simulator.runs import plan_steps


class Timetable:
    """Totals of the batch by step. `count` sequences run, `context_sum` tokens are in
    their KV caches, and `num_draft_tokens` = K is fixed."""

    per_sequence = False

    def __init__(self, num_draft_tokens: int, block_size: int) -> None:
        self.num_draft_tokens = num_draft_tokens
        self.count = 0
        self.context_sum = 0
        self.steps = 0  # sequence-steps so far
        self.accepted = 0
        self._block_size = block_size
        self._now = 0  # index of the next step in the arrays below
        self._emitted = np.zeros(1024, dtype=np.int64)
        self._growth = np.zeros(1024, dtype=np.int64)
        self._done: dict[int, list[Request]] = {}
        self._offset = 0  # step number of index 0

    def join(self, request: Request) -> None:
        """A request whose prompt (and `emitted` ≥ 1 tokens) is computed decodes from the
        next step on."""
        left = request.output_tokens - request.emitted
        k = self.num_draft_tokens
        if k == 0 or request.runs is None:
            steps = left
        else:
            request.plan = plan_steps(request.runs, k, request.emitted)
            steps = len(request.plan)
        request.num_steps = steps
        request.joined_step = self._offset + self._now
        self._reserve(steps)
        self.count += 1
        self.context_sum += request.context
        self._write(request, 0, steps, 1)
        last = request.joined_step + steps - 1
        done = self._done.get(last)
        if done is None:
            self._done[last] = [request]
        else:
            done.append(request)

    def growth(self, num_draft_tokens: int) -> int:
        """KV blocks that the next step needs on top of those held."""
        return int(self._growth[self._now])

    def advance(self, num_draft_tokens: int) -> list[Request]:
        """Run one step; the requests that it finishes, in the order they joined."""
        count = self.count
        if count == 0:
            return []
        now = self._now
        step = self._offset + now
        self.steps += count
        if self.num_draft_tokens:
            emitted = int(self._emitted[now])
            self.accepted += emitted - count
            self.context_sum += emitted
        else:
            self.context_sum += count
        self._now = now + 1
        finished = self._done.pop(step, None)
        if finished is None:
            return []
        for request in finished:
            self._settle(request, request.num_steps)
            self.context_sum -= request.context
        self.count -= len(finished)
        return finished

    def leave(self, request: Request) -> None:
        """Take a running request out (preemption): its tokens so far are settled."""
        elapsed = self._offset + self._now - request.joined_step
        steps = request.num_steps
        self._write(request, elapsed, steps, -1)
        last = request.joined_step + steps - 1
        self._done[last].remove(request)
        if not self._done[last]:
            del self._done[last]
        self._settle(request, elapsed)
        request.num_steps = elapsed
        if request.plan is not None:
            request.plan = request.plan[:elapsed]
        self.count -= 1
        self.context_sum -= request.context

    def _settle(self, request: Request, steps: int) -> None:
        """Count what `steps` steps have emitted, and the blocks they came to hold."""
        size, k = self._block_size, self.num_draft_tokens
        if steps == 0:
            return
        if request.plan is None:
            before, emitted = request.context + steps - 1, steps
        else:
            emitted = sum(request.plan[:steps])
            before = request.context + emitted - request.plan[steps - 1]
        request.blocks = max(request.blocks, -(-(before + k + 1) // size))
        request.context += emitted
        request.emitted = min(request.emitted + emitted, request.output_tokens)

    def _write(self, request: Request, start: int, stop: int, sign: int) -> None:
        """Add (or take back) steps start..stop of a request to the totals by step."""
        at = request.joined_step - self._offset
        size = self._block_size
        if request.plan is None:
            # one token a step: step j needs a new block where context + j fills the last
            first = request.blocks * size - request.context
            if first < start:
                first += -(-(start - first) // size) * size
            if first < stop:
                self._growth[at + first : at + stop : size] += sign
            return
        tokens = np.frombuffer(request.plan, dtype=np.uint8)
        before = tokens.cumsum(dtype=np.int64)
        before -= tokens
        # ceil((context + K + 1) / size) blocks before each step, over those it came with
        before += request.context + self.num_draft_tokens + size
        before //= size
        growth = self._growth[at + start : at + stop]
        held = int(before[start - 1]) if start else request.blocks
        if sign > 0:
            self._emitted[at + start : at + stop] += tokens[start:stop]
            growth += before[start:stop]
            growth[0] -= held
            growth[1:] -= before[start : stop - 1]
        else:
            self._emitted[at + start : at + stop] -= tokens[start:stop]
            growth -= before[start:stop]
            growth[0] += held
            growth[1:] += before[start : stop - 1]

    def _reserve(self, steps: int) -> None:
        """Room for `steps` more steps: drop the past, and grow if that is not enough."""
        size = len(self._growth)
        if self._now + steps <= size:
            return
        keep = size - self._now
        new_size = size
        while keep + steps > new_size // 2:
            new_size *= 2
        for name in ("_growth", "_emitted"):
            old = getattr(self, name)
            new = np.zeros(new_size, dtype=np.int64)
            new[:keep] = old[self._now :]
            setattr(self, name, new)
        self._offset += self._now
        self._now = 0
