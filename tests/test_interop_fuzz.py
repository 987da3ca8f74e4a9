"""Every importer under hypothesis: damaged files give a clear error or a named warning,
never a traceback, never a silent zero."""

from __future__ import annotations

import math
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specsim.errors import SpecsimError
from specsim.fitting import fit_files
from specsim.fitting.files import Options
from specsim.interop.common import Tally
from specsim.interop.detect import read_file

FIXTURES = Path(__file__).parent / "fixtures" / "interop"
FILES = sorted(p.name for p in FIXTURES.iterdir())
NUMBER = re.compile(rb"-?\d+\.?\d*(?:[eE][+-]?\d+)?")
ENCODINGS = ["utf-16", "utf-16-be", "latin-1", "utf-32"]
STRANGE = [b"1e400", b"-1", b"nan", b"inf", b"9" * 400, b"0", b"", b"1.5", b"0x10", b"1,000",
           b"null", b"true", b"[]", b"{}", b'"x"', b"1e15", b"-0.0"]  # fmt: skip


@st.composite
def damage(draw: st.DrawFn) -> list[tuple[str, object]]:
    """A few edits, applied in order."""
    kinds = ["truncate", "shuffle", "duplicate", "drop", "foreign", "number", "crlf", "bom",
             "encode", "garbage"]  # fmt: skip
    edits: list[tuple[str, object]] = []
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=4)):
        if kind == "number":
            edits.append((kind, (draw(st.floats(0, 1)), draw(st.sampled_from(STRANGE)))))
        elif kind == "foreign":
            edits.append((kind, (draw(st.floats(0, 1)), draw(st.sampled_from(FILES)))))
        elif kind == "encode":
            edits.append((kind, draw(st.sampled_from(ENCODINGS))))
        elif kind == "shuffle":
            edits.append((kind, draw(st.randoms(use_true_random=False))))
        else:
            edits.append((kind, (draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=8)))))
    return edits


def apply(data: bytes, edits: list[tuple[str, object]]) -> bytes:
    for kind, detail in edits:
        lines = data.split(b"\n")
        if kind == "shuffle":
            detail.shuffle(lines)  # type: ignore[attr-defined]
            data = b"\n".join(lines)
        elif kind == "encode":
            data = data.decode("utf-8", "replace").encode(str(detail), "replace")
        elif kind == "crlf":
            data = data.replace(b"\n", b"\r\n")
        elif kind == "bom":
            data = b"\xef\xbb\xbf" + data
        else:
            where, what = detail  # type: ignore[misc]
            at = int(where * max(len(data) - 1, 0))
            line = int(where * (len(lines) - 1))
            if kind == "truncate":
                data = data[:at]
            elif kind == "garbage":
                data = data[:at] + what + data[at:]
            elif kind == "duplicate":
                data = b"\n".join([*lines[: line + 1], *lines[line:]])
            elif kind == "drop":
                data = b"\n".join(lines[:line] + lines[line + 1 :])
            elif kind == "foreign":
                other = (FIXTURES / what).read_bytes().split(b"\n")
                data = b"\n".join([*lines[:line], *other[: 1 + line % 20], *lines[line:]])
            elif kind == "number" and (found := list(NUMBER.finditer(data))):
                match = found[int(where * (len(found) - 1))]
                data = data[: match.start()] + what + data[match.end() :]
    return data


def clear(error: SpecsimError, path: Path | None = None) -> None:
    """One line that names the file."""
    assert "\n" not in str(error)
    assert len(str(error)) < 2000
    assert path is None or str(path) in str(error)


def check(path: Path, format_name: str) -> None:
    try:
        imported = read_file(path, format_name)
    except SpecsimError as error:
        clear(error, path)
        return
    for tally in imported.tallies:
        assert tally.steps > 0
        assert all(math.isfinite(x) for x in tally.total)
        assert 0 <= tally.total[Tally.ACCEPTED] <= tally.num_draft_tokens * tally.steps * 1.02 + 1
    for length in imported.lengths:
        assert 1 <= length.acceptance_length <= 65
    for step in imported.steps:
        assert 0 < step.seconds < math.inf
    if not imported.tallies and not imported.lengths:
        assert imported.notes  # nothing about acceptance: it says so


@pytest.mark.parametrize("name", FILES)
@given(edits=damage())
def test_damaged_files(name: str, edits: list[tuple[str, object]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(apply((FIXTURES / name).read_bytes(), edits))
        check(path, "auto")
        try:
            fit = fit_files([path], options=Options(k=4)).calibration
        except SpecsimError as error:
            clear(error)
            return
        assert fit.acceptance is not None or (fit.cost is not None and fit.warnings)
        assert type(fit).model_validate(fit.to_dict()) == fit


FORMATS = ["vllm-log", "vllm-metrics", "vllm-bench", "vllm-requests", "sglang-log", "sglang-info",
           "sglang-bench", "llamacpp-log", "llamacpp-timings", "inference-perf", "guidellm",
           "aiperf"]  # fmt: skip


@pytest.mark.parametrize("format_name", FORMATS)
@given(data=st.binary(max_size=400), name=st.sampled_from(FILES))
def test_anything_at_all(format_name: str, data: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(data)
        check(path, format_name)
        path.write_bytes((FIXTURES / name).read_bytes()[: 8 * len(data)])
        check(path, format_name)
