"""The closed form: published oracles, identities, break-even, intervals."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import inner_probabilities

import specsim as ss
from specsim.acceptance import Iid, PerPosition
from specsim.analytic import (
    Prediction,
    acceptance_length,
    evaluate,
    predict,
    speedup,
    tpot_distribution,
)
from specsim.analytic.breakeven import break_even_alpha
from specsim.analytic.formulas import break_even_cost_ratio, paying_ranges, quantile
from specsim.analytic.ratios import predict_from_ratios
from specsim.analytic.uncertainty import EXACT
from specsim.cost.experts import TYPICAL
from specsim.cost.roofline import Roofline
from specsim.deployment import Deployment, PlacedModel, Routing, make_draft
from specsim.errors import ScenarioError


class TestOracles:
    def test_leviathan_theorem_3_8(self) -> None:
        assert float(acceptance_length(0.8, 4)) == pytest.approx(3.3616, abs=1e-12)
        # 3.3616 / (4·0.05 + 1)
        assert float(speedup(3.3616, 4, 0.05)) == pytest.approx(2.801333, abs=1e-6)

    def test_leviathan_t5_small(self) -> None:
        """Table 2 of Leviathan et al. 2023: α = 0.75, K = 7, c = 0.02 → 3.157."""
        assert float(speedup(acceptance_length(0.75, 7), 7, 0.02)) == pytest.approx(3.157, abs=5e-4)

    def test_ratios_give_the_same(self) -> None:
        result = predict_from_ratios(Iid(0.8), "given", [4], 0.05)
        assert result["rows"][0]["speedup"] == pytest.approx(3.3616 / 1.2)

    def test_half_acceptance_needs_a_draft_under_two_percent(self) -> None:
        limit = break_even_cost_ratio(1.9375, 4, wanted=1.8)
        assert limit == pytest.approx((1.9375 / 1.8 - 1) / 4)
        assert limit < 0.02


@given(inner_probabilities, st.integers(0, 30))
def test_formula_equals_law(alpha: float, k: int) -> None:
    assert float(acceptance_length(alpha, k)) == pytest.approx(Iid(alpha).acceptance_length(k))


@given(st.floats(0, 1e-6), st.integers(0, 30))
def test_formula_is_stable_near_one(gap: float, k: int) -> None:
    """1 − α^{K+1} over 1 − α loses all digits there; the sum does not."""
    alpha = 1 - gap
    expected = sum(alpha**i for i in range(k + 1))
    assert float(acceptance_length(alpha, k)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_formula_refuses(alpha: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        acceptance_length(alpha, 4)


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_paying_ranges_cover_exactly_the_points_that_pay(pays: list[bool]) -> None:
    points = np.arange(1, len(pays) + 1)
    ranges = paying_ranges(points, pays)
    inside = [any(low <= p <= high for low, high in ranges) for p in points]
    assert inside == pays
    assert all(a[1] + 1 < b[0] for a, b in pairwise(ranges))


class TestTpot:
    def test_deterministic_acceptance(self) -> None:
        """α = 1, K = 3: 4 tokens a step; 8 tokens after the first take 2 steps."""
        values, probabilities = tpot_distribution(Iid(1.0), 3, 0.01, 9)
        assert values @ probabilities == pytest.approx(0.01 * 2 / 8)
        assert quantile(values, probabilities, 0.99) == pytest.approx(0.0025)

    def test_mean_tends_to_step_over_tau(self) -> None:
        law = Iid(0.7)
        values, probabilities = tpot_distribution(law, 4, 0.02, 1500)
        assert values @ probabilities == pytest.approx(0.02 / law.acceptance_length(4), rel=3e-3)

    def test_quantiles_against_sampling(self) -> None:
        law, k, n = PerPosition((0.7, 0.6)), 2, 60
        values, probabilities = tpot_distribution(law, k, 1.0, n)
        assert probabilities.sum() == pytest.approx(1)
        rng = np.random.default_rng(2)
        counts = []
        for _ in range(4000):
            left, steps = n - 1, 0
            while left > 0:
                left -= 1 + rng.choice(3, p=law.pmf(k))
                steps += 1
            counts.append(steps / (n - 1))
        error = np.std(counts) / np.sqrt(len(counts))
        assert values @ probabilities == pytest.approx(np.mean(counts), abs=4 * error)
        assert quantile(values, probabilities, 0.9) == pytest.approx(
            np.quantile(counts, 0.9), abs=1.5 / (n - 1)
        )

    def test_refused(self) -> None:
        with pytest.raises(ValueError, match="num_tokens=1"):
            tpot_distribution(Iid(0.5), 2, 1.0, 1)


def deployment(**changes: object) -> Deployment:
    target = PlacedModel(spec=ss.model("llama-3.1-8b"))
    base = Deployment(
        target=target, draft=make_draft(target, model=ss.model("llama-3.2-1b")),
        gpu=ss.gpu("h100-sxm"), runtime=ss.runtime("ideal"),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


class TestGrid:
    source = Roofline(gpu=ss.gpu("h100-sxm"))

    def test_shapes_and_identities(self) -> None:
        grid = evaluate(deployment(), self.source, Iid(0.8), range(5), [1, 8, 64], [128, 4096])
        assert grid.speedup.shape == (5, 3, 2)
        np.testing.assert_allclose(
            grid.step_s, grid.part("draft") + grid.part("verify") + grid.part("overhead")
        )
        np.testing.assert_allclose(grid.speedup[0], 1.0)  # K = 0 is the baseline
        tau = grid.acceptance_length[:, None, None]
        np.testing.assert_allclose(grid.speedup, tau * grid.step_s[0] / grid.step_s)

    def test_another_law_keeps_the_costs(self) -> None:
        grid = evaluate(deployment(), self.source, Iid(0.8), range(4), [1, 8], [100])
        again = evaluate(deployment(), self.source, Iid(0.6), range(4), [1, 8], [100])
        np.testing.assert_array_equal(grid.with_law(Iid(0.6)).speedup, again.speedup)

    def test_one_configuration_equals_the_grid(self) -> None:
        grid = evaluate(deployment(), self.source, Iid(0.8), range(1, 4), [1, 8], [100, 900])
        for i, batch in enumerate((1, 8)):
            for j, context in enumerate((100, 900)):
                one = evaluate(deployment(), self.source, Iid(0.8), range(1, 4), batch, context)
                np.testing.assert_allclose(one.speedup[:, 0, 0], grid.speedup[:, i, j])

    @given(st.floats(0.05, 0.9), st.floats(0.01, 0.09), st.integers(1, 8), st.integers(1, 200))
    @settings(max_examples=25)
    def test_more_acceptance_is_never_slower(
        self, alpha: float, more: float, k: int, batch: int
    ) -> None:
        low, high = (
            evaluate(deployment(), self.source, Iid(a), [k], batch, 512).speedup.item()
            for a in (alpha, alpha + more)
        )
        assert high > low

    @given(st.integers(1, 8), st.integers(1, 512), st.integers(0, 8000))
    @settings(max_examples=25)
    def test_interval_encloses_the_prediction(self, k: int, batch: int, context: int) -> None:
        law = Iid(0.7, standard_error=0.03)
        grid = evaluate(deployment(), self.source, law, [k], batch, context)
        low, high = grid.interval()
        assert low.item() < grid.speedup.item() < high.item()
        exact = dataclasses.replace(grid, cost_error=EXACT)
        inner_low, inner_high = exact.interval()
        # without cost error, exactly the speedups at the ends of alpha's interval
        for bound, a in ((inner_low, 0.7 - 1.96 * 0.03), (inner_high, 0.7 + 1.96 * 0.03)):
            expected = Iid(a).acceptance_length(k) / law.acceptance_length(k)
            assert bound.item() == pytest.approx(grid.speedup.item() * expected)

    def test_unknown_routing_widens_the_interval(self) -> None:
        """For a mixture of experts, unless the user says how tokens spread."""
        widths = []
        for routing in (TYPICAL, Routing(skew=0.6, overlap=0.3)):
            target = PlacedModel(spec=ss.model("qwen3-30b-a3b"), routing=routing)
            made = deployment(target=target, draft=make_draft(target, method="eagle3"))
            low, high = evaluate(made, self.source, Iid(0.7), [4], 4, 512).interval()
            widths.append(high.item() / low.item())
        assert widths[0] > 1.05 * widths[1]

    def test_baseline_has_no_interval(self) -> None:
        grid = evaluate(deployment(), self.source, Iid(0.7), [0], 1, 100)
        low, high = grid.interval()
        assert low.item() == high.item() == 1.0


class TestBreakEven:
    def test_alpha_is_where_the_speedup_is_one(self) -> None:
        prediction = predict(
            target="llama-3.1-70b", draft="llama-3.1-8b", gpu="h100-sxm", tensor_parallel=4,
            acceptance=Iid(0.7), num_draft_tokens=[3],
        )  # fmt: skip
        alpha = prediction.break_even["alpha"]
        again = predict(
            target="llama-3.1-70b", draft="llama-3.1-8b", gpu="h100-sxm", tensor_parallel=4,
            acceptance=Iid(alpha), num_draft_tokens=[3],
        )  # fmt: skip
        assert again.rows()[0]["speedup"] == pytest.approx(1.0, abs=1e-6)

    def test_no_alpha_is_enough_for_a_draft_as_slow_as_the_target(self) -> None:
        assert break_even_alpha([1, 2], np.array([2.5, 3.5]), 1.0) is None
        assert break_even_alpha([0], np.array([1.0]), 1.0) is None
        assert break_even_alpha([4], np.array([1.0]), 1.0) == 0.0

    @pytest.mark.parametrize("key", ["batch", "context"])
    def test_edges_are_exact(self, key: str) -> None:
        """Just inside an edge the best K pays, just outside it does not."""
        common = {
            "target": "llama-3.1-8b", "draft": "llama-3.2-1b", "gpu": "l40s",
            "acceptance": Iid(0.6), "runtime": "ideal", "num_draft_tokens": range(1, 5),
            "batch": 24, "context": 256,
        }  # fmt: skip
        ranges = predict(**common).break_even[key]
        assert ranges
        for low, high in ranges:
            for inside, outside in ((low, low - 1), (high, high + 1)):
                best = predict(**{**common, key: inside}).best["speedup"]
                assert best > 1
                limit = {"batch": predict(**common).max_batch, "context": 131072}[key]
                if 1 <= outside <= limit:
                    assert predict(**{**common, key: outside}).best["num_draft_tokens"] == 0

    def test_a_mixture_of_experts_has_two_crossovers(self) -> None:
        """Small batches: drafted tokens visit new experts; huge ones: compute-bound; in
        between all experts are read anyway. Uniform routing shows it best."""
        prediction = predict(
            target="qwen3-30b-a3b", method="eagle3", gpu="h100-sxm", acceptance=Iid(0.5),
            runtime="ideal", num_draft_tokens=[3], batch=1, context=64, routing=Routing(),
        )  # fmt: skip
        ranges = prediction.break_even["batch"]
        assert any(low > 1 for low, _ in ranges)


@pytest.fixture(scope="module")
def prediction() -> Prediction:
    return predict(
        target=ss.model("llama-3.1-70b"), draft=ss.model("llama-3.2-1b"), gpu=ss.gpu("h100-sxm"),
        tensor_parallel=4, acceptance=Iid(0.75), num_draft_tokens=range(1, 13),
        batch=[1, 8, 64], context=1024,
    )  # fmt: skip


class TestPrediction:
    def test_frame_is_tidy(self, prediction) -> None:
        frame = prediction.to_frame()
        assert len(frame) == 12 * 3
        assert frame.set_index(["num_draft_tokens", "batch", "context"]).index.is_unique
        assert np.isfinite(frame.select_dtypes("number").to_numpy()).all()
        first = prediction.rows()[4]
        row = frame.query("num_draft_tokens == 5 and batch == 1").iloc[0]
        assert row["speedup"] == pytest.approx(first["speedup"])

    def test_best_and_regret(self, prediction) -> None:
        regret = prediction.regret()
        best = prediction.best["num_draft_tokens"]
        assert regret[best] == 0
        assert min(regret.values()) == 0
        assert regret[0] == pytest.approx(1 - 1 / prediction.best["speedup"])

    def test_parts_of_the_baseline_add_up(self, prediction) -> None:
        base = prediction.baseline()
        assert sum(base["components"].values()) == pytest.approx(base["step_s"])
        assert base["tokens_per_s"] == pytest.approx(1 / base["step_s"])

    def test_shows_itself_in_a_notebook(self, prediction) -> None:
        html = prediction._repr_html_()
        assert "llama-3.1-70b" in html
        assert "<table" in html

    def test_nothing_pays_is_zero_drafts(self) -> None:
        result = predict(target="llama-3.1-8b", draft="llama-3.2-1b", gpu="h100-sxm",
                         acceptance=Iid(0.02))  # fmt: skip
        assert result.best == {"num_draft_tokens": 0, "speedup": 1.0}
        codes = {caveat.code for caveat in result.warnings}
        assert {"does-not-pay", "draft-too-slow"} <= codes

    def test_context_beyond_the_model(self) -> None:
        with pytest.raises(ScenarioError, match="context 9000 is beyond the 8192"):
            predict(target="llama-3-8b", method="ngram", gpu="h100-sxm", acceptance=Iid(0.5),
                    context=9000)  # fmt: skip


class TestCaveats:
    """Each warning appears where it should, and not where it should not."""

    base: ClassVar[dict[str, Any]] = {
        "target": "llama-3.1-70b", "draft": "llama-3.1-8b", "gpu": "h100-sxm",
        "tensor_parallel": 4, "acceptance": Iid(0.75), "num_draft_tokens": range(1, 6),
    }  # fmt: skip

    def codes(self, **changes: object) -> set[str]:
        return {caveat.code for caveat in predict(**{**self.base, **changes}).warnings}

    @pytest.mark.parametrize(
        ("code", "changes"),
        [
            ("does-not-fit", {"tensor_parallel": 1}),
            ("over-capacity", {"batch": 1000, "context": 8192}),
            ("beyond-crossover", {"batch": 400, "acceptance": Iid(0.3), "context": 128}),
            ("does-not-pay", {"acceptance": Iid(0.05)}),
            ("extrapolated-acceptance", {"acceptance": PerPosition((0.8, 0.7, 0.6))}),
            ("suspect-acceptance", {"acceptance": Iid(0.01)}),
            ("acceptance-cliff", {"acceptance": PerPosition((0.8, 0.7, 0.0, 0.0))}),
            ("no-unit", {"gpu": "a100-sxm-80gb", "weights": "fp8"}),
            ("large-draft", {"target": "llama-3.1-8b", "draft": "llama-3.2-3b"}),
            ("latency-bound-draft", {"draft": "llama-3.2-1b", "runtime": "hf-eager"}),
        ],
    )  # fmt: skip
    def test_appears(self, code: str, changes: dict[str, object]) -> None:
        assert code in self.codes(**changes)

    def test_a_sound_deployment_has_no_false_alarm(self) -> None:
        quiet = {
            "does-not-fit", "over-capacity", "does-not-pay", "suspect-acceptance",
            "acceptance-cliff", "no-unit", "large-draft", "extrapolated-acceptance",
        }  # fmt: skip
        assert self.codes() & quiet == set()
