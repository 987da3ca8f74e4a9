"""Measurement records: three versioned JSON Lines schemas.

They are the only contract between the real decoder (`reference`), the simulator,
foreign engines' results and `specsim.fitting`. A file holds one schema: its first line
is a header, every further line one record. Times are seconds, measured with a
monotonic clock (CUDA events on a GPU).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any, ClassVar, TypeVar

from specsim.errors import RecordError

SCHEMA_VERSION = 1


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """First line of a record file: what was measured, where and with what."""

    schema: str  # "step", "forward" or "request"
    device: str = ""
    dtype: str = ""
    threads: int = 0
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)  # target, draft, method, domain, …
    version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """One draft–verify–accept step of one request (a batch gives one record per row).

    `draft_s`, `verify_s`, `sample_s` and `host_s` are the time of the step, shared by
    all rows of its batch. `overlap` is 1 − TV(p, q) at each drafted position, where q
    is known. `position` counts the output tokens emitted before the step.
    """

    SCHEMA: ClassVar[str] = "step"
    request: str
    step: int
    position: int
    batch: int
    context: int
    num_draft_tokens: int  # K, what was asked for
    num_drafted: int  # what was proposed, 0..K
    num_accepted: int  # 0..num_drafted
    draft_s: float
    verify_s: float
    sample_s: float
    host_s: float
    overlap: tuple[float, ...] | None = None
    method: str = ""
    domain: str = ""
    temperature: float = 0.0

    def __post_init__(self) -> None:
        _require(self.num_draft_tokens >= 0, f"num_draft_tokens={self.num_draft_tokens} < 0")
        _require(
            0 <= self.num_accepted <= self.num_drafted <= self.num_draft_tokens,
            f"0 <= num_accepted={self.num_accepted} <= num_drafted={self.num_drafted} "
            f"<= num_draft_tokens={self.num_draft_tokens} does not hold",
        )
        for name in ("draft_s", "verify_s", "sample_s", "host_s"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, f"{name}={value} is not a time >= 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardRecord:
    """Time of one forward pass T(batch, new_tokens, context): median over `repeats`.

    `spread` is the interquartile range over the repeats, in seconds.
    """

    SCHEMA: ClassVar[str] = "forward"
    model: str
    batch: int
    new_tokens: int
    context: int
    seconds: float
    repeats: int
    spread: float

    def __post_init__(self) -> None:
        _require(self.batch >= 1, f"batch={self.batch} < 1")
        _require(self.new_tokens >= 1, f"new_tokens={self.new_tokens} < 1")
        _require(self.context >= 0, f"context={self.context} < 0")
        _require(
            math.isfinite(self.seconds) and self.seconds > 0,
            f"seconds={self.seconds} is not a time > 0",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestRecord:
    """One served request: when it arrived and when each chunk of tokens was delivered.

    A speculative step delivers several tokens at once: `chunk_tokens[i]` tokens at
    `chunk_times_s[i]`, on the clock of `arrival_s`.
    """

    SCHEMA: ClassVar[str] = "request"
    request: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    chunk_times_s: tuple[float, ...]
    chunk_tokens: tuple[int, ...]
    traffic_class: str = ""
    num_preemptions: int = 0
    failed: bool = False

    def __post_init__(self) -> None:
        _require(
            len(self.chunk_times_s) == len(self.chunk_tokens),
            f"{len(self.chunk_times_s)} chunk_times_s but {len(self.chunk_tokens)} chunk_tokens",
        )
        if not self.failed:
            _require(
                sum(self.chunk_tokens) == self.output_tokens,
                f"chunk_tokens sum to {sum(self.chunk_tokens)}, output_tokens={self.output_tokens}",
            )
        previous = self.arrival_s
        for time_s in self.chunk_times_s:
            _require(time_s >= previous, f"chunk at {time_s} s before {previous} s")
            previous = time_s


Record = StepRecord | ForwardRecord | RequestRecord
R = TypeVar("R", StepRecord, ForwardRecord, RequestRecord)
_SCHEMAS: dict[str, type[Record]] = {
    cls.SCHEMA: cls for cls in (StepRecord, ForwardRecord, RequestRecord)
}


class RecordWriter:
    """Appends records to a JSON Lines file, one flushed line at a time.

    A run that is interrupted loses at most the record being written; opening the file
    again with `resume=True` drops a half-written last line and goes on after it.

    Raises:
        RecordError: when resuming a file whose header differs.
        FileExistsError: when the file exists and `resume` is false.
    """

    def __init__(self, path: str | Path, header: Header, *, resume: bool = False) -> None:
        self.path = Path(path)
        self.num_existing = 0
        if self.path.exists() and resume and self.path.stat().st_size > 0:
            _drop_partial_line(self.path)
        if self.path.exists() and self.path.stat().st_size > 0:
            if not resume:
                raise FileExistsError(f"{self.path} exists; resume it or choose another name")
            existing, records = read_records(self.path)
            if asdict(existing) != asdict(header):
                raise RecordError(f"{self.path}: header differs from this run's; not resumed")
            self.num_existing = sum(1 for _ in records)
            self._file: IO[str] = self.path.open("a", encoding="utf-8")
        else:
            self._file = self.path.open("w", encoding="utf-8")
            self._line(asdict(header))

    def _line(self, value: dict[str, Any]) -> None:
        self._file.write(json.dumps(value, allow_nan=False) + "\n")
        self._file.flush()

    def write(self, record: Record) -> None:
        """Append one record as one complete line."""
        self._line(asdict(record))

    def close(self) -> None:
        """Sync to disk and close."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _drop_partial_line(path: Path) -> None:
    """Cut a file after its last newline (an interrupted run's half line)."""
    with path.open("rb+") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)


def write_records(path: str | Path, header: Header, records: Iterable[Record]) -> None:
    """Write a whole record file; an existing one is replaced atomically."""
    path = Path(path)
    temporary = path.with_name(path.name + ".partial")
    temporary.unlink(missing_ok=True)
    with RecordWriter(temporary, header) as writer:
        for record in records:
            writer.write(record)
    temporary.replace(path)


def _parse(cls: type[Any], value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise RecordError(f"{where}: expected a JSON object, found {type(value).__name__}")
    known = {f.name: f for f in fields(cls)}
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise RecordError(f"{where}: unknown key {unknown[0]!r}; expected {', '.join(known)}")
    converted = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
    try:
        return cls(**converted)
    except (TypeError, ValueError) as error:
        message = str(error).replace("__init__() ", "")
        raise RecordError(f"{where}: {message}") from None


def read_records(path: str | Path) -> tuple[Header, Iterator[Record]]:
    """Open a record file: its header, and an iterator over its records (streamed).

    Raises:
        RecordError: naming file, line and key, for anything that is not a record file.
    """
    path = Path(path)
    lines = _numbered_lines(path)
    first = next(lines, None)
    if first is None:
        raise RecordError(f"{path}: empty file; expected a header line")
    header: Header = _parse(Header, first[1], f"{path}, line 1")
    if header.schema not in _SCHEMAS:
        raise RecordError(
            f"{path}, line 1: schema {header.schema!r}; expected one of {', '.join(_SCHEMAS)}"
        )
    if header.version != SCHEMA_VERSION:
        raise RecordError(f"{path}, line 1: version {header.version}; expected {SCHEMA_VERSION}")
    cls = _SCHEMAS[header.schema]
    return header, (_parse(cls, value, f"{path}, line {number}") for number, value in lines)


def read_all(path: str | Path, cls: type[R]) -> tuple[Header, list[R]]:
    """Read a record file that must hold records of type `cls`.

    Raises:
        RecordError: also when the file holds another schema.
    """
    header, records = read_records(path)
    if header.schema != cls.SCHEMA:
        raise RecordError(f"{path}: holds {header.schema!r} records; expected {cls.SCHEMA!r}")
    return header, [record for record in records if isinstance(record, cls)]


def _numbered_lines(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    yield number, json.loads(line)
                except (json.JSONDecodeError, RecursionError) as error:
                    raise RecordError(f"{path}, line {number}: not JSON ({error})") from None
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise RecordError(f"{path}: not a UTF-8 text file ({error})") from None
