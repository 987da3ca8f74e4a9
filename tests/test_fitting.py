"""Fitting: laws recovered from their own samples, errors that cover, counts and costs."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from specsim.acceptance.chains import Iid, PerPosition
from specsim.acceptance.correlated import BetaRequests, Markov, Mixture
from specsim.acceptance.hidden import HiddenChain
from specsim.acceptance.law import Law, replay
from specsim.calibration import load
from specsim.errors import CalibrationError
from specsim.fitting import fit_files
from specsim.fitting.choose import choose, fit_sequences
from specsim.fitting.costs import constants_of_rows, host_time, rows_of_records
from specsim.fitting.counts import Z95, fit_counts, pooled_survival, ratio_error, with_all_steps
from specsim.fitting.families import anchored, fit_beta, fit_hidden, fit_iid, keys_of
from specsim.fitting.files import Options
from specsim.fitting.hmm import (
    Chain,
    _categories,
    _expectations,
    _forward,
    log_likelihood,
    outcomes,
)
from specsim.fitting.sequences import (
    StepSequence,
    sequences_of_records,
    sequences_of_runs,
    tallies_of,
)
from specsim.interop.common import Tally
from specsim.interop.detect import recognise
from specsim.records import ForwardRecord, Header, StepRecord, read_records, write_records
from specsim.scenario.resolve import law_of_keys
from specsim.scenario.sections import DraftKeys

FIXTURES = Path(__file__).parent / "fixtures" / "interop"
SEED = 11


def sampled(law: Law, requests: int, length: int, k: int, seed: int = SEED) -> list[StepSequence]:
    """Step sequences that a law would leave at K."""
    rng = np.random.default_rng(seed)
    return sequences_of_runs([law.sample_runs(rng, length) for _ in range(requests)], k)


EASY_HARD = Markov(alpha_easy=0.92, alpha_hard=0.25, easy_length=18, hard_length=9)


# --- hidden chains ---------------------------------------------------------------------


def test_likelihood_is_that_of_all_paths() -> None:
    """Forward and backward recursions against the sum over every path of states."""
    rng = np.random.default_rng(3)
    chain = Chain(
        initial=np.array([0.3, 0.7]), transition=np.array([[0.8, 0.2], [0.4, 0.6]]),
        accept=rng.uniform(0.1, 0.9, (2, 2)),
    )  # fmt: skip
    steps = [(np.array([2, 0, 1]), np.array([2, 2, 2]))]
    data = outcomes(steps)
    # accepted, accepted, (bonus, never drafted), rejected, accepted, rejected
    assert data.outcome[:, 0].tolist() == [1, 1, 2, 0, 1, 0]
    assert data.depth[:, 0].tolist() == [0, 1, 2, 0, 0, 1]
    total, states, moves = 0.0, np.zeros((6, 2)), np.zeros((2, 2))
    for path in np.ndindex(*[2] * 6):
        p = chain.initial[path[0]]
        for t, z in enumerate(path):
            if t:
                p *= chain.transition[path[t - 1], z]
            alpha = chain.accept[z, min(data.depth[t, 0], 1)]
            p *= {1: alpha, 0: 1 - alpha, 2: 1.0}[int(data.outcome[t, 0])]
        total += p
        for t, z in enumerate(path):
            states[t, z] += p
            if t:
                moves[path[t - 1], z] += p
    assert log_likelihood(chain, data)[0] == pytest.approx(np.log(total))
    present = np.ones((6, 1))
    posterior, expected_moves, _ = _expectations(chain, _categories(data, 2), present)
    np.testing.assert_allclose(posterior[:, 0], states / total)
    np.testing.assert_allclose(expected_moves, moves / total)


def test_em_never_lowers_the_likelihood_and_finds_the_chain() -> None:
    data = outcomes(
        [(s.accepted, s.num_draft_tokens) for s in sampled(EASY_HARD, 60, 400, 3)]
    )  # fmt: skip
    few = fit_hidden(data, 1, 2, 1, 3).likelihood(data).sum()
    many = fit_hidden(data, 1, 2, 1, 60)
    assert many.likelihood(data).sum() > few > fit_iid(data).likelihood(data).sum()
    law = many.law
    assert isinstance(law, Markov)
    # 24,000 positions of stretches of some 14 tokens: about 900 changes of state
    assert law.alpha_easy == pytest.approx(0.92, abs=0.03)
    assert law.alpha_hard == pytest.approx(0.25, abs=0.06)
    assert law.easy_length == pytest.approx(18, rel=0.35)
    for k in (1, 3, 8, 12):
        assert law.acceptance_length(k) == pytest.approx(EASY_HARD.acceptance_length(k), rel=0.03)


def test_hidden_chain_agrees_with_the_two_state_law() -> None:
    stay = (1 - 1 / 18, 1 - 1 / 9)
    chain = HiddenChain(
        transition=((stay[0], 1 - stay[0]), (1 - stay[1], stay[1])), accept=((0.92,), (0.25,))
    )
    for k in (0, 1, 4, 12):
        np.testing.assert_allclose(chain.survival(k), EASY_HARD.survival(k), atol=1e-10)
        np.testing.assert_allclose(chain.steps_pmf(30, k), EASY_HARD.steps_pmf(30, k), atol=1e-10)
    rng = np.random.default_rng(SEED)
    steps = np.concatenate([replay(chain.sample_runs(rng, 2000), 4)[:-1] for _ in range(20)])
    deviation = steps.std() * np.sqrt(6 / len(steps))  # neighbouring steps are correlated
    assert steps.mean() == pytest.approx(chain.mean(4), abs=4 * deviation)


def test_horizon_is_the_average_over_a_request_of_that_length() -> None:
    chain = HiddenChain(
        transition=((0.995, 0.005), (0.0, 1.0)), accept=((0.2, 0.1), (0.9, 0.8)),
        initial=(1.0, 0.0), horizon=120,
    )  # fmt: skip
    rng = np.random.default_rng(SEED)
    steps = [replay(chain.sample_runs(rng, 120 + 64), 5) for _ in range(3000)]
    kept = []  # steps that begin within the horizon
    for accepted in steps:
        begins = np.concatenate(([0], np.cumsum(accepted + 1)[:-1]))
        kept.append(accepted[begins < 120])
    counts = np.array([len(a) for a in kept])
    sums = np.array([a.sum() for a in kept])
    mean = sums.sum() / counts.sum()
    error = np.sqrt(np.sum((sums - mean * counts) ** 2)) / counts.sum()
    assert chain.mean(5) == pytest.approx(mean, abs=4 * error)
    # the long run would be in the easy state for good
    assert HiddenChain(chain.transition, chain.accept, chain.initial).mean(5) > 1.5 * chain.mean(5)


def test_forward_scales_to_one() -> None:
    chain = Chain(
        initial=np.array([0.5, 0.5]), transition=np.full((2, 2), 0.5), accept=np.full((2, 1), 0.5)
    )
    forward, _ = _forward(chain, np.full((7, 3, 2), 0.5))
    np.testing.assert_allclose(forward.sum(axis=2), 1.0)


# --- choosing --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("law", "expected"),
    [
        (Iid(0.7), {"iid"}),
        (PerPosition((0.5, 0.8, 0.9)), {"per-position"}),
        (EASY_HARD, {"markov", "chain-2-by-position"}),
    ],
    ids=["iid", "per-position", "markov"],
)
def test_the_family_that_made_the_data_is_chosen(law: Law, expected: set[str]) -> None:
    chosen = choose(sampled(law, 40, 200, 3))
    assert chosen.name in expected
    by_name = {row.family: row for row in chosen.table}
    assert by_name[chosen.name].gap <= by_name[chosen.name].gap_error
    for k in (3, 8):
        assert chosen.law.acceptance_length(k) == pytest.approx(law.acceptance_length(k), rel=0.06)


def test_beta_requests_are_recovered() -> None:
    law = BetaRequests(6.0, 3.0)
    data = outcomes([(s.accepted, s.num_draft_tokens) for s in sampled(law, 300, 150, 4)])
    fitted = fit_beta(data).law
    assert isinstance(fitted, BetaRequests)
    mean = fitted.a / (fitted.a + fitted.b)
    assert mean == pytest.approx(6 / 9, abs=4 * 0.149 / np.sqrt(300))  # sd of α over requests
    assert fitted.a + fitted.b == pytest.approx(9, rel=0.35)


def test_anchoring_reproduces_the_counted_length() -> None:
    mixture = Mixture(((0.4, Iid(0.5)), (0.6, PerPosition((0.9, 0.7)))))
    for law in (Iid(0.5), PerPosition((0.5, 0.6)), EASY_HARD, mixture):
        moved = anchored(law, 2.2, 3)
        assert moved.acceptance_length(3) == pytest.approx(2.2, abs=1e-6)
    assert anchored(Iid(0.5), 1.0, 3) == Iid(0.5)  # nothing accepted: nothing to shift to


def test_every_law_survives_its_keys() -> None:
    chain = HiddenChain(((0.9, 0.1), (0.2, 0.8)), ((0.9, 0.8), (0.3, 0.2)), (0.5, 0.5), 100)
    laws = [Iid(0.6), PerPosition((0.7, 0.6)), BetaRequests(5.0, 2.0), EASY_HARD, chain,
            Mixture(((0.25, chain), (0.75, chain)))]  # fmt: skip
    for law in laws:
        ((key, value),) = keys_of(law).items()
        again = law_of_keys(key, json.loads(json.dumps(value)), DraftKeys())
        np.testing.assert_allclose(again.survival(6), law.survival(6), atol=2e-6)


# --- counts and errors -----------------------------------------------------------------


def test_clustered_interval_covers_and_an_unclustered_one_does_not() -> None:
    """Requests that differ: 95 % intervals of τ over 200 samples of 40 requests."""
    law = BetaRequests(4.0, 2.0)
    truth = law.acceptance_length(4)
    inside = plain = 0
    for seed in range(200):
        tally = tallies_of(sampled(law, 40, 120, 4, seed))[0]
        fit, _ = fit_counts([tally])
        assert fit.acceptance_length is not None
        gap = abs(fit.acceptance_length - truth)
        inside += gap <= Z95 * fit.length_errors[3]
        s = tally.total[Tally.POSITIONS :] / tally.steps
        variance = float(np.sum((2 * np.arange(1, 5) - 1) * s) - s.sum() ** 2)
        plain += gap <= Z95 * np.sqrt(variance / tally.steps)
    # 95 % with a standard deviation of 1.5 %; 40 requests make the ratio estimator a bit short
    assert 0.90 <= inside / 200 <= 1.0
    assert plain / 200 < 0.75


def test_windows_of_a_stream_add_up() -> None:
    rows = [(10, 30, 12, (6, 4, 2)), (20, 60, 30, (15, 10, 5)), (15, 45, 9, (5, 3, 1))]
    tally = Tally(3)
    for steps, drafted, accepted, at_least in rows:
        tally.add(steps=steps, drafted=drafted, accepted=accepted, at_least=at_least)
    assert tally.steps == 45
    assert tally.total[Tally.POSITIONS :].tolist() == [26, 17, 8]
    assert tally.outer[0, 0] == 10**2 + 20**2 + 15**2
    assert tally.outer[0, Tally.ACCEPTED] == 10 * 12 + 20 * 30 + 15 * 9


def test_steps_without_a_draft_are_added_where_emitted_tokens_tell() -> None:
    fit = fit_files([FIXTURES / "vllm_ngram_2025.log"])
    notes = {n.code: n.message for n in fit.notes}
    assert "ngram-undercount" in notes
    acceptance = fit.calibration.acceptance
    assert acceptance is not None
    # 645 drafting steps kept 1855 tokens; 3000 more steps emitted one token each
    assert acceptance.acceptance_length == pytest.approx(1 + 1855 / 3645, rel=5e-3)
    assert acceptance.num_steps == pytest.approx(3645, rel=5e-3)


def test_undercount_is_named_where_it_cannot_be_corrected() -> None:
    tally = Tally(4)
    tally.counts_all_steps = False
    tally.add(steps=100, drafted=400, accepted=150, at_least=[70, 45, 25, 10])
    same, note = with_all_steps(tally)
    assert same is tally
    assert note is not None
    assert note.code == "ngram-undercount"


def test_several_k_are_pooled_by_position() -> None:
    short, long = Tally(2), Tally(4)
    short.add(steps=1000, drafted=2000, accepted=1300, at_least=[800, 500])
    long.add(steps=1000, drafted=4000, accepted=1500, at_least=[700, 450, 250, 100])
    s = pooled_survival([short, long])
    np.testing.assert_allclose(s[:2], [1500 / 2000, 950 / 2000])
    np.testing.assert_allclose(s[2:], [0.475 * 250 / 450, 0.475 * 100 / 450])
    fit, notes = fit_counts([short, long])
    assert "mixed-k" in {n.code for n in notes}
    assert fit.at_k == 4
    assert [(m.num_draft_tokens, m.acceptance_length) for m in fit.by_k] == [(2, 2.3), (4, 2.5)]


def test_too_few_tokens_are_refused_with_the_number_needed() -> None:
    tally = Tally(3)
    tally.add(steps=12, drafted=36, accepted=14, at_least=[7, 5, 2])
    with pytest.raises(
        CalibrationError, match=r"26 tokens in 12 steps .* needs about [\d,]+ tokens"
    ):
        fit_counts([tally])


def test_the_number_needed_is_enough() -> None:
    """Fitting as many tokens as a warning asks for gives a half-width of about 5 %."""
    few = tallies_of(sampled(Iid(0.7), 20, 60, 4))[0]
    _, notes = fit_counts([few])
    (message,) = [n.message for n in notes if n.code == "few-tokens"]
    needed = int(message.split()[-1].replace(",", ""))
    enough, _ = fit_counts(tallies_of(sampled(Iid(0.7), max(8, needed // 60), 60, 4)))
    assert enough.acceptance_length is not None
    half_width = Z95 * enough.length_errors[3] / enough.acceptance_length
    assert half_width == pytest.approx(0.05, rel=0.25)


def test_errors_grow_beyond_what_was_measured() -> None:
    fit, _ = fit_counts(tallies_of(sampled(Iid(0.8), 60, 200, 3)))
    errors = fit.length_errors
    law = PerPosition.from_survival(fit.survival or ())
    relative = [e / law.mean(k) for k, e in enumerate(errors, start=1)]
    assert all(b > a for a, b in itertools.pairwise(relative[2:]))


@pytest.mark.parametrize("windows", [3, 5, 8])
def test_interval_of_few_windows_covers(windows: int) -> None:
    """Student's t, and below eight windows no less than their own spread: with 1.96 standard
    errors 90 % at eight, with four times the variance of independent steps 51 % below."""
    law, k, trials = BetaRequests.from_mean(0.7, 0.15), 2, 400
    truth, inside = law.acceptance_length(k), 0
    for seed in range(trials):
        tally = tallies_of(sampled(law, windows, 400, k, 1000 * windows + seed))[0]
        length = 1 + float(tally.total[Tally.ACCEPTED]) / tally.steps
        error = ratio_error(tally, [Tally.ACCEPTED], law.variance(k))
        inside += abs(length - truth) <= Z95 * error
    assert inside / trials > 0.95 - 4 * np.sqrt(0.95 * 0.05 / trials)


@pytest.mark.parametrize("recorded", ["runs", "records"])
def test_the_end_of_requests_does_not_shorten_the_length(recorded: str) -> None:
    """64 tokens at K = 8: without the step that reaches the end, or with it cut there, τ
    comes out 3 % too small."""
    law, k, length, requests = Iid(0.8), 8, 64, 1500
    rng = np.random.default_rng(SEED)
    if recorded == "runs":
        sequences = sampled(law, requests, length, k)
    else:
        steps = []
        for r in range(requests):
            runs, position, index = law.sample_runs(rng, length), 0, 0
            while position < length:
                path = min(int(runs[position]), k)
                kept = min(path + 1, length - position)
                steps.append(StepRecord(
                    request=str(r), step=index, position=position, batch=1, context=position,
                    num_draft_tokens=k, num_drafted=k, num_accepted=min(path, kept),
                    draft_s=0.0, verify_s=0.0, sample_s=0.0, host_s=0.0,
                ))  # fmt: skip
                position, index = position + kept, index + 1
        sequences = sequences_of_records(steps)
    tally = tallies_of(sequences)[0]
    error = np.sqrt(law.variance(k) / tally.steps)
    # a stop inside a run leaves the length of a record's request open by one token: 0.2 %
    slack = 0.003 * law.acceptance_length(k) if recorded == "records" else 0.0
    assert tally.total[Tally.ACCEPTED] / tally.steps == pytest.approx(
        law.mean(k), abs=3 * error + slack
    )


PROMISED = {
    "step": '{"request": "a", "step": 0, "position": 1, "batch": 1, "context": 51, '
    '"num_draft_tokens": 4, "num_drafted": 4, "num_accepted": 2, "draft_s": 0.004, '
    '"verify_s": 0.01, "sample_s": 0.001, "host_s": 0.001, "overlap": [0.7, 0.7, 0.7, 0.7]}',
    "forward": '{"model": "m", "batch": 1, "new_tokens": 1, "context": 64, "seconds": 0.013, '
    '"repeats": 5, "spread": 0.0001}',
    "request": '{"request": "a", "arrival_s": 0.0, "prompt_tokens": 10, "output_tokens": 3, '
    '"chunk_times_s": [0.5, 0.6], "chunk_tokens": [1, 2]}',
}


@pytest.mark.parametrize("schema", PROMISED)
def test_records_of_just_the_documented_keys_are_recognised(schema: str, tmp_path: Path) -> None:
    """A file that somebody else writes has no `version` and none of our optional keys."""
    header = {"schema": schema, "device": "gpu", "dtype": "bf16", "versions": {}, "threads": 1,
              "seed": 0}  # fmt: skip
    path = tmp_path / "theirs.jsonl"
    path.write_text(f"{json.dumps(header)}\n{PROMISED[schema]}\n")
    assert recognise(path) == "records"
    assert len(list(read_records(path)[1])) == 1


# --- records and costs -----------------------------------------------------------------


def step_records(law: Law, requests: int, k: int, **more: object) -> list[StepRecord]:
    records = []
    for r, sequence in enumerate(sampled(law, requests, 150, k)):
        position = 0
        for i, accepted in enumerate(sequence.accepted):
            values = {
                "request": f"{more.get('domain', '')}{r}", "step": i, "position": position,
                "batch": 1, "context": 100 + position, "num_draft_tokens": k, "num_drafted": k,
                "num_accepted": int(accepted), "draft_s": 0.002, "verify_s": 0.01,
                "sample_s": 0.0004, "host_s": 0.0006, "method": "eagle", **more,
            }  # fmt: skip
            records.append(StepRecord(**values))  # type: ignore[arg-type]
            position += int(accepted) + 1
    return records


def test_records_give_a_law_per_domain_and_costs(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    records = [*step_records(Iid(0.8), 10, 3, domain="code"),
               *step_records(Iid(0.4), 10, 3, domain="chat")]  # fmt: skip
    write_records(path, Header(schema="step", device="cpu"), records)
    fit = fit_files([path])
    acceptance, cost = fit.calibration.acceptance, fit.calibration.cost
    assert acceptance is not None
    assert cost is not None
    assert set(acceptance.by_domain) == {"code", "chat"}
    assert acceptance.by_domain["code"].acceptance_length == pytest.approx(2.95, abs=0.15)
    assert acceptance.method == "eagle"
    assert cost.host is not None
    assert cost.host.step_s == pytest.approx(0.001)
    assert cost.steps[0].seconds == pytest.approx(0.013)
    assert fit.calibration.range.num_draft_tokens == (3, 3)
    assert fit.calibration.sources[0].device == "cpu"
    fit.calibration.save(tmp_path / "c.yaml")
    assert load(tmp_path / "c.yaml") == fit.calibration


def test_records_of_several_methods_need_a_choice(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    records = [*step_records(Iid(0.8), 9, 3), *step_records(Iid(0.4), 9, 3, method="ngram")]
    for i, record in enumerate(records):
        object.__setattr__(record, "request", f"{record.method}-{record.request}-{i // 10_000}")
    write_records(path, Header(schema="step"), records)
    with pytest.raises(CalibrationError, match=r"several methods \(eagle, ngram\).*--method"):
        fit_files([path])
    fit = fit_files([path], options=Options(method="ngram"))
    assert fit.calibration.acceptance is not None
    assert fit.calibration.acceptance.acceptance_length == pytest.approx(1.624, abs=0.12)


def test_fewer_requests_than_two_halves_keep_the_counts() -> None:
    fit, notes = fit_sequences(sampled(Iid(0.7), 5, 400, 3))
    assert fit.law == "per-position"
    assert "few-requests" in {n.code for n in notes}


def test_linear_constants_are_recovered_with_their_errors() -> None:
    rng = np.random.default_rng(SEED)
    truth = (5e-3, 2e-5, 4e-8)
    records = []
    for b in (1, 4, 16):
        for n in (1, 4, 8):
            for c in (128, 1024, 4096):
                exact = truth[0] + truth[1] * b * n + truth[2] * b * (c + n)
                seconds = exact * float(np.exp(rng.normal(0, 0.01)))
                records.append(
                    ForwardRecord(
                        model="m",
                        batch=b,
                        new_tokens=n,
                        context=c,
                        seconds=seconds,
                        repeats=10,
                        spread=0.01 * exact,
                    )
                )
    constants = constants_of_rows(rows_of_records(records))["m"]
    for name, value in zip(("fixed_s", "token_s", "kv_token_s"), truth, strict=True):
        error = constants.standard_errors[name]
        assert 0 < error < 0.1 * value
        assert getattr(constants, name) == pytest.approx(value, abs=4 * error)


def test_host_time_weighs_batches_once() -> None:
    def record(request: str, batch: int, host_s: float) -> StepRecord:
        return StepRecord(
            request=request, step=0, position=0, batch=batch, context=1, num_draft_tokens=2,
            num_drafted=2, num_accepted=0, draft_s=0, verify_s=0.1, sample_s=0.0, host_s=host_s,
        )  # fmt: skip

    # one step of a batch of four leaves four records; one step of one request leaves one
    records = [record(str(i), 4, 0.002) for i in range(4)] + [record("x", 1, 0.004)]
    host = host_time(records)
    assert host is not None
    assert host.step_s == pytest.approx(0.003)
