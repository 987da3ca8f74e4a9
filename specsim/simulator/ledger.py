"""What is kept of a request once it is done: columns, not objects."""

from __future__ import annotations

from array import array

import numpy as np

from specsim.simulator.request import Request, Segment


class Ledger:
    """Columns by request id, filled when a request finishes.

    A request's chunks are one token at the end of step `first_step` of its replica (the
    step that completed its prompt), then one chunk at each of the following `num_steps`
    steps. A request that was preempted, or prefilled elsewhere, has several such stays, in
    `segments`.
    """

    def __init__(self, num_requests: int) -> None:
        self.arrival_s = np.full(num_requests, np.nan)
        self.first_s = np.full(num_requests, np.nan)
        self.finish_s = np.full(num_requests, np.nan)
        self.replica = np.zeros(num_requests, dtype=np.int32)
        self.first_step = np.zeros(num_requests, dtype=np.int64)
        self.num_steps = np.zeros(num_requests, dtype=np.int64)
        self.preemptions = np.zeros(num_requests, dtype=np.int32)
        self.failed = np.zeros(num_requests, dtype=bool)
        self.plan_at = np.zeros(num_requests, dtype=np.int64)
        self.plans = bytearray()
        self.drafts = bytearray()
        self.segments: dict[int, list[Segment]] = {}
        self.completed = 0
        self.num_failed = 0
        self.order = array("q")  # ids in the order they finished

    def finish(self, request: Request, time_s: float) -> None:
        """A request delivered its last token at `time_s`.

        `finish_s` is written after all that belongs to it: Ctrl-C may come between any two
        lines, and a request counts as finished from that one on.
        """
        i = request.id
        self.arrival_s[i] = request.arrival_s
        self.first_s[i] = request.first_s
        self.replica[i] = request.replica
        self.first_step[i] = request.first_step
        self.num_steps[i] = request.num_steps
        plan = request.plan
        if plan is not None:
            self.plan_at[i] = len(self.plans)
            self.plans += plan
            if request.drafts is not None:
                self.drafts += request.drafts
        if request.segments is not None:
            self.preemptions[i] = request.preemptions
            self.segments[i] = [*request.segments, _segment(request)]
            for early in request.segments:
                self.plans += early.plan or b""
        self.finish_s[i] = time_s
        self.completed += 1
        self.order.append(i)

    def fail(self, request: Request, time_s: float) -> None:
        """A request that will never be served to its end."""
        i = request.id
        self.arrival_s[i] = request.arrival_s
        self.failed[i] = True
        self.finish_s[i] = time_s
        self.num_failed += 1
        self.order.append(i)


def close_segment(request: Request) -> None:
    """Remember what a request has delivered, before it starts over or moves on."""
    if request.segments is None:
        request.segments = []
    if request.first_step >= 0:
        request.segments.append(_segment(request))


def _segment(request: Request) -> Segment:
    return Segment(
        request.replica, request.first_step, request.num_steps, request.plan,
        request.has_prompt_chunk,
    )  # fmt: skip
