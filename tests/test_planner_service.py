"""The closed form of a service: identities, limits, and the simulator beside it."""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planner_services import SMALL

from specsim.acceptance import Iid, Mixture, PerPosition
from specsim.analytic.breakeven import unpadded
from specsim.cost.step import decode_step, prefill_seconds
from specsim.errors import ConfigError
from specsim.planner import draft_size
from specsim.planner.candidate import schedule_rows
from specsim.planner.draft_size import Pair, draft_pairs, fit_pairs, size_model
from specsim.planner.problem import Problem, make_problem
from specsim.planner.search import Found, search
from specsim.planner.service import (
    _slot_wait,
    best_schedule,
    capacity,
    components,
    curve,
    demanded,
    fixed,
    normal_cdf,
    steps_per_request,
)
from specsim.planner.simulated import serve, simulated
from specsim.planner.step_model import StepModel
from specsim.planner.uncertainty import Shift, draws, outcome
from specsim.scenario.document import Scenario


def service(**sections: Any) -> Scenario:
    workload = {
        **SMALL["workload"],
        "prompt_tokens": {"distribution": "lognormal", "mean": 800, "cv": 0.8},
        "output_tokens": {"distribution": "lognormal", "mean": 200, "cv": 0.8},
    }
    return Scenario.from_dict({**SMALL, "workload": workload, **sections})


@pytest.fixture(scope="module")
def problem() -> Problem:
    return make_problem(service(), drafts=["llama-3.2-1b"])


@pytest.fixture(scope="module")
def found(problem: Problem) -> Found:
    return search(problem)


def test_littles_law_holds_exactly(problem: Problem, found: Found) -> None:
    """batch = rate · (time in decoding): TPOT of a mean request × its tokens, at every batch.

    With one class and one law, mean residence is (N − 1)·TPOT, whatever the policy."""
    for candidate in found.candidates:
        served = candidate.curve
        residence = (problem.mean_output - 1) * served.tpot_s
        np.testing.assert_allclose(served.rate_per_s * residence, served.batch, rtol=1e-9)


def test_without_prefill_a_step_is_all_there_is(problem: Problem, found: Found) -> None:
    base = found.baseline
    free = StepModel(**{
        **{f: getattr(base.model, f) for f in base.model.__dataclass_fields__},
        "prefill_s": np.zeros_like(base.model.prefill_s),
    })  # fmt: skip
    served = curve(problem, free, list(base.parts), base.policy, 256)
    np.testing.assert_allclose(served.tpot_s, base.model.step_s[0], rtol=1e-12)


def test_step_times_are_those_of_the_cost_model(found: Found) -> None:
    """Without padding, and K = 0 with a draft costs the draft's upkeep on top."""
    spec = next(c for c in found.candidates if c.speculates)
    model, smooth = spec.model, unpadded(spec.deployment)
    at = [0, 5, len(model.batch) - 1]
    for k in (1, 4, 9):
        row = model.draft_tokens.index(k)
        step = decode_step(smooth, spec.source, k, model.batch[at], found_context(found))
        np.testing.assert_allclose(model.step_s[row, at], step.seconds, rtol=1e-12)
    plain = decode_step(
        smooth.without_draft(), spec.source, 0, model.batch[at], found_context(found)
    ).seconds
    assert np.all(model.step_s[0, at] > plain)


def found_context(found: Found) -> float:
    return make_problem(service(), drafts=["llama-3.2-1b"]).context


def test_context_weighs_long_answers_more() -> None:
    """Answers of 100 and 900 tokens after no prompt to speak of: 900-token requests make
    nine tenths of the steps, so the mean context is near 420, not 250."""
    lengths = {"distribution": "empirical", "values": [100, 900]}
    scenario = service(workload={
        "arrivals": {"process": "poisson", "rate_per_s": 1.0},
        "prompt_tokens": {"distribution": "constant", "value": 1}, "output_tokens": lengths,
    })  # fmt: skip
    exact = 1 + (100**2 / 2 + 900**2 / 2) / (100 + 900)
    assert make_problem(scenario).context == pytest.approx(exact, rel=0.02)


def test_a_prompts_share_of_a_step_is_near_its_prefill(found: Found) -> None:
    """Alone, a long prompt takes its prefill; beside decoding it shares the weights."""
    base = found.baseline
    alone = prefill_seconds(base.deployment, base.source, base.model.prompts)
    longest = int(np.argmax(base.model.prompts))
    ratio = base.model.prefill_s[0, longest] / alone[longest]
    assert 0.5 < ratio <= 1.05


def test_the_schedule_is_the_best_k_at_each_batch(problem: Problem, found: Found) -> None:
    """Against brute force, within the 1 % that keeps a K."""
    spec = next(c for c in found.candidates if c.speculates)
    steps = steps_per_request(problem, list(spec.parts))
    work = steps[:, None] * spec.model.step_s
    rows = best_schedule(spec.model, steps).rows
    chosen = work[rows, np.arange(work.shape[1])]
    assert np.all(chosen <= 1.01 * work.min(axis=0) * (1 + 1e-12))


def test_schedule_rows_are_what_engines_take(found: Found) -> None:
    for candidate in found.candidates:
        rows = schedule_rows(candidate.model, candidate.policy, candidate.batch_limit)
        assert rows[0][0] == 1
        assert rows[-1][1] == candidate.batch_limit
        assert all(b[0] == a[1] + 1 for a, b in itertools.pairwise(rows))
        assert all(low <= high for low, high, _ in rows)
        for low, high, k in rows:
            for batch in candidate.curve.batch:
                if low <= batch <= high:
                    assert candidate.k_at(batch) == k


def test_steps_are_harmonic_over_classes() -> None:
    """Two halves with τ = 2 and τ = 4 take (1/2 + 1/4)/2 steps a token."""
    problem = make_problem(service())
    name = problem.classes[0].name
    two, four = PerPosition((1.0,)), PerPosition((1.0, 1.0, 1.0))
    mix = Mixture(((0.5, two), (0.5, four)))
    parts = components(problem, {name: mix}, (3,))
    steps = steps_per_request(problem, parts)[0] / (problem.mean_output - 1)
    expected = (1 / two.acceptance_length(3) + 1 / four.acceptance_length(3)) / 2
    assert steps == pytest.approx(expected, rel=1e-12)


def test_the_wait_for_a_slot_is_erlangs() -> None:
    """Sakasegawa's formula against Erlang C where waits matter (it is an approximation:
    twice too long where hardly anybody waits)."""
    for slots in (2, 8, 32):
        for load, tolerance in ((0.9, 0.06), (0.97, 0.02)):
            offered = load * slots
            terms = [offered**n / math.factorial(n) for n in range(slots)]
            last = offered**slots / math.factorial(slots) / (1 - load)
            exact = last / (sum(terms) + last) / (slots * (1 - load))
            _, wait = _slot_wait(np.array([offered]), slots, np.array([1.0]))
            assert wait[0] == pytest.approx(exact, rel=tolerance)


def test_the_normal_distribution() -> None:
    from scipy.stats import norm

    z = np.linspace(-8, 8, 401)
    np.testing.assert_allclose(normal_cdf(z), norm.cdf(z), atol=2e-4)


def test_demand_inverts_the_curve(problem: Problem, found: Found) -> None:
    base = found.baseline
    for batch_at in (3, 20):
        point = demanded(problem, base.curve, base.slots, float(base.curve.rate_per_s[batch_at]))
        assert point.batch == pytest.approx(base.curve.batch[batch_at], rel=1e-6)
    beyond = demanded(problem, base.curve, base.slots, 1e6)
    assert not beyond.stable
    light = demanded(problem, base.curve, base.slots, 1e-4)
    assert light.tpot_s == pytest.approx(base.curve.tpot_s[0])


def test_a_looser_slo_never_lowers_the_capacity(problem: Problem, found: Found) -> None:
    last = 0.0
    for tpot_s in (0.008, 0.012, 0.02, 0.05):
        scenario = service(slo={"ttft_s": 1.0, "tpot_s": tpot_s})
        looser = make_problem(scenario, drafts=["llama-3.2-1b"])
        base = found.baseline
        served = curve(looser, base.model, list(base.parts), fixed(base.model, 0), base.slots)
        point = capacity(looser, served, base.slots)
        rate = point.rate_per_s if point else 0.0
        assert rate >= last
        last = rate
    assert last > 0


@pytest.mark.parametrize("draft", [True, False])
def test_the_simulator_agrees_at_the_demand(problem: Problem, found: Found, draft: bool) -> None:
    """TPOT and batch of the closed form within 10 and 15 % of a long simulated run."""
    candidate = next(c for c in found.candidates if c.speculates is draft)
    from specsim.planner.candidate import scenario_of

    run = serve(problem, scenario_of(problem, candidate), 6.0, 4000, 1)
    assert candidate.demand.tpot_s == pytest.approx(run.tpot_s, rel=0.10)
    assert candidate.demand.batch == pytest.approx(run.mean_batch, rel=0.15)
    assert candidate.demand.ttft_s == pytest.approx(run.ttft_s, rel=0.4)


def test_capacity_is_where_the_simulator_stops_attaining(problem: Problem, found: Found) -> None:
    """The closed form's edge within a quarter of the simulated one, and the simulated one
    between a rate that attains the SLO and one that does not."""
    result = simulated(problem, found.best, num_requests=600)
    assert found.best.capacity is not None
    assert result.capacity_per_s is not None
    assert found.best.capacity.rate_per_s == pytest.approx(result.capacity_per_s, rel=0.25)
    assert result.low is not None
    assert result.high is not None
    assert result.low <= result.capacity_per_s <= result.high


def test_plans_see_the_same_requests(problem: Problem, found: Found) -> None:
    """Common random numbers: a run repeats to the last digit."""
    one, two = (simulated(problem, found.best, num_requests=200) for _ in range(2))
    assert one == two


# --- draft size -----------------------------------------------------------------------


def test_a_known_line_is_found_again() -> None:
    """Exact points on log(1 − α) = level + 0.2·log(ratio) give slope and levels back."""
    pairs = tuple(
        Pair(task, 1e10, 1e10 / ratio, 1 - math.exp(level + 0.2 * math.log(ratio)))
        for task, level in (("a", -2.0), ("b", -1.6)) for ratio in (5.0, 20.0, 80.0)
    )  # fmt: skip
    model = fit_pairs(pairs)
    assert model.slope == pytest.approx(0.2, rel=1e-9)
    assert model.level == pytest.approx(-1.8, rel=1e-9)


def test_published_slope_and_order() -> None:
    """A larger draft is accepted more, every estimate inside its interval, and it is
    anchored where it was measured."""
    model = size_model()
    assert 0.05 < model.slope < 0.2
    alphas = [model.from_anchor(r, 10, 0.7, 0.02) for r in (2, 5, 10, 50, 200)]
    assert all(a.low < a.alpha < a.high for a in alphas)
    assert [a.alpha for a in alphas] == sorted((a.alpha for a in alphas), reverse=True)
    assert alphas[2].alpha == pytest.approx(0.7)
    assert alphas[2].standard_error == pytest.approx(0.02, rel=0.01)
    # far from the anchor, and at every size without one, less is known (of log(1 − α))
    spread = [math.log((1 - a.low) / (1 - a.high)) for a in alphas]
    assert spread[2] < spread[1] < spread[0]
    assert spread[2] < spread[3] < spread[4]
    for ratio, anchored in zip((2, 5, 10, 50, 200), spread, strict=True):
        nothing = model.unanchored(ratio)
        assert math.log((1 - nothing.low) / (1 - nothing.high)) > anchored
    # the slope's own error counts away from the sizes that were measured
    errors = [model.unanchored(math.exp(model.centre + d)) for d in (0, 2, -2)]
    middle, *far = (math.log((1 - e.low) / (1 - e.high)) for e in errors)
    assert min(far) > 1.05 * middle


def test_left_out_sizes_lie_in_the_prediction_interval() -> None:
    """Each published pair predicted from another draft of its task, the line fitted to the
    other tasks: at least nine in ten inside the 95 % interval."""
    inside = []
    pairs = draft_pairs()
    for pair in pairs:
        rest = [p for p in pairs if p.group != pair.group]
        for other in pairs:
            if other.group == pair.group and other.draft != pair.draft:
                found = fit_pairs(rest).from_anchor(
                    pair.target / pair.draft, other.target / other.draft, other.alpha,
                    other.standard_error,
                )  # fmt: skip
                inside.append(found.low <= pair.alpha <= found.high)
    assert len(inside) >= 24
    assert np.mean(inside) >= 0.9


def test_our_own_drafts_join_the_fit_as_data(tmp_path: Path) -> None:
    """Rows measured by us, with their errors: counted apart, and they move slope and error."""
    lines = draft_size.PATH.read_text(encoding="utf-8").splitlines(keepends=True)
    text = "".join(line for line in lines if "measured by us" not in line)
    published = tuple(p for p in draft_pairs() if p.provenance == "published")
    own = "".join(
        f"own drafts at T 0,1.35e8,{size:g},{1 - 0.5 * (1.35e8 / size) ** 0.05:.4f},0.004,"
        "measured by us,training run\n"
        for size in (2e6, 8e6, 3e7)
    )  # fmt: skip
    path = tmp_path / "sizes.csv"
    path.write_text(text + own, encoding="utf-8")
    pairs = draft_pairs(path)
    assert [p.standard_error for p in pairs[-3:]] == [0.004] * 3
    before, after = fit_pairs(published), fit_pairs(pairs)
    assert after.basis == f"{before.num_pairs} published pairs and 3 of our own"
    assert after.basis in after.from_anchor(20, 10, 0.7, 0.02).source
    assert after.slope < before.slope  # theirs is 0.05
    # how high a draft of minutes gets says nothing of a released one
    assert after.num_groups == before.num_groups
    assert after.unanchored(10).alpha == pytest.approx(before.unanchored(10).alpha, abs=0.02)
    assert after.slope_error > 0.02  # the tasks' slopes still differ


def test_the_published_line_foretold_our_own_drafts() -> None:
    """From one layer to two and four, with the line of the published pairs alone: within its
    interval, and at temperature 1 within 0.025."""
    pairs = draft_pairs()
    line = fit_pairs([p for p in pairs if p.provenance == "published"])
    own = [p for p in pairs if p.provenance == "measured by us"]
    for group in {p.group for p in own}:
        small, *others = sorted((p for p in own if p.group == group), key=lambda p: p.draft)
        assert len(others) == 2
        for pair in others:
            found = line.from_anchor(
                pair.target / pair.draft, small.target / small.draft, small.alpha,
                small.standard_error,
            )  # fmt: skip
            assert found.low < pair.alpha < found.high
            if group.endswith("T=1"):
                assert found.alpha == pytest.approx(pair.alpha, abs=0.025)


def test_our_rows_are_those_of_the_drafts_page() -> None:
    """The planner's rows of our drafts are the draft models of validation/data."""
    path = Path(__file__).parents[1] / "validation" / "data" / "own_drafts.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        measured = {
            (row["group"], float(row["draft_parameters"]), float(row["alpha"]))
            for row in csv.DictReader(stream)
            if row["draft"].startswith("layers-") and row["domain"] != "copy"
        }
    own = {(p.group, p.draft, p.alpha) for p in draft_pairs() if p.provenance == "measured by us"}
    assert own == measured


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,1e9,2e9,0.5,,published,x", r"draft_parameters = '2e9': expected .* 1e\+09"),
        ("a,1e9,1e8,1.5,,published,x", "alpha = '1.5': expected a number between 0 and 1"),
        ("a,1e9,1e8,0.5,much,published,x", "standard_error = 'much'"),
        ("a,1e9,1e8,0.5,,guessed,x", "provenance = 'guessed': expected one of published, meas"),
        ("a,1e9,1e8,0.5,,published,", "source is empty"),
        ("a, b,1e9,1e8,0.5,,published,x", "expected 7 values"),
    ],
)
def test_a_bad_pair_is_named_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "sizes.csv"
    path.write_text(",".join(draft_size.COLUMNS) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"sizes\.csv:2: .*{message}"):
        draft_pairs(path)


def test_sizes_that_say_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="two sizes"):
        fit_pairs((Pair("a", 1e10, 1e9, 0.7), Pair("b", 1e10, 2e9, 0.7)))
    with pytest.raises(ValueError, match="ratio"):
        size_model().unanchored(0.0)


# --- uncertainty ----------------------------------------------------------------------


def test_no_shift_is_the_plan_itself(problem: Problem, found: Found) -> None:
    best = found.best
    nothing = outcome(problem, best)
    assert nothing.objective == pytest.approx(best.objective)
    assert nothing.demand.tpot_s == pytest.approx(best.demand.tpot_s)


def test_errors_move_the_outcome_the_right_way(problem: Problem, found: Found) -> None:
    spec = next(c for c in found.candidates if c.speculates)
    tpot = {
        name: [outcome(problem, spec, Shift(**{name: z})).demand.tpot_s for z in (-2.0, 2.0)]
        for name in ("alpha", "verify", "draft", "overhead", "bandwidth", "stack")
    }
    assert tpot["alpha"][1] < tpot["alpha"][0]
    assert tpot["bandwidth"][1] < tpot["bandwidth"][0]
    for name in ("verify", "draft", "overhead", "stack"):
        assert tpot[name][1] > tpot[name][0], name
    # plain decoding knows nothing of drafts
    off = found.baseline
    for name in ("alpha", "verify", "draft", "stack"):
        assert outcome(problem, off, Shift(**{name: 2.0})) == outcome(problem, off)


def test_draws_are_standard_and_repeat() -> None:
    z = np.array([[s.alpha, s.verify, s.draft, s.overhead, s.bandwidth, s.stack] for s in draws()])
    assert np.all(np.abs(z.mean(axis=0)) < 0.25)
    assert np.all(np.abs(z.std(axis=0) - 1) < 0.15)
    assert draws() == draws()


def test_the_shift_of_a_law_is_its_own_interval() -> None:
    problem = make_problem(service())
    name = problem.classes[0].name
    law = Iid(0.7, standard_error=0.05)
    for z, alpha in ((1.96, 0.7 + 1.96 * 0.05), (-1.96, 0.7 - 1.96 * 0.05)):
        part = components(problem, {name: law}, (4,), shift=z)[0]
        assert part.tau[0] == pytest.approx(Iid(alpha).acceptance_length(4), rel=1e-9)


def test_the_page_states_the_fitted_slope() -> None:
    page = (Path(__file__).parents[1] / "docs" / "plan.md").read_text(encoding="utf-8")
    model = size_model()
    assert model.basis in page
    assert f"slope {model.slope:.3f} ± {model.slope_error:.3f}" in page
