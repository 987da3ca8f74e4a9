"""Results of benchmark clients: what their latencies are of, and the acceptance that some tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specsim.errors import CalibrationError, RecordError
from specsim.fitting import fit_files
from specsim.interop.common import Imported, Tally
from specsim.interop.detect import read_file
from specsim.interop.served import served_requests

FIXTURES = Path(__file__).parent / "fixtures" / "interop"


def read(name: str) -> Imported:
    return read_file(FIXTURES / name)


def codes(imported: Imported) -> set[str]:
    return {note.code for note in imported.notes}


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def guidellm(**metrics: object) -> dict[str, object]:
    return {"benchmarks": [{"metrics": metrics}]}


def test_guidellms_time_per_token_becomes_a_steps(tmp_path: Path) -> None:
    """100 tokens at 8 ms in 40 chunks: a chunk, which is a step, takes 20 ms."""
    file = guidellm(
        request_concurrency={"successful": {"mean": 3.0}, "total": {"mean": 8.0}},
        iter_tokens_per_iteration={"successful": {"mean": 2.5, "count": 40}},
        inter_token_latency_ms={"successful": {"mean": 8.0, "count": 100}},
    )
    imported = read_file(write(tmp_path / "g.json", file))
    (step,), (length,) = imported.steps, imported.lengths
    assert (step.batch, step.num_steps, step.num_draft_tokens) == (8.0, 40, None)
    assert step.seconds == pytest.approx(0.020)
    assert length.acceptance_length == 2.5
    file["benchmarks"][0]["metrics"]["iter_tokens_per_iteration"]["successful"]["mean"] = 1.0  # type: ignore[index]
    (step,) = read_file(write(tmp_path / "one.json", file)).steps
    assert (step.seconds, step.num_draft_tokens) == (pytest.approx(0.008), 0)


def test_a_time_per_token_is_called_one(tmp_path: Path) -> None:
    """Whether something was speculated is not in these files."""
    for name in ("guidellm.json", "inference_perf.json"):
        imported = read(name)
        assert "per-token-time" in codes(imported)
        assert (imported.steps[0].num_draft_tokens, imported.steps[0].num_steps) == (None, None)
    alone = {"inter_token_latency": {"unit": "ms", "avg": 8.0}}
    imported = read_file(write(tmp_path / "a.json", alone))
    assert "per-token-time" in codes(imported)
    assert imported.steps[0].num_draft_tokens is None


def test_a_benchmark_that_streamed_nothing_is_told(tmp_path: Path) -> None:
    file = guidellm(inter_token_latency_ms={"successful": {"mean": 0.0, "count": 0}})
    good = guidellm(inter_token_latency_ms={"successful": {"mean": 8.0}})
    with pytest.raises(RecordError, match="no usable latency"):
        read_file(write(tmp_path / "none.json", file))
    file["benchmarks"] += good["benchmarks"]  # type: ignore[operator]
    imported = read_file(write(tmp_path / "some.json", file))
    assert "incomplete-lines" in codes(imported)
    assert [row.seconds for row in imported.steps] == [pytest.approx(0.008)]


AIPERF = {
    "inter_token_latency": {"unit": "ms", "avg": 5.0},
    "inter_chunk_latency": {"unit": "ms", "avg": 12.5},
    "effective_concurrency": {"unit": "requests", "avg": 8.0},
    "effective_decode_concurrency": {"unit": "requests", "avg": 4.0},
    "spec_decode_acceptance_length": {"unit": "ratio", "avg": 3.5},  # mean of two requests'
    "spec_decode_token_weighted_acceptance_length": {"unit": "ratio", "avg": 2.5},
    "total_spec_decode_steps": {"unit": "count", "avg": 1000},
    "total_accepted_draft_tokens": {"unit": "tokens", "avg": 1500},
    "total_draft_tokens": {"unit": "tokens", "avg": 3000},
    "pooled_spec_decode_acceptance_histogram": {"0": 250, "1": 250, "2": 250, "3": 250},
    # not needed, so not read: a signed percentage, nanoseconds since 1970
    "osl_mismatch_diff_pct": {"unit": "%", "avg": -37.5},
    "min_request_timestamp": {"unit": "ns", "avg": 1759813207532900363},
}


def test_aiperfs_counts_give_k_and_survival(tmp_path: Path) -> None:
    imported = read_file(write(tmp_path / "a.json", AIPERF))
    (tally,), (step,) = imported.tallies, imported.steps
    assert (tally.num_draft_tokens, tally.steps) == (3, 1000)
    assert list(tally.total[Tally.POSITIONS :] / tally.steps) == [0.75, 0.5, 0.25]
    assert (step.num_draft_tokens, step.batch, step.num_steps) == (3, 4.0, 1000)
    assert step.seconds == pytest.approx(0.0125)
    assert not codes(imported)
    part = {key: value for key, value in AIPERF.items() if key != "total_spec_decode_steps"}
    assert not codes(read_file(write(tmp_path / "part.json", part)))
    other = AIPERF | {"total_spec_decode_steps": {"unit": "count", "avg": 900}}
    assert codes(read_file(write(tmp_path / "other.json", other))) == {"length-mismatch"}


@pytest.mark.parametrize("order", [1, -1])
def test_aiperfs_length_is_the_token_weighted_one(tmp_path: Path, order: int) -> None:
    lengths = {key: AIPERF[key] for key in list(AIPERF)[::order] if "length" in key}
    (length,) = read_file(write(tmp_path / "a.json", lengths)).lengths
    assert length.acceptance_length == 2.5


def test_aiperfs_chunks_over_tokens_are_the_length(tmp_path: Path) -> None:
    times = {key: AIPERF[key] for key in ("inter_token_latency", "inter_chunk_latency")}
    imported = read_file(write(tmp_path / "a.json", times))
    assert imported.lengths[0].acceptance_length == pytest.approx(2.5)
    times["inter_token_latency"] = times["inter_chunk_latency"]
    (step,) = read_file(write(tmp_path / "b.json", times)).steps
    assert step.num_draft_tokens == 0
    contradiction = {**AIPERF, "inter_token_latency": {"unit": "ms", "avg": 12.5}}
    assert "length-mismatch" in codes(read_file(write(tmp_path / "c.json", contradiction)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total_draft_tokens": {"unit": "tokens", "avg": 1000}}, "1500 accepted of 1000 draft"),
        ({"pooled_spec_decode_acceptance_histogram": [1]}, "expected an object, found list"),
        ({"pooled_spec_decode_acceptance_histogram": {"x": 1}}, "accepted tokens = x"),
        ({"pooled_spec_decode_acceptance_histogram": {"1.5": 1}}, r"accepted tokens = 1\.5"),
        ({"inter_chunk_latency": {"unit": "ms", "avg": 1e12}}, "in seconds = .*<= 1e\\+06"),
    ],
)
def test_impossible_figures_of_aiperf(tmp_path: Path, changes: object, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        read_file(write(tmp_path / "a.json", AIPERF | changes))  # type: ignore[operator]


def test_aiperfs_records_are_recognised_and_refused(tmp_path: Path) -> None:
    record = {"metadata": {"session_num": 1}, "metrics": {}, "error": None}
    path = tmp_path / "profile_export.jsonl"
    path.write_text("\n".join([json.dumps(record)] * 2))
    with pytest.raises(RecordError, match=r"expected the summary.*profile_export_aiperf\.json"):
        read_file(path)


def test_sglangs_bench_of_another_server_is_not_called_plain(tmp_path: Path) -> None:
    result = {"completed": 10, "mean_itl_ms": 20.0, "mean_tpot_ms": 8.0, "accept_length": None}
    imported = read_file(write(tmp_path / "s.json", result))
    assert imported.steps[0].num_draft_tokens is None
    assert imported.lengths[0].acceptance_length == 2.5
    plain = read_file(write(tmp_path / "p.json", result | {"mean_itl_ms": 8.0}))
    assert plain.steps[0].num_draft_tokens == 0


def test_stamps_of_tokens_become_chunks(tmp_path: Path) -> None:
    """Newer inference-perf repeats a chunk's time for each of its tokens."""
    tokens = (1, 3, 1, 2, 4)
    times = [0.05 + 0.02 * chunk for chunk, count in enumerate(tokens) for _ in range(count)]
    info = {"input_tokens": 5, "output_tokens": 11, "output_token_times": times}
    report = [{"start_time": 0.0, "end_time": 0.3, "info": info}]
    path = write(tmp_path / "r.json", report)
    (step,) = read_file(path).steps
    assert (step.seconds, step.num_steps) == (pytest.approx(0.02), 4)
    (record,) = served_requests(path)[1]
    assert record.chunk_tokens == tokens


def test_a_bench_says_what_does_not_fit(tmp_path: Path) -> None:
    result = json.loads((FIXTURES / "vllm_bench.json").read_text())
    wrong = result | {"spec_decode_acceptance_length": 1.15}
    assert "length-mismatch" in codes(read_file(write(tmp_path / "w.json", wrong)))
    with pytest.raises(RecordError, match="completed = 0: no request succeeded"):
        read_file(write(tmp_path / "f.json", result | {"completed": 0}))
    rate = {"mean_itl_ms": 5.0, "spec_decode_acceptance_rate": 50.0}
    assert codes(read_file(write(tmp_path / "r.json", rate))) == {"incomplete-lines", "unknown-k"}


def test_broken_json_says_where(tmp_path: Path) -> None:
    path = tmp_path / "cut.json"
    path.write_text((FIXTURES / "guidellm.json").read_text()[:300])
    with pytest.raises(RecordError, match=r"not JSON \(.*line \d+ column"):
        read_file(path)


def test_a_file_given_twice_is_refused() -> None:
    path = FIXTURES / "vllm_bench.json"
    with pytest.raises(CalibrationError, match="given twice"):
        fit_files([path, path.parent / "." / path.name])


def test_a_file_without_requests_says_what_has_them() -> None:
    with pytest.raises(RecordError, match=r"nothing by request; expected.*save-detailed"):
        served_requests(FIXTURES / "aiperf.json")
