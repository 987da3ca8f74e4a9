"""A Chrome trace of the engine's steps (open it in ui.perfetto.dev or chrome://tracing)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specsim.simulator.replica import Replica
    from specsim.simulator.step_cost import Load

_THREADS = {"draft": 1, "pass": 2, "host": 3}


class StepLog:
    """Collects at most `limit` steps; later ones are counted, not kept."""

    def __init__(self, limit: int = 200_000) -> None:
        self.limit = limit
        self.dropped = 0
        self._events: list[dict[str, Any]] = []
        self._steps = 0

    def step(
        self, replica: Replica, k: Any, decode_tokens: int, prefill: Load | None,
        draft_s: float, pass_s: float, host_s: float,
    ) -> None:  # fmt: skip
        """One step that starts now: draft round, pass of the target, host time."""
        if self._steps >= self.limit:
            self.dropped += 1
            return
        self._steps += 1
        prompt_tokens = prefill.tokens if prefill is not None else 0
        decode = replica.batch.count
        kind = "verify" if decode_tokens > decode else "decode"
        name = kind if not prompt_tokens else ("prefill" if not decode else f"prefill + {kind}")
        detail = {
            "decoding": decode, "prompt_tokens": prompt_tokens, "tokens": decode_tokens,
            "num_draft_tokens": k if isinstance(k, int) else int(k.max(initial=0)),
            "kv_blocks": replica.pool.used, "waiting": len(replica.waiting),
        }  # fmt: skip
        at = replica.env.now
        for thread, label, seconds in (
            ("draft", "draft", draft_s), ("pass", name, pass_s), ("host", "host", host_s),
        ):  # fmt: skip
            if seconds > 0:
                self._events.append(
                    {"name": label, "cat": thread, "ph": "X", "ts": at * 1e6,
                     "dur": seconds * 1e6, "pid": replica.index, "tid": _THREADS[thread],
                     "args": detail}
                )  # fmt: skip
            at += seconds

    def write(self, path: str | Path) -> None:
        """The trace as JSON; times in microseconds of simulated time."""
        replicas = sorted({event["pid"] for event in self._events})
        names: list[dict[str, Any]] = []
        for pid in replicas:
            names.append(
                {"name": "process_name", "ph": "M", "pid": pid, "args": {"name": f"replica {pid}"}}
            )
            names += [
                {"name": "thread_name", "ph": "M", "pid": pid, "tid": tid, "args": {"name": label}}
                for label, tid in _THREADS.items()
            ]
        document = {"traceEvents": names + self._events, "displayTimeUnit": "ms"}
        Path(path).write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
