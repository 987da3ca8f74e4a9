"""How many tokens to draft in the next step: plain functions of the batch's state.

`Policy` is what a scenario asks for; `Controller` holds what one replica remembers
between steps (an estimate of acceptance, the present K) and calls the functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from specsim.simulator.roster import EMA_WEIGHT, Roster

Kind = Literal["off", "fixed", "batch-schedule", "goodput", "per-request", "adaptive"]
Schedule = Sequence[tuple[int, int, int]]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """`num_draft_tokens` is K of "fixed" and the largest K of the rest.

    schedule: rows (batch_lo, batch_hi, K) of "batch-schedule"; beyond the last row its K
        holds. Looked up on all scheduled requests, or on decoding ones only when
        `count_prefills` is false.
    threshold: "per-request" drafts while the estimated survival stays above it.
    candidates, up, down, interval, warmup: "adaptive" (SGLang's names and defaults).
    initial_share: estimated acceptance before anything was observed.
    """

    kind: Kind = "fixed"
    num_draft_tokens: int = 0
    schedule: tuple[tuple[int, int, int], ...] = ()
    count_prefills: bool = True
    threshold: float = 0.3
    candidates: tuple[int, ...] = (1, 3, 7)
    up: float = 0.0
    down: float = -0.25
    interval: int = 5
    warmup: int = 10
    initial_share: float = 0.7
    switch_s: float = 0.0

    def __post_init__(self) -> None:
        if self.num_draft_tokens < 0:
            raise ValueError(f"num_draft_tokens={self.num_draft_tokens} < 0")
        if self.kind == "batch-schedule" and not self.schedule:
            raise ValueError("policy 'batch-schedule' needs a schedule")
        if self.kind == "adaptive" and not self.candidates:
            raise ValueError("policy 'adaptive' needs candidates")

    @property
    def largest(self) -> int:
        """The largest K that may be scheduled: what lookahead slots are reserved for."""
        if self.kind == "off":
            return 0
        if self.kind == "batch-schedule":
            return max(k for _, _, k in self.schedule)
        if self.kind == "adaptive":
            return max(self.candidates)
        return self.num_draft_tokens

    @property
    def constant(self) -> int | None:
        """K, where it never changes."""
        return self.largest if self.kind in ("off", "fixed") else None


def scheduled_k(schedule: Schedule, batch: int) -> int:
    """K of the row that holds `batch`; of the last row beyond it."""
    for low, high, k in schedule:
        if low <= batch <= high:
            return k
    return schedule[-1][2] if batch > schedule[-1][1] else schedule[0][2]


def clamped_k(num_draft_tokens: int, batch: int, max_tokens: int) -> int:
    """K cut so that batch · (K + 1) tokens fit the engine's token budget."""
    return max(0, min(num_draft_tokens, max_tokens // max(batch, 1) - 1))


def goodput_k(share: float, largest: int, step_s: Callable[[int], float]) -> int:
    """K = 0..largest with the most expected tokens per second (SmartSpec, TurboSpec).

    A step at K emits (1 − α^{K+1})/(1 − α) tokens in `step_s(K)` seconds, with α the
    estimated acceptance `share`; the smallest such K on a tie.
    """
    best_k, best_rate = 0, 1.0 / step_s(0)
    emitted, survival = 1.0, 1.0
    for k in range(1, largest + 1):
        survival *= share
        emitted += survival
        rate = emitted / step_s(k)
        if rate > best_rate * (1 + 1e-12):
            best_k, best_rate = k, rate
    return best_k


def confident_k(
    share: npt.NDArray[np.float64], threshold: float, largest: int
) -> npt.NDArray[np.int64]:
    """Per sequence, the K ≥ 1 up to which estimated survival α^K stays at or above
    `threshold`; a sequence that accepts everything drafts `largest`."""
    certain = np.clip(share, 1e-6, 1 - 1e-6)
    depth = np.floor(np.log(threshold) / np.log(certain))
    return np.asarray(np.clip(depth, 1, largest), dtype=np.int64)


def adapted_k(
    current: int, accepted: float, candidates: Sequence[int], up: float, down: float
) -> int:
    """The next candidate K given the moving average of accepted tokens per step.

    As SGLang's adaptive steps: up when the average comes within half a token of the
    present K (plus `up`), down when it falls to the next smaller K plus a half plus
    `down`; one candidate at a time, so that the two thresholds leave a gap (hysteresis).
    """
    ladder = sorted(candidates)
    at = ladder.index(current)
    if at + 1 < len(ladder) and accepted > current - 0.5 + up:
        return ladder[at + 1]
    if at > 0 and accepted <= ladder[at - 1] + 0.5 + down:
        return ladder[at - 1]
    return current


class Controller:
    """One replica's memory between steps for a policy whose K varies."""

    def __init__(self, policy: Policy, max_tokens: int) -> None:
        self.policy = policy
        self.share = policy.initial_share
        self._max_tokens = max_tokens
        self._accepted_ema = float(min(policy.candidates)) if policy.candidates else 0.0
        self._current = min(policy.candidates) if policy.candidates else 0
        self._observed = 0
        self._goodput_at: tuple[int, int] = (-1, 0)
        self._goodput_k = 0

    def choose(
        self, roster: Roster, num_scheduled: int, step_s: Callable[[int], float]
    ) -> int | npt.NDArray[np.int64]:
        """K of the next step: one number, or one per sequence ("per-request").
        `num_scheduled` is what a schedule is looked up with."""
        policy, batch = self.policy, roster.count
        if policy.kind == "batch-schedule":
            return clamped_k(scheduled_k(policy.schedule, num_scheduled), batch, self._max_tokens)
        largest = clamped_k(policy.largest, batch, self._max_tokens)
        if policy.kind == "goodput":
            # looked at again when the batch changes, and every 16 steps
            now = (batch, self._observed >> 4)
            if now != self._goodput_at:
                self._goodput_k = goodput_k(self.share, largest, step_s)
                self._goodput_at = now
            return self._goodput_k
        if policy.kind == "per-request":
            if largest == 0:
                return 0
            return confident_k(roster.ema, policy.threshold, largest)
        return min(self._current, largest)

    def observe(self, roster: Roster, num_draft_tokens: Any) -> None:
        """Update the estimates from the step just run (`roster.last_accepted`)."""
        accepted = roster.last_accepted
        self._observed += 1
        if not np.any(num_draft_tokens):
            return  # nothing was drafted, nothing was learnt
        looked = int(np.sum(accepted + (accepted < num_draft_tokens)))
        if looked:
            weight = EMA_WEIGHT / 10  # steps of a batch come faster than a request's
            self.share += weight * (int(accepted.sum()) / looked - self.share)
        policy = self.policy
        if policy.kind == "adaptive":
            self._accepted_ema += EMA_WEIGHT * (float(accepted.mean()) - self._accepted_ema)
            due = self._observed > policy.warmup and self._observed % policy.interval == 0
            if due:
                self._current = adapted_k(
                    self._current, self._accepted_ema, policy.candidates, policy.up, policy.down
                )
