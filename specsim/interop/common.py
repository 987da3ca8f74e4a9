"""What every importer shares: lines of any file, checked numbers, counts as running sums.

An importer turns one foreign file into an `Imported`: acceptance counts per K, step
times, and notes about what the file cannot tell. Memory does not grow with the file.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from specsim.errors import RecordError

#: A longer line is no log line: it is read in pieces, so that memory stays bounded.
MAX_LINE_BYTES = 1 << 20
#: Documents (JSON) are parsed whole; beyond this a line-wise format is needed.
MAX_DOCUMENT_BYTES = 512 << 20
#: Largest count or time that is believed.
LARGEST = 1e15
#: Largest K that an engine may report.
MAX_POSITIONS = 64
#: Distinct (K, batch) pairs of step times that are kept apart.
MAX_STEP_GROUPS = 2048

Progress = Callable[[int], None]


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
        weight: float = 1.0, context: float | None = None,
    ) -> None:  # fmt: skip
        """`weight` steps that took `seconds` each on average."""
        if not (math.isfinite(seconds) and 0 < seconds < 1e6 and weight > 0):
            return
        key = (num_draft_tokens, batch)
        if key not in self._groups and len(self._groups) >= MAX_STEP_GROUPS:
            return
        group = self._groups.setdefault(key, [0.0] * 6)
        for i, value in enumerate((1.0, weight, weight * seconds, weight * seconds**2)):
            group[i] += value
        if context is not None:
            group[4] += weight * context
            group[5] += weight

    def result(self) -> tuple[StepTime, ...]:
        """One row per (K, batch)."""
        rows = []
        for (k, batch), (windows, weight, total, squares, context, known) in self._groups.items():
            mean = total / weight
            spread = math.sqrt(max(0.0, squares / weight - mean**2))
            rows.append(
                StepTime(
                    num_draft_tokens=k,
                    batch=batch,
                    seconds=mean,
                    num_steps=int(weight),
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


def open_binary(path: Path) -> IO[bytes]:
    """The file's bytes; `.gz` files are unpacked on the way.

    Raises:
        RecordError: if it cannot be opened.
    """
    try:
        if path.is_dir():
            raise RecordError(f"{path}: is a folder; expected a file")
        if path.suffix.lower() == ".gz":
            return gzip.open(path, "rb")  # type: ignore[return-value]
        return path.open("rb")
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from None


def encoding_of(head: bytes) -> str:
    """By byte-order mark, or by where the zero bytes of ASCII in UTF-16 stand."""
    if head.startswith(b"\xff\xfe"):
        return "utf-16-le"
    if head.startswith(b"\xfe\xff"):
        return "utf-16-be"
    if head[1:200:2].count(0) > 20 and head[0:200:2].count(0) < 5:
        return "utf-16-le"
    if head[0:200:2].count(0) > 20 and head[1:200:2].count(0) < 5:
        return "utf-16-be"
    return "utf-8"


def read_lines(path: Path, progress: Progress | None = None) -> Iterator[tuple[int, str]]:
    """(line number, text without line end) of a text file, streamed.

    UTF-8 and UTF-16, with or without byte-order mark; bytes that are neither become
    U+FFFD, which no pattern matches. A line longer than `MAX_LINE_BYTES` comes in pieces.
    `progress` is told the bytes read so far.
    """
    with open_binary(path) as file:
        try:
            encoding = encoding_of(file.read(256))
            file.seek(0)
            newline = "\n".encode(encoding)
            done = 0
            for number, raw in enumerate(_raw_lines(file, newline), start=1):
                done += len(raw)
                if progress is not None and number % 2048 == 0:
                    progress(done)
                yield number, raw.decode(encoding, "replace").strip("\ufeff\r\n\x00 ")
            if progress is not None:
                progress(done)
        except (OSError, EOFError, gzip.zlib.error) as error:  # type: ignore[attr-defined]
            raise RecordError(f"{path}: cannot be read ({error})") from None


def _raw_lines(file: IO[bytes], newline: bytes) -> Iterator[bytes]:
    if newline == b"\n":
        while line := file.readline(MAX_LINE_BYTES):
            yield line
        return
    buffer, width = b"", len(newline)
    while chunk := file.read(1 << 16):
        buffer += chunk
        start = 0
        while True:
            at = buffer.find(newline, start)
            while at >= 0 and at % width:  # half of one character and half of the next
                at = buffer.find(newline, at + 1)
            if at < 0:
                break
            yield buffer[start : at + width]
            start = at + width
        buffer = buffer[start:]
        if len(buffer) > MAX_LINE_BYTES:
            yield buffer
            buffer = b""
    if buffer:
        yield buffer


def read_document(path: Path) -> str:
    """The whole text of a document (JSON).

    Raises:
        RecordError: if it cannot be read or is too large to be parsed whole.
    """
    with open_binary(path) as file:
        try:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
        except (OSError, EOFError, gzip.zlib.error) as error:  # type: ignore[attr-defined]
            raise RecordError(f"{path}: cannot be read ({error})") from None
    if len(data) > MAX_DOCUMENT_BYTES:
        raise RecordError(f"{path}: a JSON document above {MAX_DOCUMENT_BYTES >> 20} MiB")
    text = data.decode(encoding_of(data[:256]), "replace").strip("\ufeff\x00 \r\n\t")
    if not text:
        raise RecordError(f"{path}: empty file")
    return text


def parse_json(text: str, where: str) -> Any:
    """Raises RecordError instead of the parser's own errors."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: not JSON ({error})") from None


def number(value: Any, where: str, key: str, *, low: float = 0.0, high: float = LARGEST) -> float:
    """`value` as a float in [low, high].

    Raises:
        RecordError: naming place, key, value and what was expected.
    """
    result = math.nan
    if not isinstance(value, bool) and isinstance(value, (int, float, str)):
        try:
            result = float(value)
        except (ValueError, OverflowError):
            result = math.nan
    if not low <= result <= high:
        upper = "" if high >= LARGEST else f" and <= {high:g}"
        shown = str(value) if len(str(value)[:80]) < 60 else str(value)[:57] + "..."
        raise RecordError(f"{where}: {key} = {shown}: expected a number >= {low:g}{upper}")
    return result


def section(value: Any, where: str, key: str) -> Mapping[str, Any]:
    """`value` as a JSON object.

    Raises:
        RecordError: if it is something else.
    """
    if not isinstance(value, Mapping):
        raise RecordError(f"{where}: {key}: expected an object, found {type(value).__name__}")
    return value


def check_survival(values: Sequence[float], where: str, *, slack: float = 0.002) -> list[float]:
    """Survival by position: within [0, 1] and not rising (rounding apart).

    Raises:
        RecordError: naming the position.
    """
    checked: list[float] = []
    for i, value in enumerate(values):
        value = number(value, where, f"per-position acceptance, position {i}", high=1.0)
        if checked and value > checked[-1] + slack:
            raise RecordError(
                f"{where}: per-position acceptance rises from {checked[-1]:g} to {value:g} at "
                f"position {i}: expected P(at least i accepted), which cannot rise"
            )
        checked.append(min(value, checked[-1]) if checked else value)
    return checked
