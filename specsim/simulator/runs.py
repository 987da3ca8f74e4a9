"""Accepted runs of a request, keyed by seed and request, and their replay at one K."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from specsim.acceptance.law import Law

#: Spawn key of acceptance (arrivals, classes and lengths have 0..3, see workload.requests).
ACCEPTANCE = 4


class RunSampler:
    """Draws `law.sample_runs` for any request, in any order, always the same.

    A counter-based generator (Philox) is set to the request's own counter instead of
    building a generator per request: the numbers depend on seed and request alone.
    """

    def __init__(self, laws: Sequence[Law], seed: int) -> None:
        self._laws = tuple(laws)
        key = np.random.SeedSequence(seed, spawn_key=(ACCEPTANCE,)).generate_state(2, np.uint64)
        self._bits = np.random.Philox(key=key)
        self._rng = np.random.Generator(self._bits)
        self._state: Any = dict(self._bits.state)
        self._counter = self._state["state"]["counter"]

    def runs(self, request_id: int, traffic_class: int, output_tokens: int) -> bytes:
        """Accepted run from each output position, one byte each; length output_tokens."""
        self._counter[2] = request_id
        self._bits.state = self._state
        runs = self._laws[traffic_class].sample_runs(self._rng, output_tokens)
        return runs.astype(np.uint8).tobytes()


def plan_steps(runs: bytes, num_draft_tokens: int, position: int) -> bytes:
    """Tokens of each decoding step from output position `position` on at fixed K.

    Every step emits min(run, K) + 1 tokens; the last one is not cut at the request's end,
    so that acceptance counts what was verified.
    """
    if num_draft_tokens < 64:  # no run is longer than 64
        jumps = (np.minimum(np.frombuffer(runs, np.uint8), num_draft_tokens) + 1).tobytes()
    else:
        jumps = (np.frombuffer(runs, np.uint8) + 1).tobytes()
    plan = bytearray()
    append = plan.append
    length = len(runs)
    while position < length:
        tokens = jumps[position]
        append(tokens)
        position += tokens
    return bytes(plan)
