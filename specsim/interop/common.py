"""What every importer gives: counts as running sums, step times, notes.

An importer turns one foreign file into an `Imported`: acceptance counts per K, step
times, and notes about what the file cannot tell. Memory does not grow with the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

#: Largest K that an engine may report.
MAX_POSITIONS = 64
#: Distinct (K, batch) pairs of step times that are kept apart.
MAX_STEP_GROUPS = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """One warning about an import: a code and a sentence."""

    code: str
    message: str


class Notes:
    """Warnings that may occur on many lines: each code once, with its first line and a count."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._count: dict[str, int] = {}

    def add(self, code: str, message: str) -> None:
        """One more occurrence."""
        self._first.setdefault(code, message)
        self._count[code] = self._count.get(code, 0) + 1

    def result(self) -> tuple[Note, ...]:
        """In order of first occurrence."""
        return tuple(
            Note(
                code=code, message=text + (f" ({n} times)" if (n := self._count[code]) > 1 else "")
            )
            for code, text in self._first.items()
        )


class Tally:
    """Acceptance counts of steps that drafted up to K tokens, summed over windows.

    A window is what one line or request reports. Kept are Σx and Σx·xᵀ of its row
    x = (steps, drafted, accepted, emitted, at least 1 accepted, …, at least K accepted), which
    is all that a ratio estimator's standard error needs.
    """

    STEPS, DRAFTED, ACCEPTED, EMITTED, POSITIONS = 0, 1, 2, 3, 4

    def __init__(self, num_draft_tokens: int) -> None:
        self.num_draft_tokens = num_draft_tokens
        size = self.POSITIONS + num_draft_tokens
        self.windows = 0
        self.total = np.zeros(size)
        self.outer = np.zeros((size, size))
        self.positions_known = True
        self.emitted_known = True
        #: True where a window is one request, so that errors are clustered by request.
        self.by_request = False
        #: False where a step that drafted nothing is missing from `steps`.
        self.counts_all_steps = True

    def add(
        self, *, steps: float, drafted: float, accepted: float,
        at_least: Sequence[float] | None = None, emitted: float | None = None,
    ) -> None:  # fmt: skip
        """One window."""
        row = np.zeros_like(self.total)
        row[:4] = (steps, drafted, accepted, emitted or 0.0)
        if at_least is None:
            self.positions_known = False
        else:
            row[self.POSITIONS : self.POSITIONS + len(at_least)] = at_least
        self.emitted_known &= emitted is not None
        self.windows += 1
        self.total += row
        self.outer += np.outer(row, row)

    @property
    def steps(self) -> float:
        """Steps in all."""
        return float(self.total[self.STEPS])


class StepTimes:
    """Step times by (K, batch): weighted count, sum, sum of squares of seconds."""

    def __init__(self) -> None:
        self._groups: dict[tuple[int | None, float | None], list[float]] = {}

    def add(
        self, num_draft_tokens: int | None, batch: float | None, seconds: float,
        weight: float = 1.0, context: float | None = None, *, counted: bool = True,
    ) -> None:  # fmt: skip
        """`weight` steps that took `seconds` each on average.

        Args:
            counted: false where the weight is not the number of steps, which nobody told.
        """
        if not (math.isfinite(seconds) and 0 < seconds < 1e6 and weight > 0):
            return
        key = (num_draft_tokens, batch)
        if key not in self._groups and len(self._groups) >= MAX_STEP_GROUPS:
            return
        group = self._groups.setdefault(key, [0.0] * 7)
        for i, value in enumerate((1.0, weight, weight * seconds, weight * seconds**2)):
            group[i] += value
        if context is not None:
            group[4] += weight * context
            group[5] += weight
        group[6] += not counted

    def result(self) -> tuple[StepTime, ...]:
        """One row per (K, batch)."""
        rows = []
        for (k, batch), group in self._groups.items():
            windows, weight, total, squares, context, known, guessed = group
            mean = total / weight
            spread = math.sqrt(max(0.0, squares / weight - mean**2))
            rows.append(
                StepTime(
                    num_draft_tokens=k,
                    batch=batch,
                    seconds=mean,
                    num_steps=None if guessed else int(weight),
                    context=context / known if known else None,
                    standard_error=spread / math.sqrt(windows - 1) if windows > 1 else None,
                )
            )
        return tuple(sorted(rows, key=lambda r: (r.num_draft_tokens or 0, r.batch or 0.0)))


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Mean time of whole decoding steps; None where the source does not say."""

    num_draft_tokens: int | None
    batch: float | None
    seconds: float
    num_steps: int | None = None
    context: float | None = None
    standard_error: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanLength:
    """An acceptance length without counts behind it (gauges, server info)."""

    acceptance_length: float
    num_draft_tokens: int | None


@dataclass(frozen=True, kw_only=True)
class Imported:
    """One file, read."""

    file: str
    format: str
    tallies: tuple[Tally, ...] = ()
    lengths: tuple[MeanLength, ...] = ()
    steps: tuple[StepTime, ...] = ()
    context: tuple[float, float] | None = None
    device: str = ""
    notes: tuple[Note, ...] = field(default_factory=tuple)


class TallyByK(dict[int, Tally]):
    """Tallies by K, made when first needed."""

    def of(self, num_draft_tokens: int) -> Tally:
        """The tally of K."""
        if num_draft_tokens not in self:
            self[num_draft_tokens] = Tally(num_draft_tokens)
        return self[num_draft_tokens]
