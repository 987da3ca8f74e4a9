"""Importers: what each foreign layout gives, against numbers the fixtures were made from."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from specsim.errors import RecordError
from specsim.interop.common import Imported, Tally
from specsim.interop.detect import READERS, read_file, recognise
from specsim.interop.reading import read_lines
from specsim.interop.sglang_log import RateMeaning

FIXTURES = Path(__file__).parent / "fixtures" / "interop"


def read(name: str, format_name: str = "auto") -> Imported:
    return read_file(FIXTURES / name, format_name)


def codes(imported: Imported) -> set[str]:
    return {note.code for note in imported.notes}


#: file → format, K → (steps, accepted tokens, whether counted by position)
EXPECTED: dict[str, tuple[str, dict[int, tuple[float, float, bool]]]] = {
    "vllm_eagle3.log": ("vllm-log", {3: (5460, 7945, True)}),
    "vllm_ngram_2025.log": ("vllm-log", {4: (645, 1855, True)}),
    "vllm_v0.log": ("vllm-log", {4: (2000, 3530, False)}),
    "vllm_metrics.prom": ("vllm-metrics", {2: (30_000, 35_000, True)}),
    "vllm_v0_metrics.prom": ("vllm-metrics", {4: (2000, 4000, False)}),
    "vllm_bench.json": ("vllm-bench", {4: (5000, 9000, True)}),
    "vllm_bench.txt": ("vllm-bench", {2: (2000, 3200, True), 5: (2000, 5800, True)}),
    "vllm_requests.jsonl": ("vllm-requests", {4: (1200, 2169, True)}),
    "sglang_old.log": ("sglang-log", {3: (960, 1224, False)}),
    "sglang_new.log": ("sglang-log", {3: (960, 1224, False)}),
    "sglang_plain.log": ("sglang-log", {}),
    "sglang_metrics.prom": ("sglang-metrics", {}),
    "sglang_meta_info.json": ("sglang-info", {3: (150, 225, True)}),
    "sglang_server_info.json": ("sglang-info", {}),
    "sglang_bench.jsonl": ("sglang-bench", {}),
    "llamacpp.log": ("llamacpp-log", {3: (780, 1309, True)}),
    "llamacpp_2025.log": ("llamacpp-log", {4: (300, 530, False)}),
    "sglang_server_info_nested.json": ("sglang-info", {}),
    "sglang_metrics_steps.prom": ("sglang-metrics", {}),
    "inference_perf.json": ("inference-perf", {}),
    "inference_perf_requests.json": ("inference-perf", {}),
    "guidellm.json": ("guidellm", {}),
    "aiperf.json": ("aiperf", {}),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_recognised_and_counted(name: str) -> None:
    format_name, expected = EXPECTED[name]
    imported = read(name)
    assert imported.format == format_name == recognise(FIXTURES / name)
    assert {t.num_draft_tokens for t in imported.tallies} == set(expected)
    for tally in imported.tallies:
        steps, accepted, positions = expected[tally.num_draft_tokens]
        assert tally.steps == pytest.approx(steps)
        assert tally.total[Tally.ACCEPTED] == pytest.approx(accepted)
        assert tally.positions_known is positions
        if positions:  # accepted tokens are the sum over positions of "at least i"
            by_position = tally.total[Tally.POSITIONS :]
            assert by_position.sum() == pytest.approx(accepted, rel=2e-3)
            assert np.all(np.diff(by_position) <= 1e-9)


def test_survival_of_the_log_is_that_of_its_counts() -> None:
    (tally,) = read("vllm_eagle3.log").tallies
    hits = [
        [
            int(n * f)
            for f in (0.70 + 0.005 * (i % 5), 0.45 - 0.004 * (i % 3), 0.30 + 0.002 * (i % 4))
        ]
        for i, n in ((i, 400 + 10 * i) for i in range(12))
    ]
    # the log rounds each rate to 0.001 of some 450 steps
    np.testing.assert_allclose(tally.total[Tally.POSITIONS :], np.sum(hits, axis=0), atol=0.5 * 12)


def test_bench_step_time_is_the_mean_inter_token_latency() -> None:
    imported = read("vllm_bench.json")
    (step,) = imported.steps
    assert step.seconds == pytest.approx(0.0224)  # 8 ms a token, 2.8 tokens a step
    assert step.context == pytest.approx(512 + (5000 + 9000 + 50) / 50 / 2)
    assert "length-mismatch" not in codes(imported)


def test_step_times_of_log_follow_from_the_running_requests() -> None:
    (step,) = read("vllm_eagle3.log").steps
    # 4 requests took 5460 steps in 120 s
    assert step.seconds == pytest.approx(4 * 120 / 5460, rel=1e-3)
    (old,) = read("sglang_old.log").steps
    assert (old.num_draft_tokens, old.seconds) == (3, pytest.approx(0.010, rel=1e-3))


def test_sglang_meanings_of_accept_rate_are_told_apart() -> None:
    for name, meaning in (("sglang_old.log", "(old)"), ("sglang_new.log", "(new)")):
        (note,) = [n for n in read(name).notes if n.code == "accept-rate-meaning"]
        assert meaning in note.message
    for k in (1, 3, 5, 7):
        for name in ("old", "new"):
            rates = RateMeaning()
            for length in np.linspace(1.1, k + 0.9, 9).round(2):
                rate = length / (k + 1) if name == "old" else (length - 1) / k
                rates.add(float(length), round(float(rate), 2))
            assert rates.best() == (name, k, True)


def test_k_is_found_where_servers_put_it() -> None:
    expected = {
        "sglang_server_info.json": (2.75, 3), "sglang_server_info_nested.json": (2.5, 3),
        "sglang_metrics.prom": (2.5, 3), "sglang_metrics_steps.prom": (2.5, 5),
    }  # fmt: skip
    for name, (length, k) in expected.items():
        (found,) = read(name).lengths
        assert (found.acceptance_length, found.num_draft_tokens) == (length, k)
    for name in ("vllm_v0_metrics.prom", "llamacpp_2025.log"):
        assert "k-from-counts" in codes(read(name))


def test_inference_perf_time_per_token_is_recomputed() -> None:
    imported = read("inference_perf.json")
    assert imported.steps[0].seconds == pytest.approx((1.0 - 0.1) / 100)
    assert {"halved-tpot", "latency-only"} <= codes(imported)


def test_latency_only_sources_say_so() -> None:
    for name in ("guidellm.json", "inference_perf.json", "inference_perf_requests.json"):
        imported = read(name)
        assert not imported.tallies
        assert not imported.lengths
        assert "latency-only" in codes(imported)
    assert read("guidellm.json").steps[0].seconds == pytest.approx(0.009)
    assert read("inference_perf_requests.json").steps[0].seconds == pytest.approx(0.02, rel=1e-3)


def test_aiperf_units_and_unknown_fields() -> None:
    imported = read("aiperf.json")
    assert imported.lengths[0].acceptance_length == 2.5
    assert imported.steps[0].seconds == pytest.approx(0.0125)


def test_ngram_log_counts_only_drafting_steps() -> None:
    imported = read("vllm_ngram_2025.log")
    (tally,) = imported.tallies
    assert not tally.counts_all_steps
    assert tally.emitted_known
    assert tally.total[Tally.EMITTED] == pytest.approx(645 + 1855 + 3000, rel=1e-3)
    assert read("vllm_eagle3.log").tallies[0].counts_all_steps  # its log names the method


def test_v0_counters_are_subtracted_and_a_restart_is_noticed(tmp_path: Path) -> None:
    text = (FIXTURES / "vllm_v0.log").read_text()
    path = tmp_path / "twice.log"
    path.write_text(text + text)
    imported = read_file(path)
    assert "counter-reset" in codes(imported)
    assert imported.tallies[0].steps == pytest.approx(4000)


def test_duplicate_lines_count_once(tmp_path: Path) -> None:
    lines = (FIXTURES / "vllm_eagle3.log").read_text().splitlines()
    path = tmp_path / "double.log"
    path.write_text("\n".join(line for line in lines for _ in range(2)))
    imported = read_file(path)
    assert "duplicate-lines" in codes(imported)
    assert imported.tallies[0].steps == pytest.approx(5460)


def test_idle_interval_with_nan_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "idle.log"
    idle = (
        "INFO 05-02 10:00:00 [metrics.py:96] SpecDecoding metrics: Mean acceptance length: nan, "
        "Accepted throughput: 0.00 tokens/s, Drafted throughput: 0.00 tokens/s, "
        "Accepted: 0 tokens, Drafted: 0 tokens, Per-position acceptance rate: nan, nan, nan, "
        "Avg Draft acceptance rate: nan%\n"
    )
    path.write_text(idle + (FIXTURES / "vllm_eagle3.log").read_text())
    assert read_file(path).tallies[0].steps == pytest.approx(5460)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_encodings_and_line_ends(tmp_path: Path, encoding: str, newline: str) -> None:
    for name in ("vllm_eagle3.log", "vllm_bench.json", "sglang_old.log"):
        path = tmp_path / name
        path.write_bytes((FIXTURES / name).read_text().replace("\n", newline).encode(encoding))
        expected, found = read(name), read_file(path)
        assert found.format == expected.format
        assert found.tallies[0].steps == pytest.approx(expected.tallies[0].steps)


def test_compressed_coloured_and_structured_logs(tmp_path: Path) -> None:
    import gzip
    import json

    text = (FIXTURES / "vllm_eagle3.log").read_text()
    packed = tmp_path / "server.log.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    coloured = tmp_path / "colour.log"
    coloured.write_text(
        "".join(f"\x1b[1;36m(APIServer)\x1b[0;0m {x}\x1b[0m\n" for x in text.split("\n"))
    )
    structured = tmp_path / "structured.log"
    structured.write_text(
        "\n".join(json.dumps({"level": "INFO", "message": x}) for x in text.split("\n"))
    )
    for path in (packed, coloured, structured):
        assert read_file(path).tallies[0].steps == pytest.approx(5460), path.name


REFUSED = {
    "an accept rate above 1": (
        "vllm_eagle3.log", "acceptance rate: 0.700,", "acceptance rate: 1.700,",
        r"line 4: per-position acceptance, position 0 = 1\.700: expected a number >= 0 and <= 1",
    ),
    "survival that rises": (
        "vllm_eagle3.log", "0.450, 0.300", "0.450, 0.600",
        r"rises from 0\.45 to 0\.6 at position 2",
    ),
    "more accepted than drafted": (
        "vllm_eagle3.log", "Drafted: 1200 tokens", "Drafted: 12 tokens",
        "expected no more accepted",
    ),
    "SGLang rate above 1": (
        "sglang_new.log", "accept rate: 0.33", "accept rate: 1.33",
        r"accept rate = 1\.33: expected",
    ),
    "a counter beyond belief": (
        "vllm_metrics.prom", "} 60000.0", "} 1e400", "expected a number",
    ),
    "no step yet": (
        "vllm_bench.json", '"spec_decode_num_drafts": 5000', '"spec_decode_num_drafts": 0',
        "no speculative step was taken",
    ),
    "llama.cpp rate against its counts": (
        "llamacpp.log", "draft acceptance = 0.60000", "draft acceptance = 0.90000",
        r"expected 180 / 300 = 0\.6",
    ),
    "a unit aiperf does not have": (
        "aiperf.json", '"unit": "ms",\n  "avg": 12.5', '"unit": "hours",\n  "avg": 12.5', "hours",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_impossible_figures_are_refused(tmp_path: Path, case: str) -> None:
    name, old, new, message = REFUSED[case]
    text = (FIXTURES / name).read_text()
    if name == "vllm_metrics.prom":
        old = "} 40000.0"
    assert old in text
    path = tmp_path / name
    path.write_text(text.replace(old, new))
    with pytest.raises(RecordError, match=message) as caught:
        read_file(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_of_something_else(tmp_path: Path) -> None:
    cases = {
        "empty.log": ("", "empty file"),
        "notes.txt": ("hello\nworld\n", "not recognised"),
        "other.prom": ("# HELP tgi_request_count x\ntgi_request_count 5\n", "another server"),
        "other.json": ('{"a": 1}', "no known format"),
        "plain.prom": ('vllm:num_requests_running{engine="0"} 1.0\n', "speculative-config"),
    }
    for name, (text, message) in cases.items():
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(RecordError, match=message):
            read_file(path)
    with pytest.raises(RecordError, match="No such file"):
        read_file(tmp_path / "absent.log")
    with pytest.raises(RecordError, match="folder"):
        read_file(tmp_path)


def test_log_without_speculation_is_named_not_zero(tmp_path: Path) -> None:
    lines = (FIXTURES / "vllm_eagle3.log").read_text().splitlines()
    path = tmp_path / "plain.log"
    path.write_text("\n".join(x for x in lines if "SpecDecoding" not in x))
    imported = read_file(path)
    assert not imported.tallies
    assert "no-speculation" in codes(imported)
    assert "no-speculation" in codes(read("sglang_plain.log"))
    assert read("sglang_plain.log").steps[0].num_draft_tokens == 0


@pytest.mark.parametrize("format_name", READERS)
def test_every_reader_refuses_every_foreign_file(format_name: str) -> None:
    for name, (own, _) in EXPECTED.items():
        if own == format_name or {own, format_name} <= {"vllm-bench", "sglang-bench"}:
            continue
        if {own, format_name} <= {"sglang-info", "aiperf"} or format_name == "aiperf":
            continue
        with pytest.raises(RecordError):
            read(name, format_name)


def test_a_large_log_streams_in_constant_memory(tmp_path: Path) -> None:
    text = (FIXTURES / "vllm_eagle3.log").read_text()
    path = tmp_path / "large.log"
    with path.open("w") as file:
        for _ in range(400):  # 3 MB
            file.write(text)
    seen: list[int] = []
    tracemalloc.start()
    imported = read_file(path, progress=seen.append)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert imported.tallies[0].steps == pytest.approx(400 * 5460)
    assert peak < 600_000  # bytes; the file is five times that
    assert seen[-1] == path.stat().st_size
    assert seen == sorted(seen)


def test_a_line_without_end_does_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "one_line.log"
    path.write_text("x" * (3 << 20))
    assert max(len(line) for _, line in read_lines(path)) <= 1 << 20
    with pytest.raises(RecordError, match="not recognised"):
        read_file(path)
