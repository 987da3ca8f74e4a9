"""The plan: what it decides and how it says so."""

from __future__ import annotations

import html.parser
import itertools
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from planner_services import MOE, SERVICES, SMALL, changed

import specsim as ss
from specsim.cli.main import run as command_line
from specsim.cli.output import strict
from specsim.planner.answers import QUESTIONS
from specsim.planner.decision import Plan, plan
from specsim.planner.drafts import draft_options
from specsim.planner.problem import make_problem
from specsim.planner.search import front, search
from specsim.scenario.document import Scenario


@pytest.fixture(scope="module")
def built_in() -> Plan:
    return plan(num_requests=300)


@pytest.fixture(scope="module")
def small() -> Plan:
    return plan(Scenario.from_dict(SMALL), simulate=False)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_decided_within_a_minute(name: str) -> None:
    """The defaults of the command: closed form over everything, simulator on the front."""
    start = time.process_time()  # one process: other work on the machine does not count
    decided = plan(Scenario.from_dict(SERVICES[name]))
    assert time.process_time() - start < 60
    assert decided.chosen.simulated is not None
    assert decided.chosen.objective > 0
    assert [a.question for a in decided.answers] == list(QUESTIONS)
    json.dumps(strict(decided.to_dict()), allow_nan=False)


def test_ten_answers_have_number_interval_and_reason(built_in: Plan) -> None:
    assert len(built_in.answers) == 10
    for answer in built_in.answers:
        assert answer.answer
        assert answer.reason
        assert answer.value is not None
        assert answer.low is not None
        assert answer.high is not None
        assert answer.low <= answer.value <= answer.high or answer.question == QUESTIONS[0]
        assert answer.unit


def test_the_best_is_a_scenario_that_runs(built_in: Plan) -> None:
    best = built_in.best
    assert Scenario.from_dict(best.to_dict()) == best
    assert best.speculation.policy == built_in.chosen.candidate.policy.kind
    summary = ss.simulate(best, max_requests=50).summary()
    assert summary.service.completed == 50
    if best.speculation.schedule is not None:
        assert [list(row) for row in best.speculation.schedule] == built_in.schedule


def test_alternatives_are_ranked_by_what_the_slo_allows(built_in: Plan) -> None:
    """Falling objective (equal ones by speed), regret measured from the first."""
    objectives = [r.objective for r in built_in.ranked]
    assert objectives[0] >= 0.98 * max(objectives)
    tail = objectives[1:]
    assert all(a >= 0.98 * b for a, b in itertools.pairwise(tail))
    for ranked in built_in.ranked:
        assert ranked.regret == pytest.approx(1 - ranked.objective / objectives[0])
        assert ranked.low <= ranked.objective <= ranked.high


def test_goodput_decides_never_acceptance() -> None:
    """An 8B that is accepted 98 % of the time drafts for itself at full price: the worst
    plan with the best acceptance."""
    data = {**SMALL, "target": {"model": "llama-3.1-8b"}, "acceptance": {"alpha": 0.98},
            "draft": {"method": "draft-model", "model": "llama-3-8b"}}  # fmt: skip
    decided = plan(Scenario.from_dict(data), drafts=["llama-3-8b", "ngram"], simulate=False)
    taus = {c.label: c.parts[0].tau[-1] for c in decided.found.candidates if c.option}
    assert taus["llama-3-8b"] > 5 * taus["ngram"] / 2
    assert decided.chosen.candidate.label != "llama-3-8b"


def test_a_useless_draft_is_not_used() -> None:
    scenario = changed(SMALL, "acceptance.alpha=0.02")
    decided = plan(scenario, drafts=["llama-3.2-1b"], simulate=False)
    assert not decided.chosen.candidate.speculates
    assert decided.best.speculation.policy == "off"
    assert decided.schedule == [[1, decided.chosen.candidate.batch_limit, 0]]
    assert decided.answers[0].answer.startswith("No")


def test_the_odds_decide_against_a_better_mean(monkeypatch) -> None:
    """A plan that is better on average but beats "off" in 3 of 10 draws is not chosen."""
    monkeypatch.setattr("specsim.planner.decision._probability", lambda *a: 0.3)
    decided = plan(Scenario.from_dict(SMALL), drafts=["llama-3.2-1b"], simulate=False)
    assert not decided.chosen.candidate.speculates
    assert max(decided.ranked, key=lambda r: r.objective).candidate.speculates
    assert "do-not-speculate" in {w.code for w in decided.warnings}


def test_a_replica_is_simulated_with_its_share_of_the_demand(built_in: Plan) -> None:
    """Two replicas: the simulated batch of one is the closed form's, not half of it."""
    chosen = built_in.chosen
    assert chosen.candidate.replicas == 2
    assert chosen.simulated is not None
    batch = chosen.simulated.demand.mean_batch
    assert batch == pytest.approx(chosen.candidate.demand.batch, rel=0.25)
    assert chosen.simulated.demand.rate_per_s == 3.0


def test_odds_follow_the_evidence() -> None:
    """The same mean acceptance, known better or worse: odds near one or nearer a half."""
    sure = plan(changed(SMALL, "acceptance.alpha=0.8", "acceptance.standard_error=0.01"),
                drafts=["llama-3.2-1b"], simulate=False)  # fmt: skip
    vague = plan(changed(SMALL, "acceptance.alpha=0.8", "acceptance.standard_error=0.3"),
                 drafts=["llama-3.2-1b"], simulate=False)  # fmt: skip
    assert sure.probability_better_than_off is not None
    assert vague.probability_better_than_off is not None
    assert sure.probability_better_than_off > vague.probability_better_than_off
    bars = {b.parameter: b for b in vague.sensitivity}
    assert vague.sensitivity[0].parameter == "acceptance"  # the widest
    narrow = next(b for b in sure.sensitivity if b.parameter == "acceptance")
    assert narrow.swing < bars["acceptance"].swing
    assert {"acceptance", "overhead", "bandwidth", "load"} <= set(bars)


def test_a_measured_draft_replaces_its_estimate() -> None:
    """The scenario's own draft keeps the scenario's law; every other one is an estimate."""
    problem = make_problem(Scenario.from_dict(SMALL))
    options = {o.label: o for o in draft_options(problem)}
    assert options["llama-3.2-1b"].measured
    assert options["llama-3.2-1b"].laws[""].alpha == 0.75
    others = [o for o in options.values() if o.label != "llama-3.2-1b"]
    assert others
    assert all(not o.measured and o.source.startswith("estimate") for o in others)
    # a smaller draft of the same family is expected to be accepted less
    assert options["qwama-0.5b"].laws[""].alpha < 0.75


def test_drafts_are_those_of_the_family_with_its_tokenizer() -> None:
    from specsim import catalogue

    for model in ("llama-3.1-70b", "qwen3-32b", "deepseek-v3", "gemma-3-27b"):
        problem = make_problem(Scenario.from_dict({"target": {"model": model}}))
        target = catalogue.model(model)
        options = draft_options(problem)
        named = [catalogue.model(o.keys["model"]) for o in options if o.keys.get("model")]
        assert all(s.family == target.family or s.head_of for s in named)
        methods = {o.keys["method"] for o in options}
        assert {"ngram", "eagle3"} <= methods
        assert ("mtp" in methods) == bool(target.mtp_layers)


def test_trees_where_the_engine_verifies_trees() -> None:
    labels = {
        engine: [o.label for o in draft_options(make_problem(
            changed(SMALL, f"engine.runtime={engine}")))]
        for engine in ("vllm", "sglang")
    }  # fmt: skip
    assert not any("tree" in label for label in labels["vllm"])
    assert sum("tree" in label for label in labels["sglang"]) == 2
    decided = plan(changed(SMALL, "engine.runtime=sglang"), simulate=False)
    row = decided.table[decided.table["draft"].str.contains("tree")]
    assert len(row) == 2


@pytest.mark.parametrize(
    ("engine", "kinds"),
    [("sglang", {"adaptive"}), ("ideal", {"goodput", "per-request"}), ("vllm", set())],
)
def test_an_engines_own_policies_are_simulated(engine: str, kinds: set[str]) -> None:
    decided = plan(changed(SMALL, f"engine.runtime={engine}"), drafts=["llama-3.2-1b"],
                   num_requests=100)  # fmt: skip
    own = {r.candidate.policy.kind: r for r in decided.ranked}
    assert set(own) - {"off", "fixed", "batch-schedule"} == kinds
    for kind in kinds:
        assert own[kind].simulated is not None
        scenario = own[kind].to_dict(decided.problem)["scenario"]
        assert scenario["speculation"]["policy"] == kind


def test_a_head_that_nobody_has_published_is_said_to_be_one(built_in: Plan) -> None:
    """The built-in 70B has no EAGLE-3 head in the catalogue, Qwen3-30B-A3B has one."""
    assert built_in.chosen.candidate.label == "eagle3"
    assert "no-known-head" in {w.code for w in built_in.warnings}
    moe = plan(Scenario.from_dict(MOE), drafts=["eagle3"], simulate=False)
    codes = {w.code for w in moe.warnings}
    assert "no-known-head" not in codes
    assert "experts" in codes


def test_the_front_holds_the_baseline_and_the_measured_draft(built_in: Plan) -> None:
    plans = front(search(built_in.problem))
    assert plans[-1].option is None
    assert any(c.option is not None and c.option.measured for c in plans)
    assert all(r.simulated is not None for r in built_in.ranked)


def test_gpu_types_compete_by_price() -> None:
    decided = plan(changed(SMALL), gpus=["h100-sxm", "l40s"], max_gpus=4, simulate=False)
    assert set(decided.table["gpu"]) == {"h100-sxm-80gb", "l40s-48gb"}
    assert "USD" in decided.objective
    busy = changed(SMALL, "workload.arrivals.rate_per_s=50")
    budget = plan(busy, gpus=["l40s"], budget_usd_per_h=2.2, simulate=False)
    assert budget.chosen.candidate.total_gpus == 2  # at about 1.05 USD/h each


def test_more_gpus_than_needed_are_not_asked_for() -> None:
    """Limits are limits: as many replicas as the demand needs; the scenario's own GPUs are
    all used."""
    decided = plan(changed(SMALL, "workload.arrivals.rate_per_s=100"), max_gpus=None,
                   budget_usd_per_h=1e6, simulate=False)  # fmt: skip
    chosen = decided.chosen.candidate
    assert chosen.capacity is not None
    assert chosen.replicas * chosen.capacity.rate_per_s >= 100
    assert (chosen.replicas - 2) * chosen.capacity.rate_per_s < 100 / 0.8
    many = plan(changed(SMALL), max_gpus=64, simulate=False).chosen.candidate
    assert many.total_gpus < 8
    own = plan(changed(SMALL, "hardware.replicas=6"), simulate=False).chosen.candidate
    assert own.total_gpus == 6


def test_a_closed_loop_and_no_slo_rank_by_speed() -> None:
    data = {**SMALL, "slo": {}, "workload": {"arrivals": {"process": "closed", "concurrency": 8}}}
    decided = plan(Scenario.from_dict(data), drafts=["llama-3.2-1b"], num_requests=200)
    assert "tokens per second" in decided.objective
    assert decided.chosen.candidate.demand.batch == pytest.approx(8)
    assert decided.chosen.objective == pytest.approx(1 / decided.chosen.demand_tpot_s, rel=0.15)


def test_crossover_of_a_dense_model_is_one_and_in_its_interval(small: Plan) -> None:
    found = small.facts.cache["crossover"]
    assert len(found.ranges) == 1
    assert found.low <= found.last <= found.high
    answer = small.answers[2]
    assert (answer.value, answer.low, answer.high) == (found.last, found.low, found.high)


def test_regrets_in_words_are_the_numbers(small: Plan) -> None:
    """Answer 2 against speeds computed from the deployment itself."""
    from specsim.analytic.breakeven import unpadded
    from specsim.cost.step import decode_step
    from specsim.planner.service import steps_per_request

    spec = small.facts.spec
    assert spec is not None
    at = int(np.searchsorted(spec.model.batch, max(1, round(spec.demand.batch))))
    batch = spec.model.batch[at]
    ks = np.array(spec.model.draft_tokens)
    steps = steps_per_request(small.problem, list(spec.parts))
    seconds = np.array([
        float(decode_step(unpadded(spec.deployment) if k else spec.deployment.without_draft(),
                          spec.source, int(k), batch, small.problem.context).seconds)
        for k in ks
    ])  # fmt: skip
    work = steps * seconds
    assert small.answers[1].value == ks[int(np.argmin(work))]
    for k, loss in zip(ks[1:], (1 - work.min() / work)[1:], strict=True):
        assert f"K={k} {loss:.0%}" in small.answers[1].reason


def test_memory_in_words_is_the_memory_model(small: Plan) -> None:
    from specsim.cost.memory import memory

    spec = small.facts.subject
    context = int(np.ceil(small.problem.mean_length))
    room = memory(spec.deployment, spec.largest_k, context)
    assert small.answers[4].value == room.max_concurrency


# --- how it shows itself --------------------------------------------------------------


class _Page(html.parser.HTMLParser):
    """Collects what a page would fetch, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            local = (value or "").startswith("#")
            if name in ("src", "href", "xlink:href", "data") and not local:
                self.fetched.append(f"{tag} {value}")
        if tag in ("script", "link", "iframe", "object"):
            self.fetched.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_report_is_one_self_contained_page(built_in: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.html"
    text = built_in.to_html(path)
    assert path.read_text(encoding="utf-8") == text
    page = _Page()
    page.feed(text)
    assert page.fetched == []
    assert "@import" not in text
    assert "url(http" not in text
    assert text.count("<svg") == 4
    words = " ".join(" ".join(page.text).split())
    for answer in built_in.answers:
        assert " ".join(answer.answer.split()) in words
        assert " ".join(answer.reason.split()) in words
    for warning in built_in.warnings:
        assert warning.message in words
    assert "<h2>Ten answers" in built_in._repr_html_()


def test_names_from_a_file_are_escaped(tmp_path: Path) -> None:
    data = {**SMALL, "workload": {**SMALL["workload"], "classes": [{"name": "<script>x</script>"}]}}
    decided = plan(Scenario.from_dict(data), drafts=["llama-3.2-1b"], simulate=False)
    assert "<script>x" not in decided.to_html()


def test_the_table_is_tidy(built_in: Plan) -> None:
    table = built_in.table
    assert len(table) == len(built_in.found.candidates)
    assert table["draft"][0] == built_in.chosen.candidate.label
    assert {"objective", "demand_tpot_s", "max_num_seqs", "simulated_tpot_s"} <= set(table)
    assert table["simulated_tpot_s"].notna().sum() == len(built_in.ranked)


def test_the_plot_takes_axes(built_in: Plan) -> None:
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    assert built_in.plot(ax=ax) is ax
    assert len(ax.get_lines()) >= 2
    plt.close(figure)


def test_progress_names_each_plan_and_the_time_left() -> None:
    said: list[str] = []
    found = plan(Scenario.from_dict(SMALL), num_requests=60, progress=said.append)
    runs = [line for line in said if line.startswith("simulating")]
    assert said[0].startswith("closed form")
    assert len(runs) == sum(r.simulated is not None for r in found.ranked) > 1
    for number, line in enumerate(runs, start=1):
        assert line.startswith(f"simulating {number} of {len(runs)}: ")
        assert bool(re.search(r", [\d.]+ \w+ left$", line)) == (number > 1)


def test_json_keys_of_the_interface(capsys) -> None:
    assert command_line(["plan", "--no-simulate", "--json", "--probe", "vllm"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert printed.err.count("Warning [") == len(result["warnings"]) > 0
    promised = {
        "schema_version", "specsim_version", "best", "alternatives", "baseline", "answers",
        "schedule", "probability_better_than_off", "sensitivity", "warnings",
    }  # fmt: skip
    assert promised <= set(result)
    assert {"scenario", "objective", "low", "high", "regret"} <= set(result["alternatives"][0])
    assert {"question", "answer", "value", "low", "high", "reason"} <= set(result["answers"][0])
    assert {"parameter", "low", "high"} <= set(result["sensitivity"][0])
    assert 4 <= len(result["probe"]["points"]) <= 12
    Scenario.from_dict(result["best"])


def test_the_command_prints_and_writes(capsys, tmp_path: Path) -> None:
    page, best, figure = (tmp_path / n for n in ("a.html", "b.yaml", "c.svg"))
    assert command_line([
        "plan", "--requests", "100", "--html", str(page), "--save", str(best), "--plot",
        str(figure), "--draft", "llama-3.1-8b,ngram",
    ]) == 0  # fmt: skip
    printed = capsys.readouterr().out
    for question in QUESTIONS:
        assert question in printed
    assert Scenario.load(best).target.model == "llama-3.1-70b"
    assert page.stat().st_size > 10_000
    assert figure.read_text().startswith("<?xml")


def test_measurements_become_a_schedule_with_a_regret(capsys, tmp_path: Path) -> None:
    """`--probe` says what to measure; a calibration file with such steps settles the plan."""
    scenario = tmp_path / "service.yaml"
    scenario.write_text(Scenario.from_dict(SMALL).to_yaml())
    common = ["plan", str(scenario), "--no-simulate", "--draft", "llama-3.2-1b", "--json"]
    assert command_line([*common, "--probe", "vllm"]) == 0
    points = json.loads(capsys.readouterr().out)["probe"]["points"]
    steps = "\n".join(
        f"    - {{num_draft_tokens: {p['num_draft_tokens']}, batch: {p['batch']}, "
        f"context: {p['context']}, seconds: {1.05 * p['expected_s']:.6f}}}"
        for p in points
    )
    measured = tmp_path / "probe.yaml"
    measured.write_text(f"schema_version: 1\ncost:\n  steps:\n{steps}\n")
    assert command_line([*common, "--measured", str(measured)]) == 0
    after = json.loads(capsys.readouterr().out)["measured"]
    assert after["points"] == len(points)
    assert after["schedule"][0][0] == 1
    assert 0 <= after["regret"]["low"] <= after["regret"]["high"] < 0.2
    assert after["crossover"]["low"] <= after["crossover"]["batch"] <= after["crossover"]["high"]
