"""Plans rest on the law itself, not on the one α that sums it up."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specsim.acceptance.chains import Iid
from specsim.analytic.breakeven import unpadded
from specsim.analytic.grid import evaluate
from specsim.planner.decision import Plan, _probability, plan
from specsim.planner.drafts import draft_options, effective_alpha, reference_hazards
from specsim.planner.problem import make_problem
from specsim.planner.uncertainty import NUM_DRAWS, tpot_draws
from specsim.scenario.document import Scenario
from specsim.scenario.resolve import resolve, resolve_acceptance

#: The first token is easy, the later ones are not.
FALLING = (0.92, 0.6, 0.25, 0.08, 0.03, 0.01)
MARKOV = {"alpha_easy": 0.95, "alpha_hard": 0.2, "easy_length": 6, "hard_length": 6}
SERVICE: dict[str, Any] = {
    "target": {"model": "llama-3.1-70b", "weights": "fp8"},
    "draft": {"method": "draft-model", "model": "llama-3.2-1b"},
    "hardware": {"gpu": "h100-sxm", "tensor_parallel": 4},
    "workload": {
        "arrivals": {"process": "poisson", "rate_per_s": 3.0},
        "prompt_tokens": {"distribution": "constant", "value": 600},
        "output_tokens": {"distribution": "constant", "value": 300},
    },
    "slo": {"ttft_s": 1.0, "tpot_s": 0.03},
}


def calibration(folder: Path, law: str) -> str:
    path = folder / "calibration.yaml"
    path.write_text(
        f"schema_version: 1\nacceptance:\n{law}range: {{num_draft_tokens: [1, 6]}}\n",
        encoding="utf-8",
    )
    return str(path)


def falling(folder: Path) -> str:
    errors = ", ".join(["0.02"] * len(FALLING))
    return calibration(
        folder, f"  conditional: {list(FALLING)}\n  law: per-position\n"
        f"  standard_errors: {{acceptance_length: [{errors}]}}\n"
    )  # fmt: skip


def planned(acceptance: dict[str, Any]) -> Plan:
    scenario = Scenario.from_dict({**SERVICE, "acceptance": acceptance})
    return plan(scenario, simulate=False, drafts=["llama-3.2-1b"])


def best_k(found: Plan) -> int:
    """Of the plan's second answer."""
    answer = found.answers[1]
    assert answer.value is not None
    return int(answer.value)


def predicted(found: Plan, acceptance: dict[str, Any]) -> dict[int, float]:
    """K → speed, by what `predict` evaluates, at the plan's own operating point and hardware
    (without the staircase of graph sizes, which plans smooth out)."""
    spec = found.facts.spec
    assert spec is not None
    at = found.best.point
    scenario = Scenario.from_dict({
        **SERVICE, "acceptance": acceptance,
        "hardware": {"gpu": "h100-sxm",
                     "tensor_parallel": spec.deployment.target.tensor_parallel},
        "draft": {**SERVICE["draft"], "tensor_parallel": spec.draft_tensor_parallel},
    })  # fmt: skip
    resolved = resolve(scenario)
    grid = evaluate(
        unpadded(resolved.deployment),
        resolved.source,
        resolved.law,
        list(range(1, 9)),
        at.batch,
        at.context,
    )
    speeds = np.ravel(grid.tokens_per_s)[-8:]
    return {k: float(speed) for k, speed in zip(range(1, 9), speeds, strict=True)}


def test_a_falling_hazard_chooses_another_k_than_its_alpha(tmp_path: Path) -> None:
    by_law = planned({"calibration": falling(tmp_path)})
    law = resolve_acceptance(
        Scenario.from_dict(
            {**SERVICE, "acceptance": {"calibration": falling(tmp_path)}}
        ).acceptance,
        by_law.problem.scenario.draft,
    )[0]
    alpha, _ = effective_alpha(law)
    by_alpha = planned({"alpha": alpha})
    assert by_law.answers[0].answer.startswith("Yes")
    assert best_k(by_law) < best_k(by_alpha)
    for found, acceptance in ((by_law, {"calibration": falling(tmp_path)}),
                              (by_alpha, {"alpha": alpha})):  # fmt: skip
        speeds = predicted(found, acceptance)
        fastest = max(speeds, key=lambda k: speeds[k])
        assert best_k(found) == fastest
        # what the plan says each other K loses is what predict says
        spec = found.facts.spec
        assert spec is not None
        at = int(np.argmin(np.abs(spec.model.batch - found.best.point.batch)))
        work = found.facts.work[:, at]
        for k, speed in speeds.items():
            row = spec.model.draft_tokens.index(k)
            assert work[spec.model.draft_tokens.index(fastest)] / work[row] == pytest.approx(
                speed / speeds[fastest], abs=0.01
            )


@pytest.mark.parametrize(
    "section",
    [f"  markov: {MARKOV}\n", "  beta: {mean: 0.6, standard_deviation: 0.25}\n",
     f"  conditional: {list(FALLING)}\n"],
)  # fmt: skip
def test_every_kind_of_law_gives_the_plan_its_own_lengths(tmp_path: Path, section: str) -> None:
    path = calibration(tmp_path, section)
    found = planned({"calibration": path})
    spec = found.facts.spec
    assert spec is not None
    assert spec.option is not None
    law = resolve(Scenario.from_dict({**SERVICE, "acceptance": {"calibration": path}})).law
    shares = [part.share for part in spec.parts]
    assert sum(shares) == pytest.approx(1.0)
    for row, k in enumerate(spec.model.draft_tokens):
        # requests of equal length: tokens over steps
        length = 1 / sum(part.share / part.tau[row] for part in spec.parts)
        assert length == pytest.approx(law.acceptance_length(k), rel=1e-6)


def test_a_plan_beyond_the_measured_range_says_so(tmp_path: Path) -> None:
    found = {}
    for name, last in (("narrow", "[10, 200]"), ("wide", "[10, 4000]")):
        path = tmp_path / f"{name}.yaml"
        largest = 2 if name == "narrow" else 16
        path.write_text(
            f"schema_version: 1\nacceptance: {{alpha: 0.85}}\n"
            f"range: {{num_draft_tokens: [1, {largest}], context: {last}}}\n",
            encoding="utf-8",
        )
        found[name] = {w.code for w in planned({"calibration": str(path)}).warnings}
    assert {"extrapolated-acceptance", "extrapolated-context"} <= found["narrow"]
    assert not {"extrapolated-acceptance", "extrapolated-context"} & found["wide"]


def test_a_class_takes_the_law_of_its_domain(tmp_path: Path) -> None:
    path = calibration(
        tmp_path, "  alpha: 0.7\n  by_domain:\n    code: {alpha: 0.9}\n    chat: {alpha: 0.4}\n"
    )
    classes = [{"name": name, "weight": 1.0} for name in ("code", "chat", "other")]
    data = {**SERVICE, "acceptance": {"calibration": path}}
    data["workload"] = {**SERVICE["workload"], "classes": classes}
    found = plan(Scenario.from_dict(data), simulate=False, drafts=["llama-3.2-1b"])
    wanted = {"code": 0.9, "chat": 0.4, "other": 0.7}
    for own in (found.facts.spec.option.laws, resolve(found.best).class_laws):  # type: ignore[union-attr]
        assert {n: law.acceptance_length(1) - 1 for n, law in own.items()} == pytest.approx(wanted)
    # and an estimate of another draft size starts from the class's own law
    everything = dataclasses.replace(found.problem, drafts=None)
    options = {o.label: o for o in draft_options(everything)}
    larger = options["llama-3.1-8b"].laws
    for name, alpha in wanted.items():
        assert larger[name].acceptance_length(1) - 1 > alpha


def test_other_sizes_keep_the_shape_of_a_measured_chain(tmp_path: Path) -> None:
    data = {**SERVICE, "acceptance": {"calibration": falling(tmp_path)}}
    options = {o.label: o for o in draft_options(make_problem(Scenario.from_dict(data)))}
    own, larger = options["llama-3.2-1b"].laws[""], options["llama-3.1-8b"].laws[""]
    assert options["llama-3.2-1b"].measured
    assert not options["llama-3.1-8b"].measured
    before, after = reference_hazards(own)[:6], reference_hazards(larger)[:6]
    np.testing.assert_allclose(before, FALLING, atol=1e-9)
    assert np.all(after > before)
    ratio = (1 - after) / (1 - before)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
    low, high = larger.survival_interval(3)  # type: ignore[misc]
    assert low[0] < after[0] < high[0]
    assert high[0] - low[0] > own.survival_interval(3)[1][0] - own.survival_interval(3)[0][0]  # type: ignore[index]


def test_a_measured_head_replaces_its_estimate_also_in_a_tree() -> None:
    """One head, one measurement: neither its chain nor its trees fall back on other targets'."""
    data = {
        **SERVICE, "target": {"model": "llama-3.1-8b"}, "hardware": {"gpu": "h100-sxm"},
        "draft": {"method": "eagle3", "model": "eagle3-llama-3.1-8b"},
        "acceptance": {"alpha": 0.5}, "engine": {"runtime": "sglang"},
    }  # fmt: skip
    options = {o.label: o for o in draft_options(make_problem(Scenario.from_dict(data)))}
    heads = [o for o in options.values() if o.keys.get("method") == "eagle3"]
    assert [o.measured for o in heads] == [True, False, False]
    assert heads[0].laws[""].acceptance_length(1) == pytest.approx(1.5)
    weak = heads[1].laws[""].acceptance_length(4)
    strong = draft_options(make_problem(Scenario.from_dict({**data, "acceptance": {"alpha": 0.8}})))
    tree = next(o for o in strong if o.label == heads[1].label)
    assert tree.laws[""].acceptance_length(4) > weak + 0.5


def test_a_drafter_that_rarely_proposes_is_not_charged_for_k_tokens() -> None:
    """Plans verify as many n-gram tokens as `predict` and the simulator do."""
    data = {**SERVICE, "draft": {"method": "ngram"}, "acceptance": {"alpha": 0.3}}
    found = plan(Scenario.from_dict(data), simulate=False, drafts=["ngram"])
    spec = next(c for c in found.found.candidates if c.label == "ngram")
    grid = evaluate(
        unpadded(spec.deployment), spec.source, Iid(0.3), spec.model.draft_tokens,
        spec.model.batch, found.problem.context,
    )  # fmt: skip
    np.testing.assert_allclose(spec.model.step_s, grid.step_s[:, :, 0], rtol=1e-9)


def test_draws_in_which_no_load_meets_the_slo_are_judged_by_speed() -> None:
    """A limit that speculation meets in a minority of the draws, and plain decoding in none:
    the odds are not against speculation."""
    data = {**SERVICE, "acceptance": {"alpha": 0.9}}
    found = plan(Scenario.from_dict(data), simulate=False, drafts=["llama-3.2-1b"])
    spec, off = found.facts.spec, found.baseline.candidate
    assert spec is not None
    met = np.zeros(NUM_DRAWS)
    met[: NUM_DRAWS // 4] = 1.0
    sampled = {id(spec): met, id(off): np.zeros(NUM_DRAWS)}
    faster = tpot_draws(found.problem, spec) < tpot_draws(found.problem, off)
    expected = np.mean(faster | (met > 0))
    assert expected > 0.5
    assert _probability(found.problem, spec, off, sampled) == pytest.approx(expected)
