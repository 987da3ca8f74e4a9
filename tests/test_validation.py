"""The report that compares predictions with reality: its logic, on made-up measurements."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_up_host import ALPHA, SHARE, STEP_S, TOKEN_S, made_up

from specsim.fitting.choose import observations
from specsim.fitting.families import fit_hazard
from specsim.records import RequestRecord
from validation import __main__ as command
from validation import (
    comparisons,
    host,
    host_model,
    host_traces,
    peers,
    published,
    published_rows,
    published_steps,
    report,
    serving,
)
from validation.comparisons import Comparison
from validation.host_model import fit_host
from validation.host_plan import EARLY_EXIT, acceptance_units, halves, host_units, report_units
from validation.host_traces import STEP_COLUMNS, proposing_share, table
from validation.published_rows import table as table_as_printed
from validation.report import regressions
from validation.rows import Row, comparison, missed, statistic


def planted(error: float) -> list[Row]:
    """A comparison with one bounded statistic and two observations."""
    return [
        statistic("median |error|", error, bound=0.05),
        comparison("first", 1.0 + error, 1.0, "x"),
        comparison("second", 1.0, 1.0, "x"),
    ]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Replaces the comparison `claims` by rows with a given error."""

    def with_error(error: float) -> None:
        module = SimpleNamespace(rows=lambda: planted(error))
        loader = SimpleNamespace(import_module=lambda name: module, util=importlib.util)
        monkeypatch.setattr(comparisons, "importlib", loader)

    return with_error


def test_a_planted_error_exits_1(plant, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    plant(0.04)
    assert command.main(["claims"]) == 0
    plant(0.06)
    assert command.main(["claims"]) == 1
    assert "missed: claims: median |error|: 0.0600 > 0.05" in capsys.readouterr().err


def test_no_regress_lets_a_missed_bound_pass_until_it_grows(
    plant, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # type: ignore[no-untyped-def]
    plant(0.20)
    command.main(["claims", "--write", str(tmp_path)])
    before = str(tmp_path / "accuracy.json")
    assert command.main(["claims", "--no-regress", before]) == 0
    plant(0.215)
    assert command.main(["claims", "--no-regress", before]) == 0
    plant(0.23)
    assert command.main(["claims", "--no-regress", before]) == 1
    assert "0.2000 became 0.2300" in capsys.readouterr().err


def test_the_report_shows_bounds_and_misses(plant, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    plant(0.06)
    command.main(["claims", "--write", str(tmp_path)])
    page = (tmp_path / "accuracy.md").read_text(encoding="utf-8")
    assert "| median \\|error\\| | 6.0 % | 5.0 % | **missed** |" in page
    document = json.loads((tmp_path / "accuracy.json").read_text(encoding="utf-8"))
    found = document["comparisons"][0]
    assert found["name"] == "claims"
    assert found["passed"] is False
    assert found["median_error"] == pytest.approx(0.03)


def test_a_bar_in_a_name_does_not_break_its_table(plant, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Every row of a table has as many cells as the table's head."""
    plant(0.06)
    command.main(["claims", "--write", str(tmp_path)])
    page = (tmp_path / "accuracy.md").read_text(encoding="utf-8")
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) == 5  # comparisons, missed bounds, devices, statistics, single rows
    for lines in tables:
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in lines}) == 1, lines


def test_steps_are_rows_of_the_published_table() -> None:
    """One place for each published number: steps are read off the table of speedups."""
    for source, count in (("MagicDec", 55), ("vLLM issue #20780", 6), ("SpecForge", 21)):
        printed = [row for row in table_as_printed() if source in row["source"]]
        steps = published_steps.published(source)
        assert len(steps) == len(printed) == count
        for row, step in zip(printed, steps, strict=True):
            assert step.num_draft_tokens == int(row["K"])
            if row["t_verify_ms"]:
                assert step.verify_s == pytest.approx(1e-3 * float(row["t_verify_ms"]))
            assert step.model in published_steps.MODELS
    assert {s.tensor_parallel for s in published_steps.published("MagicDec")} == {4, 8}
    assert {s.gpu for s in published_steps.published("20780")} == {"h100"}
    with pytest.raises(KeyError, match="MagicDec, vLLM issue #20780, SpecForge"):
        published_steps.published("Leviathan")


def test_a_served_speedup_counts_the_reading_of_prompts() -> None:
    """(N·t + B·p) / (N/τ·t' + B·p'): prompts hold up both sides alike and draw the ratio to 1."""
    cases, _ = published_rows.cases(("C_tau_hw", "D_hw_only"))
    case = next(c for c in cases if c.served and c.tau and c.batch == 32)
    outcome = published.Outcome(case=case, plain_s=0.004, step_s=0.010, read_s=(0.005, 0.006))
    tokens, tau = 2 * (case.context - case.prompt_tokens), case.tau
    plain = tokens * 0.004 + 32 * 0.005
    assert outcome.speedup == pytest.approx(plain / (tokens / tau * 0.010 + 32 * 0.006))
    steps = replace(outcome, case=replace(case, served=False))
    assert steps.speedup == pytest.approx(tau / 2.5)
    assert abs(outcome.speedup - 1) < abs(steps.speedup - 1)
    whole = published.predict(case)
    assert whole.read_s[1] > whole.read_s[0] > 0.5 * whole.plain_s  # a pass over all weights
    served = {c.source.split(" (")[0] for c in cases if c.served}
    assert served == {"DFlash", "EAGLE-3", "vLLM blog: EAGLE-3 on AMD Instinct",
                      "vLLM blog: EAGLE 3.1"}  # fmt: skip
    printed = [c for c in cases if "AMD" in c.source]
    assert {(c.prompt_tokens, c.context) for c in printed} == {(1024, 1536)}


def test_speedup_over_k_is_drawn_where_three_k_were_measured(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def row(name: str, k: int) -> Row:
        found = comparison(f"speedup: {name} K={k}, code", 1.2, 1.0 + k / 10, "x")
        found.tags.update(K=k, batch=1.0)
        return found

    drawn = []
    monkeypatch.setattr(report.plots, "measured_over_k", lambda series, ax: drawn.append(series))
    rows = (*(row("ngram", k) for k in (2, 4, 8)), row("eagle", 2), row("eagle", 4))
    found = Comparison(name="host", rows=rows)
    (path,) = report._over_k(found, tmp_path)
    assert path.exists()
    assert drawn == [{"ngram code": [(k, 1.2, pytest.approx(1 + k / 10)) for k in (2, 4, 8)]}]
    assert report._over_k(Comparison(name="host", rows=rows[3:]), tmp_path) == []


def test_rival_predictors_have_an_axis_each(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    rows = []
    for who, speedup in (("aiconfigurator-core 0.12.0", 1.5), ("ours", 1.2)):
        for k in (2, 4, 8):
            rows.append(comparison(f"speedup, {who}: h100 vLLM K={k} GSM8K", speedup, 1.1, "x"))
            rows[-1].tags.update(K=k)
    drawn = []
    monkeypatch.setattr(report.plots, "measured_over_k", lambda series, ax: drawn.append(series))
    report._over_k(Comparison(name="peers", rows=tuple(rows)), tmp_path)
    assert [list(series) for series in drawn] == [["h100 vLLM GSM8K"]] * 2
    assert [series["h100 vLLM GSM8K"][0] for series in drawn] == [(2, 1.5, 1.1), (2, 1.2, 1.1)]


def test_names_in_a_legend_end_at_a_word() -> None:
    def group(provenance: str, name: str = "", of: str = "published") -> str:
        return report._group(Row(name=name, error=0.1, provenance=provenance), of)

    long = "SpecForge SpecBundle dashboard data"
    assert group(f"{long} (LMSYS); https://…").split() == long.split()
    law = "chosen by held-out likelihood: mixture-of-2-chain-4-by-position"
    assert group(law) == "chosen by held-out likelihood"
    served = group("inference-perf, H100", "roofline, stage 0 (1/s): TPOT", "serving_h100")
    assert served == "roofline, TPOT"


def test_the_report_says_who_measured_on_which_device(plant, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    plant(0.01)
    command.main(["claims", "--write", str(tmp_path)])
    page = (tmp_path / "accuracy.md").read_text(encoding="utf-8")
    section = page.partition("## Devices")[2].partition("\n## ")[0]
    ours = [line for line in section.splitlines() if "| **us** |" in line]
    others = [line for line in section.splitlines() if "| others |" in line]
    traces = host.load_all()["host"]
    assert any(traces.device in line and "host: " in line for line in ours)
    assert all("H100" not in line and "h100" not in line for line in ours)
    for gpu in ("a100-sxm-80gb", "h100-sxm-80gb", "b200-sxm-180gb", "rtx3090-24gb"):
        assert sum(line.startswith(f"| {gpu} |") for line in others) == 1


def test_another_devices_measurement_has_rows_of_its_own(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    for name in ("host", "host-l4"):
        shutil.copytree(host.DATA, tmp_path / name)
    (tmp_path / "host-empty").mkdir()
    monkeypatch.setattr(host_traces, "DATA", tmp_path / "host")
    monkeypatch.setattr(host, "rows_of", lambda traces: planted(0.01))
    assert [row.name for row in host.rows()][-3:] == ["l4: median |error|", "l4: first",
                                                      "l4: second"]  # fmt: skip
    assert len(host.rows()) == 6


def test_absent_data_neither_passes_nor_regresses() -> None:
    empty = Comparison(name="host", rows=())
    assert empty.passed is None
    assert empty.as_dict()["median_error"] is None
    before = {"comparisons": [Comparison(name="host", rows=tuple(planted(0.01))).as_dict()]}
    assert regressions({"comparisons": [empty.as_dict()]}, before) == []


def test_unknown_comparison_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["nonsense"]) == 2
    assert capsys.readouterr().err.startswith("Error: unknown comparison 'nonsense'")


# --- host ---------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def quick_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """The competition of laws is tested elsewhere; here hazards by position do."""
    chosen = lambda found: SimpleNamespace(law=fit_hazard(observations(found)).law)  # noqa: E731
    monkeypatch.setattr(host_model, "choose", chosen)


def test_halves_share_no_prompt_and_hold_every_kind() -> None:
    fit, report = halves("copy")
    assert not {p.id for p in fit} & {p.id for p in report}
    assert {p.text for p in fit}.isdisjoint(p.text for p in report)
    for half in (fit, report):
        assert sum(p.id.startswith("summarise") for p in half) == len(half) / 2 == 8
    reported = {p.id for u in report_units() for p in u.prompts}
    fitted = {p.id for u in (*acceptance_units(), *host_units()) for p in u.prompts}
    assert reported
    assert fitted
    assert not reported & fitted


def test_every_speculative_unit_has_plain_decoding_of_the_same_prompts() -> None:
    units = list(report_units())
    assert len({u.name for u in units}) == len(units)
    plain = {(u.prompts, u.temperature) for u in units if u.num_draft_tokens == 0}
    drafted = [u for u in units if u.num_draft_tokens]
    assert all((u.prompts, u.temperature) in plain for u in drafted)
    settings = {(u.method, u.num_draft_tokens, u.domain, u.batch, u.temperature) for u in drafted}
    assert len(settings) >= 40


def test_host_recovers_known_costs_and_acceptance() -> None:
    traces = made_up()
    model = fit_host(traces)
    fitted = model.acceptance("ngram", 8, "code", 0.0)
    length = 1 + SHARE * sum(ALPHA**i for i in range(1, 9))
    assert abs(fitted.tau - length) < 3 * fitted.tau_error
    assert fitted.proposing == pytest.approx(SHARE, abs=0.03)
    time = model.host["ngram", 0.0]
    assert time.token_s == pytest.approx(TOKEN_S, rel=0.1)
    assert time.step_s + time.draft_step_s == pytest.approx(STEP_S, rel=0.5)


def test_host_keeps_its_bounds_on_a_machine_that_is_as_described() -> None:
    found = host.rows_of(made_up())
    unkept = [row.name for row in missed(found)]
    assert unkept == ["configurations short of the wanted number"]  # 10 of 40 here


def test_host_misses_when_drafting_is_slower_than_its_parts() -> None:
    unkept = [row.name for row in missed(host.rows_of(made_up(slower=1.12)))]
    assert any(name.startswith("speedup") and name.endswith("median |error|") for name in unkept)


def test_slower_draft_passes_are_no_host_time() -> None:
    """A machine that was slower during the fitting half's drafting."""
    traces = made_up()
    draft, whole = (STEP_COLUMNS.index(n) for n in ("draft_s", "whole_s"))
    units = []
    for unit in traces.units:
        steps = unit.steps.copy()
        if unit.purpose == "host" and unit.method == EARLY_EXIT:
            steps[:, whole] += 0.5 * steps[:, draft]
            steps[:, draft] *= 1.5
        units.append(replace(unit, steps=steps))
    calm = fit_host(traces).host[EARLY_EXIT, 0.0]
    busy = fit_host(replace(traces, units=tuple(units))).host[EARLY_EXIT, 0.0]
    for name in ("step_s", "sequence_s", "token_s", "draft_step_s"):
        assert getattr(busy, name) == pytest.approx(getattr(calm, name), abs=1e-4)


def test_a_drifting_machine_does_not_change_a_speedup() -> None:
    """One group of prompts met a machine half as fast, plainly and drafting alike."""
    traces = made_up()
    plain, drafted = (
        traces.of(purpose="report", num_draft_tokens=k, method="ngram", batch=1)[0] for k in (0, 4)
    )
    slow = [replace(u, group=1, steps=u.steps * np.where(np.arange(9) < 4, 1, 2))
            for u in (plain, drafted)]  # fmt: skip
    alone = host.measured_speedup([drafted], [plain])
    assert host.measured_speedup([drafted, slow[1]], [plain, slow[0]]) == pytest.approx(alone)
    # more plain steps were measured while the machine was slow
    more = replace(slow[0], steps=np.concatenate([slow[0].steps] * 3))
    assert host.measured_speedup([drafted, slow[1]], [plain, more]) == pytest.approx(alone)
    assert host.repeatability(traces) == []  # one group a setting
    units = (plain, drafted, *slow, replace(drafted, group=2), replace(plain, group=2))
    assert host.repeatability(replace(traces, units=units)) == pytest.approx([0.0], abs=1e-12)


def test_the_fastest_round_of_passes_counts() -> None:
    traces = made_up()
    slow = tuple(replace(r, seconds=1.7 * r.seconds) for r in traces.forward[::2])
    for forward in ((*traces.forward, *slow), (*slow, *traces.forward)):
        rows = table(replace(traces, forward=forward), {}).rows
        found = {(r.model, r.batch, r.new_tokens, r.context): r.seconds for r in rows}
        for r in traces.forward:
            assert found[r.model, r.batch, r.new_tokens, r.context] == pytest.approx(r.seconds)


def test_a_pass_is_averaged_over_how_many_rows_draft() -> None:
    model = fit_host(made_up())
    always = model.step_s("ngram", 8, 1, 160.0, 0.0, 1.0)
    never = model.step_s("ngram", 8, 1, 160.0, 0.0, 0.0)
    sometimes = model.step_s("ngram", 8, 1, 160.0, 0.0, 0.25)
    assert sometimes == pytest.approx(0.75 * never + 0.25 * always)


def test_regret_counts_not_drafting_as_a_choice() -> None:
    common = {"domain": "code", "batch": 1, "temperature": 0.0, "tokens_per_s": 1.0, "tau": 1.0,
              "predicted_tokens_per_s": 1.0, "predicted_tau": 1.0, "tau_error": 0.1,
              "extrapolated_speedup": 1.0, "extrapolated_tau": 1.0,
              "costs_only_speedup": 1.0, "at_mean_speedup": 1.0}  # fmt: skip
    slow = host.Configuration(method="a", num_draft_tokens=2, speedup=0.8, predicted_speedup=1.1,
                              **common)  # type: ignore[arg-type]  # fmt: skip
    fast = host.Configuration(method="b", num_draft_tokens=2, speedup=1.25, predicted_speedup=0.9,
                              **common)  # type: ignore[arg-type]  # fmt: skip
    found = host.regrets([slow, fast])
    assert np.allclose(sorted(found.values()), [0.2, 0.2])


# --- serving ------------------------------------------------------------------------------


def served(*, method: str = "none", slower: float = 1.0, rate: float = 2.0) -> serving.Run:
    """What the simulator itself serves, its step times multiplied by `slower`."""
    rng = np.random.default_rng(3)
    asked = tuple(
        RequestRecord(
            request=str(i), arrival_s=float(t), prompt_tokens=int(rng.integers(40, 80)),
            output_tokens=30, chunk_times_s=(float(t),), chunk_tokens=(30,),
        )
        for i, t in enumerate(np.cumsum(rng.exponential(1 / rate, 24)))
    )  # fmt: skip
    k = 4 if method != "none" else 0
    run = serving.Run(method=method, num_draft_tokens=k, rate=rate, slots=4, records=asked,
                      device="made up")  # fmt: skip
    model = fit_host(made_up(domains=("copy",)))
    done = [
        replace(
            r,
            chunk_times_s=tuple(r.arrival_s + slower * (t - r.arrival_s) for t in r.chunk_times_s),
        )
        for r in serving.simulated(run, model, 99)
    ]
    return replace(run, records=tuple(done))


def test_serving_agrees_with_itself_and_misses_a_slower_server() -> None:
    model = fit_host(made_up(domains=("copy",)))
    same = [served(rate=rate) for rate in (1.0, 2.0, 3.0)]
    assert missed(serving.rows_of(same, model)) == []
    slow = [served(rate=rate, slower=1.2) for rate in (1.0, 2.0, 3.0)]
    names = [row.name for row in missed(serving.rows_of(slow, model))]
    assert {f"mean {m}: median |error|" for m in ("TTFT", "TPOT", "ITL")} <= set(names)
    few = [row.name for row in missed(serving.rows_of(same[:2], model))]
    assert few == ["loads short of the wanted number"]


def test_speculative_serving_is_predicted_from_the_other_half() -> None:
    model = fit_host(made_up(domains=("copy",)))
    found = serving.rows_of([served(method="ngram")], model)
    tpot = next(row for row in found if row.name.startswith("mean TPOT"))
    assert abs(tpot.error or 1.0) < 0.1
    plain = serving.simulated(served(), model, 0)
    drafted = serving.simulated(served(method="ngram"), model, 0)
    assert drafted[-1].chunk_times_s[-1] < plain[-1].chunk_times_s[-1]


def test_a_slower_machine_is_seen_in_passes_that_serve_nobody() -> None:
    model = fit_host(made_up(domains=("copy",)))
    run = served()
    pass_s = float(model.source.grids["smollm2-135m"].at(1, 1, 64))
    assert serving.slowdown(run, model) == 1.0
    probe = {"batch": 1, "new_tokens": 1, "context": 64, "seconds": 1.5 * pass_s}
    assert serving.slowdown(replace(run, probes=(probe,)), model) == pytest.approx(1.5)
    slow = replace(run, idle_pass_s=2 * pass_s, probes=(probe,))
    assert serving.slowdown(slow, model) == pytest.approx(2.0)
    last = [serving.simulated(r, model, 0)[-1].chunk_times_s for r in (run, slow)]
    assert last[1][-1] - last[1][0] > 1.5 * (last[0][-1] - last[0][0])


def test_only_what_is_proposed_is_verified() -> None:
    """The simulator is told the mean number of proposed tokens, of the other half."""
    model = fit_host(made_up(domains=("copy",)))
    run = served(method="ngram")
    units = model.traces.of(purpose="acceptance", method="ngram", domain="copy", temperature=0.0)
    share = proposing_share(units, run.num_draft_tokens)
    assert 0 < share < 1
    proposed = serving.setup_of(run, model, 0).proposed
    assert proposed is not None
    assert proposed == pytest.approx(share * np.arange(run.num_draft_tokens + 1))
    assert serving.setup_of(served(), model, 0).proposed is None


# --- peers --------------------------------------------------------------------------------


def test_recorded_answers_cover_what_is_asked() -> None:
    recorded = json.loads(peers.PATH.read_text(encoding="utf-8"))
    keys = {asked.key for asked in peers.questions()}
    assert keys <= set(recorded["milliseconds"]), "run python -m validation.measure_peers"
    assert len(peers.plain_steps()) >= 15
    assert len(peers.chains()) >= 30


def test_genz_stands_beside_ours_on_the_steps_that_it_knows() -> None:
    steps = [s for s in peers.plain_steps() if s.question.model in peers.GENZ_MODELS]
    answers: dict[str, float | None] = {s.question.key: 500.0 * s.seconds for s in steps}
    unanswered = steps[0].question.key
    answers[unanswered] = None
    recorded = {"tool": "genz-llm", "version": "0", "command": "ask", "date": "2026-01-01",
                "milliseconds": answers}  # fmt: skip
    rows = peers.genz_rows(recorded)
    single = [row for row in rows if row.observed is not None]
    asked = [s for s in steps if s.question.key != unanswered]
    assert len(single) == len(asked) > 5
    assert [row.error for row in single] == pytest.approx([-0.5] * len(asked))
    theirs, ours = (row for row in rows if row.observed is None)
    assert theirs.error == pytest.approx(0.5)
    errors = [peers._our_seconds(s) / s.seconds - 1 for s in asked]
    assert ours.error == pytest.approx(float(np.median(np.abs(errors))))
    assert json.loads(peers.GENZ_PATH.read_text(encoding="utf-8"))["milliseconds"].keys() == {
        s.question.key for s in steps
    }


def test_a_peer_that_is_right_has_no_error_and_our_fitted_rows_are_set_apart() -> None:
    answers: dict[str, float] = {s.question.key: 1e3 * s.seconds for s in peers.plain_steps()}
    for case in peers.chains():
        plain, drafted = (
            peers.question(case.deployment, case.batch, case.context, k).key
            for k in (0, case.num_draft_tokens)
        )
        answers[plain] = answers.get(plain, 10.0)
        answers[drafted] = case.tau * answers[plain] / case.speedup  # type: ignore[operator]
    recorded = {
        "tool": "them",
        "version": "1",
        "command": "ask",
        "date": "",
        "milliseconds": answers,
    }
    found = {row.name: row for row in peers.rows_of(recorded)}
    theirs = found["step without speculation, them 1: median |error|"].error
    assert theirs == pytest.approx(0.0, abs=1e-12)
    everything = found["speedup, ours: median |error|"].provenance.split()[0]
    held = found["speedup, ours, rows that we did not fit on: median |error|"].provenance.split()[0]
    assert 0 < int(held) < int(everything) == len(peers.chains())
    assert found["asked, not answered by them 1"].provenance.startswith("none")
