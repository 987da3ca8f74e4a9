"""`specsim simulate` and `specsim.simulate`: output, bad input, interruption."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import specsim as ss
from specsim.acceptance import Empirical, replay
from specsim.cli.main import run
from specsim.errors import DoesNotFitError, ScenarioError
from specsim.metrics import Served, service_metrics
from specsim.simulator.run import make_setup, simulate

ROOT = Path(__file__).parents[1]
CHAT = ROOT / "examples" / "chat-70b.yaml"
SMALL = ["--max-requests", "60"]

KEYS = {
    "requests", "completed", "duration_s", "output_tokens", "throughput_tokens_per_s",
    "throughput_requests_per_s", "goodput_requests_per_s", "ttft_s", "tpot_s", "itl_s", "e2e_s",
    "acceptance_length", "acceptance_histogram", "num_steps", "preemptions", "utilisation",
    "kv_occupancy", "wasted", "seed", "warnings", "schema_version", "specsim_version",
}  # fmt: skip


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = run(["simulate", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    status, out, _ = ask(capsys, *arguments, "--json")
    assert status == 0

    def refuse(text: str) -> None:
        raise AssertionError(f"not strict JSON: {text}")

    document: dict[str, Any] = json.loads(out, parse_constant=refuse)
    return document


def scenario(**changes: Any) -> ss.Scenario:
    return ss.Scenario.load(CHAT).with_set(
        ["workload.num_requests=80", *(f"{k}={v}" for k, v in changes.items())]
    )


def test_json_has_the_keys_of_the_interface(capsys: pytest.CaptureFixture[str]) -> None:
    got = answer(capsys, str(CHAT), *SMALL)
    assert set(got) >= KEYS
    assert got["requests"] == got["completed"] == 60
    assert sum(got["utilisation"].values()) == pytest.approx(1.0, abs=1e-12)
    assert set(got["utilisation"]) == {"draft", "verify", "prefill", "host", "idle"}
    assert sum(got["bound"].values()) == pytest.approx(1.0)
    assert set(got["wasted"]) >= {"flops", "bytes"}
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        assert set(got[name]) == {"mean", "p50", "p90", "p99", "ci95"}
    assert got["ttft_s"]["ci95"] is None  # 60 requests are too few
    assert sum(got["acceptance_histogram"]) > 0
    assert len(got["acceptance_histogram"]) == 5


@pytest.mark.parametrize("more", [(), ("--replications", "2")])
def test_warnings_go_to_stderr_beside_json(
    capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    arguments = (*SMALL, "--set", "draft.num_draft_tokens=auto", "--json", *more)
    status, out, err = ask(capsys, str(CHAT), *arguments)
    assert status == 0
    assert err.count("Warning [") == len(json.loads(out)["warnings"]) > 0


def test_table_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ask(capsys, str(CHAT), *SMALL)
    assert status == 0
    for text in ("60 of 60 requests", "time to first token", "goodput", "tokens per step", "USD"):
        assert text in out


def test_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    parquet, trace, figure = (tmp_path / n for n in ("r.parquet", "t.json", "f.svg"))
    status, _, _ = ask(
        capsys, str(CHAT), *SMALL, "--records", str(parquet), "--timeline", str(trace),
        "--plot", str(figure),
    )  # fmt: skip
    assert status == 0
    frame = pd.read_parquet(parquet)
    assert len(frame) == 60
    assert (frame.finish_s >= frame.first_token_s).all()
    events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    spans = [e for e in events if e["ph"] == "X"]
    assert {e["cat"] for e in spans} == {"draft", "pass", "host"}
    assert all(e["dur"] > 0 and e["ts"] >= 0 for e in spans)
    # draft, pass and host of a step follow each other, and so do the steps
    everything = sorted((e["ts"], e["ts"] + e["dur"]) for e in spans)
    assert all(b[0] >= a[1] - 1e-3 for a, b in pairwise(everything))
    passes = sorted((e["ts"], e["ts"] + e["dur"]) for e in spans if e["cat"] == "pass")
    assert all(b[0] >= a[1] - 1e-3 for a, b in pairwise(passes))
    assert figure.read_text(encoding="utf-8").lstrip().startswith("<?xml")


def test_python(tmp_path: Path) -> None:
    result = ss.simulate(scenario())
    summary = result.summary()
    assert summary.service.completed == 80
    assert len(result.requests) == 80
    assert len(result.records) == 80
    from_records = service_metrics(Served.from_records(result.records), result.objectives)
    assert from_records.e2e_s.mean == pytest.approx(summary.service.e2e_s.mean)
    assert from_records.itl_s.p99 == pytest.approx(summary.service.itl_s.p99)
    assert from_records.goodput_requests_per_s == summary.service.goodput_requests_per_s
    assert "<table>" in result._repr_html_()
    assert result.plot().get_xscale() == "log"


def test_off_is_method_none_byte_for_byte() -> None:
    """`policy: off`, `method: none`, and whatever acceptance the scenario has: one baseline."""
    off = simulate(scenario(**{"speculation.policy": "off"}))
    none = simulate(scenario(draft="{method: none}"))
    other = simulate(scenario(**{"speculation.policy": "off", "acceptance.alpha": 0.1}))
    first = off.requests.to_csv()
    assert none.requests.to_csv() == first
    assert other.requests.to_csv() == first
    # nothing of the drafter is loaded: the KV cache has all the room
    assert off.cluster.setup.limits == none.cluster.setup.limits
    assert off.cluster.setup.deployment.draft.method == "none"
    assert off.summary().acceptance_length == 1.0
    assert off.summary().utilisation["draft"] == 0


def test_classes_have_their_own_laws_lengths_and_objectives() -> None:
    classes = (
        "[{name: code, weight: 1, acceptance: {alpha: 1.0}, slo: {ttft_s: 1000},"
        " output_tokens: {distribution: constant, value: 101}},"
        " {name: creative, weight: 1, acceptance: {alpha: 0.0}, slo: {ttft_s: 1.0e-9},"
        " output_tokens: {distribution: constant, value: 51}}]"
    )
    result = simulate(scenario(**{"workload.classes": classes}))
    frame = result.requests
    tokens = frame.groupby("traffic_class").output_tokens.unique()
    assert tokens["code"].tolist() == [101]
    assert tokens["creative"].tolist() == [51]
    steps = result.cluster.ledger.num_steps
    assert set(steps[frame.traffic_class == "code"]) == {20}
    assert set(steps[frame.traffic_class == "creative"]) == {50}
    goodput = result.summary().service.goodput_by_class
    assert goodput["creative"] == 0
    assert goodput["code"] > 0


def test_classes_alone_may_have_laws() -> None:
    """Without a law of the whole, the closed form sees the classes' mixture."""
    from specsim.acceptance import Mixture

    classes = (
        "[{name: a, weight: 3, acceptance: {alpha: 0.9}}, {name: b, acceptance: {alpha: 0.5}}]"
    )
    data = scenario(**{"workload.classes": classes}).to_dict()
    data["acceptance"] = {}
    resolved = ss.Scenario.from_dict(data).resolve()
    assert isinstance(resolved.law, Mixture)
    assert resolved.law.parts[0][0] == 0.75
    assert simulate(ss.Scenario.from_dict(data)).summary().service.completed == 80


def test_a_tree_drafts_its_nodes() -> None:
    tree = {"draft.tree": "{steps: 3, topk: 4, nodes: 8}", "draft.num_draft_tokens": "auto"}
    setup, _ = make_setup(scenario(**tree))
    assert setup.policy.num_draft_tokens == 8
    summary = simulate(scenario(**tree)).summary()
    assert summary.acceptance_length == pytest.approx(setup.laws[0].acceptance_length(8), rel=0.05)
    with pytest.raises(ScenarioError, match="a tree drafts nodes = 8"):
        make_setup(scenario(**{**tree, "draft.num_draft_tokens": 3}))


def test_auto_k_is_the_closed_forms_best_and_said() -> None:
    setup, warnings = make_setup(scenario(**{"draft.num_draft_tokens": "auto"}))
    assert warnings[0]["code"] == "k-chosen"
    resolved = scenario().resolve()
    prediction = ss.predict(
        target="llama-3.1-70b", weights="fp8", draft="llama-3.2-1b", gpu="h100-sxm",
        tensor_parallel=4, acceptance=resolved.law, num_draft_tokens=range(1, 17),
    )  # fmt: skip
    assert setup.policy.num_draft_tokens == prediction.best["num_draft_tokens"]


def test_overload_is_said() -> None:
    quick = scenario(**{"workload.num_requests": 2000, "workload.arrivals.rate_per_s": 500})
    summary = simulate(quick).summary()
    said = next(w["message"] for w in summary.warnings if w["code"] == "overloaded")
    served = float(said.partition("served at ")[2].partition("/s")[0])
    # 2000 requests over all the time they take, not over the 4 s in which they arrive
    assert served == pytest.approx(2000 / summary.service.duration_s, rel=0.01)
    assert served < 20
    calm = scenario(**{"workload.num_requests": 500, "workload.arrivals.rate_per_s": 1})
    assert [w["code"] for w in simulate(calm).summary().warnings] == []


def test_max_seconds_ends_a_run_and_says_so() -> None:
    summary = simulate(scenario(), max_seconds=5.0).summary()
    assert 0 < summary.service.completed < 80
    assert "incomplete" in [w["code"] for w in summary.warnings]


def test_same_bytes_in_another_process(tmp_path: Path) -> None:
    """Any process gives the same numbers: nothing depends on time, hashes or order."""
    program = (
        "import specsim as ss, sys;"
        "s = ss.Scenario.load(sys.argv[1]).with_set(['workload.num_requests=80']);"
        "sys.stdout.write(ss.simulate(s).requests.to_csv())"
    )
    texts = [
        subprocess.run(
            [sys.executable, "-c", program, str(CHAT)], capture_output=True, text=True, check=True,
            cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert texts[0] == texts[1] == simulate(scenario()).requests.to_csv()


def one_run(seed: int) -> str:
    """For a worker process."""
    return str(simulate(scenario(seed=seed)).requests.to_csv())


def test_same_bytes_on_any_number_of_workers() -> None:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    expected = [one_run(seed) for seed in range(4)]
    assert len(set(expected)) == 4
    with ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(one_run, range(4))) == expected


BAD = [
    (["--set", "workload.arrivals.rate=4"], "unknown key 'workload.arrivals.rate'"),
    (["--set", "workload.arrivals.rate_per_s=-1"], "workload.arrivals.rate_per_s = -1"),
    (["--set", "workload.num_requests=many"], "workload.num_requests = 'many'"),
    (["--set", "engine.max_num_seqs=0"], "engine.max_num_seqs = 0"),
    (["--set", "hardware.tensor_parallel=1"], "does not fit on 1 × h100"),
    (["--set", "hardware.router=random"], "hardware.router = 'random'"),
    (["--set", "workload.arrivals={process: trace, file: none.csv}"], "none.csv: No such file"),
    (["--set", "workload.prompt_tokens={distribution: uniform, low: 1, high: 990000}"],
     "do not fit the KV cache"),
    (["--set", "workload.prompt_tokens={distribution: constant, value: 2000000}"],
     "constant length of 2000000 tokens: at most 1000000"),
    (["--set", "workload.output_tokens={distribution: trace}"], "name no trace file"),
    (["--set", "engine.max_num_batched_tokens=4"], "K = 4: one sequence needs 5 tokens"),
    (["--set", "faults=[{stop_s: 3, restart_s: 1}]"], "restart_s=1.0 is not after"),
    (["--set", "faults=[{replica: 7, stop_s: 1, restart_s: 2}]"], "fault: replica 7 of 1"),
    (["--set", "acceptance.rate=0.5"], "four different numbers"),
    (["--max-seconds", "-3"], "--max-seconds -3.0: expected a time > 0"),
    (["--max-requests", "0"], "greater than or equal to 1"),
    (["--records", "r.csv"], "expected a name in .parquet"),
    (["--plot", "/nowhere/f.png"], "no such directory"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=lambda x: str(x)[-40:])
def test_bad_input_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    status, out, err = ask(capsys, str(CHAT), *arguments)
    assert status == 2
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert message in err


def test_no_such_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = ask(capsys, "none.yaml")
    assert (status, out) == (2, "")
    assert "none.yaml" in err


def test_does_not_fit_says_by_how_much_and_what_would_help() -> None:
    with pytest.raises(DoesNotFitError, match=r"GB of weights.*use more GPUs.*fp8 or int4"):
        simulate(scenario(**{"hardware.tensor_parallel": 1}))


def test_a_cache_too_small_for_one_sequence_is_told_from_weights_that_do_not_fit() -> None:
    lengths = "{distribution: constant, value: 900000}"
    message = r"no sequence of 90\d{4} tokens.*KV cache needs \d+.*GB per GPU.*shorter prompts"
    with pytest.raises(DoesNotFitError, match=message):
        simulate(scenario(**{"workload.prompt_tokens": lengths}))


def test_bad_arguments_in_python() -> None:
    with pytest.raises(ValueError, match="max_requests=0"):
        simulate(scenario(), max_requests=0)
    with pytest.raises(ValueError, match="max_seconds"):
        simulate(scenario(), max_seconds=math.inf)
    odd = {
        "engine.prefix_caching": "true", "engine.block_size": 48,
        "workload.arrivals": f"{{process: trace, file: {mooncake()}}}",
    }  # fmt: skip
    with pytest.raises(ScenarioError, match="not whole blocks"):
        simulate(scenario(**odd))


def mooncake() -> Path:
    path = ROOT / "tests" / "data" / "mooncake_4rows.jsonl"
    assert path.is_file()
    return path


def test_trace_with_shared_prefixes() -> None:
    """Four of a kind: with prefix caching the shared blocks are computed once."""
    common = {
        "workload.arrivals": f"{{process: trace, file: {mooncake()}}}",
        "workload.prompt_tokens": "{distribution: trace}",
        "workload.output_tokens": "{distribution: trace}",
    }
    off, on = (
        simulate(scenario(**common, **{"engine.prefix_caching": flag}))
        for flag in ("false", "true")
    )
    assert off.summary().prefix_hit_rate == 0
    assert on.cluster.replicas[0].prompts.cached_tokens == 512 + 512
    assert on.summary().service.completed == 4
    assert np.all(on.requests.ttft_s.to_numpy() <= off.requests.ttft_s.to_numpy() + 1e-12)


def test_shared_system_prompt_is_cached() -> None:
    common = {"workload.shared_prefix_tokens": 512}
    off, on = (
        simulate(scenario(**common, **{"engine.prefix_caching": flag}))
        for flag in ("false", "true")
    )
    assert on.cluster.replicas[0].prompts.cached_tokens == 79 * 512
    assert on.requests.ttft_s.mean() < off.requests.ttft_s.mean()


DATA = os.environ.get("SPECSIM_DATA")


@pytest.mark.skipif(not DATA, reason="SPECSIM_DATA is not set: recorded runs not replayed")
@pytest.mark.parametrize("k", [3, 8])
@pytest.mark.parametrize("drafter", ["eagle", "ngram"])
def test_recorded_acceptance_is_replayed(drafter: str, k: int) -> None:
    """Real accepted runs (SpecDecode-Bench) in place of a law: tokens per step within 2 %
    of replaying the beginnings of the recorded requests (drawn here with replacement)."""
    path = Path(str(DATA)) / "acceptance" / "llama31_8b_cnn.jsonl"
    if not path.is_file():
        pytest.skip("no recorded runs")
    acceptance = f"{{trace: {path}, trace_drafter: {drafter}}}"
    described = scenario(**{
        "acceptance": acceptance, "draft.num_draft_tokens": k, "workload.num_requests": 1500,
        "workload.output_tokens": "{distribution: constant, value: 200}",
    })  # fmt: skip
    law = described.resolve().law
    assert isinstance(law, Empirical)
    begun = [replay(runs[1:200], k) for runs in law.requests if len(runs) >= 200]
    expected = 1 + float(np.concatenate(begun).mean())
    assert simulate(described).summary().acceptance_length == pytest.approx(expected, rel=0.02)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_prints_what_is_finished(tmp_path: Path) -> None:
    """Sent once the progress line shows that requests are being served."""
    program = "import sys; sys.stderr.isatty = lambda: True; from specsim.cli import main; main()"
    command = [
        sys.executable, "-c", program, "simulate", str(CHAT), "--json",
        "--set", "workload.num_requests=1000000",
        "--set", "workload.output_tokens={distribution: constant, value: 20}",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        # a suite that runs in the background is deaf to SIGINT, and so would this be
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    seen = process.stderr.read(len("\r[                    ] 256/1000000 requests"))
    assert re.match(r"\n\[ {20}\] \d+/1000000 requests", seen), seen  # \r, in text mode
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    got = json.loads(out)
    assert got["interrupted"] is True
    assert 0 < got["completed"] < got["requests"] == 1_000_000


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.stem)
def test_examples_are_served(path: Path) -> None:
    """Every example scenario loads, survives a round trip and is served."""
    described = ss.Scenario.load(path)
    assert ss.Scenario.from_dict(described.to_dict()) == described
    summary = simulate(described, max_requests=300).summary()
    assert summary.service.completed == 300
    speculates = (
        described.speculation.policy != "off" and described.draft.effective_method != "none"
    )
    assert summary.acceptance_length is not None
    assert (summary.acceptance_length > 1) == speculates
