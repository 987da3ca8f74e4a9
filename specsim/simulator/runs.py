"""Accepted runs of a request, keyed by seed and request, and their replay at one K."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from specsim.acceptance.chains import Iid
from specsim.acceptance.law import MAX_RUN, Law

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
        law = self._laws[traffic_class]
        if type(law) is Iid:  # the same numbers as its sample_runs, without arrays of them
            accepts = self._rng.random(output_tokens + MAX_RUN) < law.alpha
            return runs_of_accepts(accepts.tobytes(), output_tokens)
        return law.sample_runs(self._rng, output_tokens).astype(np.uint8).tobytes()


#: Runs before a rejected token, by how many accepted ones precede it: n, …, 1, 0.
_COUNTDOWNS = [bytes(range(n, -1, -1)) for n in range(MAX_RUN + 1)]


def runs_of_accepts(accepts: bytes, num_tokens: int) -> bytes:
    """`acceptance.law.runs_from_accepts` on bytes of 0 and 1: between two rejected tokens
    the runs count down to 0 (cut at MAX_RUN)."""
    lengths = map(len, accepts.split(b"\x00"))
    try:
        return b"".join([_COUNTDOWNS[n] for n in lengths])[:num_tokens]
    except IndexError:  # a stretch beyond MAX_RUN
        return b"".join([_countdown(len(part)) for part in accepts.split(b"\x00")])[:num_tokens]


def _countdown(length: int) -> bytes:
    """The same for any length."""
    return bytes([MAX_RUN]) * (length - MAX_RUN) + _COUNTDOWNS[min(length, MAX_RUN)]


@cache
def _tokens_of_run(num_draft_tokens: int) -> bytes:
    """Translation table: run → tokens of a step, min(run, K) + 1."""
    return bytes(min(run, num_draft_tokens) + 1 for run in range(MAX_RUN + 1)).ljust(256)


def plan_steps(runs: bytes, num_draft_tokens: int, position: int) -> bytes:
    """Tokens of each decoding step from output position `position` on at fixed K.

    Every step emits min(run, K) + 1 tokens; the last one is not cut at the request's end,
    so that acceptance counts what was verified.
    """
    jumps = runs.translate(_tokens_of_run(num_draft_tokens))
    plan = bytearray()
    append = plan.append
    length = len(runs)
    while position < length:
        tokens = jumps[position]
        append(tokens)
        position += tokens
    return bytes(plan)
