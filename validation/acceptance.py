"""`python -m validation acceptance`: laws fitted on recorded runs against their replay.

Two questions, kept apart. Extrapolation, same requests: a law is chosen and fitted from the
step sequences that K = 3 would have left, and asked for τ at other K. Generalisation, other
requests: τ of one half of the requests against the interval that the other half states.
The runs are those of SpecDecode-Bench (Llama-3.1-8B; EAGLE and n-gram drafts), found
through SPECSIM_DATA and never shipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from specsim.acceptance.chains import Iid, PerPosition
from specsim.acceptance.conversions import alpha_from_acceptance_length
from specsim.acceptance.empirical import Empirical, load_runs
from specsim.acceptance.law import Law, Runs, replay
from specsim.fitting.choose import ChosenLaw, choose
from specsim.fitting.counts import Z95, merge, ratio_error
from specsim.fitting.sequences import sequences_of_runs, tallies_of
from specsim.interop.common import Tally
from validation.rows import Row, bounds, comparison, statistic

DATASETS = ("gsm8k", "cnn")
DRAFTERS = ("eagle", "ngram")
#: K whose step sequences the laws are fitted on, and K that they are asked for.
FITTED_K, EXTRAPOLATED = 3, (5, 8, 12)
SPLITS, SEED = 100, 20_240_902
#: Requests simulated per recorded one, for the spread over requests.
REPEATS = 30

Floats = npt.NDArray[np.float64]


def rows() -> list[Row]:
    """All rows; a single one with `passed` None where the data is absent."""
    folder = os.environ.get("SPECSIM_DATA")
    paths = [] if not folder else [
        Path(folder) / "acceptance" / f"llama31_8b_{name}.jsonl" for name in DATASETS
    ]  # fmt: skip
    if not paths or not all(path.is_file() for path in paths):
        return [Row(name="recorded runs", error=None, provenance="not run: SPECSIM_DATA has no "
                    "acceptance/llama31_8b_*.jsonl")]  # fmt: skip
    found: list[Row] = []
    for path, dataset in zip(paths, DATASETS, strict=True):
        for drafter in DRAFTERS:
            runs = load_runs(path, drafter)
            name = f"{dataset}, {drafter}"
            chosen = choose(sequences_of_runs(runs.requests, FITTED_K))
            found += _extrapolation(name, drafter, runs, chosen)
            found += _spread(name, runs, chosen.law)
            found += _generalisation(name, runs.requests)
    return found


def _extrapolation(name: str, drafter: str, runs: Empirical, chosen: ChosenLaw) -> Iterator[Row]:
    """τ at other K from K = 3, by the chosen law and by simpler ones beside it."""
    bound = bounds("acceptance")[f"extrapolated_{drafter}"]
    rivals = simple_laws(runs)
    for k in EXTRAPOLATED:
        observed = runs.acceptance_length(k)
        yield comparison(
            f"{name}: tokens per step at K = {k} from K = {FITTED_K}",
            chosen.law.acceptance_length(k), observed, "tokens", bound=bound,
            provenance=f"chosen by held-out likelihood: {chosen.name}",
        )  # fmt: skip
        for rival, law in rivals.items():
            error = abs(law.acceptance_length(k) / observed - 1)
            yield statistic(f"{name}: the {rival} law at K = {k}", error, provenance="for contrast")
        alpha = runs.draft_acceptance_rate(FITTED_K)
        yield statistic(
            f"{name}: the linear law 1 + rK at K = {k}", abs((1 + alpha * k) / observed - 1),
            provenance="for contrast",
        )  # fmt: skip


def simple_laws(runs: Empirical) -> dict[str, Law]:
    """The i.i.d. law and the constant-hazard tail with the same figures at K = 3."""
    tau = runs.acceptance_length(FITTED_K)
    return {
        "i.i.d.": Iid(alpha_from_acceptance_length(tau, FITTED_K)),
        "per-position": PerPosition.from_survival(tuple(runs.survival(FITTED_K))),
    }


def _spread(name: str, runs: Empirical, law: Law) -> Iterator[Row]:
    """p10 and p90 over requests of tokens per step, simulated with the recorded lengths."""
    bound = bounds("acceptance")["request_spread"]
    ks = (FITTED_K, 8)
    simulated = simulated_lengths(law, [len(r) for r in runs.requests if len(r)], ks)
    for k, predicted in zip(ks, simulated, strict=True):
        observed = runs.per_request_acceptance_length(k)
        for quantile in (0.1, 0.9):
            yield comparison(
                f"{name}: p{round(100 * quantile)} over requests of tokens per step at K = {k}",
                float(np.quantile(predicted, quantile)), float(np.quantile(observed, quantile)),
                "tokens", bound=bound, provenance=f"law of K = {FITTED_K}, recorded lengths",
            )  # fmt: skip


def simulated_lengths(law: Law, lengths: Sequence[int], ks: Sequence[int]) -> Floats:
    """Tokens per step of simulated requests of these lengths; (K, REPEATS · requests)."""
    rng = np.random.default_rng(SEED)
    simulated = [law.sample_runs(rng, n) for _ in range(REPEATS) for n in lengths]
    return np.array([[len(r) / len(replay(r, k)) for r in simulated] for k in ks])


def _generalisation(name: str, requests: Sequence[Runs]) -> Iterator[Row]:
    """The other half's τ against the interval that one half states, over random splits."""
    limits = bounds("acceptance")
    for k in (FITTED_K, 8):
        misses, reach, plain = split_errors(requests, k)
        outside = float(np.mean(misses > reach))
        yield statistic(
            f"{name}: splits outside the 95 % interval at K = {k}", outside,
            bound=limits["outside_interval"],
            provenance=f"{SPLITS} splits; half-width {np.median(reach):.1%}, largest miss "
            f"{misses.max():.1%}; without clustering {np.mean(misses > plain):.0%} are outside",
        )  # fmt: skip
        needed = float(np.quantile(misses, 0.95))
        yield statistic(
            f"{name}: half-width over the 95th percentile of misses at K = {k}, less 1",
            float(np.median(reach)) / needed - 1, bound=limits["interval_too_wide"],
            provenance="an interval must not be wider than it has to be",
        )  # fmt: skip


def split_errors(requests: Sequence[Runs], k: int) -> tuple[Floats, Floats, Floats]:
    """Per split: |τ_other/τ_fitted − 1|, the stated relative half-width for a half of that
    size, and the same from independent steps; shapes (SPLITS,)."""
    rng = np.random.default_rng(SEED)
    each = [tallies_of([sequence])[0] for sequence in sequences_of_runs(requests, k)]
    misses, reach, plain = [], [], []
    for _ in range(SPLITS):
        order = rng.permutation(len(each))
        halves = order[: len(order) // 2], order[len(order) // 2 :]
        one, other = (merge([each[i] for i in half])[0] for half in halves)
        tau, seen = (1 + float(t.total[Tally.ACCEPTED]) / t.steps for t in (one, other))
        # the stated error of one half's τ, and that of another sample of the other's size
        both = np.sqrt(1 + len(halves[0]) / len(halves[1]))
        misses.append(abs(seen / tau - 1))
        reach.append(Z95 * both * ratio_error(one, [Tally.ACCEPTED], 0.0) / tau)
        plain.append(Z95 * both * np.sqrt(_step_variance(one) / one.steps) / tau)
    return np.array(misses), np.array(reach), np.array(plain)


def _step_variance(tally: Tally) -> float:
    """Variance of accepted tokens per step, steps taken as independent."""
    s = tally.total[Tally.POSITIONS :] / tally.steps
    second = float(np.sum((2 * np.arange(1, len(s) + 1) - 1) * s))
    return second - float(s.sum()) ** 2
