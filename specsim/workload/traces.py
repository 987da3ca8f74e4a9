"""Request traces of real services: Azure, BurstGPT, Mooncake, Vidur and plain CSV.

A format is known by its columns, wherever they stand. Times come out in seconds from the
first request; docs/engine.md says where to get each trace.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from specsim.errors import RecordError
from specsim.workload.lengths import LONGEST

#: (time, prompt tokens, output tokens) columns of each CSV format, lower case.
CSV_FORMATS: dict[str, tuple[str, str, str]] = {
    "azure": ("timestamp", "contexttokens", "generatedtokens"),
    "burstgpt": ("timestamp", "request tokens", "response tokens"),
    "vidur": ("arrived_at", "num_prefill_tokens", "num_decode_tokens"),
    "plain": ("arrival_s", "prompt_tokens", "output_tokens"),
}
#: Tokens behind one of Mooncake's `hash_ids`.
MOONCAKE_BLOCK_TOKENS = 512

_STAMP = re.compile(r"(?P<whole>[^.]+?)(?P<fraction>\.\d+)?(?P<zone>Z|[+-]\d\d:\d\d)?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Columns of a trace; shapes (requests,). `prefixes[i]` names the blocks of
    `prefix_block_tokens` tokens that prompt i starts with (None: unknown)."""

    arrival_s: npt.NDArray[np.float64]
    prompt_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]
    prefixes: tuple[tuple[int, ...], ...] | None = None
    prefix_block_tokens: int = 0
    source: str = ""

    def __len__(self) -> int:
        return len(self.arrival_s)

    def window(self, start_s: float, end_s: float | None) -> Trace:
        """The requests that arrive in [start_s, end_s), their times counted from `start_s`.

        Raises:
            RecordError: if there are none.
        """
        keep = self.arrival_s >= start_s
        if end_s is not None:
            keep &= self.arrival_s < end_s
        if not keep.any():
            last = self.arrival_s[-1]
            raise RecordError(
                f"{self.source}: no request between {start_s} s and {end_s} s; "
                f"the trace ends at {last:.1f} s"
            )
        return self._pick(np.flatnonzero(keep), start_s)

    def first(self, count: int) -> Trace:
        """The first `count` requests."""
        return self._pick(np.arange(min(count, len(self))), 0.0)

    def _pick(self, index: npt.NDArray[np.intp], start_s: float) -> Trace:
        prefixes = self.prefixes
        return Trace(
            arrival_s=self.arrival_s[index] - start_s,
            prompt_tokens=self.prompt_tokens[index],
            output_tokens=self.output_tokens[index],
            prefixes=None if prefixes is None else tuple(prefixes[int(i)] for i in index),
            prefix_block_tokens=self.prefix_block_tokens,
            source=self.source,
        )


def read_trace(path: str | Path) -> Trace:
    """Read a trace; `.jsonl` is Mooncake's, anything else a CSV with a header.

    Requests without any output token (failed ones, in BurstGPT) are left out.

    Raises:
        RecordError: naming file, line and column, for a missing column, a value that is
            not a number, negative or unsorted times, lengths below 1, or an empty file.
    """
    path = Path(path)
    if path.suffix.lower() == ".jsonl":
        return _read_mooncake(path)
    return _read_csv(path)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from file
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not a UTF-8 text file ({error.reason})") from None


def _read_csv(path: Path) -> Trace:
    reader = csv.reader(_lines(path))
    try:
        return _csv_trace(path, reader)
    except csv.Error as error:
        raise RecordError(f"{path}, line {reader.line_num}: {error}") from None


def _csv_trace(path: Path, reader: Any) -> Trace:
    header = next(reader, None)
    if not header:
        raise RecordError(f"{path}: empty file; expected a header line")
    time_at, prompt_at, output_at = _columns(path, header)
    times: list[float] = []
    prompts: list[int] = []
    outputs: list[int] = []
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if not any(cell.strip() for cell in row):
            continue
        if len(row) <= max(time_at, prompt_at, output_at):
            raise RecordError(f"{where}: {len(row)} columns; expected {len(header)}")
        output = _count(row[output_at], header[output_at], where, least=0)
        if output == 0:
            continue
        times.append(_time(row[time_at], header[time_at], where))
        prompts.append(_count(row[prompt_at], header[prompt_at], where, least=1))
        outputs.append(output)
        _check_order(times, where)
    return _trace(path, times, prompts, outputs)


def _columns(path: Path, header: Sequence[str]) -> tuple[int, int, int]:
    """Where time, prompt and output tokens stand."""
    names = [name.strip().lower() for name in header]
    best: tuple[str, ...] = ()
    for columns in CSV_FORMATS.values():
        if all(name in names for name in columns):
            at = [names.index(name) for name in columns]
            return at[0], at[1], at[2]
        if sum(n in names for n in columns) > sum(n in names for n in best):
            best = columns
    if best:
        missing = next(name for name in best if name not in names)
        raise RecordError(f"{path}: column {missing!r} is missing; found {', '.join(header)}")
    known = "; ".join(",".join(columns) for columns in CSV_FORMATS.values())
    raise RecordError(f"{path}: columns {', '.join(header)}; expected one of {known}")


def _time(text: str, column: str, where: str) -> float:
    """Seconds: a number, or a date and time, in UTC where it names no zone."""
    text = text.strip()
    try:
        return _checked_time(float(text), column, where)
    except ValueError:
        pass
    found = _STAMP.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        stamp = datetime.fromisoformat(found["whole"] + (found["zone"] or "+00:00"))
        return (stamp - _EPOCH).total_seconds() + float(f"0{found['fraction'] or ''}")
    except ValueError:
        raise RecordError(
            f"{where}: {column} = {text!r}: expected seconds or YYYY-MM-DD hh:mm:ss.fff"
        ) from None


def _checked_time(seconds: float, column: str, where: str) -> float:
    if not (math.isfinite(seconds) and seconds >= 0):
        raise RecordError(f"{where}: {column} = {seconds}: expected a time >= 0")
    return seconds


def _count(text: object, column: str, where: str, *, least: int) -> int:
    try:
        value = float(str(text).strip())
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value == int(value) and least <= value <= LONGEST):
        raise RecordError(
            f"{where}: {column} = {text!r}: expected a whole number in {least}..{LONGEST}"
        )
    return int(value)


def _check_order(times: list[float], where: str) -> None:
    if len(times) > 1 and times[-1] < times[-2]:
        raise RecordError(
            f"{where}: time {times[-1]} s is before the previous request's {times[-2]} s; "
            "sort the trace by time"
        )


def _read_mooncake(path: Path) -> Trace:
    """One JSON object a line: timestamp in ms, input_length, output_length, hash_ids."""
    times: list[float] = []
    prompts: list[int] = []
    outputs: list[int] = []
    prefixes: list[tuple[int, ...]] = []
    for number, line in enumerate(_lines(path), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # (a number may have too many digits)
            raise RecordError(f"{where}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise RecordError(f"{where}: expected a JSON object, found {type(row).__name__}")
        for key in ("timestamp", "input_length", "output_length"):
            if key not in row:
                raise RecordError(f"{where}: key {key!r} is missing; found {', '.join(row)}")
        output = _count(row["output_length"], "output_length", where, least=0)
        if output == 0:
            continue
        times.append(_time(str(row["timestamp"]), "timestamp", where) * 1e-3)
        prompts.append(_count(row["input_length"], "input_length", where, least=1))
        outputs.append(output)
        prefixes.append(_hashes(row.get("hash_ids", []), where))
        _check_order(times, where)
    trace = _trace(path, times, prompts, outputs)
    return Trace(
        arrival_s=trace.arrival_s, prompt_tokens=trace.prompt_tokens,
        output_tokens=trace.output_tokens, prefixes=tuple(prefixes),
        prefix_block_tokens=MOONCAKE_BLOCK_TOKENS, source=str(path),
    )  # fmt: skip


def _hashes(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(x) is int for x in value):
        raise RecordError(f"{where}: hash_ids: expected a list of integers")
    return tuple(value)


def _trace(path: Path, times: list[float], prompts: list[int], outputs: list[int]) -> Trace:
    if not times:
        raise RecordError(f"{path}: no requests")
    arrival = np.asarray(times, dtype=float)
    return Trace(
        arrival_s=arrival - arrival[0], prompt_tokens=np.asarray(prompts, dtype=np.int64),
        output_tokens=np.asarray(outputs, dtype=np.int64), source=str(path),
    )  # fmt: skip
