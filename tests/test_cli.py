"""The command line: keys of the JSON, exit statuses, one-line errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specsim as ss
from specsim.cli.main import run
from specsim.cli.output import strict

CASE = ["--target", "llama-3.1-70b", "--draft", "llama-3.1-8b", "--gpu", "h100-sxm", "--tp", "4"]


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = run(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    status, out, err = call(capsys, *arguments, "--json")
    assert status == 0, err
    result: dict[str, Any] = json.loads(out, parse_constant=pytest.fail)
    assert result["specsim_version"] == ss.__version__
    assert result["schema_version"] == 1
    for warning in result.get("warnings", []):  # on stderr too, whoever reads stdout
        assert f"Warning [{warning['code']}]: {warning['message']}" in err
    return result


ROW_KEYS = {
    "num_draft_tokens", "acceptance_length", "draft_s", "verify_s", "overhead_s", "step_s",
    "tokens_per_s", "speedup", "speedup_low", "speedup_high", "verify_bound",
}  # fmt: skip


class TestPredict:
    def test_documented_keys(self, capsys: pytest.CaptureFixture[str]) -> None:
        result = answer(capsys, "predict", *CASE, "--acceptance", "code", "--k", "1:12")
        assert {"inputs", "baseline", "rows", "best", "break_even", "memory", "sources",
                "warnings"} <= set(result)  # fmt: skip
        assert len(result["rows"]) == 12
        assert all(set(row) == ROW_KEYS for row in result["rows"])
        assert {"step_s", "tokens_per_s", "bound", "components"} <= set(result["baseline"])
        assert {"alpha", "batch", "context"} == set(result["break_even"])
        assert {
            "target_weights_bytes", "logits_bytes", "graph_bytes", "draft_weights_bytes",
            "kv_bytes_per_token", "fits", "max_concurrency",
        } <= set(result["memory"])  # fmt: skip
        assert result["memory"]["kv_bytes_per_token"] == 327_680
        assert all({"code", "message"} == set(w) for w in result["warnings"])
        for row in result["rows"]:
            step = row["draft_s"] + row["verify_s"] + row["overhead_s"]
            assert row["step_s"] == pytest.approx(step)
            expected = row["tokens_per_s"] / result["baseline"]["tokens_per_s"]
            assert row["speedup"] == pytest.approx(expected)
            assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]

    def test_leviathan_without_models(self, capsys: pytest.CaptureFixture[str]) -> None:
        result = answer(capsys, "predict", "--cost-ratio", "0.05", "--alpha", "0.8", "--k", "4")
        assert result["rows"][0]["speedup"] == pytest.approx(2.8013, abs=5e-5)
        assert result["baseline"]["step_s"] == 1
        assert result["memory"] is None

    def test_every_acceptance_flag_names_its_figure(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """One law, spelt in five ways, gives one answer."""
        flags = [
            ["--alpha", "0.8"],
            ["--conditional", "0.8,0.8,0.8,0.8"],
            ["--survival", "0.8,0.64,0.512,0.4096"],
            ["--acceptance-length", "3.3616", "--at-k", "4"],
            ["--draft-acceptance-rate", "0.5904", "--at-k", "4"],
        ]
        speedups = [
            answer(capsys, "predict", *CASE, *flag, "--k", "4")["rows"][0]["speedup"]
            for flag in flags
        ]
        assert speedups == pytest.approx([speedups[0]] * 5, rel=1e-9)

    def test_flags_are_aliases_of_scenario_keys(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        by_flags = answer(
            capsys, "predict", *CASE, "--alpha", "0.7", "--k", "3", "--batch", "8", "--weights",
            "fp8", "--context", "2000", "--runtime", "ideal", "--draft-tp", "1",
        )  # fmt: skip
        path = tmp_path / "scenario.yaml"
        path.write_text(
            "target: {model: llama-3.1-70b, weights: fp8}\n"
            "draft: {model: llama-3.1-8b, num_draft_tokens: 3, tensor_parallel: 1}\n"
            "hardware: {gpu: h100-sxm, tensor_parallel: 4}\n"
            "acceptance: {alpha: 0.7}\npoint: {batch: 8, context: 2000}\n"
            "engine: {runtime: ideal}\n"
        )
        by_file = answer(capsys, "predict", "--scenario", str(path))
        by_set = answer(
            capsys, "predict", *CASE, "--alpha", "0.7", "--set", "point.batch=8",
            "--set", "point.context=2000", "--set", "draft.num_draft_tokens=3",
            "--set", "target.weights=fp8", "--set", "engine.runtime=ideal",
            "--set", "draft.tensor_parallel=1",
        )  # fmt: skip
        assert by_flags["rows"] == by_file["rows"] == by_set["rows"]

    def test_python_gives_the_same(self, capsys: pytest.CaptureFixture[str]) -> None:
        shown = answer(capsys, "predict", *CASE, "--alpha", "0.75", "--k", "1:5", "--batch", "8")
        table = ss.predict(
            target=ss.model("llama-3.1-70b"), draft=ss.model("llama-3.1-8b"),
            gpu=ss.gpu("h100-sxm"), tensor_parallel=4, acceptance=ss.acceptance.Iid(0.75),
            num_draft_tokens=range(1, 6), batch=8, context=1024,
        )  # fmt: skip
        assert table.rows() == shown["rows"]

    @pytest.mark.parametrize(
        "draft",
        [
            ["--method", "eagle"], ["--method", "eagle3"], ["--method", "medusa"],
            ["--method", "ngram"], ["--method", "sparse-kv", "--draft-kv-budget", "512"],
            ["--method", "early-exit", "--exit-layer", "8"],
            ["--method", "eagle3", "--tree", "steps=5,topk=4,nodes=16"],
        ],
    )  # fmt: skip
    def test_every_method(self, capsys: pytest.CaptureFixture[str], draft: list[str]) -> None:
        result = answer(
            capsys, "predict", "--target", "llama-3.1-8b", "--gpu", "h100-sxm", *draft,
            "--alpha", "0.7",
        )  # fmt: skip
        assert result["best"]["speedup"] >= 1

    def test_mtp(self, capsys: pytest.CaptureFixture[str]) -> None:
        result = answer(
            capsys, "predict", "--target", "deepseek-v3", "--weights", "fp8", "--gpu", "h200",
            "--tp", "8", "--method", "mtp", "--alpha", "0.85", "--k", "1",
        )  # fmt: skip
        assert 1 < result["rows"][0]["speedup"] < 2

    def test_a_config_file_is_a_model(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        path = tmp_path / "config.json"
        path.write_text(json.dumps({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096,
            "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
            "tie_word_embeddings": False, "hidden_act": "silu",
        }))  # fmt: skip
        common = ("--gpu", "h100-sxm", "--method", "ngram", "--alpha", "0.5")
        by_file = answer(capsys, "predict", "--target", str(path), *common)
        by_name = answer(capsys, "predict", "--target", "llama-3.1-8b", *common)
        assert by_file["rows"] == by_name["rows"]

    def test_a_model_that_does_not_fit_is_a_warning(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        result = answer(capsys, "predict", "--target", "llama-3.1-70b", "--gpu", "h100-sxm",
                        "--method", "ngram", "--alpha", "0.3")  # fmt: skip
        assert result["memory"]["fits"] is False
        assert "does-not-fit" in [w["code"] for w in result["warnings"]]

    def test_table_csv_plot_explanation(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        figure = tmp_path / "figure.png"
        status, out, _ = call(capsys, "predict", *CASE, "--acceptance", "code", "--explain",
                                "--plot", str(figure))  # fmt: skip
        assert status == 0
        for text in ("Best: K =", "Pays at: alpha above", "gate_up_proj", "Acceptance: preset"):
            assert text in out
        assert figure.stat().st_size > 10_000
        assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]  # nothing half-written
        _, out, _ = call(capsys, "predict", *CASE, "--alpha", "0.7", "--k", "1:3", "--csv")
        assert out.splitlines()[0].startswith("num_draft_tokens,acceptance_length")
        assert len(out.splitlines()) == 4

    @pytest.mark.parametrize(
        ("arguments", "parts"),
        [
            ([*CASE, "--alpha", "1.2"], ["acceptance.alpha = '1.2'", "less than or equal to 1"]),
            ([*CASE, "--survival", "0.5,0.6"], ["survival rises"]),
            ([*CASE], ["acceptance", "expected one of"]),
            ([*CASE, "--alpha", "0.5", "--survival", "0.5"], ["exactly one"]),
            ([*CASE, "--alpha", "0.7", "--k", "-1"], ["num_draft_tokens = '-1'"]),
            ([*CASE, "--alpha", "0.7", "--k", "x"], ["num_draft_tokens = 'x'"]),
            ([*CASE, "--alpha", "0.7", "--context", "999999"], ["131072"]),
            ([*CASE, "--alpha", "0.7", "--batch", "0"], ["point.batch = '0'"]),
            ([*CASE[:-1], "3", "--alpha", "0.7"], ["does not divide"]),
            (["--target", "lama-3.1-70b", "--alpha", "0.7"], ["did you mean", "llama-3.1-70b"]),
            (["--alpha", "0.7"], ["--target"]),
            (["--target", "no/such/config.json", "--alpha", "0.7"], ["config.json"]),
            ([*CASE, "--alpha", "0.7", "--plot", "x.bmp"], [".png"]),
            ([*CASE, "--alpha", "0.7", "--plot", "no/such/dir/x.png"], ["No such file"]),
            ([*CASE, "--alpha", "0.7", "--set", "nothing"], ["key=value"]),
            ([*CASE, "--alpha", "0.7", "--frobnicate"], ["--frobnicate"]),
            (["--target", "llama-3.1-8b", "--alpha", "0.7"], ["draft.model or draft.method"]),
            ([*CASE, "--alpha", "0.7", "--tree", "steps=x"], ["draft.tree"]),
            ([*CASE, "--calibration", "no-such.yaml"], ["no-such.yaml"]),
        ],
    )  # fmt: skip
    def test_bad_input(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str], parts: list[str]
    ) -> None:
        status, out, err = call(capsys, "predict", *arguments, "--json")
        assert status == 2
        assert out == ""
        assert len(err.splitlines()) == 1
        assert err.startswith("Error: ")
        for part in parts:
            assert part in err

    @given(st.lists(st.text(max_size=6) | st.sampled_from(["--k", "--alpha", "--tp", "1", "0.5"]),
                    max_size=5))  # fmt: skip
    @settings(max_examples=60)
    def test_any_arguments_end_in_a_status(self, arguments: list[str]) -> None:
        clean = [a.encode("utf-8", "ignore").decode() for a in arguments]
        assert run(["predict", *clean, "--json"]) in (0, 2)


#: A scenario file with a name that nobody knows, and how the error begins.
BAD_NAMES = [
    ("target: {model: llama-3.1-7b}", "target.model = 'llama-3.1-7b'"),
    ("{target: {model: llama-3.1-8b}, draft: {model: lama}}", "draft.model = 'lama'"),
    ("{target: {model: llama-3.1-8b}, hardware: {gpu: h1000}}", "hardware.gpu = 'h1000'"),
]
READERS = (["predict", "--scenario"], ["simulate"], ["plan"])
EXPORT = ["export", "--engine", "vllm"]  # whose flags do not depend on the GPU


class TestNamesInFiles:
    @pytest.mark.parametrize(
        ("command", "text", "key"),
        [
            *((command, *case) for command in READERS for case in BAD_NAMES),
            *((EXPORT, *case) for case in BAD_NAMES[:2]),
        ],
    )
    def test_error_names_file_and_key(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str], text: str,
        key: str,
    ) -> None:  # fmt: skip
        file = tmp_path / "service.yaml"
        file.write_text(text)
        status, out, err = call(capsys, *command, str(file))
        assert (status, out) == (2, "")
        assert err.startswith(f"Error: {file}: {key}: unknown")

    def test_what_was_typed_is_not_the_files(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        file = tmp_path / "service.yaml"
        file.write_text("target: {model: llama-3.1-8b}")
        status, _, err = call(capsys, "plan", str(file), "--draft", "lama")
        assert status == 2
        assert err.startswith("Error: drafts: 'lama'")


class TestIgnoredOptions:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--verify-ratio", "1.2", *CASE], "--verify-ratio has no effect without --cost-ratio"),
            (["--exit-layer", "3", *CASE], "--exit-layer has no effect without --method early"),
            (["--cost-ratio", "0.1", "--batch", "4", "--gpu", "h100-sxm"],
             "--batch has no effect with --cost-ratio"),
        ],
    )  # fmt: skip
    def test_is_said(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
    ) -> None:
        found = answer(capsys, "predict", *arguments, "--alpha", "0.7", "--k", "4")["warnings"]
        assert any(w["code"] == "ignored-option" and message in w["message"] for w in found)

    def test_only_what_was_typed(self, capsys: pytest.CaptureFixture[str]) -> None:
        for more in (["--cost-ratio", "0.1", "--verify-ratio", "1.1"], CASE):
            found = answer(capsys, "predict", *more, "--alpha", "0.7", "--k", "4")["warnings"]
            assert all(w["code"] != "ignored-option" for w in found)


class TestOtherCommands:
    @pytest.mark.parametrize("part", ["models", "gpus", "runtimes", "acceptance"])
    def test_catalogue(self, capsys: pytest.CaptureFixture[str], part: str) -> None:
        rows = answer(capsys, "catalogue", part)["rows"]
        assert len(rows) >= {"models": 40, "gpus": 22, "runtimes": 5, "acceptance": 12}[part]
        assert all(row["source"] for row in rows)
        status, out, _ = call(capsys, "catalogue", part)
        assert status == 0
        assert len(out.splitlines()) == len(rows) + 1
        one = answer(capsys, "catalogue", part, rows[0]["name"])["rows"]
        assert one == rows[:1]

    def test_catalogue_refuses(self, capsys: pytest.CaptureFixture[str]) -> None:
        for arguments in (["planets"], ["models", "gtp-2"]):
            status, out, err = call(capsys, "catalogue", *arguments)
            assert (status, out) == (2, "")
            assert err.startswith("Error: ")

    def test_audit(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        claims = answer(capsys, "audit", "--figures", str(tmp_path))["claims"]
        assert [c["number"] for c in claims] == list(range(1, 11))
        assert {c["verdict"] for c in claims} <= {"holds", "holds-if", "fails"}
        by_number = {c["number"]: c for c in claims}
        assert by_number[4]["verdict"] == "holds"
        assert by_number[9]["verdict"] == "fails"
        for number in (1, 2, 3, 5, 6, 7, 8, 9, 10):
            assert Path(by_number[number]["figure"]).stat().st_size > 5000

    def test_help_and_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        status, out, _ = call(capsys, "--help")
        assert status == 0
        assert "predict" in out
        status, out, _ = call(capsys, "predict", "--help")
        assert "--acceptance-length" in out
        status, out, _ = call(capsys, "--version")
        assert out.strip() == f"specsim {ss.__version__}"

    def test_unknown_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        status, out, err = call(capsys, "predikt")
        assert (status, out) == (2, "")
        assert "predikt" in err


@given(st.recursive(st.floats() | st.integers() | st.text() | st.none(), st.lists))
def test_json_is_strict(value: Any) -> None:
    text = json.dumps(strict({"x": value}), allow_nan=False)
    assert math.isfinite(len(text))
