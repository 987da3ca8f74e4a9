"""Served-request records from real runs: the same metrics as simulated ones, and a replay."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specsim.errors import RecordError
from specsim.interop.served import served_requests, spread_tokens, write_requests, write_trace
from specsim.records import RequestRecord, read_all
from specsim.workload.traces import read_trace

FIXTURES = Path(__file__).parent / "fixtures" / "interop"
VLLM, INFERENCE_PERF = "vllm_bench_detailed.json", "inference_perf_requests.json"


def test_vllm_arrays_become_records() -> None:
    header, records = served_requests(FIXTURES / VLLM)
    assert header.settings["format"] == "vllm-bench"
    assert [r.failed for r in records] == [False] * 5 + [True]
    first = records[0]
    assert (first.arrival_s, first.prompt_tokens, first.output_tokens) == (0.0, 100, 10)
    # first chunk after 50 ms with one token, then five chunks 20 ms apart with nine
    np.testing.assert_allclose(first.chunk_times_s, 0.05 + 0.02 * np.arange(6))
    assert first.chunk_tokens[0] == 1
    assert sum(first.chunk_tokens) == 10
    np.testing.assert_allclose([r.arrival_s for r in records], 0.4 * np.arange(6), atol=1e-9)


def test_inference_perf_stamps_every_chunk_once() -> None:
    _, records = served_requests(FIXTURES / INFERENCE_PERF)
    good = [r for r in records if not r.failed]
    assert len(good) == 5
    for record in good:  # half of them were written with two stamps a chunk
        assert record.chunk_tokens == (1,) * 8
        np.testing.assert_allclose(np.diff(record.chunk_times_s), 0.02, atol=1e-4)
        assert record.chunk_times_s[0] - record.arrival_s == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize("name", [VLLM, INFERENCE_PERF])
def test_records_and_trace_are_read_back(tmp_path: Path, name: str) -> None:
    count = write_requests(FIXTURES / name, tmp_path / "requests.jsonl")
    _, records = read_all(tmp_path / "requests.jsonl", RequestRecord)
    assert len(records) == count
    written = write_trace(records, tmp_path / "trace.csv")
    trace = read_trace(tmp_path / "trace.csv")
    good = [r for r in records if not r.failed]
    assert len(trace) == written == len(good)
    assert trace.prompt_tokens.tolist() == [r.prompt_tokens for r in good]
    np.testing.assert_allclose(trace.arrival_s, [r.arrival_s for r in good])


def test_metrics_take_them_like_simulated_ones() -> None:
    from specsim.metrics import Served, tpot, ttft

    _, records = served_requests(FIXTURES / VLLM)
    served = Served.from_records([r for r in records if not r.failed])
    np.testing.assert_allclose(ttft(served), 0.05)
    steps = np.array([5, 3, 6, 2, 4])
    np.testing.assert_allclose(tpot(served), 0.02 * steps / (np.array([10, 7, 12, 5, 9]) - 1))


@given(tokens=st.integers(0, 500), chunks=st.integers(0, 500))
def test_tokens_are_spread_without_loss(tokens: int, chunks: int) -> None:
    spread = spread_tokens(tokens, chunks)
    assert len(spread) == chunks
    assert chunks == 0 or sum(spread) == tokens
    assert all(t >= 0 for t in spread)
    assert len(spread) < 2 or max(spread[1:]) - min(spread[1:]) <= 1


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    data = json.loads((FIXTURES / VLLM).read_text())
    path = tmp_path / "bench.json"
    for change, message in (
        ({"start_times": None}, "start_times: expected a list.*--save-detailed"),
        ({"ttfts": [0.1]}, "lists of different lengths"),
        ({"itls": [["x"]] * 6}, r"request 0: itls = x: expected a number"),
    ):
        path.write_text(json.dumps(data | change))
        with pytest.raises(RecordError, match=message):
            served_requests(path)
