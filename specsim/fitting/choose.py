"""Chooses a law for step sequences by held-out likelihood.

The rule: every family is fitted on one half of the requests and judged on the other, both
ways round; the winner is the simplest family (fewest parameters) whose mean held-out
log-likelihood per request is within one standard error of the best one's, the error being
that of the paired difference over requests. The winner is fitted again on all requests and
anchored at the counted tokens per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specsim.acceptance.law import Law
from specsim.calibration import AcceptanceFit
from specsim.errors import CalibrationError
from specsim.fitting.counts import fit_counts, merge
from specsim.fitting.families import Family, anchored, equal_parts, families, keys_of
from specsim.fitting.hmm import Outcomes, outcomes
from specsim.fitting.sequences import StepSequence, tallies_of
from specsim.interop.common import Note, Tally

#: Fewer requests cannot be halved and judged: the counts alone give the law.
MIN_REQUESTS = 8
#: Requests that the choice looks at; all of them go into the final fit.
MAX_CHOICE_REQUESTS = 400
#: Iterations of EM while families are compared.
CHOICE_ITERATIONS = 60
#: The K behind positions of more than this many depths is rare; deeper hazards are pooled.
MAX_DEPTHS = 6

RULE = (
    "fewest parameters within one standard error of the best held-out log-likelihood "
    "(two halves of the requests, paired by request)"
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A family's mean held-out log-likelihood per request, and its gap to the best one with
    the standard error of that gap."""

    family: str
    num_parameters: int
    held_out: float
    gap: float
    gap_error: float


@dataclass(frozen=True, kw_only=True)
class ChosenLaw:
    """The winner fitted on everything, with the table of the competition."""

    name: str
    law: Law
    table: tuple[Choice, ...]


def observations(sequences: Sequence[StepSequence]) -> Outcomes:
    """Step sequences as outcomes by position."""
    return outcomes([(s.accepted, s.num_draft_tokens) for s in sequences])


def choose(sequences: Sequence[StepSequence]) -> ChosenLaw:
    """The law for these sequences, by the rule above.

    Raises:
        CalibrationError: with fewer than MIN_REQUESTS requests.
    """
    if len(sequences) < MIN_REQUESTS:
        raise CalibrationError(
            f"{len(sequences)} requests: expected at least {MIN_REQUESTS} to choose a law"
        )
    data = observations(sequences)
    largest = int(max(s.num_draft_tokens.max() for s in sequences))
    depths = min(largest, MAX_DEPTHS)
    table = compete(families(depths, CHOICE_ITERATIONS), data, depths)
    winner = next(f for f in families(depths) if f.name == _winner(table))
    law = winner.fit(data).law
    dominant = max(merge(tallies_of(sequences)), key=lambda t: t.steps)
    tau = 1 + float(dominant.total[Tally.ACCEPTED]) / dominant.steps
    return ChosenLaw(
        name=winner.name, law=anchored(law, tau, dominant.num_draft_tokens), table=table
    )


def compete(competing: Sequence[Family], data: Outcomes, depths: int) -> tuple[Choice, ...]:
    """Held-out log-likelihoods, two halves both ways round."""
    halves = equal_parts(min(data.num_requests, MAX_CHOICE_REQUESTS))
    scores: dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]] = {}
    for family in competing:
        parts = []
        for train, test in (halves, halves[::-1]):
            fitted = family.fit(data.pick(train))
            parts.append(fitted.likelihood(data.pick(test)))
        scores[family.name] = np.concatenate(parts)
    best = max(scores.values(), key=lambda s: float(s.mean()))
    rows = []
    for family in competing:
        gap = best - scores[family.name]
        rows.append(
            Choice(
                family=family.name,
                num_parameters=family.num_parameters(depths),
                held_out=float(scores[family.name].mean()),
                gap=float(gap.mean()),
                gap_error=float(gap.std(ddof=1) / np.sqrt(len(gap))),
            )
        )
    return tuple(rows)


def _winner(table: Sequence[Choice]) -> str:
    near = [row for row in table if row.gap <= row.gap_error]
    return min(near, key=lambda row: (row.num_parameters, -row.held_out)).family


def fit_sequences(
    sequences: Sequence[StepSequence],
    *,
    method: str | None = None,
    temperature: float | None = None,
) -> tuple[AcceptanceFit, list[Note]]:
    """A law with its errors: counts give the errors (clustered by request), sequences the
    law where there are enough requests.

    Raises:
        CalibrationError: if there are too few tokens; says how many are needed.
    """
    if not sequences:
        raise CalibrationError(
            "no whole step that drafted anything: expected records with K >= 1 and requests of "
            "more than K + 1 tokens"
        )
    counted, notes = fit_counts(tallies_of(sequences), method=method)
    update: dict[str, object] = {"temperature": temperature}
    if len(sequences) < MIN_REQUESTS:
        notes.append(
            Note(
                code="few-requests",
                message=f"{len(sequences)} requests are too few to compare laws: expected "
                f"{MIN_REQUESTS}; the counts by position are the law",
            )
        )
        return counted.model_copy(update=update), notes
    chosen = choose(sequences)
    runner_up = sorted(chosen.table, key=lambda row: -row.held_out)[:3]
    listed = "; ".join(f"{r.family} {r.held_out:.3f}" for r in runner_up)
    fit = AcceptanceFit(
        **keys_of(chosen.law), law=chosen.name, rule=f"{RULE}; best three: {listed}",
        standard_errors={
            **{k: v for k, v in counted.standard_errors.items() if k == "acceptance_length"},
            **({"survival": counted.standard_errors["survival"]}
               if "survival" in counted.standard_errors else {}),
        },
        acceptance_length=counted.acceptance_length, at_k=counted.at_k,
        num_tokens=counted.num_tokens, num_steps=counted.num_steps, num_requests=len(sequences),
        method=method, temperature=temperature, by_k=counted.by_k,
    )  # fmt: skip
    return fit, notes
