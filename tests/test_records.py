"""Record files: round trip, resuming after an interruption, clear errors, fuzz."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specsim.errors import RecordError
from specsim.records import (
    ForwardRecord,
    Header,
    RecordWriter,
    RequestRecord,
    StepRecord,
    read_all,
    read_records,
    write_records,
)

STEP = StepRecord(
    request="a", step=0, position=0, batch=1, context=10, num_draft_tokens=4, num_drafted=3,
    num_accepted=2, draft_s=0.01, verify_s=0.02, sample_s=0.001, host_s=0.0, overlap=(0.9, 0.8),
)  # fmt: skip
FORWARD = ForwardRecord(
    model="m", batch=1, new_tokens=4, context=10, seconds=0.03, repeats=5, spread=0.001
)
REQUEST = RequestRecord(
    request="a", arrival_s=0.0, prompt_tokens=7, output_tokens=5, chunk_times_s=(0.1, 0.2),
    chunk_tokens=(2, 3),
)  # fmt: skip
ALL = [("step", STEP), ("forward", FORWARD), ("request", REQUEST)]


@pytest.mark.parametrize(("schema", "record"), ALL, ids=lambda x: x if isinstance(x, str) else "")
def test_round_trip(tmp_path: Path, schema: str, record) -> None:
    path = tmp_path / "r.jsonl"
    header = Header(schema=schema, device="cpu", seed=3, settings={"k": 4})
    write_records(path, header, [record, record])
    read_header, records = read_records(path)
    assert read_header == header
    assert list(records) == [record, record]
    assert read_all(path, type(record))[1] == [record, record]
    assert [p.name for p in tmp_path.iterdir()] == ["r.jsonl"]


def test_an_interrupted_line_is_dropped_and_the_run_goes_on(tmp_path: Path) -> None:
    path, header = tmp_path / "r.jsonl", Header(schema="step")
    with RecordWriter(path, header) as writer:
        writer.write(STEP)
    with path.open("a") as file:
        file.write('{"request": "half a li')
    with RecordWriter(path, header, resume=True) as writer:
        assert writer.num_existing == 1
        writer.write(STEP)
    assert read_all(path, StepRecord)[1] == [STEP, STEP]


def test_a_writer_does_not_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write_records(path, Header(schema="step"), [STEP])
    with pytest.raises(FileExistsError):
        RecordWriter(path, Header(schema="step"))
    with pytest.raises(RecordError, match="header differs"):
        RecordWriter(path, Header(schema="step", seed=1), resume=True)
    assert read_all(path, StepRecord)[1] == [STEP]


def test_the_wrong_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write_records(path, Header(schema="forward"), [FORWARD])
    with pytest.raises(RecordError, match="holds 'forward' records; expected 'step'"):
        read_all(path, StepRecord)


HEADER = '{"schema": "step"}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty file"),
        ("nonsense\n", "line 1: not JSON"),
        ("[]\n", "line 1: expected a JSON object, found list"),
        ('{"schema": "steps"}\n', "schema 'steps'; expected one of step, forward, request"),
        ('{"schema": "step", "version": 9}\n', "version 9; expected 1"),
        ('{"schema": "step", "colour": 1}\n', "unknown key 'colour'"),
        (HEADER + "{\n", "line 2: not JSON"),
        (HEADER + '{"request": "a"}\n', "line 2: .*missing"),
        (HEADER + json.dumps({"stepp": 1}) + "\n", "line 2: unknown key 'stepp'"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(RecordError, match=message) as caught:
        list(read_records(path)[1])
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="no such file"):
        read_records(tmp_path / "none")


@given(st.binary(max_size=80))
@settings(max_examples=100)
def test_any_bytes_are_read_or_refused(tmp_path_factory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "r.jsonl"
    path.write_bytes(HEADER.encode() + data)
    with contextlib.suppress(RecordError):
        list(read_records(path)[1])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: StepRecord(**{**_fields(STEP), "num_accepted": 4}), "num_accepted=4"),
        (lambda: StepRecord(**{**_fields(STEP), "num_drafted": 5}), "num_drafted=5"),
        (lambda: StepRecord(**{**_fields(STEP), "draft_s": -1.0}), "draft_s=-1.0"),
        (lambda: StepRecord(**{**_fields(STEP), "verify_s": float("nan")}), "verify_s=nan"),
        (lambda: ForwardRecord(**{**_fields(FORWARD), "seconds": 0.0}), "seconds=0.0"),
        (lambda: ForwardRecord(**{**_fields(FORWARD), "batch": 0}), "batch=0"),
        (lambda: RequestRecord(**{**_fields(REQUEST), "output_tokens": 6}), "sum to 5"),
        (lambda: RequestRecord(**{**_fields(REQUEST), "chunk_times_s": (0.3, 0.2)}), "before"),
        (lambda: RequestRecord(**{**_fields(REQUEST), "chunk_tokens": (5,)}), "chunk_tokens"),
    ],
)
def test_impossible_records(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def _fields(record) -> dict:
    return {name: getattr(record, name) for name in record.__dataclass_fields__
            if name != "SCHEMA"}  # fmt: skip
