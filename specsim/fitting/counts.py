"""From acceptance counts to a law with its standard errors.

Counts are sums over windows (requests, or the intervals of a log), so means are ratios of
sums and their errors those of a ratio estimator, clustered by window (Cochran 1977, §2.11).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from specsim.acceptance.chains import Iid, PerPosition
from specsim.acceptance.conversions import alpha_from_acceptance_length
from specsim.acceptance.law import Array, Law, t95
from specsim.calibration import AcceptanceFit, MeasuredLength
from specsim.errors import CalibrationError
from specsim.interop.common import MeanLength, Note, Tally

Z95 = 1.96
#: τ is quoted with its error for K = 1 … this.
ERRORS_TO = 16
#: From this many windows on, their spread is trusted; below, steps are taken as independent
#: and their variance times this factor. In recorded runs (EAGLE and n-gram drafts, two
#: domains) requests make the variance 2 to 9 times that of independent steps.
MIN_WINDOWS = 8
#: Below this their spread is not looked at; from here to MIN_WINDOWS the larger error holds.
LEAST_WINDOWS = 3
DESIGN_EFFECT = 4.0
#: Relative half-width of τ's interval beyond which a fit says nothing.
REFUSED_HALF_WIDTH = 0.5
MIN_STEPS = 20
#: Half-width that a speedup is wanted to.
WANTED_HALF_WIDTH = 0.05
#: Emitted tokens beyond drafts + accepted, as a share, that first tokens do not explain.
UNDERCOUNT = 0.05
#: Standard error, as a share of τ, that the unknown shape of a law adds per factor e of K
#: beyond what was measured. i.i.d. laws matched at K = 3 miss τ at K = 8 and 12 by 5 to 15 %.
SHAPE_ERROR = 0.05


def with_all_steps(tally: Tally) -> tuple[Tally, Note | None]:
    """The tally with steps that drafted nothing added, where the source leaves them out and
    the emitted tokens tell their number; and a note if so, or if it cannot be told."""
    if tally.counts_all_steps:
        return tally, None
    steps, accepted = tally.steps, float(tally.total[Tally.ACCEPTED])
    if not tally.emitted_known:
        return tally, Note(
            code="ngram-undercount",
            message=f"K={tally.num_draft_tokens}: the engine counts a draft only where something "
            "was drafted; with an n-gram or suffix drafter tokens per step are overstated, and "
            "the file has no emitted tokens to correct it (with EAGLE, MTP or a draft model say "
            "--method, and nothing is missing)",
        )
    emitted = float(tally.total[Tally.EMITTED])
    if emitted <= (1 + UNDERCOUNT) * (accepted + steps):
        return tally, None
    size = len(tally.total)
    change = np.eye(size)
    change[Tally.STEPS] = 0.0
    change[Tally.STEPS, [Tally.EMITTED, Tally.ACCEPTED]] = (1.0, -1.0)  # a step emits a + 1
    corrected = Tally(tally.num_draft_tokens)
    corrected.windows, corrected.by_request = tally.windows, tally.by_request
    corrected.positions_known, corrected.emitted_known = tally.positions_known, True
    corrected.total = change @ tally.total
    corrected.outer = change @ tally.outer @ change.T
    return corrected, Note(
        code="ngram-undercount",
        message=f"K={tally.num_draft_tokens}: {emitted:.0f} tokens were emitted but drafts and "
        f"accepted tokens explain {accepted + steps:.0f}: steps without a draft are not counted "
        f"by the engine. Counted: {1 + accepted / steps:.3f} tokens per drafting step, "
        f"{1 + accepted / corrected.steps:.3f} per step",
    )


def ratio_error(tally: Tally, columns: Sequence[int], variance: float) -> float:
    """Standard error of Σ columns over steps, such that ±1.96 of it is a 95 % interval: with
    few windows Student's t is in it.

    `variance` is that of one step's sum, for when there are too few windows.
    """
    n, w = tally.steps, tally.windows
    effect = DESIGN_EFFECT if w < MIN_WINDOWS else 1.0
    independent = math.sqrt(max(variance, 0.0) * effect / n)
    if w < LEAST_WINDOWS:
        return independent
    pick = np.zeros(len(tally.total))
    pick[list(columns)] = 1.0
    mean = float(pick @ tally.total) / n
    pick[Tally.STEPS] -= mean
    squares = float(pick @ tally.outer @ pick)
    clustered = math.sqrt(max(squares, 0.0) * w / (w - 1)) / n
    return max(clustered * t95(w) / Z95, independent)


def survival_of(tally: Tally) -> Array:
    """s_1..s_K as counted; shape (K,)."""
    s = tally.total[Tally.POSITIONS :] / tally.steps
    return np.asarray(np.clip(np.minimum.accumulate(s), 0.0, 1.0))


def fit_counts(
    tallies: Sequence[Tally], *, method: str | None = None, refuse: bool = True
) -> tuple[AcceptanceFit, list[Note]]:
    """The law behind counts: per position where the source has them, else the i.i.d. law of
    the same acceptance length. Several K are pooled position by position.

    Raises:
        CalibrationError: if there are too few tokens; says how many are needed.
    """
    notes: list[Note] = []
    corrected = []
    for tally in tallies:
        if method is not None and method not in ("ngram", "suffix"):
            tally.counts_all_steps = True
        full, note = with_all_steps(tally)
        corrected.append(full)
        if note is not None:
            notes.append(note)
    merged = merge(corrected)
    if len(merged) > 1:
        listed = ", ".join(
            f"K={t.num_draft_tokens}: {1 + t.total[Tally.ACCEPTED] / t.steps:.2f} tokens per step "
            f"over {t.steps:.0f} steps" for t in merged
        )  # fmt: skip
        notes.append(
            Note(code="mixed-k", message=f"several K; positions are pooled over them ({listed})")
        )
    main = max(merged, key=lambda t: (t.positions_known, t.num_draft_tokens))
    largest = main.num_draft_tokens
    positional = [t for t in merged if t.positions_known]
    law: Law
    keys: dict[str, object]
    if positional:
        survival = pooled_survival(positional)
        law = PerPosition.from_survival(tuple(survival))
        keys = {"survival": tuple(round(float(s), 6) for s in survival)}
        name, rule = "per-position", "the source counts by position; the last hazard goes on"
    else:
        main = max(merged, key=lambda t: t.steps)
        largest = main.num_draft_tokens
        length = 1 + min(float(main.total[Tally.ACCEPTED]) / main.steps, float(largest))
        law = Iid(alpha_from_acceptance_length(length, largest))
        keys = {"alpha": round(law.alpha, 6)}
        name = "iid"
        rule = f"the source gives tokens per step at K={largest} only: i.i.d. law with the same"
    tokens = sum(t.steps + float(t.total[Tally.ACCEPTED]) for t in merged)
    steps = sum(t.steps for t in merged)
    errors = length_errors(main, law, largest)
    at = largest
    tau = law.acceptance_length(at)
    error = errors[at - 1]
    needed = tokens * (Z95 * error / tau / WANTED_HALF_WIDTH) ** 2
    if refuse and (steps < MIN_STEPS or Z95 * error / tau > REFUSED_HALF_WIDTH):
        least = max(needed, MIN_STEPS * tau)
        raise CalibrationError(
            f"{tokens:.0f} tokens in {steps:.0f} steps are too few to say anything: "
            f"{tau:.2f} ± {Z95 * error:.2f} tokens per step; a speedup within ±5 % needs about "
            f"{_round(least)} tokens"
        )
    if Z95 * error / tau > WANTED_HALF_WIDTH:
        notes.append(
            Note(
                code="few-tokens",
                message=f"{tokens:.0f} tokens give tokens per step within "
                f"±{Z95 * error / tau:.0%}; a speedup within ±5 % needs about {_round(needed)}",
            )
        )
    if main.windows < MIN_WINDOWS:
        notes.append(
            Note(
                code="assumed-correlation",
                message=f"{main.windows} window{'s' if main.windows > 1 else ''} of counts cannot "
                f"show how requests differ; errors assume {DESIGN_EFFECT:g} times the variance of "
                "independent steps",
            )
        )
    standard_errors: dict[str, object] = {"acceptance_length": errors}
    if positional:
        standard_errors["survival"] = survival_errors(main)
    else:
        standard_errors["alpha"] = round(error / _slope(law, largest), 6)
    return AcceptanceFit(
        **keys, law=name, rule=rule, standard_errors=standard_errors,
        acceptance_length=round(tau, 6), at_k=at, num_tokens=round(tokens), num_steps=round(steps),
        num_requests=sum(t.windows for t in merged) if all(t.by_request for t in merged) else None,
        method=method, by_k=tuple(map(_measured, merged)) if len(merged) > 1 else (),
    ), notes  # fmt: skip


def _measured(tally: Tally) -> MeasuredLength:
    """What was counted at one K."""
    accepted = min(float(tally.total[Tally.ACCEPTED]) / tally.steps, tally.num_draft_tokens)
    # without positions the variance of an i.i.d. law with the same mean stands in
    alpha = alpha_from_acceptance_length(1 + accepted, tally.num_draft_tokens)
    law = (
        PerPosition.from_survival(tuple(survival_of(tally)))
        if tally.positions_known
        else Iid(alpha)
    )
    error = ratio_error(tally, [Tally.ACCEPTED], law.variance(tally.num_draft_tokens))
    return MeasuredLength(
        num_draft_tokens=tally.num_draft_tokens, acceptance_length=round(1 + accepted, 6),
        standard_error=round(error, 6), num_steps=round(tally.steps),
    )  # fmt: skip


def _slope(law: Law, k: int) -> float:
    """dτ/dα of the i.i.d. law."""
    alpha = law.alpha if isinstance(law, Iid) else 0.5
    i = np.arange(1, k + 1)
    return float(np.sum(i * max(alpha, 1e-3) ** (i - 1)))


def merge(tallies: Sequence[Tally]) -> list[Tally]:
    """Tallies of one K added up."""
    result: dict[int, Tally] = {}
    for tally in tallies:
        k = tally.num_draft_tokens
        if k not in result:
            result[k] = Tally(k)
            result[k].by_request = True
        into = result[k]
        into.windows += tally.windows
        into.total = into.total + tally.total
        into.outer = into.outer + tally.outer
        into.positions_known &= tally.positions_known
        into.emitted_known &= tally.emitted_known
        into.by_request &= tally.by_request
    return [result[k] for k in sorted(result)]


def pooled_survival(tallies: Sequence[Tally]) -> Array:
    """Hazards pooled over tallies that reach the position, as survival; shape (largest K,)."""
    largest = max(t.num_draft_tokens for t in tallies)
    hazards = np.zeros(largest)
    for i in range(largest):
        reaching = [t for t in tallies if t.num_draft_tokens > i]
        before = sum(t.steps if i == 0 else t.total[Tally.POSITIONS + i - 1] for t in reaching)
        after = sum(t.total[Tally.POSITIONS + i] for t in reaching)
        hazards[i] = min(1.0, after / before) if before > 0 else 0.0
    return np.asarray(np.cumprod(hazards))


def survival_errors(tally: Tally) -> tuple[float, ...]:
    """Standard error of each s_i."""
    s = survival_of(tally)
    return tuple(
        round(ratio_error(tally, [Tally.POSITIONS + i], float(p * (1 - p))), 6)
        for i, p in enumerate(s)
    )


def length_errors(tally: Tally, law: Law, measured: int) -> tuple[float, ...]:
    """Standard errors of τ at K = 1 … ERRORS_TO: counted up to the measured K, beyond it
    growing with τ − 1 and with the doubt about the law's shape."""
    k0 = tally.num_draft_tokens
    whole = ratio_error(tally, [Tally.ACCEPTED], law.variance(k0))
    if tally.total[Tally.ACCEPTED] == 0:  # rule of three: nothing seen in n steps
        whole = 3.0 * DESIGN_EFFECT / tally.steps / Z95
    mean0 = law.mean(k0)
    result = []
    for k in range(1, ERRORS_TO + 1):
        if k <= k0 and tally.positions_known and tally.total[Tally.ACCEPTED] > 0:
            columns = range(Tally.POSITIONS, Tally.POSITIONS + k)
            error = ratio_error(tally, columns, law.variance(k))
        else:
            error = whole * (law.mean(k) / mean0 if mean0 > 0 else 1.0)
        if k > measured or not tally.positions_known:
            shape = SHAPE_ERROR * law.mean(k) * abs(math.log(k / measured))
            error = math.hypot(error, shape)
        result.append(round(error, 6))
    return tuple(result)


def fit_length(length: MeanLength, k: int, method: str | None) -> AcceptanceFit:
    """An i.i.d. law from an acceptance length without counts: no error is known.

    Raises:
        CalibrationError: if no law has it.
    """
    try:
        alpha = alpha_from_acceptance_length(length.acceptance_length, k)
    except ValueError as error:
        raise CalibrationError(str(error)) from None
    return AcceptanceFit(
        alpha=round(alpha, 6), law="iid", acceptance_length=length.acceptance_length, at_k=k,
        rule=f"only tokens per step at K={k} are given: i.i.d. law with the same", method=method,
    )  # fmt: skip


def _round(value: float) -> str:
    """Two significant digits, with thousands separated."""
    if not math.isfinite(value) or value <= 0:
        return "many"
    digits = 1 - math.floor(math.log10(value))
    return f"{int(round(value, digits)):,}"
