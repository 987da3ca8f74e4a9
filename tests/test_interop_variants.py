"""Layouts that other versions of the engines print, and files as people keep them: what each
gives. The lines are as the engines' own sources print them; the figures are ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from specsim.errors import RecordError
from specsim.fitting import fit_files
from specsim.fitting.files import Options
from specsim.interop.common import Imported, Tally
from specsim.interop.detect import read_file


def read(folder: Path, text: str, name: str = "server.log") -> Imported:
    path = folder / name
    path.write_text(text)
    return read_file(path)


def codes(imported: Imported) -> set[str]:
    return {note.code for note in imported.notes}


def counts(imported: Imported) -> dict[int, tuple[float, float]]:
    """K → (steps, accepted tokens)."""
    return {t.num_draft_tokens: (t.steps, float(t.total[Tally.ACCEPTED])) for t in imported.tallies}


VLLM_08 = (
    "INFO 04-20 10:00:10 [metrics.py:53] SpecDecoding metrics: Draft acceptance rate: 50.0%, "
    "Accepted: 540 tokens, Drafted: 1080 tokens\n"
)
VLLM_STARTS = (
    "INFO 04-20 09:59:00 [core.py:58] Initializing a V1 LLM engine with config: model='m', "
    "speculative_config=SpeculativeConfig(method='eagle', model='x', num_spec_tokens=3)\n"
)


def test_vllm_09_mean_length_without_the_bonus_token(tmp_path: Path) -> None:
    line = (
        "INFO 05-20 10:00:10 [metrics.py:86] SpecDecoding metrics: Draft acceptance rate: 50.0%, "
        "Mean acceptance length: 1.50, Accepted: 540 tokens, Drafted: 1080 tokens, "
        "Per-position acceptance rate: 0.700, 0.500, 0.300\n"
    )
    assert counts(read(tmp_path, line)) == {3: (360, 540)}


def test_vllm_08_takes_k_from_the_line_of_its_start(tmp_path: Path) -> None:
    assert counts(read(tmp_path, VLLM_STARTS + VLLM_08)) == {3: (360, 540)}
    assert "unknown-k" in codes(read(tmp_path, VLLM_08))


def vllm(stamp: str, seconds: float, generation: float, engine: int = 0, k: int = 3) -> str:
    """An engine's two lines: 100 steps of K tokens, half of them accepted."""
    rates = ", ".join("0.500" for _ in range(k))
    return (
        f"(APIServer pid=7) INFO 08-04 {stamp} [loggers.py:310] Engine {engine:03d}: Avg prompt "
        f"throughput: 0.0 tokens/s, Avg generation throughput: {generation} tokens/s, Running: 2 "
        "reqs, Waiting: 0 reqs, GPU KV cache usage: 0.1%, Prefix cache hit rate: 0.0%\n"
        f"(APIServer pid=7) INFO 08-04 {stamp} [metrics.py:120] SpecDecoding metrics: Mean "
        f"acceptance length: {1 + k / 2:.2f}, Accepted throughput: {50 * k / seconds:.2f} "
        f"tokens/s, Drafted throughput: {100 * k / seconds:.2f} tokens/s, Accepted: {50 * k} "
        f"tokens, Drafted: {100 * k} tokens, Per-position acceptance rate: {rates}, Avg Draft "
        "acceptance rate: 50.0%\n"
    )


def test_vllm_window_that_reaches_over_idle_time(tmp_path: Path) -> None:
    """The first window counts from the server's start, throughput from ten seconds ago."""
    imported = read(tmp_path, vllm("20:51:08", 761, 25.0) + vllm("20:51:18", 10, 25.0))
    (tally,) = imported.tallies
    assert tally.total[Tally.EMITTED] == pytest.approx(500, rel=0.01)
    (step,) = imported.steps
    assert step.seconds == pytest.approx(0.2, rel=0.01)  # 2 requests, 100 steps in 10 s
    every_minute = "".join(vllm(f"20:5{i}:00", 60, 250 / 60) for i in range(5))
    assert read(tmp_path, every_minute).steps[0].seconds == pytest.approx(1.2, rel=0.01)


def test_vllm_data_parallel_engines_keep_their_own_throughput(tmp_path: Path) -> None:
    text = "".join(
        vllm(f"20:51:{i}8", 10, 25.0, 0) + vllm(f"20:51:{i}8", 5, 50.0, 1) for i in range(3)
    )
    (tally,) = read(tmp_path, text).tallies
    assert tally.emitted_known
    assert tally.total[Tally.EMITTED] == pytest.approx(6 * 250, rel=0.01)


def test_metrics_with_exemplars_and_in_rays_spelling(tmp_path: Path) -> None:
    text = (
        'vllm:spec_decode_num_drafts_total{engine="0"} 1000.0 # {trace_id="ab"} 1.0 1726480923.0\n'
        'vllm:spec_decode_num_drafts_created{engine="0"} 1.7e9\n'
        'vllm:spec_decode_num_draft_tokens_total{engine="0"} 3000.0\n'
        'vllm:spec_decode_num_accepted_tokens_total{engine="0"} 1500.0\n# EOF\n'
    )
    for spelling in (text, text.replace("vllm:", "ray_vllm_"), text.replace("vllm:", "ray_vllm:")):
        assert counts(read(tmp_path, spelling, "metrics.prom")) == {3: (1000, 1500)}


def test_metrics_of_vllm_08_count_no_drafts(tmp_path: Path) -> None:
    imported = read(
        tmp_path,
        'vllm:spec_decode_num_draft_tokens_total{engine="0"} 3000.0\n'
        'vllm:spec_decode_num_accepted_tokens_total{engine="0"} 1500.0\n'
        'vllm:generation_tokens_total{engine="0"} 2600.0\n'
        'vllm:request_success_total{engine="0",finished_reason="stop"} 100.0\n'
        'vllm:time_per_output_token_seconds_sum{engine="0"} 12.0\n'
        'vllm:time_per_output_token_seconds_count{engine="0"} 1000.0\n',
        "metrics.prom",
    )
    assert counts(imported) == {3: (1000, 1500)}
    assert "k-from-counts" in codes(imported)


def test_metrics_before_the_step_time_was_renamed(tmp_path: Path) -> None:
    imported = read(
        tmp_path,
        'vllm:spec_decode_num_drafts_total{engine="0"} 1000.0\n'
        'vllm:spec_decode_num_draft_tokens_total{engine="0"} 3000.0\n'
        'vllm:spec_decode_num_accepted_tokens_total{engine="0"} 1500.0\n'
        'vllm:time_per_output_token_seconds_sum{engine="0"} 12.0\n'
        'vllm:time_per_output_token_seconds_count{engine="0"} 1000.0\n',
        "metrics.prom",
    )
    assert imported.steps[0].seconds == pytest.approx(0.012)


def sglang(length: float, throughput: float, rank: str = "TP0", rate: str = "") -> str:
    return (
        f"[2026-01-05 10:00:00 {rank}] Decode batch, #running-req: 1, #token: 108, token usage: "
        f"0.00, accept len: {length:.2f}, {rate}cuda graph: True, gen throughput (token/s): "
        f"{throughput:.2f}, #queue-req: 0\n"
    )


SGLANG_STARTS = (
    "[2026-01-05 09:59:00] server_args=ServerArgs(model_path='m', decode_log_interval={}, "
    "speculative_algorithm='EAGLE3', speculative_num_steps={}, speculative_eagle_topk={}, "
    "speculative_num_draft_tokens={}, speculative_adaptive=False)\n"
)
SGLANG_PREFILL = "[2026-01-05 10:00:00 {}] Prefill batch, #new-seq: 1, #new-token: 28\n"


def test_sglang_arguments_give_k_and_the_log_interval(tmp_path: Path) -> None:
    lines = sglang(2.5, 250.0) + sglang(2.7, 270.0)
    imported = read(tmp_path, SGLANG_STARTS.format(10, 3, 1, 4) + lines)
    assert counts(imported) == {3: (20, pytest.approx(32))}
    assert "assumed-log-interval" not in codes(imported)
    tree = read(tmp_path, SGLANG_STARTS.format(40, 5, 8, 64) + lines)
    assert set(counts(tree)) == {5}
    assert "tree-draft" in codes(tree)


def test_sglang_interval_without_a_verified_step(tmp_path: Path) -> None:
    rate = "accept rate: {}, "
    text = sglang(0.0, 0.39, rate=rate.format("0.00"))
    text += sglang(2.2, 180.0, rate=rate.format("0.40")) + sglang(
        2.5, 180.0, rate="accept rate: 0.50, "
    )
    assert counts(read(tmp_path, text)) == {3: (80, pytest.approx(108))}


def test_sglang_step_times_leave_out_idle_time_and_prefills(tmp_path: Path) -> None:
    rate = "accept rate: 0.50, "
    text = ""
    for rank in ("DP0 TP0", "DP1 TP1"):
        text += SGLANG_PREFILL.format(rank) + sglang(2.5, 0.4, rank, rate)
    for _ in range(2):
        text += "".join(sglang(2.5, 250.0, rank, rate) for rank in ("DP0 TP0", "DP1 TP1"))
    text += SGLANG_PREFILL.format("DP1 TP1") + sglang(2.5, 1.0, "DP1 TP1", rate)
    (step,) = read(tmp_path, text).steps
    assert step.seconds == pytest.approx(0.010)


BENCH = """### MTP 3
Mean TTFT (ms):                          2522.55
Mean TPOT (ms):                          12.65
Mean ITL (ms):                           40.50
Acceptance rate (%):                     73.47
Acceptance length:                       3.20
Draft tokens:                            19179
  Position 0:                            83.42
  Position 1:                            72.91
  Position 2:                            64.07
### MTP 5
Output token throughput (tok/s): 90.29
Mean TTFT (ms): 1342.35
Mean TPOT (ms): 9.77
Mean ITL (ms): 32.36
Acceptance length: 3.32
Per-position acceptance (%):
Position 0: 59.76
Position 1: 51.28
Position 2: 44.69
Position 3: 39.32
Position 4: 36.70
"""


def test_bench_output_that_someone_shortened(tmp_path: Path) -> None:
    imported = read(tmp_path, BENCH, "bench.txt")
    assert counts(imported) == {3: (6393, pytest.approx(14090, rel=1e-3))}
    (length,) = imported.lengths
    assert (length.acceptance_length, length.num_draft_tokens) == (3.32, 5)
    assert [(s.num_draft_tokens, s.batch) for s in imported.steps] == [(3, None), (5, 1.0)]


@pytest.mark.parametrize(
    "around",
    [
        "2026-09-01T10:00:00.000000001Z {}", "bench-1  | {}", "[pod/bench-7x/main] {}",
        "\x1b[36mbench-1  |\x1b[0m {}", "{}\r",
    ],
)  # fmt: skip
def test_bench_output_of_containers(tmp_path: Path, around: str) -> None:
    text = "\n".join(around.format(line) for line in BENCH.splitlines())
    imported = read(tmp_path, text, "bench.txt")
    assert imported.format == "vllm-bench"
    assert set(counts(imported)) == {3}


def test_sglang_counter_of_verified_steps(tmp_path: Path) -> None:
    text = (
        'sglang:spec_accept_length{tp_rank="0"} 2.1\nsglang:spec_num_draft_tokens{tp_rank="0"} 4\n'
        'sglang:generation_tokens_total{model_name="m"} 5100\n'
        'sglang:num_requests_total{model_name="m"} 100\n'
        'sglang:spec_verify_calls_total{model_name="m"} 2000\n'
        'sglang:spec_verify_calls_total_created{model_name="m"} 1.79e9\n'
    )
    assert counts(read(tmp_path, text, "metrics.prom")) == {3: (2000, 3000)}
    idle = text.replace("} 2.1", "} NaN").replace("} 2000", "} 0")
    with pytest.raises(RecordError, match="speculation on"):
        read(tmp_path, idle, "metrics.prom")


def test_sglang_block_drafter_takes_one_step(tmp_path: Path) -> None:
    """DFLASH sets the number of steps to 1; K is its block less the root."""
    lines = sglang(5.5, 250.0) + sglang(5.7, 270.0)
    assert set(counts(read(tmp_path, SGLANG_STARTS.format(40, 1, 1, 16) + lines))) == {15}
    gauges = "sglang:spec_accept_length 5.5\nsglang:spec_num_steps 1\n"
    gauges += "sglang:spec_num_draft_tokens 16\n"
    assert read(tmp_path, gauges, "m.prom").lengths[0].num_draft_tokens == 15


def test_sglang_server_info_of_a_tree(tmp_path: Path) -> None:
    text = (
        '{"speculative_num_steps": 5, "speculative_eagle_topk": 8, '
        '"speculative_num_draft_tokens": 64, "internal_states": [{"avg_spec_accept_length": 3.5}]}'
    )
    (length,) = read(tmp_path, text, "info.json").lengths
    assert (length.acceptance_length, length.num_draft_tokens) == (3.5, 5)


def test_sglang_response_with_verified_steps_alone(tmp_path: Path) -> None:
    text = '{"meta_info": {"completion_tokens": 201, "spec_verify_ct": 100}}\n'
    imported = read(tmp_path, text * 2, "responses.jsonl")
    (length,) = imported.lengths
    assert length.acceptance_length == pytest.approx(2.0)
    assert "unknown-k" in codes(imported)
    fitted = fit_files([tmp_path / "responses.jsonl"], options=Options(k=3))
    assert fitted.calibration.acceptance is not None
    assert fitted.calibration.acceptance.at_k == 3


def llama(task: int, mark: str, extra: str = "") -> str:
    slot = f"I slot print_timing: id  1 | task {task} |"
    return (
        f"{slot} prompt eval time =     300.11 ms /    20 tokens (   15.01 ms per token)\n"
        f"{slot}        eval time =    2296.72 ms /   256 tokens (    8.97 ms per token)\n"
        f"{slot} {mark}\n{extra}"
    )


def test_llamacpp_mean_len_and_rates_on_their_own_line(tmp_path: Path) -> None:
    mark = "draft acceptance = 0.64479 (  167 accepted /   259 generated), mean len =  2.92"
    rates = "T slot print_timing: id  1 | task 0 |      acc per pos = (0.805, 0.632, 0.483)\n"
    imported = read(tmp_path, llama(0, mark, rates))
    assert counts(imported) == {3: (87, 167)}
    assert imported.tallies[0].positions_known
    without = read(tmp_path, llama(0, mark))
    assert counts(without) == {3: (88, 167)}  # 256 tokens, the first from the prefill
    no_timing = read(tmp_path, f"slot print_timing: {mark}\n")
    assert counts(no_timing) == {3: (pytest.approx(87, abs=0.5), 167)}


def test_llamacpp_equal_requests_are_two(tmp_path: Path) -> None:
    """Builds of 2025 print neither time nor task before the rate."""
    request = (
        "prompt eval time =     300.11 ms /    20 tokens (   15.01 ms per token)\n"
        "       eval time =    2296.72 ms /   256 tokens (    8.97 ms per token)\n"
        "draft acceptance rate = 0.64479 (  167 accepted /   259 generated)\n"
    )
    assert counts(read(tmp_path, request * 3)) == {3: (3 * 88, 3 * 167)}
    doubled = "".join(line * 2 for line in request.splitlines(keepends=True))
    assert counts(read(tmp_path, doubled)) == {3: (88, 167)}


def test_llamacpp_batch_is_unknown_with_several_slots(tmp_path: Path) -> None:
    mark = "draft acceptance = 0.64479 (  167 accepted /   259 generated), mean len =  2.92"
    text = llama(0, mark) + llama(1, mark).replace("id  1", "id  0") * 2
    assert read(tmp_path, llama(0, mark)).steps[0].batch == 1.0
    assert None in {step.batch for step in read(tmp_path, text).steps}


def test_llamacpp_responses(tmp_path: Path) -> None:
    body = (
        '{"timings": {"prompt_n": 20, "cache_n": 80, "predicted_n": 256, "predicted_ms": 2200.0, '
        '"draft_n": 259, "draft_n_accepted": 167}}'
    )
    stream = f'data: {{"choices": []}}\n\ndata: {body}\n\ndata: [DONE]\n'
    for text in (body, f"[{body}]", stream):
        imported = read(tmp_path, text, "response.json")
        assert imported.format == "llamacpp-timings"
        assert counts(imported) == {3: (88, 167)}
        (step,) = imported.steps
        assert (step.seconds, step.context) == (pytest.approx(0.025), 228)
    with pytest.raises(RecordError, match="no more accepted than drafted"):
        read(tmp_path, body.replace(": 167", ": 300"), "response.json")
    plain = body.replace(', "draft_n": 259, "draft_n_accepted": 167', "")
    assert read(tmp_path, plain, "response.json").steps[0].num_draft_tokens == 0


def test_vllm_stream_with_request_metrics(tmp_path: Path) -> None:
    chunk = '{"object": "chat.completion.chunk", "choices": []'
    metrics = '"metrics": {"speculative_decoding": {"acceptance_histogram": [10, 5, 5]}}'
    text = f"data: {chunk}}}\n\ndata: {chunk}, {metrics}}}\n\ndata: [DONE]\n"
    imported = read(tmp_path, text, "stream.txt")
    assert counts(imported) == {2: (20, 15)}
    assert not imported.notes


def test_sglang_one_batch(tmp_path: Path) -> None:
    text = (
        '{"run_name": "default", "batch_size": 4, "input_len": 1024, "output_len": 512, '
        '"latency": 2.5, "output_throughput": 800.0, "acc_length": 2.5}\n'
    )
    imported = read(tmp_path, text, "one_batch.jsonl")
    assert imported.format == "sglang-bench"
    assert imported.lengths[0].acceptance_length == 2.5
    (step,) = imported.steps
    assert (step.batch, step.seconds) == (4, pytest.approx(0.0125))  # 10 tokens a step
    (plain,) = read(tmp_path, text.replace("2.5}", "-1.0}"), "one_batch.jsonl").steps
    assert (plain.num_draft_tokens, plain.seconds) == (0, pytest.approx(0.005))
