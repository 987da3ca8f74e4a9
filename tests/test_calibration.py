"""The calibration file: round trip, errors that name the key, and what commands make of it."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from specsim import catalogue
from specsim.acceptance.calibrated import Calibrated
from specsim.acceptance.chains import Iid
from specsim.calibration import (
    AcceptanceFit,
    Calibration,
    CostFit,
    ForwardTimeRow,
    HostTime,
    LinearConstants,
    MeasuredRange,
    load,
)
from specsim.cli.main import run as run_command
from specsim.cost.table import Grid, Table, grid_of_rows, table_of_calibration
from specsim.cost.work import Work
from specsim.deployment import PlacedModel
from specsim.errors import CalibrationError, ScenarioError, SpecsimError
from specsim.scenario import Scenario

FIXTURES = Path(__file__).parent / "fixtures" / "interop"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in this process; what it wrote and its exit status."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run_command(list(arguments))
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def rows(name: str = "llama-3.1-8b") -> tuple[ForwardTimeRow, ...]:
    return tuple(
        ForwardTimeRow(
            model=name,
            batch=b,
            new_tokens=n,
            context=c,
            seconds=0.006 + 2e-5 * b * n + 4e-8 * b * (c + n),
        )
        for b in (1, 8)
        for n in (1, 4, 8)
        for c in (128, 1024, 4096)
    )


def calibration(**changes: object) -> Calibration:
    values: dict[str, object] = {
        "acceptance": AcceptanceFit(
            survival=(0.7, 0.4, 0.2),
            law="per-position",
            num_tokens=1000,
            at_k=3,
            standard_errors={"acceptance_length": [0.02, 0.03, 0.04]},
            acceptance_length=2.3,
        ),
        "cost": CostFit(forward=rows(), host=HostTime(step_s=0.001, standard_error=0.0001)),
        "range": MeasuredRange(num_draft_tokens=(3, 3), batch=(1, 8), context=(128, 4096)),
        **changes,
    }
    return Calibration(**values)  # type: ignore[arg-type]


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    calibration().save(path)
    assert load(path) == calibration()
    assert set(yaml.safe_load(path.read_text())) >= {
        "schema_version",
        "specsim_version",
        "acceptance",
    }


BROKEN = {
    "not yaml": ("{", "not valid YAML"),
    "key twice": ("cost: {}\nnotes: []\ncost: {}\n", "the key 'cost' is given twice at line 3"),
    "a list": ("- 1", "not a calibration file"),
    "nothing in it": ("sources: []", "expected the keys acceptance or cost"),
    "an unknown key": ("acceptance: {alpha: 0.5, beeta: 1}", r"acceptance\.beeta"),
    "two laws": ("acceptance: {alpha: 0.5, survival: [0.5]}", "expected exactly one of"),
    "no law": ("acceptance: {num_tokens: 5}", "found none"),
    "a probability above 1": ("acceptance: {alpha: 1.5}", r"acceptance\.alpha = '1\.5'"),
    "a negative error": (
        "acceptance: {alpha: 0.5, standard_errors: {alpha: -1}}", r"standard_errors\.alpha = -1",
    ),
    "a newer schema": ("schema_version: 2\nacceptance: {alpha: 0.5}", "schema_version"),
    "no time": (
        "cost: {forward: [{model: m, batch: 1, new_tokens: 1, context: 1, seconds: 0}]}", "seconds",
    ),
    "a range upside down": (
        "acceptance: {alpha: 0.5}\nrange: {batch: [8, 1]}", r"range\.batch.*lowest, highest",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_errors_name_file_and_key(tmp_path: Path, case: str) -> None:
    text, message = BROKEN[case]
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(CalibrationError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_law_that_cannot_be_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    cases = {
        "survival: [0.5, 0.7]": "rises",
        "markov: {alpha_easy: 0.5}": "alpha_hard",
        "chain: {transition: [[0.5, 0.6], [1, 0]], accept: [[0.5], [0.5]]}": "sums to",
    }
    for text, message in cases.items():
        path.write_text(f"acceptance: {{{text}}}\n")
        scenario = Scenario.from_dict({"acceptance": {"calibration": str(path)}})
        with pytest.raises(CalibrationError, match=message):
            scenario.resolve()


def test_acceptance_carries_its_interval_and_range(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    calibration().save(path)
    law = Scenario.from_dict({"acceptance": {"calibration": str(path)}}).resolve().law
    assert law.measured_to == 3
    assert law.acceptance_length(3) == pytest.approx(2.3)
    bounds = law.survival_interval(3)
    assert bounds is not None
    np.testing.assert_allclose(
        [1 + bounds[0].sum(), 1 + bounds[1].sum()], [2.3 - 1.96 * 0.04, 2.3 + 1.96 * 0.04]
    )


def test_traffic_classes_take_the_law_of_their_domain(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    fit = calibration().acceptance
    assert fit is not None
    code = AcceptanceFit(alpha=0.9, law="iid")
    calibration(acceptance=fit.model_copy(update={"by_domain": {"code": code}})).save(path)
    classes = [{"name": "code"}, {"name": "chat"}, {"name": "own", "acceptance": {"alpha": 0.1}}]
    resolved = Scenario.from_dict(
        {"acceptance": {"calibration": str(path)}, "workload": {"classes": classes}}
    ).resolve()
    tau = {name: law.acceptance_length(3) for name, law in resolved.class_laws.items()}
    assert tau["code"] == pytest.approx(Iid(0.9).acceptance_length(3))
    assert tau["chat"] == pytest.approx(2.3)
    assert tau["own"] == pytest.approx(Iid(0.1).acceptance_length(3))


def test_errors_beyond_the_table_stay_in_proportion() -> None:
    law = Calibrated(Iid(0.5), length_errors=(0.05, 0.06))
    assert law.standard_error(2) == 0.06
    assert law.standard_error(10) == pytest.approx(0.06 * Iid(0.5).mean(10) / Iid(0.5).mean(2))
    assert law.standard_error(0) == 0
    nothing = Calibrated(Iid(0.0), length_errors=(0.05,))
    bounds = nothing.survival_interval(3)
    assert bounds is not None
    assert bounds[1].tolist() == [pytest.approx(0.098), 0.0, 0.0]


# --- costs ------------------------------------------------------------------------------


def placed(name: str = "llama-3.1-8b") -> PlacedModel:
    return PlacedModel(spec=catalogue.model(name))


def test_table_reproduces_its_points_and_interpolates() -> None:
    table = table_of_calibration(calibration(), "c.yaml")
    for row in rows():
        got = table.forward_time(placed(), row.batch, row.new_tokens, row.context).seconds
        assert float(got) == pytest.approx(row.seconds)
    # the made-up times are linear along each axis (not jointly), so midpoints are exact
    middle = table.forward_time(placed(), 1, 6, 1024).seconds
    assert float(middle) == pytest.approx(0.006 + 2e-5 * 6 + 4e-8 * 1030)
    beyond = table.forward_time(placed(), 16, 1, 1024).seconds
    assert float(beyond) == pytest.approx(0.006 + 2e-5 * 16 + 4e-8 * 16 * 1025, rel=1e-6)
    mixed = table.work_time(placed(), Work.uniform([1.0, 8.0], 4, 1024)).seconds
    np.testing.assert_allclose(mixed, table.forward_time(placed(), [1, 8], 4, 1024).seconds)


def test_missing_points_come_from_the_constants() -> None:
    constants = LinearConstants(fixed_s=0.006, token_s=2e-5, kv_token_s=4e-8)
    partial = rows()[:-1]
    grid = grid_of_rows(partial, constants)
    last = rows()[-1]
    assert float(grid.at(last.batch, last.new_tokens, last.context)) == pytest.approx(last.seconds)
    with pytest.raises(CalibrationError, match="no row at batch"):
        grid_of_rows(partial, None)
    assert isinstance(grid, Grid)


def test_models_that_were_not_measured_are_named() -> None:
    table = Table(rows=rows(), constants={}, path="c.yaml")
    with pytest.raises(CalibrationError, match=r"70b'; measured: llama-3\.1-8b"):
        table.forward_time(placed("llama-3.1-70b"), 1, 1, 9)


def test_a_scenario_takes_costs_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    calibration().save(path)
    base = {
        "target": {"model": "llama-3.1-8b"}, "draft": {"method": "ngram"},
        "acceptance": {"calibration": str(path)}, "cost": {"source": str(path)},
    }  # fmt: skip
    options = ["--cost-source", str(path), "--calibration", str(path), "--k", "1:6"]
    result = run("predict", "--target", "llama-3.1-8b", "--method", "ngram", "--batch", "32",
                 "--json", *options)  # fmt: skip
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert {"extrapolated-cost", "extrapolated-acceptance"} <= {
        w["code"] for w in answer["warnings"]
    }
    assert "measured forward passes" in answer["sources"]["cost"]
    deployment = Scenario.from_dict(base).resolve().deployment
    assert deployment.runtime.step_s.value == 0.001
    assert deployment.runtime.layer_s.value == 0.0
    missing = {**base, "cost": {"source": "absent.yaml"}}
    with pytest.raises(CalibrationError, match=r"absent\.yaml: No such file"):
        Scenario.from_dict(missing).resolve()
    with pytest.raises(ScenarioError, match="expected roofline, kernels or a calibration file"):
        Scenario.from_dict({**base, "cost": {"source": "rooflin"}}).resolve()


def test_files_without_a_half_say_so(tmp_path: Path) -> None:
    costs, law = tmp_path / "costs.yaml", tmp_path / "law.yaml"
    calibration(acceptance=None).save(costs)
    calibration(cost=None).save(law)
    with pytest.raises(CalibrationError, match="holds no acceptance"):
        Scenario.from_dict({"acceptance": {"calibration": str(costs)}}).resolve()
    with pytest.raises(CalibrationError, match="holds no forward passes"):
        table_of_calibration(load(law), str(law))


# --- the command ------------------------------------------------------------------------


def test_log_to_calibration_to_prediction(tmp_path: Path) -> None:
    """A vLLM log alone → a calibration file → a prediction for other K with its interval."""
    path = tmp_path / "calibration.yaml"
    made = run("fit", str(FIXTURES / "vllm_eagle3.log"), "-o", str(path), "--json")
    assert made.returncode == 0, made.stderr
    fit = json.loads(made.stdout)
    keys = "schema_version specsim_version acceptance cost range sources warnings"
    assert set(fit) >= set(keys.split())
    assert set(fit["acceptance"]) >= {"law", "parameters", "standard_errors", "survival",
                                      "acceptance_length", "num_tokens"}  # fmt: skip
    assert fit["acceptance"]["acceptance_length"] == pytest.approx(1 + 7945 / 5460, rel=1e-3)
    assert fit["acceptance"]["num_tokens"] == 5460 + 7945
    assert fit["range"]["num_draft_tokens"] == [3, 3]
    assert fit["sources"][0]["format"] == "vllm-log"
    answer = run("predict", "--target", "llama-3.1-8b", "--method", "eagle3", "--gpu", "h100-sxm",
                 "--calibration", str(path), "--k", "1:8", "--json")  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    predicted = json.loads(answer.stdout)
    for row in predicted["rows"]:
        assert row["speedup_low"] < row["speedup"] < row["speedup_high"]
    at_3 = predicted["rows"][2]
    assert at_3["acceptance_length"] == pytest.approx(1 + 7945 / 5460, rel=1e-3)
    assert "extrapolated-acceptance" in {w["code"] for w in predicted["warnings"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.log"], r"absent\.log: No such file"),
        ([str(FIXTURES / "sglang_bench.jsonl")], "say --k"),
        ([str(FIXTURES / "vllm_bench.json"), "--format", "vllm"], "expected auto or one of"),
        ([str(FIXTURES / "vllm_bench.json"), "--format", "sglang-log"], "Decode batch"),
        ([str(FIXTURES / "vllm_bench.json"), "--trace", "t.csv"], "--save-detailed"),
    ],
)
def test_errors_of_the_command(arguments: list[str], message: str) -> None:
    result = run("fit", *arguments, "--json")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert re.search(message, result.stderr)


@given(
    at=st.floats(0, 1),
    kind=st.sampled_from(["cut", "insert", "number"]),
    what=st.sampled_from(["nan", "-1", "1e400", "[]", "{}", "null", "yes", "\t", ": ", "- ", "0"]),
)
def test_damaged_files_are_refused_or_read(at: float, kind: str, what: str) -> None:
    text = calibration().to_yaml()
    place = int(at * (len(text) - 1))
    if kind == "cut":
        text = text[:place]
    elif kind == "insert":
        text = text[:place] + what + text[place:]
    else:
        found = list(re.finditer(r"[\d.e-]+", text))
        match = found[int(at * (len(found) - 1))]
        text = text[: match.start()] + what + text[match.end() :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        path.write_text(text, encoding="utf-8")
        with contextlib.suppress(CalibrationError):
            read = load(path)
            assert Calibration.model_validate(read.to_dict()) == read
            with contextlib.suppress(SpecsimError):
                Scenario.from_dict({"acceptance": {"calibration": str(path)}}).resolve()
            with contextlib.suppress(SpecsimError):
                table_of_calibration(read, str(path)).forward_time(placed(), 2, 3, 500)
