"""The families of acceptance laws that compete, and how each is fitted to step sequences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from specsim.acceptance.chains import Iid, PerPosition
from specsim.acceptance.correlated import BetaRequests, Markov, Mixture
from specsim.acceptance.hidden import HiddenChain
from specsim.acceptance.law import Array, Law
from specsim.fitting.hmm import (
    ABSENT,
    ACCEPTED,
    REJECTED,
    Chain,
    Outcomes,
    fit_chain,
    log_likelihood,
)

#: Seed of the starting points of EM.
SEED = 20_240_901


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A law, and the log-likelihood of each request under it (any requests)."""

    law: Law
    likelihood: Callable[[Outcomes], Array]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of law: its name in the calibration file, its number of parameters at most
    `depths` positions, and its fit."""

    name: str
    num_parameters: Callable[[int], int]
    fit: Callable[[Outcomes], Fitted]


def families(largest: int, max_iterations: int = 200) -> tuple[Family, ...]:
    """From simple to rich. `largest` is the largest K in the data, `max_iterations` bounds
    EM: comparing families needs fewer than a final fit."""
    chains = ((1, 2, 1), (1, 2, largest), (1, 3, largest), (1, 4, largest), (2, 3, largest),
              (2, 4, largest), (3, 3, largest))  # fmt: skip
    simple = (
        Family(name="iid", num_parameters=lambda d: 1, fit=fit_iid),
        Family(name="beta", num_parameters=lambda d: 2, fit=fit_beta),
        Family(name="per-position", num_parameters=lambda d: d, fit=fit_hazard),
    )
    rich = tuple(_chain_family(*shape, max_iterations) for shape in dict.fromkeys(chains))
    return (*simple, *rich)


def _chain_family(classes: int, states: int, depths: int, max_iterations: int) -> Family:
    return Family(
        name=_chain_name(classes, states, depths),
        num_parameters=lambda _: _count(classes, states, depths),
        fit=lambda data: fit_hidden(data, classes, states, depths, max_iterations),
    )


def _chain_name(classes: int, states: int, depths: int) -> str:
    if (classes, states, depths) == (1, 2, 1):
        return "markov"
    name = f"chain-{states}" + ("" if depths == 1 else "-by-position")
    return name if classes == 1 else f"mixture-of-{classes}-{name}"


def _count(classes: int, states: int, depths: int) -> int:
    return classes * (states * (states - 1) + states * depths + states - 1) + classes - 1


def _counts(data: Outcomes) -> tuple[Array, Array]:
    """Accepted and rejected by request and depth; shapes (requests, depths)."""
    depths = int(data.depth.max()) + 1
    won, lost = np.zeros((data.num_requests, depths)), np.zeros((data.num_requests, depths))
    for d in range(depths):
        at = data.depth == d
        won[:, d] = ((data.outcome == ACCEPTED) & at).sum(axis=0)
        lost[:, d] = ((data.outcome == REJECTED) & at).sum(axis=0)
    return won, lost


def fit_iid(data: Outcomes) -> Fitted:
    """α = accepted over tested tokens."""
    won, lost = _counts(data)
    alpha = float((won.sum() + 0.5) / (won.sum() + lost.sum() + 1))

    def likelihood(other: Outcomes) -> Array:
        w, f = _counts(other)
        return np.asarray(w.sum(1) * math.log(alpha) + f.sum(1) * math.log1p(-alpha))

    return Fitted(law=Iid(alpha), likelihood=likelihood)


def fit_hazard(data: Outcomes) -> Fitted:
    """h_i by position in the draft."""
    won, lost = _counts(data)
    h = (won.sum(0) + 0.5) / (won.sum(0) + lost.sum(0) + 1)
    h = h[: max(1, int(np.sum(won.sum(0) + lost.sum(0) > 0)))]

    def likelihood(other: Outcomes) -> Array:
        w, f = _counts(other)
        last = np.minimum(np.arange(w.shape[1]), len(h) - 1)
        return np.asarray(w @ np.log(h[last]) + f @ np.log1p(-h[last]))

    return Fitted(law=PerPosition(tuple(float(x) for x in h)), likelihood=likelihood)


def fit_beta(data: Outcomes) -> Fitted:
    """α per request from Beta(a, b): maximum likelihood of the beta-binomial counts."""
    from scipy.optimize import minimize
    from scipy.special import betaln

    def per_request(logs: Array, w: Array, f: Array) -> Array:
        a, b = np.exp(logs)
        return np.asarray(betaln(a + w, b + f) - betaln(a, b))

    won, lost = (x.sum(axis=1) for x in _counts(data))
    mean = (won.sum() + 0.5) / (won.sum() + lost.sum() + 1)
    start = np.asarray([math.log(10 * mean), math.log(10 * (1 - mean))])

    def loss(logs: Any) -> float:
        return -float(per_request(np.asarray(logs), won, lost).sum())

    solution: Any = minimize(loss, start, method="L-BFGS-B", bounds=[(-6.0, 9.0), (-6.0, 9.0)])
    found: Array = np.asarray(solution.x)

    def likelihood(other: Outcomes) -> Array:
        w, f = (x.sum(axis=1) for x in _counts(other))
        return per_request(found, w, f)

    a, b = (float(x) for x in np.exp(found))
    return Fitted(law=BetaRequests(a, b), likelihood=likelihood)


def fit_hidden(
    data: Outcomes, classes: int, states: int, depths: int, max_iterations: int = 200
) -> Fitted:
    """A hidden chain per class of requests, by EM. Depth-dependent chains start from the
    fit without depth, so that they are never worse than it on the data."""
    chain, _ = fit_chain(data, _start(data, classes, states), max_iterations=max_iterations)
    if depths > 1:
        wider = replace(chain, accept=np.repeat(chain.accept, depths, axis=1))
        chain, _ = fit_chain(data, wider, max_iterations=max_iterations)
    return Fitted(
        law=law_of_chain(chain, classes, states, mean_length(data)),
        likelihood=lambda d: log_likelihood(chain, d),
    )


def _start(data: Outcomes, classes: int, states: int) -> Chain:
    tested = (data.outcome == ACCEPTED) | (data.outcome == REJECTED)
    base = float((data.outcome == ACCEPTED).sum() + 0.5) / float(tested.sum() + 1)
    count = classes * states
    rng = np.random.default_rng(SEED)
    spread = np.linspace(-0.9, 0.9, count) * min(base, 1 - base)
    accept = np.clip(base + spread[:, None] + rng.normal(0, 0.02, (count, 1)), 0.01, 0.99)
    # neighbouring levels go to different classes, so that each class has easy and hard states
    order = np.arange(count).reshape(states, classes).T.ravel()
    transition = np.zeros((count, count))
    for c in range(classes):
        block = slice(c * states, (c + 1) * states)
        transition[block, block] = 0.6 * np.eye(states) + 0.4 * rng.dirichlet(
            np.full(states, 3.0), states
        )
    return Chain(initial=np.full(count, 1 / count), transition=transition, accept=accept[order])


def mean_length(data: Outcomes) -> int:
    """Mean number of output tokens of a request."""
    return max(1, round(float((data.outcome != ABSENT).sum()) / data.num_requests))


def law_of_chain(chain: Chain, classes: int, states: int, horizon: int) -> Law:
    """The law behind EM's parameters: a chain, or a mixture of one per class."""
    parts: list[tuple[float, Law]] = []
    for c in range(classes):
        block = slice(c * states, (c + 1) * states)
        weight = float(chain.initial[block].sum())
        move, accept = chain.transition[block, block], chain.accept[block]
        if classes == 1 and states == 2 and accept.shape[1] == 1:
            return _markov(move, accept)
        law = HiddenChain(
            transition=tuple(_rounded(row) for row in move),
            accept=tuple(tuple(round(float(x), 6) for x in row) for row in accept),
            initial=_rounded(chain.initial[block] / weight),
            horizon=horizon,
        )  # fmt: skip
        parts.append((weight, law))
    if len(parts) == 1:
        return parts[0][1]
    total = sum(weight for weight, _ in parts)
    return Mixture(tuple((weight / total, law) for weight, law in parts))


def _rounded(row: Array) -> tuple[float, ...]:
    """Probabilities with six digits that still sum to 1."""
    values = [round(float(x), 6) for x in row]
    largest = int(np.argmax(values))
    values[largest] = round(1 - sum(v for i, v in enumerate(values) if i != largest), 6)
    return tuple(values)


def _markov(move: Array, accept: Array) -> Markov:
    easy, hard = (0, 1) if accept[0, 0] >= accept[1, 0] else (1, 0)
    leave = [max(float(move[z, 1 - z]), 1e-9) for z in (easy, hard)]
    return Markov(
        alpha_easy=float(accept[easy, 0]), alpha_hard=float(accept[hard, 0]),
        easy_length=1 / leave[0], hard_length=1 / leave[1],
    )  # fmt: skip


def anchored(law: Law, acceptance_length: float, num_draft_tokens: int) -> Law:
    """The law with all its hazards shifted alike (in log-odds) so that τ at K is what was
    counted: a likelihood looks at every token, a speedup only at the mean.

    Beta laws are left as they are.
    """

    def shifted(shift: float) -> Law:
        return _shift(law, shift)

    if isinstance(law, BetaRequests) or not 1 < acceptance_length < num_draft_tokens + 1:
        return law
    low, high = -3.0, 3.0
    for _ in range(50):
        middle = (low + high) / 2
        if shifted(middle).acceptance_length(num_draft_tokens) < acceptance_length:
            low = middle
        else:
            high = middle
    return shifted((low + high) / 2)


def _shift(law: Law, shift: float) -> Law:
    def move(p: float) -> float:
        if p in (0.0, 1.0):
            return p
        return 1 / (1 + (1 - p) / p * math.exp(-shift))

    if isinstance(law, Iid):
        return Iid(move(law.alpha))
    if isinstance(law, PerPosition):
        return PerPosition(tuple(move(h) for h in law.conditional))
    if isinstance(law, Markov):
        return replace(law, alpha_easy=move(law.alpha_easy), alpha_hard=move(law.alpha_hard))
    if isinstance(law, HiddenChain):
        return replace(law, accept=tuple(tuple(move(p) for p in row) for row in law.accept))
    if isinstance(law, Mixture):
        return Mixture(tuple((weight, _shift(part, shift)) for weight, part in law.parts))
    raise ValueError(f"{type(law).__name__} cannot be anchored")


def keys_of(law: Law) -> dict[str, object]:
    """The law in the keys of a calibration's acceptance section, rounded to six digits."""
    if isinstance(law, Iid):
        return {"alpha": round(law.alpha, 6)}
    if isinstance(law, PerPosition):
        return {"conditional": tuple(round(h, 6) for h in law.conditional)}
    if isinstance(law, BetaRequests):
        mean = law.a / (law.a + law.b)
        deviation = math.sqrt(mean * (1 - mean) / (law.a + law.b + 1))
        return {"beta": {"mean": round(mean, 6), "standard_deviation": round(deviation, 6)}}
    if isinstance(law, Markov):
        names = ("alpha_easy", "alpha_hard", "easy_length", "hard_length")
        return {"markov": {name: round(getattr(law, name), 6) for name in names}}
    if isinstance(law, HiddenChain):
        chain: dict[str, object] = {
            "transition": [list(row) for row in law.transition],
            "accept": [[round(x, 6) for x in row] for row in law.accept],
        }
        if law.initial is not None:
            chain["initial"] = list(law.initial)
        if law.horizon is not None:
            chain["horizon"] = law.horizon
        return {"chain": chain}
    if isinstance(law, Mixture):
        weights = _rounded(np.asarray([w for w, _ in law.parts]))
        parts = [
            {"weight": weight, "acceptance": keys_of(part)}
            for weight, (_, part) in zip(weights, law.parts, strict=True)
        ]
        return {"mixture": tuple(parts)}
    raise ValueError(f"{type(law).__name__} has no keys")


def equal_parts(
    count: int, seed: int = SEED
) -> Sequence[np.ndarray[tuple[int], np.dtype[np.intp]]]:
    """Two random halves of `count` requests."""
    order = np.random.default_rng(seed).permutation(count)
    return order[: count // 2], order[count // 2 :]
