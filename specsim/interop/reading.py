"""Files of any kind as lines or documents, and checked numbers out of them."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from specsim.errors import RecordError

#: A longer line is no log line: it is read in pieces, so that memory stays bounded.
MAX_LINE_BYTES = 1 << 20
#: Documents (JSON) are parsed whole; beyond this a line-wise format is needed.
MAX_DOCUMENT_BYTES = 512 << 20
#: Largest count or time that is believed.
LARGEST = 1e15

#: Told the bytes read so far.
Progress = Callable[[int], None]


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


def may_be_json(line: str) -> bool:
    """Whether a first line begins a JSON document; a log line may begin with `[2026-…`."""
    return line[:1] == "{" or (line[:1] == "[" and line[1:].lstrip()[:1] in ("", "{", "[", "]"))


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
