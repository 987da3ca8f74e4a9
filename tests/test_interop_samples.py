"""Importers on real samples of other people's servers, found through SPECSIM_DATA."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from specsim.errors import CalibrationError
from specsim.fitting import fit_files
from specsim.interop.common import Tally
from specsim.interop.detect import read_file

DATA = os.environ.get("SPECSIM_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="SPECSIM_DATA is not set: samples not run")
SAMPLES = Path(DATA or ".") / "samples"

#: sample → format, K → (steps, acceptance length as its own text prints it)
EXPECTED: dict[str, tuple[str, dict[int, tuple[float, float]]]] = {
    "vllm_v0_speculative_metrics.log": ("vllm-log", {4: (1245, 0.654 * 5)}),
    "vllm_v1_2025-09_ngram_oldorder.log": ("vllm-log", {5: (59, 5.44)}),
    "vllm_v1_2025-10_eagle3_k3.log": ("vllm-log", {3: (203, 2.01)}),
    "vllm_v1_current_depth_variant.log": ("vllm-log", {3: (720, 3.49)}),
    "vllm_v1_zero_acceptance.log": ("vllm-log", {2: (346, 1.00)}),
    "vllm_metrics_spec_counters_2026-07.prom": ("vllm-metrics", {2: (68270, 2.701)}),
    "vllm_bench_serve_gemma4_26b_mtp_k4_gb10.txt": ("vllm-bench", {4: (41650, 2.33)}),
    "vllm_bench_serve_ksweep_rtxpro5000_ornith35b_mtp.txt": (
        "vllm-bench", {2: (11360, 2.82), 5: (7133, 4.49), 6: (6205, 5.16), 8: (4978, 6.43)},
    ),
    "vllm_per_request_metrics_summary.json": ("vllm-requests", {3: (43, 1.2326)}),
    "sglang_2025-10_eagle3_decode.log": ("sglang-log", {3: (200, 1.954)}),
    "sglang_usage_spec_pr33518.json": ("sglang-info", {5: (43, 2.4651)}),
    "sglang_meta_info_pr13754_tail.txt": ("sglang-info", {5: (188, 1.0585)}),
    "llamacpp_2026-06_eagle3_slot_timing.log": ("llamacpp-log", {3: (87, 2.92)}),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_counts_agree_with_what_the_engine_printed(name: str) -> None:
    format_name, expected = EXPECTED[name]
    imported = read_file(SAMPLES / name)
    assert imported.format == format_name
    assert {t.num_draft_tokens for t in imported.tallies} == set(expected)
    for tally in imported.tallies:
        steps, length = expected[tally.num_draft_tokens]
        assert tally.steps == pytest.approx(steps, rel=1e-3)
        printed = 1 + tally.total[Tally.ACCEPTED] / tally.steps
        assert printed == pytest.approx(length, abs=0.006)


def test_bench_latencies_imply_the_counted_length() -> None:
    """ITL is the step time, so ITL over TPOT is the acceptance length: no mismatch noted."""
    for name in EXPECTED:
        if name.startswith("vllm_bench"):
            codes = {note.code for note in read_file(SAMPLES / name).notes}
            assert "length-mismatch" not in codes


def test_samples_without_acceptance_say_so() -> None:
    for name, code in (
        ("sglang_nonspec_decode.log", "no-speculation"),
        ("sglang_server_info_extract_2026-07.json", "no-token-count"),
        ("sglang_2026_hybrid_decode_SYNTHETIC.log", "ambiguous-accept-rate"),
    ):
        assert code in {note.code for note in fit_files([SAMPLES / name]).notes}
    with pytest.raises(CalibrationError, match="nothing to fit"):
        fit_files([SAMPLES / "aiperf_profile_export_docexample.json"])


def test_time_per_token_of_inference_perf_is_twice_what_it_prints() -> None:
    folder = SAMPLES.parent / "serving_h100" / "vllm" / "results"
    for stage in range(7):
        imported = read_file(folder / f"stage_{stage}_lifecycle_metrics.json")
        assert "halved-tpot" in {note.code for note in imported.notes}
        assert 0.005 < imported.steps[0].seconds < 0.1
