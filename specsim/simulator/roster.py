"""Running sequences step by step, for any K per step or per sequence.

One row a sequence in a few arrays, so that a step is a dozen array operations whatever
the batch. See `timetable.Timetable` for the faster book-keeping at fixed K.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from specsim.simulator.request import Request

Ints = npt.NDArray[np.int64]

#: Weight of the newest step in a sequence's moving average of accepted drafted tokens.
#: (SGLang's adaptive speculation uses the same 0.2.)
EMA_WEIGHT = 0.2


class Roster:
    """The running batch in rows 0..count−1.

    `lookahead` slots beyond the context are reserved in the KV cache (the policy's
    largest K, plus one). `ema` is the moving average of each sequence's accepted share,
    `ready` marks sequences whose last draft was accepted whole, with a right guess of the
    token that followed it.
    """

    def __init__(self, lookahead: int, block_size: int, initial_share: float) -> None:
        self.count = 0
        self.context_sum = 0
        self.steps = 0
        self.accepted = 0
        self.drafted = 0
        self._lookahead = lookahead
        self._block_size = block_size
        self._initial_share = initial_share
        self._requests: list[Request] = []
        self._position = np.zeros(0, dtype=np.int64)
        self._length = np.zeros(0, dtype=np.int64)
        self._context = np.zeros(0, dtype=np.int64)
        self._blocks = np.zeros(0, dtype=np.int64)
        self._taken = np.zeros(0, dtype=np.int64)  # steps since it joined
        self._ema = np.zeros(0)
        self._ready = np.zeros(0, dtype=bool)
        self._runs = np.zeros((0, 1), dtype=np.uint8)
        self._plan = np.zeros((0, 1), dtype=np.uint8)
        self._drafts = np.zeros((0, 1), dtype=np.uint8)
        self._rows = np.arange(0)
        self.last_accepted = np.zeros(0, dtype=np.int64)

    @property
    def ema(self) -> npt.NDArray[np.float64]:
        """Moving average of the accepted share of drafted tokens, by sequence."""
        return self._ema[: self.count]

    @property
    def num_ready(self) -> int:
        """Sequences whose next block was drafted during verification and is still good."""
        return int(np.count_nonzero(self._ready[: self.count]))

    @property
    def contexts(self) -> Ints:
        """Tokens in the KV cache of each sequence."""
        return self._context[: self.count]

    def join(self, request: Request) -> None:
        """Decode from the next step on."""
        row = self.count
        self._reserve(row + 1, request.output_tokens)
        self._requests.append(request)
        request.slot = row
        request.num_steps = 0
        self._position[row] = request.emitted
        self._length[row] = request.output_tokens
        self._context[row] = request.context
        self._blocks[row] = request.blocks
        self._taken[row] = 0
        self._ema[row] = self._initial_share
        self._ready[row] = False
        if request.runs is not None:
            self._runs[row, : request.output_tokens] = np.frombuffer(request.runs, np.uint8)
        self.count += 1
        self.context_sum += request.context

    def growth(self, num_draft_tokens: Any) -> int:
        """KV blocks that the next step needs on top of those held."""
        n = self.count
        needed = -(-(self._context[:n] + self._lookahead) // self._block_size)
        return int(np.sum(np.maximum(needed - self._blocks[:n], 0)))

    def advance(self, num_draft_tokens: Any) -> list[Request]:
        """Run one step in which sequence i drafts `num_draft_tokens` (a number for all, or
        an array); the requests that it finishes, in the order they joined."""
        n = self.count
        if n == 0:
            return []
        rows = self._rows[:n]
        position, taken = self._position[:n], self._taken[:n]
        needed = -(-(self._context[:n] + self._lookahead) // self._block_size)
        np.maximum(self._blocks[:n], needed, out=self._blocks[:n])
        runs = self._runs[rows, position]
        accepted = np.minimum(runs, num_draft_tokens).astype(np.int64)
        emitted = accepted + 1
        self._plan[rows, taken] = emitted
        self._drafts[rows, taken] = num_draft_tokens
        taken += 1
        position += emitted
        self._context[:n] += emitted
        self._note(runs, accepted, num_draft_tokens)
        total = int(emitted.sum())
        self.steps += n
        self.accepted += total - n
        self.context_sum += total
        self.last_accepted = accepted
        finished = np.flatnonzero(position >= self._length[:n])
        if not len(finished):
            return []
        done = sorted((self._requests[i] for i in finished), key=lambda r: r.order)
        for request in done:
            self.leave(request)
        return done

    def _note(self, runs: npt.NDArray[np.uint8], accepted: Ints, num_draft_tokens: Any) -> None:
        """Update moving averages, readiness and the count of drafted tokens."""
        n = self.count
        drafts = np.broadcast_to(np.asarray(num_draft_tokens), (n,))
        self.drafted += int(drafts.sum())
        # a block drafted ahead starts with a guess of the token after this one's
        self._ready[:n] = (runs > drafts) & (drafts > 0)
        # accepted drafted tokens over those that were looked at: the i.i.d. estimate
        looked = accepted + (accepted < drafts)
        share = np.divide(accepted, looked, out=self._ema[:n].copy(), where=looked > 0)
        self._ema[:n] += EMA_WEIGHT * (share - self._ema[:n])

    def leave(self, request: Request) -> None:
        """Take a request out (finished or preempted): its tokens so far are settled."""
        row, last = request.slot, self.count - 1
        steps = int(self._taken[row])
        request.num_steps = steps
        request.plan = self._plan[row, :steps].tobytes()
        request.blocks = int(self._blocks[row])
        request.context = int(self._context[row])
        request.emitted = min(int(self._position[row]), request.output_tokens)
        self.context_sum -= request.context
        request.drafts = self._drafts[row, :steps].tobytes()
        if row != last:
            for array in (
                self._position, self._length, self._context, self._blocks, self._taken,
                self._ema, self._ready,
            ):  # fmt: skip
                array[row] = array[last]
            width = int(self._length[row])
            self._runs[row, :width] = self._runs[last, :width]
            taken = int(self._taken[row])
            self._plan[row, :taken] = self._plan[last, :taken]
            self._drafts[row, :taken] = self._drafts[last, :taken]
            self._requests[row] = self._requests[last]
            self._requests[row].slot = row
        self._requests.pop()
        self.count = last

    def _reserve(self, rows: int, width: int) -> None:
        old_rows, old_width = self._runs.shape
        if rows <= old_rows and width <= old_width:
            return
        new_rows = max(old_rows, 8)
        while new_rows < rows:
            new_rows *= 2
        new_width = max(old_width, 256)
        while new_width < width:
            new_width *= 2
        for name in ("_position", "_length", "_context", "_blocks", "_taken", "_ema", "_ready"):
            old = getattr(self, name)
            new = np.zeros(new_rows, dtype=old.dtype)
            new[:old_rows] = old
            setattr(self, name, new)
        for name in ("_runs", "_plan", "_drafts"):
            old = getattr(self, name)
            wide = np.zeros((new_rows, new_width), dtype=np.uint8)
            wide[:old_rows, : old.shape[1]] = old
            setattr(self, name, wide)
        self._rows = np.arange(new_rows)
