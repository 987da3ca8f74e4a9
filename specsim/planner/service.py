"""A service in closed form: rate, latencies and goodput of a replica against its batch.

With B sequences decoding, a request of class c occupies its slot for S_c decoding steps of
t(K, B) seconds and shares the GPU with prefills, p seconds each. Over the time in which B
requests are served, B·p is prefill and the rest is steps, so that

    rate(B) = B / (S · t(K, B) + B · p),   TPOT = t / τ_c / (1 − rate · p)

(Little's law; S and p are means over classes). The spread of TPOT over requests follows
from the law of acceptance and from the fluctuation of B, TTFT from the queue of prefills
(M/G/1) and from the wait for a slot (M/M/c). The simulator replays the plans that matter
request by request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specsim.acceptance.law import Law
from specsim.analytic.drafted import drafted_tokens
from specsim.deployment import Draft
from specsim.metrics import Objective
from specsim.planner.problem import Problem
from specsim.planner.step_model import StepModel

Array = npt.NDArray[np.float64]

#: Mean share of the slots in use beyond which no load is planned for.
FULLEST = 0.97
#: Components of a law (requests that differ) that are looked at one by one.
MAX_COMPONENTS = 12


@dataclass(frozen=True, kw_only=True)
class Component:
    """Requests of one class that share a law: their share and τ, Var[emitted] by K row."""

    share: float
    class_index: int
    tau: Array  # (K,)
    variance: Array  # (K,)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Which K row runs at each batch; shape (batch,) of row numbers."""

    kind: str
    rows: npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A replica's behaviour at each batch of the grid; arrays (batch,).

    `attained[c]` is the share of class c that meets its SLO; `tpot_s`, `ttft_s` are means
    over requests.
    """

    batch: Array
    rate_per_s: Array
    tpot_s: Array
    ttft_s: Array
    step_s: Array
    busy_prefill: Array
    attained: Array  # (classes, batch)
    goodput_per_s: Array
    which: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A curve read at one batch."""

    batch: float
    rate_per_s: float
    goodput_per_s: float
    tpot_s: float
    ttft_s: float
    attained: float
    stable: bool


def components(problem: Problem, laws: Mapping[str, Law], ks: tuple[int, ...],
               shift: float = 0.0) -> list[Component]:  # fmt: skip
    """The requests of a problem by class and by law.

    `shift` moves every law within its own error, in standard errors: τ is multiplied by
    exp(shift · σ) with σ from the law's 95 % interval.
    """
    found = []
    for index, traffic in enumerate(problem.classes):
        law = laws[traffic.name]
        parts = list(law.components())
        if len(parts) > MAX_COMPONENTS:
            parts = [(1.0, law)]
        for share, part in parts:
            tau = np.array([part.acceptance_length(k) for k in ks])
            if shift:
                tau = 1 + (tau - 1) * np.exp(shift * _gain_error(law, ks, shift))
                tau = np.minimum(tau, np.asarray(ks) + 1.0)
            found.append(Component(
                share=traffic.share * share, class_index=index, tau=tau,
                variance=np.array([part.variance(k) for k in ks]),
            ))  # fmt: skip
    return found


#: Relative error of τ − 1 of a law that states none.
DEFAULT_GAIN_ERROR = 0.08


def _gain_error(law: Law, ks: tuple[int, ...], side: float) -> Array:
    """Standard error of log(τ − 1) at each K, on the side of the shift."""
    errors = []
    for k in ks:
        gain = law.acceptance_length(k) - 1
        bounds = law.survival_interval(k)
        if k == 0 or gain <= 0:
            errors.append(0.0)
        elif bounds is None:
            errors.append(DEFAULT_GAIN_ERROR)
        else:
            end = max(float(bounds[1 if side > 0 else 0].sum()), 1e-3 * gain)
            errors.append(abs(np.log(end / gain)) / 1.96)
    return np.asarray(errors)


def proposed(
    problem: Problem, draft: Draft, laws: Mapping[str, Law], ks: Sequence[int]
) -> Array:  # fmt: skip
    """Tokens that a step really drafts at each K, averaged over the classes as the simulator
    does: fewer than K where the drafter does not always propose (n-gram look-up)."""
    return np.asarray(sum(c.share * drafted_tokens(draft, laws[c.name], ks)
                          for c in problem.classes))  # fmt: skip


def steps_per_request(problem: Problem, parts: list[Component]) -> Array:
    """Decoding steps of a mean request at each K; (K,). The prefill emits the first token."""
    total = np.zeros(len(parts[0].tau))
    for part in parts:
        total += part.share * max(problem.classes[part.class_index].mean_output - 1, 0) / part.tau
    return total


def best_schedule(model: StepModel, steps: Array, largest: int | None = None) -> Policy:
    """At each batch the K that serves fastest; a K is kept while it loses under 1 %."""
    work = steps[:, None] * model.step_s
    if largest is not None:
        work = np.where(np.asarray(model.draft_tokens)[:, None] <= largest, work, np.inf)
    rows = np.argmin(work, axis=0)
    for j in range(1, len(rows)):
        previous = rows[j - 1]
        if work[previous, j] <= 1.01 * work[rows[j], j]:
            rows[j] = previous
    return Policy(kind="batch-schedule", rows=rows)


def fixed(model: StepModel, k: int) -> Policy:
    """The same K at every batch."""
    row = model.draft_tokens.index(k)
    kind = "off" if k == 0 else "fixed"
    return Policy(kind=kind, rows=np.full(len(model.batch), row))


def curve(
    problem: Problem, model: StepModel, parts: list[Component], policy: Policy, slots: int
) -> Curve:
    """Serve the problem's traffic at every batch of the model's grid under a policy, with
    room for `slots` sequences."""
    at = np.arange(len(model.batch))
    rows, batch = policy.rows, model.batch
    step = model.step_s[rows, at]
    steps = steps_per_request(problem, parts)[rows]
    prefill = _mean_over_prompts(problem, model.prefill_s)
    rate = batch / np.maximum(steps * step + batch * prefill, 1e-12)
    busy = np.minimum(rate * prefill, 0.999)
    spread_load = _load_spread(batch, step)
    prefill_wait, floor = _first_token(problem, model, step, rate, busy)
    queued, slot_wait = _slot_wait(batch, slots, batch / np.maximum(rate, 1e-12))
    waits = prefill_wait + slot_wait
    waiting = 1 - (1 - busy) * (1 - queued)
    shares = np.zeros((len(problem.classes), len(batch)))
    tpot_mean = np.zeros(len(batch))
    for part in parts:
        traffic = problem.classes[part.class_index]
        tau, variance = part.tau[rows], part.variance[rows]
        tpot = step / tau / (1 - busy)
        tpot_mean += part.share * tpot
        met = _met(traffic.objective, traffic.outputs, tpot, variance / tau, spread_load,
                   floor[part.class_index], waits, waiting, step)  # fmt: skip
        shares[part.class_index] += part.share / traffic.share * met
    weights = np.array([c.share for c in problem.classes])
    mean_floor = sum(w * f.mean(axis=1) for w, f in zip(weights, floor, strict=True))
    return Curve(
        batch=batch, rate_per_s=rate, tpot_s=tpot_mean, ttft_s=np.asarray(mean_floor + waits),
        step_s=step, busy_prefill=busy, attained=shares, goodput_per_s=rate * (weights @ shares),
        which=tuple(c.name for c in problem.classes),
    )  # fmt: skip


def _mean_over_prompts(problem: Problem, per_prompt: Array) -> Array:
    """(batch, prompts) → (batch,), prompts weighed by their class's share."""
    total, start = np.zeros(per_prompt.shape[0]), 0
    for traffic in problem.classes:
        stop = start + len(traffic.prompts)
        total += traffic.share * per_prompt[:, start:stop].mean(axis=1)
        start = stop
    return total


def _load_spread(batch: Array, step: Array) -> Array:
    """Standard deviation of log(step) that a request sees because the batch wanders.

    The number in service of a processor-sharing station has a variance of about
    B/(1 − ε), with ε the elasticity of the step in B; a request averages it over its own
    stay, which halves it.
    """
    if len(batch) < 2:
        return np.zeros(len(batch))
    elasticity = np.clip(np.gradient(np.log(step), np.log(batch)), 0.0, 1.0)
    return np.asarray(elasticity * np.sqrt(0.5 / (batch * np.maximum(1 - elasticity, 0.1))))


def _first_token(
    problem: Problem, model: StepModel, step: Array, rate: Array, busy: Array
) -> tuple[Array, list[Array]]:
    """Mean wait for earlier prefills (batch,), and per class the time to first token
    without waiting (batch, prompts): half a step to go, the prompt's steps, its prefill."""
    squares = _mean_over_prompts(problem, model.prefill_s**2)
    waits = rate * squares / (2 * (1 - busy))
    floors, start = [], 0
    for traffic in problem.classes:
        stop = start + len(traffic.prompts)
        chunks = np.ceil(traffic.prompts / model.prefill_chunk)
        own = model.prefill_s[:, start:stop] + step[:, None] * (0.5 + chunks[None, :])
        floors.append(own)
        start = stop
    return np.asarray(waits), floors


def _slot_wait(batch: Array, slots: int, residence_s: Array) -> tuple[Array, Array]:
    """P(all slots are taken) and the mean wait for one, (batch,): M/M/c with c = `slots`
    by Sakasegawa 1977, W = S/c · ρ^(√(2(c+1)) − 1) / (1 − ρ)."""
    full = np.minimum(batch / slots, 0.999)
    taken = full ** (np.sqrt(2 * (slots + 1)) - 1)
    return np.asarray(taken), np.asarray(residence_s / slots * taken / (1 - full))


def _met(
    objective: Objective, outputs: Array, tpot: Array, dispersion: Array, spread_load: Array,
    floor: Array, waits: Array, busy: Array, step: Array,
) -> Array:  # fmt: skip
    """Share of a class's requests that meet every limit; (batch,)."""
    met = np.ones(len(tpot))
    # Var of a request's TPOT: N tokens take N/τ steps, give or take √(N·Var/τ³)
    spread = np.sqrt(dispersion[:, None] / np.maximum(outputs[None, :], 2)
                     + spread_load[:, None] ** 2) + 1e-9  # fmt: skip
    if objective.tpot_s is not None:
        z = (np.log(objective.tpot_s) - np.log(tpot)[:, None]) / spread
        met = met * normal_cdf(z).mean(axis=1)
    if objective.ttft_s is not None:
        met = met * _wait_below(objective.ttft_s - floor, waits, busy).mean(axis=1)
    if objective.itl_s is not None:
        met = met * ((floor - 0.5 * step[:, None]) <= objective.itl_s).mean(axis=1)
    if objective.e2e_s is not None:
        decoding = outputs[None, :] * tpot[:, None]
        left = objective.e2e_s - floor - decoding
        noise = np.maximum(decoding * spread, 1e-9)
        met = met * (normal_cdf(left / noise) * _wait_below(
            np.maximum(left, 0.0), waits, busy)).mean(axis=1)  # fmt: skip
    return np.asarray(met)


def _wait_below(limit: Array, waits: Array, busy: Array) -> Array:
    """P(wait ≤ limit): nobody is ahead with 1 − busy, else exponential; (batch, prompts)."""
    mean = np.maximum(waits / np.maximum(busy, 1e-9), 1e-9)[:, None]
    tail = busy[:, None] * np.exp(-np.maximum(limit, 0.0) / mean)
    return np.where(limit < 0, 0.0, 1 - tail)


def normal_cdf(z: Array) -> Array:
    """Φ(z) to 1e-4 (Page 1977), without scipy's import."""
    z = np.clip(z, -8.0, 8.0)
    return np.asarray(1 / (1 + np.exp(-1.5976 * z - 0.07056 * z**3)))


def usable(batch: Array, slots: int) -> npt.NDArray[np.bool_]:
    """Batches that the slots carry as a mean."""
    return np.asarray((batch <= FULLEST * slots) | (batch == 1))


def capacity(problem: Problem, found: Curve, slots: int) -> Point | None:
    """The largest rate at which every class attains its SLO; None if there is none.

    Without an SLO, the largest rate that the slots allow.
    """
    good = usable(found.batch, slots) & (found.attained.min(axis=0) >= problem.attained)
    if not good.any():
        return None
    at = int(np.argmax(np.where(good, found.rate_per_s, -1.0)))
    # the edge between two batches of the grid, where the attained share crosses
    after = at + 1
    if after < len(found.batch) and usable(found.batch[after : after + 1], slots)[0] \
            and found.rate_per_s[after] > found.rate_per_s[at]:  # fmt: skip
        here, there = found.attained[:, at].min(), found.attained[:, after].min()
        if here > there:
            step = float(np.clip((here - problem.attained) / (here - there), 0.0, 1.0))
            return _between(found, at, step)
    return _between(found, at, 0.0)


def demanded(problem: Problem, found: Curve, slots: int, rate_per_s: float) -> Point:
    """The curve at a demanded rate; not stable if the slots cannot carry it."""
    allowed = usable(found.batch, slots)
    last = int(np.flatnonzero(allowed)[-1])
    rates = np.maximum.accumulate(found.rate_per_s[: last + 1])
    if rate_per_s > rates[-1]:
        return _between(found, last, 0.0, stable=False)
    above = int(np.searchsorted(rates, rate_per_s))
    if above == 0:
        return _idle(found, rate_per_s)
    share = (rate_per_s - rates[above - 1]) / max(rates[above] - rates[above - 1], 1e-12)
    return _between(found, above - 1, float(share))


def at_batch(found: Curve, batch: float) -> Point:
    """The curve at a given batch (a closed loop's concurrency)."""
    above = int(np.clip(np.searchsorted(found.batch, batch), 1, max(len(found.batch) - 1, 1)))
    if len(found.batch) == 1:
        return _between(found, 0, 0.0)
    low, high = found.batch[above - 1], found.batch[above]
    share = float(np.clip((batch - low) / (high - low), 0.0, 1.0))
    return _between(found, above - 1, share, stable=batch <= found.batch[-1])


def _idle(found: Curve, rate_per_s: float) -> Point:
    """A load that keeps less than one sequence busy: latencies are those of batch 1."""
    point = _between(found, 0, 0.0)
    share = rate_per_s / max(point.rate_per_s, 1e-12)
    return Point(batch=point.batch * share, rate_per_s=rate_per_s,
                 goodput_per_s=point.goodput_per_s * share, tpot_s=point.tpot_s,
                 ttft_s=point.ttft_s, attained=point.attained, stable=True)  # fmt: skip


def _between(found: Curve, index: int, share: float, *, stable: bool = True) -> Point:
    def read(values: Array) -> float:
        first = float(values[index])
        if share == 0.0 or index + 1 >= len(values):
            return first
        return first + share * (float(values[index + 1]) - first)

    return Point(batch=read(found.batch), rate_per_s=read(found.rate_per_s),
                 goodput_per_s=read(found.goodput_per_s), tpot_s=read(found.tpot_s),
                 ttft_s=read(found.ttft_s), attained=read(found.attained.min(axis=0)),
                 stable=stable)  # fmt: skip
