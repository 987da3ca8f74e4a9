"""Answers about speed: does it help, which K, at which load, at which context."""

from __future__ import annotations

import math

import numpy as np

from specsim.analytic.breakeven import break_even_alpha
from specsim.cost.source import BOUNDS
from specsim.cost.step import decode_step
from specsim.planner.answers import QUESTIONS, Answer, Facts
from specsim.planner.candidate import Candidate
from specsim.planner.crossover import crossover, over_context
from specsim.planner.uncertainty import interval

CONTEXTS = (1024, 4096, 16384, 32768, 65536, 131072)
#: K within this share of the best are named as equally good.
FLAT = 0.02


def does_it_help(facts: Facts) -> Answer:
    """1: the gain in the objective, and the acceptance at which it would be gone."""
    question = QUESTIONS[0]
    spec, off = facts.spec, facts.off
    if spec is None:
        return Answer(
            question=question, value=1.0, low=None, high=None, unit="x", answer="No: no draft, "
            "at any K, is faster than plain decoding at any batch that fits.",
            reason=_why_not(facts),
        )  # fmt: skip
    with_it, without = facts.sampled[id(spec)], facts.sampled[id(facts.overall_off)]
    best, base = facts.objective[id(spec)], facts.objective[id(facts.overall_off)]
    speed = facts.tpot_s(off) / facts.tpot_s(spec)
    if base > 0:
        value = best / base
        low, high = interval(with_it / np.maximum(without, 1e-12))
        what = "goodput per GPU within the SLO" if facts.problem.has_slo else "speed"
    else:
        value, what = speed, "speed at the demanded load (nothing meets the SLO without it)"
        low, high = (facts.bars[0].low, facts.bars[0].high) if facts.bars else (speed, speed)
    p = facts.probability
    odds = "" if p is None else f" The odds that it beats no speculation are {p:.0%}."
    yes = facts.best is spec
    verdict = "Yes" if yes else "No"
    alpha, k, batch = _alpha_limit(facts, spec)
    limit = "no acceptance is enough" if alpha is None else f"break-even at alpha = {alpha:.2f}"
    return Answer(
        question=question, value=value, low=low, high=high, unit="x",
        answer=f"{verdict}: {spec.label} gives {value:.2f}x {what} and {speed:.2f}x speed at the "
        f"demanded load.{odds}",
        reason=f"at batch {batch} with K = {k}, {limit}; {_bound(spec, k, batch)}",
    )  # fmt: skip


def _alpha_limit(facts: Facts, spec: Candidate) -> tuple[float | None, int, int]:
    """Break-even i.i.d. α at the demanded batch, the K there, and that batch."""
    batch = max(1, round(spec.demand.batch))
    at = _index(spec, batch)
    ks = spec.model.draft_tokens
    k = spec.k_at(batch) or spec.largest_k
    off = float(facts.off.model.step_s[0, _index(facts.off, batch)])
    alpha = break_even_alpha([k], spec.model.step_s[[ks.index(k)], at], off)
    return alpha, k, batch


def _index(found: Candidate, batch: float) -> int:
    return int(np.clip(np.searchsorted(found.model.batch, batch), 0, len(found.model.batch) - 1))


def _bound(found: Candidate, k: int, batch: int) -> str:
    """What binds the verify pass, in words."""
    step = decode_step(found.deployment, found.source, k, batch, _context(found))
    bound = BOUNDS[int(np.ravel(step.verify.bound_code)[0])]
    total = float(np.ravel(step.seconds)[0])
    parts = {
        "drafting": float(np.ravel(step.draft.seconds)[0]),
        "verifying": float(np.ravel(step.verify.seconds)[0]),
        "host": float(np.ravel(step.overhead_s)[0]),
    }
    shares = ", ".join(f"{name} {value / total:.0%}" for name, value in parts.items())
    return f"a step is {shares}; verification is {bound}-bound"


def _context(found: Candidate) -> float:
    return float(min(2048, found.deployment.target.spec.max_context - 64))


def _why_not(facts: Facts) -> str:
    off = facts.off
    step = float(off.model.step_s[0, 0])
    host = float(off.model.overhead_s[0, 0])
    if host > 0.4 * step:
        return (
            f"a plain step is at the engine's floor ({host / step:.0%} host time): there is "
            "nothing to amortise"
        )
    labels = sorted({c.label for c in facts.found.candidates if c.option is not None})
    return f"tried {', '.join(labels) or 'no draft'}; each step costs more than it emits"


def which_k(facts: Facts) -> Answer:
    """2: K at the demanded batch, and what every other K loses there."""
    question = QUESTIONS[1]
    spec = facts.spec
    if spec is None:
        return Answer(question=question, answer="K = 0.", value=0.0, low=0.0, high=0.0,
                      unit="tokens", reason=_why_not(facts))  # fmt: skip
    batch = max(1, round(spec.demand.batch))
    at = _index(spec, batch)
    work = facts.work[:, at].copy()
    plain = (facts.problem.mean_output - 1) * float(
        facts.off.model.step_s[0, _index(facts.off, batch)])  # fmt: skip
    work[0] = plain
    regret = 1 - work.min() / work
    ks = spec.model.draft_tokens
    best = int(ks[int(np.argmin(work))])
    near = [int(k) for k, r in zip(ks, regret, strict=True) if r <= FLAT]
    # a sure K and a flat optimum are two things: the second is what the interval is
    losses = ", ".join(f"K={k} {r:.0%}" for k, r in zip(ks, regret, strict=True))
    runs = spec.k_at(spec.demand.batch)
    other = "" if runs in near else f" The plan runs K = {runs}, chosen for its capacity."
    flat = "" if len(near) == 1 else f" {_listed(near)} are within {FLAT:.0%} of it."
    return Answer(
        question=question, value=float(best), low=float(min(near)), high=float(max(near)),
        unit="tokens",
        answer=f"K = {best} at the demanded load (batch {batch}).{flat}{other}",
        reason=f"loss of speed there: {losses}. A drafted position pays while its chance of "
        "survival exceeds what it adds to the step over the time of a token",
    )  # fmt: skip


def _listed(values: list[int]) -> str:
    return "K = " + ", ".join(map(str, values))


def where_it_pays(facts: Facts) -> Answer:
    """3: ranges of batch and of request rate, as a schedule."""
    question = QUESTIONS[2]
    spec = facts.spec
    if spec is None:
        return Answer(question=question, answer="At none.", value=0.0, low=0.0, high=0.0,
                      unit="batch", reason=_why_not(facts))  # fmt: skip
    found = crossover(facts.problem, spec, facts.off)
    facts.cache["crossover"] = found
    ranges = ", ".join(f"{low} to {high}" for low, high in found.ranges) or "none"
    rate = float(np.interp(found.last, spec.curve.batch, spec.curve.rate_per_s))
    schedule = f"schedule {spec.schedule()}" if facts.best is spec else "no schedule"
    if found.last >= spec.slots:
        text = (
            f"At batches {ranges}; {spec.slots} sequences fit, so within memory it pays up to "
            f"the last, {float(spec.curve.rate_per_s[-1]):.3g} requests/s a replica."
        )
    else:
        text = f"At batches {ranges}, up to {rate:.3g} requests/s a replica."
    moe = facts.off.deployment.target.spec.is_moe
    shape = (
        "experts: a few drafted tokens read many more of them, until all are read anyway"
        if moe else "a dense model has one crossover, where batch x (K + 1) tokens turn the "
        "pass compute-bound"
    )  # fmt: skip
    return Answer(
        question=question, value=float(found.last), low=float(found.low), high=float(found.high),
        unit="batch", answer=f"{text} Use {schedule}.", reason=shape,
    )  # fmt: skip


def long_context(facts: Facts) -> Answer:
    """6: K and gain over the context."""
    question = QUESTIONS[5]
    spec = facts.spec
    if spec is None:
        return Answer(question=question, answer="Nothing to speculate with.", value=None, low=None,
                      high=None, unit="tokens", reason=_why_not(facts))  # fmt: skip
    limit = facts.off.deployment.target.spec.max_context
    wanted = sorted({c for c in (*CONTEXTS, math.floor(facts.problem.context)) if c < limit})
    rows = over_context(facts.problem, spec, facts.off, [*wanted, limit - 64])
    facts.cache["contexts"] = rows
    inside = [row for row in rows if row.fits]
    paying = [row.context for row in inside if row.num_draft_tokens > 0]
    text = "; ".join(
        f"{row.context} tokens: K = {row.num_draft_tokens}, {row.speedup:.2f}x (batch {row.batch})"
        for row in inside
    )
    left = [str(row.context) for row in rows if not row.fits]
    none = f"; {', '.join(left)} tokens do not fit" if left else ""
    reason = "verification reads the same cache for all its tokens, so reading it is shared"
    model = spec.deployment.draft.model
    if model is not None and spec.deployment.draft.method != "medusa":
        ratio = model.kv_bytes_per_token_per_gpu / max(
            facts.off.deployment.target.kv_bytes_per_token_per_gpu, 1e-9)  # fmt: skip
        reason += f"; the draft re-reads its own, {ratio:.0%} of the target's, on every pass"
        if facts.problem.context > model.spec.max_context and not model.spec.head_of:
            reason += f"; beyond its {model.spec.max_context} tokens acceptance collapses"
    return Answer(
        question=question, value=float(max(paying, default=0)),
        low=float(min(paying, default=0)), high=float(max(paying, default=0)), unit="tokens",
        answer=f"{text}{none}.",
        reason=f"{reason}. Acceptance is taken to stay; in practice it falls with context, so "
        "measure it at yours",
    )  # fmt: skip
