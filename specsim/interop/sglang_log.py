"""SGLang server logs: `Decode batch` lines.

`accept len` is the acceptance length (bonus token included) since the line before; a line
comes every 40 decode steps (--decode-log-interval), so a line with R running requests rests
on about 40·R steps. `accept rate` has two meanings: until 2025 accept len over
num_draft_tokens (K + 1), since then correct over proposed drafts (K); which one holds
follows from the figures themselves. The `server_args=ServerArgs(…)` line of the start, where
the log still has it, gives K and the log interval.
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
DECODE, PREFILL, ARGUMENTS = "Decode batch", "Prefill batch", "ServerArgs("
#: SGLang's default --decode-log-interval, in decode steps.
LOG_INTERVAL = 40
#: More ranks than any deployment has.
MAX_RANKS = 65536

_RUNNING = re.compile(r"#running-req: ([^,\s]+)")
_TOKENS = re.compile(r"#(?:full )?token: ([^,\s]+)")
_LENGTH = re.compile(r"accept len: ([^,\s]+)")
_RATE = re.compile(r"accept rate: ([^,\s]+)")
_THROUGHPUT = re.compile(r"gen throughput \(token/s\): ([^,\s]+)")
#: `[2025-11-03 14:31:10 DP6 TP6 EP6]`, and the process where a launcher puts it before.
_RANK = re.compile(r"\d\d:\d\d:\d\d((?: [A-Z]+\d+)+)\]")
_PROCESS = re.compile(r"\bpid=(\d+)")
_ARGUMENT = re.compile(r"\b(speculative_num_steps|speculative_eagle_topk|speculative_adaptive|"
                       r"speculative_num_draft_tokens|decode_log_interval)=(\w+)")  # fmt: skip


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


def configured_k(steps: int | None, topk: int | None, verified: int | None) -> int | None:
    """K of SGLang's settings: the tokens verified less the root in a chain (DFLASH drafts its
    block in one step), the depth in a tree."""
    if topk is not None and topk > 1:
        return steps
    return steps if verified is None else verified - 1


@dataclasses.dataclass(slots=True)
class _Started:
    """What the server was started with, as far as the log says."""

    num_draft_tokens: int | None = None
    log_interval: int = LOG_INTERVAL
    interval_known: bool = False
    tree: str = ""

    def read(self, line: str) -> None:
        """A ServerArgs line."""
        values = {key: int(x[:6]) for key, x in _ARGUMENT.findall(line) if x.isdecimal()}
        adaptive = "speculative_adaptive=True" in line
        steps, topk = values.get("speculative_num_steps"), values.get("speculative_eagle_topk")
        verified = values.get("speculative_num_draft_tokens")
        k = configured_k(steps, topk, verified)
        if k is not None and 1 <= k <= MAX_POSITIONS and not adaptive:
            self.num_draft_tokens = k
        if topk is not None and topk > 1:
            self.tree = f"topk = {topk}, {verified} tokens verified"
        if interval := values.get("decode_log_interval"):
            self.log_interval, self.interval_known = interval, True


class _Times:
    """Step times, apart for intervals that may hold prefills: those are too long, and what
    comes before a server's first decode line includes idle time."""

    def __init__(self) -> None:
        self.clean, self.mixed = StepTimes(), StepTimes()
        self._prefilled: set[str] = set()
        self._decoded: set[str] = set()

    def prefill(self, line: str) -> None:
        """A prefill line."""
        if len(self._prefilled) < MAX_RANKS:
            self._prefilled.add(_rank(line))

    def into(self, line: str) -> StepTimes | None:
        """Where the interval of a decode line belongs; None at a server's first."""
        rank = _rank(line)
        first, alone = rank not in self._decoded, not self._decoded
        if len(self._decoded) < MAX_RANKS:
            self._decoded.add(rank)
        mixed = rank in self._prefilled
        self._prefilled.discard(rank)
        if first and (mixed or alone):
            return None
        return self.mixed if first or mixed else self.clean


def _rank(line: str) -> str:
    process, rank = _PROCESS.search(line), _RANK.search(line)
    return f"{process[1] if process else ''}{rank[1] if rank else ''}"


def read(path: Path, progress: Progress | None = None) -> Imported:
    """Read one log.

    Raises:
        RecordError: for impossible figures, or a file without decode lines.
    """
    notes, times, meaning, started = Notes(), _Times(), RateMeaning(), _Started()
    # K is known only at the end: windows are summed as if it were 0, then moved
    sums = Tally(0)
    contexts = [float("inf"), 0.0]
    decode_lines, last = 0, ""
    plain = 0
    for line_number, line in read_lines(path, progress):
        at = line.find(DECODE)
        if at < 0:
            if PREFILL in line:
                times.prefill(line)
            elif ARGUMENTS in line:
                started.read(line)
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
        group = times.into(line)
        if running < 1 or length == 0:  # 0 where no step was verified since the line before
            continue
        context = None if tokens is None else tokens / running
        if context is not None:
            contexts = [min(contexts[0], context), max(contexts[1], context)]
        steps = started.log_interval
        if length is None:
            plain += 1
        else:
            _add(sums, meaning, length, rate, steps * running, where)
        if group is not None and throughput > 0:
            tokens_per_step = (1.0 if length is None else length) * running
            k = 0 if length is None else -1
            group.add(k, running, tokens_per_step / throughput, steps, context)
    if not decode_lines:
        raise RecordError(f"{path}: no line with '{DECODE}'; expected the log of an SGLang server")
    chosen = times.clean
    if not times.clean.result() and times.mixed.result():
        chosen = times.mixed
        notes.add("prefills-in-steps", f"{path}: every interval may hold prefills; the step "
                  "times include them")  # fmt: skip
    return _finish(path, sums, meaning, started, chosen, contexts, plain, notes)


def _add(
    sums: Tally, meaning: RateMeaning, length: float, rate: float | None, steps: float, where: str
) -> None:
    number(length, where, "accept len", low=1.0, high=MAX_POSITIONS + 1)
    sums.add(steps=steps, drafted=0, accepted=(length - 1) * steps, emitted=length * steps)
    if rate is not None:
        number(rate, where, "accept rate", high=1.0)
        meaning.add(length, rate)


def _finish(
    path: Path, sums: Tally, meaning: RateMeaning, started: _Started, times: StepTimes,
    contexts: list[float], plain: int, notes: Notes,
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
    if started.num_draft_tokens is not None and length <= started.num_draft_tokens + 1:
        k = started.num_draft_tokens
        notes.add("k-from-arguments", f"{path}: K = {k} is what the server was started with")
        if started.tree:
            notes.add("tree-draft", f"{path}: drafts are trees ({started.tree}); K is their depth")
        return _counted(base, sums, k, started, times, notes)
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
    return _counted(base, sums, k, started, times, notes)


def _counted(
    base: dict[str, Any], sums: Tally, k: int, started: _Started, times: StepTimes, notes: Notes
) -> Imported:
    if not started.interval_known:
        notes.add(
            "assumed-log-interval",
            f"{base['file']}: step counts assume a line every {LOG_INTERVAL} decode steps",
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
