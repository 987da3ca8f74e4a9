"""Acceptance laws: closed forms, agreement of pmf, formula and sampling, conversions."""

from __future__ import annotations

import contextlib
import json
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    draft_tokens,
    inner_probabilities,
    laws,
    markov_laws,
    per_position_laws,
    probabilities,
)

from specsim.acceptance import (
    BetaRequests,
    Empirical,
    Iid,
    Law,
    Markov,
    Mixture,
    PerPosition,
    Proposing,
    acceptance_length_from_alpha,
    alpha_from_acceptance_length,
    alpha_from_draft_acceptance_rate,
    conditional_from_survival,
    law_from_figure,
    load_runs,
    replay,
    survival_from_conditional,
)
from specsim.acceptance.law import MAX_RUN, runs_from_accepts
from specsim.errors import RecordError


class TestOracles:
    """Numbers from the literature, by hand."""

    def test_leviathan_alpha_08_k4(self) -> None:
        assert Iid(0.8).acceptance_length(4) == pytest.approx(3.3616, abs=1e-12)

    def test_conditional_vector(self) -> None:
        # 1 + .9 + .9·.8 + .9·.8·.5
        assert PerPosition((0.9, 0.8, 0.5)).acceptance_length(3) == pytest.approx(2.98, abs=1e-12)

    @pytest.mark.parametrize("k", [0, 1, 5, 12])
    def test_alpha_one_gives_k_plus_one(self, k: int) -> None:
        assert Iid(1.0).acceptance_length(k) == k + 1

    def test_ngram_formula(self) -> None:
        # τ = 1 + P(drafted > 0)·E[accepted | drafted > 0]; it drafts 3 with P = 0.25
        law = Proposing(Iid(0.6), (0.75, 0.0, 0.0, 0.25))
        assert law.acceptance_length(3) == pytest.approx(1 + 0.25 * (0.6 + 0.36 + 0.216))
        assert law.expected_drafted(3) == pytest.approx(0.75)
        assert law.draft_acceptance_rate(3) == pytest.approx((0.6 + 0.36 + 0.216) / 3)

    def test_mixture_is_tokens_over_steps(self) -> None:
        # two requests of equal length with τ = 2 and τ = 4/3: tokens / steps = harmonic mean
        law = Mixture(((0.5, PerPosition((1.0,))), (0.5, PerPosition((1 / 3,)))))
        assert law.acceptance_length(1) == pytest.approx(2 / (1 / 2 + 1 / (4 / 3)))

    def test_markov_first_hazard_falls_with_k(self) -> None:
        """Long jumps consume the easy stretches."""
        law = Markov(0.98, 0.05, 15, 30)
        first = [law.survival(k)[0] for k in (1, 3, 6, 12)]
        assert all(a > b for a, b in pairwise(first))


@given(laws(), draft_tokens)
def test_every_law_is_a_distribution(law: Law, k: int) -> None:
    survival, pmf = law.survival(k), law.pmf(k)
    assert survival.shape == (k,)
    assert pmf.shape == (k + 1,)
    assert np.all(pmf >= -1e-12)
    assert pmf.sum() == pytest.approx(1)
    assert np.all((survival >= -1e-12) & (survival <= 1 + 1e-12))
    accepted = np.arange(k + 1)
    assert law.mean(k) == pytest.approx(pmf @ accepted, abs=1e-9)
    assert law.variance(k) == pytest.approx(pmf @ accepted**2 - (pmf @ accepted) ** 2, abs=1e-9)
    assert 1 <= law.acceptance_length(k) <= k + 1 + 1e-12
    assert law.expected_drafted(k) <= k + 1e-9


@given(laws(), draft_tokens)
def test_hazard_rebuilds_survival(law: Law, k: int) -> None:
    hazard = law.hazard(k)
    assert np.all((hazard >= -1e-12) & (hazard <= 1 + 1e-9))
    np.testing.assert_allclose(np.cumprod(hazard), law.survival(k), atol=1e-9)


@given(st.one_of(per_position_laws(), markov_laws()), st.integers(0, 11))
def test_longer_drafts_never_emit_fewer_tokens(law: Law, k: int) -> None:
    """With the same law a longer draft has at least the acceptance length of a shorter."""
    assert law.acceptance_length(k + 1) >= law.acceptance_length(k) - 1e-9


@pytest.mark.parametrize(
    "law",
    [
        Iid(0.7),
        PerPosition((0.5, 0.9, 0.7)),
        Proposing(Iid(0.8), (0.5, 0.1, 0.1, 0.3)),
        Markov(0.95, 0.2, 12, 5),
    ],
    ids=["iid", "per-position", "proposing", "markov"],
)
@pytest.mark.parametrize("k", [1, 3, 7])
def test_sampling_agrees_with_survival(law: Law, k: int) -> None:
    """Mean over long requests, against a standard error clustered by request."""
    counts, hits = [], []
    for request in range(200):
        runs = law.sample_runs(np.random.default_rng([7, request]), 600)
        steps = replay(runs, k)[:-1]
        counts.append(len(steps))
        hits.append((steps[:, None] >= np.arange(1, k + 1)).sum(axis=0))
    n, hit = np.array(counts, dtype=float), np.array(hits, dtype=float)
    mean = hit.sum(axis=0) / n.sum()
    residual = hit - n[:, None] * mean
    error = np.sqrt((residual**2).sum(axis=0)) / n.sum()
    np.testing.assert_array_less(np.abs(mean - law.survival(k)), 4.5 * error + 1e-12)


def test_beta_sampling_agrees_with_survival() -> None:
    """Requests differ: the average over steps is the ratio estimator over requests."""
    law, k = BetaRequests.from_mean(0.7, 0.15), 4
    steps = [
        replay(law.sample_runs(np.random.default_rng([1, r]), 400), k)[:-1] for r in range(1500)
    ]
    n = np.array([len(s) for s in steps], dtype=float)
    hit = np.array([(s[:, None] >= np.arange(1, k + 1)).sum(axis=0) for s in steps], dtype=float)
    mean = hit.sum(axis=0) / n.sum()
    error = np.sqrt(((hit - n[:, None] * mean) ** 2).sum(axis=0)) / n.sum()
    np.testing.assert_array_less(np.abs(mean - law.survival(k)), 4.5 * error)


@given(st.floats(0.05, 0.95), st.floats(0.01, 0.99))
def test_beta_moments(mean: float, share: float) -> None:
    """Quadrature against the moments of the Beta distribution."""
    law = BetaRequests.from_mean(mean, share * np.sqrt(mean * (1 - mean)))
    parts = law.components()
    alphas = np.array([part.survival(1)[0] for _, part in parts])
    weights = np.array([w for w, _ in parts])
    assert weights.sum() == pytest.approx(1)
    assert weights @ alphas == pytest.approx(mean, rel=1e-6, abs=1e-9)
    a, b = law.a, law.b
    second = a * (a + 1) / ((a + b) * (a + b + 1))
    assert weights @ alphas**2 == pytest.approx(second, rel=1e-6, abs=1e-9)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_runs_count_acceptances_in_a_row(accepts: list[bool]) -> None:
    runs = runs_from_accepts(np.array(accepts), len(accepts))
    for position in range(len(accepts)):
        count = 0
        while position + count < len(accepts) and accepts[position + count]:
            count += 1
        assert runs[position] == min(count, MAX_RUN)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(0, 8))
def test_replay_emits_every_token_once(runs: list[int], k: int) -> None:
    accepted = replay(np.array(runs), k)
    assert np.all(accepted <= k)
    starts = np.concatenate(([0], np.cumsum(accepted + 1)))
    assert starts[-2] < len(runs) <= starts[-1]  # the last step is cut at the end
    assert all(a == min(runs[s], k) for s, a in zip(starts[:-1], accepted, strict=True))


@given(laws(), st.integers(0, 2**31), st.integers(1, 8))
def test_runs_with_other_k_are_coupled(law: Law, seed: int, num_tokens: int) -> None:
    """Runs do not depend on K, so the same request can be compared under several K."""
    first = law.sample_runs(np.random.default_rng(seed), num_tokens)
    again = law.sample_runs(np.random.default_rng(seed), num_tokens)
    np.testing.assert_array_equal(first, again)
    assert first.shape == (num_tokens,)
    assert np.all((first >= 0) & (first <= MAX_RUN))


@given(inner_probabilities, inner_probabilities, st.integers(0, 2**31))
def test_higher_alpha_never_shortens_a_coupled_run(a: float, b: float, seed: int) -> None:
    low, high = sorted((a, b))
    runs = [Iid(x).sample_runs(np.random.default_rng(seed), 50) for x in (low, high)]
    assert np.all(runs[0] <= runs[1])


class TestStepsPmf:
    """The number of steps of a request, the last one cut."""

    @pytest.mark.parametrize("law", [PerPosition((0.6, 0.3)), Iid(0.5), Markov(0.9, 0.2, 3, 2)])
    @pytest.mark.parametrize("num_tokens", [1, 2, 5])
    def test_exact_enumeration(self, law: Law, num_tokens: int) -> None:
        """Every sequence of accepted counts, weighted, for K = 2."""
        k = 2
        expected = np.zeros(num_tokens + 1)
        if isinstance(law, Markov):
            kernel, start = law.kernel(k), law.stationary
        else:
            kernel, start = law.pmf(k)[:, None, None], np.ones(1)
        for accepted in product(range(k + 1), repeat=num_tokens):
            ends = np.flatnonzero(np.cumsum(np.array(accepted) + 1) >= num_tokens)
            steps = int(ends[0]) + 1
            if any(accepted[steps:]):
                continue  # count each prefix once
            state = start
            for a in accepted[:steps]:
                state = state @ kernel[a]
            expected[steps] += state.sum()
        np.testing.assert_allclose(law.steps_pmf(num_tokens, k), expected, atol=1e-12)

    @given(laws(), st.integers(1, 40), st.integers(0, 5))
    @settings(max_examples=40)
    def test_is_a_distribution_between_the_limits(self, law: Law, n: int, k: int) -> None:
        pmf = law.steps_pmf(n, k)
        assert pmf.sum() == pytest.approx(1)
        assert np.all(pmf[: -(-n // (k + 1))] <= 1e-12)  # fewer steps than N/(K+1): impossible

    def test_mean_approaches_tokens_over_tau(self) -> None:
        """Elementary renewal theorem: E[steps]/N → 1/τ."""
        law, n = Iid(0.75), 2000
        steps = law.steps_pmf(n, 4) @ np.arange(n + 1)
        assert steps / n == pytest.approx(1 / law.acceptance_length(4), rel=1e-3)


class TestConversions:
    @given(st.lists(probabilities, min_size=1, max_size=10))
    def test_survival_and_conditional_are_inverse(self, conditional: list[float]) -> None:
        survival = survival_from_conditional(conditional)
        again = survival_from_conditional(conditional_from_survival(survival))
        np.testing.assert_allclose(again, survival, atol=1e-12)

    @given(st.floats(0.001, 0.999), st.integers(1, 20))
    def test_alpha_from_acceptance_length(self, alpha: float, k: int) -> None:
        tau = acceptance_length_from_alpha(alpha, k)
        assert alpha_from_acceptance_length(tau, k) == pytest.approx(alpha, abs=1e-6)

    @given(st.floats(0.01, 0.99), st.integers(1, 12))
    def test_alpha_from_draft_acceptance_rate(self, alpha: float, k: int) -> None:
        rate = Iid(alpha).draft_acceptance_rate(k)
        assert alpha_from_draft_acceptance_rate(rate, k) == pytest.approx(alpha, abs=1e-6)

    def test_the_four_rates_are_four_numbers(self) -> None:
        law = Iid(0.8)
        assert law.survival(4)[-1] == pytest.approx(0.4096)  # s_4
        assert law.draft_acceptance_rate(4) == pytest.approx(2.3616 / 4)  # r
        assert law.acceptance_length(4) == pytest.approx(3.3616)  # τ

    @pytest.mark.parametrize(
        ("kind", "values", "at_k", "message"),
        [
            ("alpha", (1.01,), None, "alpha=1.01 outside"),
            ("alpha", (float("nan"),), None, "alpha=nan outside"),
            ("alpha", (0.5, 0.5), None, "one number, not 2"),
            ("survival", (0.5, 0.6), None, "survival rises from 0.5 to 0.6 at position 2"),
            ("survival", (), None, "survival is empty"),
            ("conditional", (0.5, -0.1), None, "position 2=-0.1 outside"),
            ("acceptance_length", (3.0,), None, "needs the K"),
            ("acceptance_length", (6.0,), 4, r"outside \[1, 5\]"),
            ("acceptance_length", (0.9,), 4, r"outside \[1, 5\]"),
            ("draft_acceptance_rate", (1.2,), 4, "outside"),
            ("acceptance_rate", (0.5,), None, "four different numbers"),
        ],
    )
    def test_impossible_figures(
        self, kind: str, values: tuple[float, ...], at_k: int | None, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            law_from_figure(kind, values, at_num_draft_tokens=at_k)

    def test_single_figures_remember_their_k(self) -> None:
        law = law_from_figure("acceptance_length", (3.0,), at_num_draft_tokens=4)
        assert law.measured_to == 4
        assert law.acceptance_length(4) == pytest.approx(3.0)
        assert law_from_figure("alpha", (0.5,)).measured_to is None


class TestEmpirical:
    def test_replays_its_own_record(self) -> None:
        runs = (np.array([2, 1, 0, 0, 3, 2, 1, 0]), np.array([0, 0, 1, 0]))
        law = Empirical(runs)
        # K = 2: request 1 steps at 0, 3, 4, 7 accept 2, 0, 2, –; request 2 at 0, 1, 2: 0, 0, 1.
        # First tokens tested: 3 + 3 (the step at 7 begins at the end), accepted: 2 + 1.
        # Second ones: 2 accepted of 2 (that of request 2 would be its last position).
        assert replay(runs[0], 2).tolist() == [2, 0, 2, 0]
        np.testing.assert_allclose(law.survival(2), [3 / 6, 3 / 6 * 2 / 2])

    @pytest.mark.parametrize("cut", [False, True])
    def test_the_end_of_a_recording_does_not_shorten_runs(self, cut: bool) -> None:
        """Long steps reach a request's end more often than short ones: leaving out the step
        that does so makes τ 3 % too small here. Runs may be recorded beyond the end or not."""
        source, k, length = Iid(0.8), 8, 64
        left = length - 1 - np.arange(length)
        law = Empirical(tuple(
            np.minimum(runs, left) if cut else runs
            for runs in (source.sample_runs(np.random.default_rng([7, r]), length)
                         for r in range(1500))
        ))  # fmt: skip
        # about 14 whole steps a request
        error = np.sqrt(source.variance(k) / (1500 * 14))
        assert abs(law.mean(k) - source.mean(k)) < 4 * error

    def test_short_requests_count_as_far_as_they_go(self) -> None:
        # steps at 0 and 2; the second begins at the last position and tests nothing
        law = Empirical((np.array([1, 0, 0]), np.array([1, 0, 0])))
        np.testing.assert_allclose(law.survival(4), [2 / 2, 0.0, 0.0, 0.0])

    @pytest.mark.parametrize("requests", [3, 8])
    def test_interval_of_few_requests_covers(self, requests: int) -> None:
        """With 1.96 standard errors it covered 76 % (3 requests) and 88 % (8)."""
        source, k = BetaRequests.from_mean(0.7, 0.15), 2
        true, hits, trials = source.survival(k)[0], 0, 400
        for trial in range(trials):
            rng = np.random.default_rng([11, requests, trial])
            law = Empirical(tuple(source.sample_runs(rng, 200) for _ in range(requests)))
            interval = law.survival_interval(k)
            assert interval is not None
            hits += interval[0][0] <= true <= interval[1][0]
        assert hits / trials > 0.95 - 4 * np.sqrt(0.95 * 0.05 / trials)

    def test_sampled_runs_have_the_recorded_survival(self) -> None:
        source = Iid(0.6)
        runs = tuple(source.sample_runs(np.random.default_rng([3, r]), 300) for r in range(50))
        law = Empirical(runs)
        np.testing.assert_allclose(law.survival(3), source.survival(3), atol=0.02)

    def test_interval_is_clustered_by_request(self) -> None:
        """Requests that differ widen it: 40 requests of α = 0 or 1."""
        same = Empirical(tuple(Iid(0.5).sample_runs(np.random.default_rng([1, r]), 200)
                               for r in range(40)))  # fmt: skip
        unlike = Empirical(tuple(np.full(200, 5 * (r % 2)) for r in range(40)))
        widths = []
        for law in (same, unlike):
            interval = law.survival_interval(1)
            assert interval is not None
            widths.append(float(interval[1][0] - interval[0][0]))
        assert widths[1] > 4 * widths[0]

    def test_reads_both_layouts(self, tmp_path) -> None:
        ours = tmp_path / "ours.jsonl"
        ours.write_text('{"accepted_runs": [2, 1, 0]}\n')
        theirs = tmp_path / "theirs.jsonl"
        theirs.write_text('{"acc_eagle": {"acc_len": [3, 2, 1]}, "acc_ngram": {"acc_len": [1]}}\n')
        np.testing.assert_array_equal(load_runs(ours).requests[0], [2, 1, 0])
        np.testing.assert_array_equal(load_runs(theirs, "eagle").requests[0], [2, 1, 0])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "no recorded runs"),
            ("{", "line 1: not JSON"),
            ("[1]", "line 1: expected a JSON object, found list"),
            ('{"accepted_runs": [1]}\n{"accepted_runs": [-1]}', "line 2, key 'accepted_runs'"),
            ('{"accepted_runs": [1.5]}', "list of integers"),
            ('{"accepted_runs": "ab"}', "list of integers"),
            ('{"acc_eagle": {"acc_len": [0]}}', "integers >= 1"),
            ('{"acc_a": {}, "acc_b": {}}', "found drafters: a, b"),
            ('{"other": 1}', "found drafters: none"),
        ],
    )
    def test_bad_files(self, tmp_path, text: str, message: str) -> None:
        path = tmp_path / "runs.jsonl"
        path.write_text(text)
        with pytest.raises(RecordError, match=message) as caught:
            load_runs(path)
        assert str(path) in str(caught.value)

    @given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                        lambda x: st.lists(x) | st.dictionaries(st.text(), x)))  # fmt: skip
    def test_any_json_is_read_or_refused(self, tmp_path_factory, value) -> None:
        path = tmp_path_factory.mktemp("fuzz") / "runs.jsonl"
        path.write_text(json.dumps({"accepted_runs": value}) + "\n")
        with contextlib.suppress(RecordError):
            load_runs(path)


class TestInvalidParameters:
    @pytest.mark.parametrize("k", [-1, 1.5])
    def test_k(self, k: float) -> None:
        with pytest.raises(ValueError, match="num_draft_tokens"):
            Iid(0.5).survival(k)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "build",
        [
            lambda: PerPosition(()),
            lambda: PerPosition((1.2,)),
            lambda: Proposing(Iid(0.5), (0.5, 0.4)),
            lambda: Markov(0.5, 0.5, 0.5, 3),
            lambda: Markov(1.5, 0.5, 3, 3),
            lambda: BetaRequests(0, 1),
            lambda: BetaRequests.from_mean(0.5, 0.6),
            lambda: Mixture(()),
            lambda: Mixture(((0.5, Iid(0.5)),)),
            lambda: Empirical(()),
            lambda: Empirical((np.array([-1]),)),
        ],
    )
    def test_refused(self, build) -> None:
        with pytest.raises(ValueError, match=r"."):
            build()
