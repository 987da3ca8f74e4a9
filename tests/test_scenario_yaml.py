"""What people write into a scenario file by mistake, and what they are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from specsim.cli.main import run
from specsim.errors import ScenarioError
from specsim.planner.grids import parse_vary
from specsim.scenario import Scenario
from specsim.yaml_text import parse_yaml

CHAT = str(Path(__file__).parents[1] / "examples" / "chat-70b.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 3\nseed: 4\n", "the key 'seed' is given twice at line 2"),
        ("target: {model: a, model: b}\n", "the key 'model' is given twice"),
        ("hardware: {tensor_parallel: true}\n", "hardware.tensor_parallel = True: expected no"),
        ("acceptance: {alpha: yes}\n", "acceptance.alpha = True: expected no truth value"),
        ("acceptance: {survival: [yes, 0.5]}\n", "acceptance.survival = [True, 0.5]"),
        ("seed: true\n", "seed = True"),
        ("draft: {num_draft_tokens: true}\n", "draft.num_draft_tokens = True"),
        ("draft: {num_draft_tokens: [1, 2]}\n", "draft.num_draft_tokens = [1, 2]: expected K"),
        ("workload: {classes: [{nam: a}]}\n", "'workload.classes.0.nam'; did you mean 'name'"),
        ("workload: {classes: [{}]}\n", "workload.classes.0.name is required"),
        ("target: llama\n", "target = 'llama': expected a section with keys: model, weights"),
        ("target:\n", "target = None: expected a section with keys: model, weights"),
        ("target: {on: 2}\n", "target: key True: expected a name"),
        ("seed: 010\n", "seed = '010'"),
        ("workload: {num_requests: 1000000000}\n", "workload.num_requests = 1000000000"),
        ("acceptance: {draft_acceptance_rate: 0.5, at_k: 100000000}\n", "acceptance.at_k"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    if text == "seed: 010\n":  # ten or eight? read as decimal, as YAML 1.2 has it
        assert Scenario.load(path).seed == 10
        return
    with pytest.raises(ScenarioError) as caught:
        Scenario.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_range_of_k_is_not_base_60(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("draft: {num_draft_tokens: 1:12}\n")
    assert Scenario.load(path).draft_tokens == range(1, 13)
    assert Scenario().with_set(["draft.num_draft_tokens=1:4"]).draft_tokens == range(1, 5)
    numbers = parse_yaml("[0, -3, 1_000, 0x10, 1.5, 1e-3, 2., -.inf, 2024-01-01]")
    assert numbers == [0, -3, 1000, 16, 1.5, 1e-3, 2.0, float("-inf"), "2024-01-01"]
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}")["b"] == {"x": 3, "y": 2}
    assert Scenario.from_dict(parse_yaml("speculation: {policy: off}")).speculation.policy == "off"


def test_a_huge_range_does_not_fill_the_memory() -> None:
    with pytest.raises(ScenarioError, match="more than 1000000 values"):
        parse_vary(["seed=1:10000000000000"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", CHAT, "--set", "hardware.gpu=h1000"], "hardware.gpu = 'h1000': unknown GPU"),
        (["simulate", CHAT, "--set", "target.model=lama"], "target.model = 'lama': unknown model"),
        (["simulate", CHAT, "--set", "draft.model=lama"], "draft.model = 'lama'"),
        (["simulate", CHAT, "--set", "engine.runtime=vlm"], "engine.runtime = 'vlm'"),
        (["simulate", CHAT, "--set", "acceptance.preset=cod"], "acceptance.preset = 'cod'"),
        (["simulate", CHAT, "--set", "point..batch=1"], "expected key=value"),
        (["simulate", CHAT, "--workers", "0"], "--workers 0"),
        (["plan", CHAT, "--budget", "inf"], "--budget inf"),
        (["plan", CHAT, "--budget", "nan"], "--budget nan"),
        (["predict", "--csv", "--json"], "--csv and --json"),
        (["predict", "--explain", "--json"], "--explain"),
        (["catalogue", "gpus", "--csv", "--json"], "--csv and --json"),
    ],
)  # fmt: skip
def test_arguments_are_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("Error: ")
    assert message in shown.err


def test_a_folder_in_the_place_of_a_figure_leaves_nothing_behind(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "f.png").mkdir()
    records = tmp_path / "r.parquet"
    status = run(["simulate", CHAT, "--max-requests", "3", "--records", str(records),
                  "--plot", str(tmp_path / "f.png")])  # fmt: skip
    assert status == 2
    assert "f.png': is a directory" in capsys.readouterr().err
    assert not records.exists()
