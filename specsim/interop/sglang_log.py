"""SGLang server logs: `Decode batch` lines.

`accept len` is the acceptance length (bonus token included) since the line before; a line
comes every 40 decode steps (--decode-log-interval), so a line with R running requests rests
on about 40·R steps. `accept rate` has two meanings: until 2025 accept len over
num_draft_tokens (K + 1), since then correct over proposed drafts (K); which one holds
follows from the figures themselves.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from specsim.errors import RecordError
from specsim.interop.common import (
    MAX_POSITIONS,
    Imported,
    MeanLength,
    Notes,
    StepTime,
    StepTimes,
    Tally,
)
from specsim.interop.reading import Progress, number, read_lines

FORMAT = "sglang-log"
DECODE = "Decode batch"
#: SGLang's default --decode-log-interval, in decode steps.
LOG_INTERVAL = 40

_RUNNING = re.compile(r"#running-req: ([^,\s]+)")
_TOKENS = re.compile(r"#(?:full )?token: ([^,\s]+)")
_LENGTH = re.compile(r"accept len: ([^,\s]+)")
_RATE = re.compile(r"accept rate: ([^,\s]+)")
_THROUGHPUT = re.compile(r"gen throughput \(token/s\): ([^,\s]+)")


class RateMeaning:
    """Tells the two meanings of accept rate apart, in constant memory.

    For each candidate K both meanings predict rate from length; what is kept is the sum of
    squared misses in units of the printed rounding.
    """

    def __init__(self) -> None:
        self.old = [0.0] * (MAX_POSITIONS + 1)
        self.new = [0.0] * (MAX_POSITIONS + 1)
        self.count = 0

    def add(self, length: float, rate: float, rounding: float = 0.005) -> None:
        """One printed pair."""
        self.count += 1
        for k in range(1, MAX_POSITIONS + 1):
            for misses, expected, slope in (
                (self.old, length / (k + 1), 1 / (k + 1)), (self.new, (length - 1) / k, 1 / k),
            ):  # fmt: skip
                allowed = rounding * (1 + slope) + 1e-9
                misses[k] += (max(0.0, abs(rate - expected) - allowed) / rounding) ** 2

    def best(self) -> tuple[str, int, bool]:
        """("old" or "new", K, whether the figures agree with it within rounding)."""
        candidates = [("new", k, m) for k, m in enumerate(self.new) if k]
        candidates += [("old", k, m) for k, m in enumerate(self.old) if k]
        meaning, k, miss = min(candidates, key=lambda c: (c[2], c[1]))
        return meaning, k, miss <= 2.0 * self.count


def read(path: Path, progress: Progress | None = None) -> Imported:
    """Read one log.

    Raises:
        RecordError: for impossible figures, or a file without decode lines.
    """
    notes, times, meaning = Notes(), StepTimes(), RateMeaning()
    # K is known only at the end: windows are summed as if it were 0, then moved
    sums = Tally(0)
    contexts = [float("inf"), 0.0]
    decode_lines, last = 0, ""
    plain = 0
    for line_number, line in read_lines(path, progress):
        at = line.find(DECODE)
        if at < 0:
            continue
        if line == last:
            notes.add("duplicate-lines", f"{path}, line {line_number} repeats the one before it")
            continue
        last = line
        where = f"{path}, line {line_number}"
        fields = [
            None if (found := pattern.search(line, at)) is None else number(found[1], where, key)
            for key, pattern in (
                ("#running-req", _RUNNING), ("#token", _TOKENS), ("accept len", _LENGTH),
                ("accept rate", _RATE), ("gen throughput", _THROUGHPUT),
            )
        ]  # fmt: skip
        running, tokens, length, rate, throughput = fields
        if running is None or throughput is None:
            notes.add("incomplete-lines", f"{where} is cut short; left out")
            continue
        decode_lines += 1
        if running < 1:
            continue
        context = None if tokens is None else tokens / running
        if context is not None:
            contexts = [min(contexts[0], context), max(contexts[1], context)]
        if length is None:
            plain += 1
        else:
            _add(sums, meaning, length, rate, running, where)
        # the first line's throughput covers the idle time before it
        if decode_lines > 1 and throughput > 0:
            tokens_per_step = (1.0 if length is None else length) * running
            k = 0 if length is None else -1
            times.add(k, running, tokens_per_step / throughput, LOG_INTERVAL, context)
    if not decode_lines:
        raise RecordError(f"{path}: no line with '{DECODE}'; expected the log of an SGLang server")
    return _finish(path, sums, meaning, times, contexts, plain, notes)


def _add(
    sums: Tally, meaning: RateMeaning, length: float, rate: float | None, running: float, where: str
) -> None:
    number(length, where, "accept len", low=1.0, high=MAX_POSITIONS + 1)
    steps = LOG_INTERVAL * running
    sums.add(steps=steps, drafted=0, accepted=(length - 1) * steps, emitted=length * steps)
    if rate is not None:
        number(rate, where, "accept rate", high=1.0)
        meaning.add(length, rate)


def _finish(
    path: Path, sums: Tally, meaning: RateMeaning, times: StepTimes, contexts: list[float],
    plain: int, notes: Notes,
) -> Imported:  # fmt: skip
    context = (contexts[0], contexts[1]) if contexts[0] <= contexts[1] else None
    base: dict[str, Any] = {"file": str(path), "format": FORMAT, "context": context}
    if not sums.windows:
        notes.add(
            "no-speculation",
            f"{path}: {plain} decode lines without accept len; step times without speculation",
        )
        return Imported(**base, steps=times.result(), notes=notes.result())
    if plain:
        notes.add("mixed-speculation", f"{path}: {plain} decode lines without accept len")
    length = 1 + sums.total[Tally.ACCEPTED] / sums.steps
    if not meaning.count:
        notes.add("unknown-k", f"{path}: no accept rate, so K is not known; say --k")
        lengths = (MeanLength(acceptance_length=float(length), num_draft_tokens=None),)
        return Imported(**base, lengths=lengths, notes=notes.result())
    name, k, agrees = meaning.best()
    k = max(k, int(length - 1e-9))
    shown = "accept len over K + 1 (old)" if name == "old" else "correct over proposed (new)"
    if agrees:
        notes.add("accept-rate-meaning", f"{path}: accept rate is {shown}, so K = {k}")
    else:
        notes.add(
            "ambiguous-accept-rate",
            f"{path}: accept len and accept rate fit no K; nearest is {shown} with K = {k}; "
            "say --k if that is wrong",
        )
    notes.add(
        "assumed-log-interval",
        f"{path}: step counts assume a line every {LOG_INTERVAL} decode steps",
    )
    return Imported(
        **base,
        tallies=(rekeyed(sums, k),),
        steps=with_k(times, k),
        notes=notes.result(),
    )


def rekeyed(sums: Tally, k: int) -> Tally:
    """Sums taken before K was known, as a tally of K without positions."""
    tally = Tally(k)
    size = Tally.POSITIONS
    tally.windows, tally.positions_known = sums.windows, False
    tally.total[:size], tally.outer[:size, :size] = sums.total[:size], sums.outer[:size, :size]
    tally.total[Tally.DRAFTED] = k * sums.steps
    return tally


def with_k(times: StepTimes, k: int) -> tuple[StepTime, ...]:
    """Step times with the placeholder −1 replaced by K."""
    return tuple(
        dataclasses.replace(t, num_draft_tokens=k) if t.num_draft_tokens == -1 else t
        for t in times.result()
    )
