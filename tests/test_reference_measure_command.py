"""`reference measure`: record files that are complete, resumable and safe to interrupt."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from test_reference_helpers import (
    make_drafter,
    run,
    shorten_prompts,
    tiny_directory,
    varied_model,
)

from reference.cache import make_batch
from reference.cli import main
from reference.measure import HeadPass
from specsim.records import ForwardRecord, StepRecord, read_all

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_directory(tmp_path_factory.mktemp("model")))


@pytest.fixture(autouse=True)
def one_thread():
    """Commands choose the number of threads for the process; the tests want one."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def short_prompts():
    with pytest.MonkeyPatch.context() as patch:
        shorten_prompts(patch)
        yield


def measure_arguments(model, out, *more):
    return [
        "measure", "--target", model, "--threads", "1", "--out", str(out), "--methods",
        "ngram,early-exit:1", "--k", "0,2,3", "--temperature", "0,1", "--batch", "1,2",
        "--domains", "code,copy", "--prompts", "2", "--max-new-tokens", "8", "--context", "256",
        "--forward-batch", "1,2", "--forward-tokens", "1,3", "--forward-context", "0,20",
        "--repeats", "3", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def traces(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("traces") / "tiny.jsonl"
    assert main(measure_arguments(model, out)) == 0
    return out


def test_step_records(traces):
    """One record a step and row; every unit of the grid is there; overlaps where q is known."""
    header, records = read_all(traces, StepRecord)
    assert header.settings["measured"] == "steps"
    assert header.versions["torch"]
    assert header.device.endswith(f"{os.cpu_count()} cores")
    settings = {(r.method, r.num_draft_tokens == 0, r.temperature) for r in records}
    assert {m for m, _, _ in settings} == {"none", "ngram", "early-exit:1"}
    assert {r.batch for r in records} == {1, 2}
    assert {r.domain for r in records} == {"code", "copy"}
    assert len({(r.request, r.step) for r in records}) == len(records)
    for r in records:
        assert r.verify_s > 0
        known = r.temperature > 0 and r.num_drafted > 0
        assert (r.overlap is not None) == known
        if known:
            assert len(r.overlap) == r.num_drafted
    for name in {r.request for r in records}:
        mine = [r for r in records if r.request == name]
        for before, after in itertools.pairwise(mine):
            assert after.position == before.position + before.num_accepted + 1
            assert after.context - after.position == before.context - before.position


def test_runs_from_every_position_agree_with_steps(traces):
    """A greedy step at an output position accepts min(run there, K), as recorded."""
    _, steps = read_all(traces, StepRecord)
    _, runs = read_all(traces.with_name("tiny.runs.jsonl"), StepRecord)
    run_at = {(r.request.split("/")[0], r.method, r.position): r for r in runs}
    compared = 0
    for step in steps:
        if step.temperature == 0 and step.num_draft_tokens and step.batch == 1:
            run_ = run_at[step.request.split("/")[0], step.method, step.position]
            assert step.num_accepted == min(run_.num_accepted, step.num_drafted)
            compared += step.num_drafted > 0
    assert compared > 10


def test_forward_records(traces):
    _, records = read_all(traces.with_name("tiny.forward.jsonl"), ForwardRecord)
    models = {r.model for r in records}
    assert len(models) == 2
    assert {(r.batch, r.new_tokens, r.context) for r in records} == {
        (b, n, c) for b in (1, 2) for n in (1, 3) for c in (0, 20)
    }
    assert all(r.seconds > 0 and r.repeats == 3 and r.spread >= 0 for r in records)


def test_a_heads_passes_are_timed_too(model, tmp_path):
    out = tmp_path / "head.jsonl"
    assert (
        main(measure_arguments(model, out, "--methods", "eagle:random", "--what", "forward")) == 0
    )
    _, records = read_all(out.with_name("head.forward.jsonl"), ForwardRecord)
    assert Counter(r.model for r in records)["eagle:random"] == len(records) / 2 == 8


def test_the_timed_pass_of_a_head_is_the_drafters():
    """Its logits at the last token are those of drafting from the same features."""
    target = varied_model()
    drafter = make_drafter("eagle", target)
    head, tokens = drafter.head, [[3, 1, 2]]
    drafter.bind(target, target.new_cache(1, 8), 1, 8)
    drafter.observe(0, torch.ones(3, len(drafter.feature_layers) * target.config.hidden_size))
    expected = drafter.forward(make_batch(tokens, drafter.cache), torch.tensor([2]), None)
    cache = head.new_cache(1, 8)
    found = HeadPass(head, target)(make_batch(tokens, cache), cache)
    assert found.shape == (3, head.config.draft_vocab_size)
    torch.testing.assert_close(found[2:], expected[:, head.token_ids])


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("name", ["tiny", "tiny.runs", "tiny.forward"])
def test_resume_after_any_cut(model, traces, tmp_path, name, cut):
    """Cut a file anywhere, in the middle of a line too: resuming completes it."""
    whole = {f: (traces.with_name(f"{f}.jsonl")).read_bytes()
             for f in ("tiny", "tiny.runs", "tiny.forward")}  # fmt: skip
    for file, content in whole.items():
        kept = content[: int(len(content) * cut)] if file == name else content
        (tmp_path / f"{file}.jsonl").write_bytes(kept)
    assert main(measure_arguments(model, tmp_path / "tiny.jsonl", "--resume")) == 0

    def identity(path):
        lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
        timed = ("draft_s", "verify_s", "sample_s", "host_s", "seconds", "spread")
        return [{k: v for k, v in line.items() if k not in timed} for line in lines]

    for file in whole:
        assert identity(tmp_path / f"{file}.jsonl") == identity(traces.with_name(f"{file}.jsonl"))


def test_units_have_names_of_their_own():
    """Batches that do not divide the prompts end alike: what is the same is measured once."""
    from reference.measure import plan_units
    from reference.prompts import Prompt

    prompts = [Prompt(f"p{i}", "x", "code") for i in range(5)]
    units = plan_units(prompts, ["ngram", "none"], [0, 2], [0.0, 1.0], [1, 2, 4, 8, 16])
    names = [unit.name for unit in units]
    assert len(set(names)) == len(names)
    assert {len(unit.prompts) for unit in units} == {1, 2, 4, 5}
    requests = [unit.request_name(row) for unit in units for row in range(len(unit.prompts))]
    assert len(set(requests)) == len(requests)


def test_existing_file_is_not_overwritten(capsys, model, traces):
    before = traces.read_bytes()
    status, _, err = run(capsys, *measure_arguments(model, traces))
    assert status == 2
    assert "resume it or choose another name" in err
    status, _, err = run(capsys, *measure_arguments(model, traces, "--resume", "--seed", "9"))
    assert status == 2
    assert "header differs" in err
    assert traces.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--k", "2,x"], "--k '2,x': expected numbers"),
        (["--k", "-2"], "-2 < 0"),
        (["--temperature", "nan"], "nan is not a finite number"),
        (["--forward-tokens", "1,x"], "--forward-tokens '1,x': expected numbers"),
        (["--forward-batch", "0"], "0 < 1"),
        (["--context", "32"], "exceed the cache's 32 slots"),
        (["--batch", "0"], "0 < 1"),
        (["--prompts", "0"], "--prompts 0 < 1"),
        (["--repeats", "0"], "--repeats 0 < 1"),
        (["--what", "dance"], "expected steps, runs, forward"),
        (["--domains", "poetry"], "unknown prompt domain 'poetry'"),
        (["--methods", "magic"], "unknown draft 'magic'"),
        (["--cuda-graphs", "--device", "cpu"], "needs a CUDA device"),
    ],
)
def test_bad_measure_options(capsys, model, tmp_path, arguments, message):
    status, out, err = run(capsys, *measure_arguments(model, tmp_path / "x.jsonl", *arguments))
    assert (status, out) == (2, "")
    assert message in err
    assert not (tmp_path / "x.jsonl").exists()


def test_interrupting_loses_no_complete_line(model, tmp_path):
    """Ctrl-C in the middle of measuring: exit 130 and a file of whole lines."""
    out = tmp_path / "cut.jsonl"
    command = [
        sys.executable, "-m", "reference", "measure", "--target", model, "--threads", "1",
        "--out", str(out), "--k", "1,2,3,4,5,6,7,8", "--prompts", "30", "--domains", "factual-qa",
        "--max-new-tokens", "100", "--context", "256", "--what", "steps", "--json",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        # A shell starts background jobs deaf to Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not out.exists() or out.stat().st_size < 20_000):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    stdout, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert json.loads(stdout)["interrupted"] is True
    assert out.read_text().endswith("\n")
    assert len(read_all(out, StepRecord)[1]) > 10
