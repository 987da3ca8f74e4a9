"""The accept rules: which drafted tokens survive, and the one token that follows them.

Symbols follow Leviathan et al. (2023): p is the target's distribution, q the draft's.
All rules but `verify_typical` are lossless: what they emit has exactly the target's
distribution, whatever q is, provided that each drafted token was drawn from the q that is
passed in (q = None: the token was fixed, not drawn, as from an n-gram).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from reference.draft.tree import Draft
from reference.sampling import Randomness, without


@dataclass(frozen=True)
class Verdict:
    """Accepted nodes of the draft, root to leaf, and the token emitted after them."""

    path: tuple[int, ...]
    token: int


def verify_chain(draft: Draft, p: Tensor, randomness: Randomness) -> Verdict:
    """Speculative sampling (Leviathan et al. 2023, algorithm 1; Chen et al. 2023).

    Accept token i with probability min(1, p/q); at the first rejection emit from
    (p − q)₊ / Σ(p − q)₊; when all K survive, emit a bonus token from p's last row.

    Args:
        p: (K + 1, V) float64; row i is the target's distribution after i drafted tokens.

    Raises:
        ValueError: when a drafted token has q = 0: it cannot have come from q.
    """
    chances = _acceptances(draft, p)
    for i, token in enumerate(draft.tokens):
        if not randomness.bernoulli(chances[i]):
            rest = reject(p[i], draft.probs[i], token)
            return Verdict(tuple(range(i)), randomness.categorical(rest))
    k = len(draft.tokens)
    return Verdict(tuple(range(k)), randomness.categorical(p[k]))


def verify_greedy(draft: Draft, best: Sequence[int]) -> Verdict:
    """Temperature 0, chain or tree: follow the child that equals the target's argmax.

    Args:
        best: (N + 1,) argmax of the target at the root and at each of the N nodes.
    """
    node = Draft.ROOT
    path: list[int] = []
    while True:
        token = best[node + 1]
        node = next((c for c in draft.children(node) if draft.tokens[c] == token), Draft.ROOT)
        if node == Draft.ROOT:
            return Verdict(tuple(path), token)
        path.append(node)


def verify_block(draft: Draft, p: Tensor, randomness: Randomness) -> Verdict:
    """Block verification (Sun et al. 2024, algorithm 2): accepts the longest prefix it can.

    With w_0 = 1, w_i = min(1, w_{i-1} p(x_i)/q(x_i)) and S_i = Σ_x (w_i p − q)₊, prefix i is
    accepted with probability S_i / (S_i + 1 − w_i), the whole block with w_K. The longest
    accepted prefix counts, so trying from the end and stopping at the first is the same.
    """
    k = len(draft.tokens)
    weight = [1.0]
    for ratio in _ratios(draft, p):
        weight.append(min(1.0, weight[-1] * ratio))
    if randomness.bernoulli(weight[k]):
        return Verdict(tuple(range(k)), randomness.categorical(p[k]))
    for i in range(k - 1, 0, -1):
        surplus = float((weight[i] * p[i] - draft.q(i, p)).clamp(min=0).sum())
        missing = surplus + 1.0 - weight[i]
        if randomness.bernoulli(surplus / missing if missing > 0 else 1.0):
            rest = residual(weight[i] * p[i], draft.q(i, p))
            return Verdict(tuple(range(i)), randomness.categorical(rest))
    return Verdict((), randomness.categorical(residual(p[0], draft.q(0, p)) if k else p[0]))


def verify_tree(draft: Draft, p: Tensor, randomness: Randomness) -> Verdict:
    """Recursive rejection over siblings (SpecInfer, Miao et al. 2024; Sequoia, Chen et al. 2024).

    At each node its children are tried in the order they were drawn; a rejected child
    leaves the residual as the next target, and, when children are drawn without
    replacement, leaves q without that child. No child accepted: emit from what is left.

    Args:
        p: (N + 1, V) float64; row 0 is the target at the root, row i + 1 at node i.
    """
    node = Draft.ROOT
    path: list[int] = []
    while True:
        rest, q = p[node + 1], draft.probs[node + 1]
        for child in draft.children(node):
            token = draft.tokens[child]
            chance = _ratio(float(rest[token]), 1.0 if q is None else float(q[token]))
            if randomness.bernoulli(min(1.0, chance)):
                break
            rest = reject(rest, q, token)
            if q is not None and draft.distinct:
                q = without(q, token)
        else:
            return Verdict(tuple(path), randomness.categorical(rest))
        node = child
        path.append(node)


def verify_typical(
    draft: Draft,
    p: Tensor,
    randomness: Randomness,
    *,
    epsilon: float = 0.3,
    delta: float = 0.09,
) -> Verdict:
    """LOSSY: Medusa's typical acceptance (Cai et al. 2024, section 2.3.1).

    Accepts every token with p(x) > min(ε, δ·exp(−H(p))): the output drifts towards
    likely tokens and is not the target's distribution.
    """
    path: list[int] = []
    for i, token in enumerate(draft.tokens):
        entropy = -float((p[i] * p[i].clamp(min=1e-300).log()).sum())
        if float(p[i, token]) <= min(epsilon, delta * math.exp(-entropy)):
            break
        path.append(i)
    return Verdict(tuple(path), randomness.categorical(p[len(path)]))


def reject(p: Tensor, q: Tensor | None, token: int) -> Tensor:
    """The distribution that makes up for a rejected token: q drawn, or fixed (None)."""
    return without(p, token) if q is None else residual(p, q)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """(p − q)₊ normalised (V,). All zero only if p = q, where rejection has probability 0
    up to rounding: p itself is the answer then."""
    surplus = (p - q).clamp(min=0)
    total = surplus.sum()
    return surplus / total if total > 0 else p / p.sum()


def overlap(draft: Draft, p: Tensor) -> tuple[float, ...]:
    """1 − TV(p, q) = Σ min(p, q) at each position of a chain: P(accept) given its prefix."""
    return tuple(float(p[i].minimum(draft.q(i, p)).sum()) for i in range(len(draft.tokens)))


def _ratio(p: float, q: float) -> float:
    if q <= 0:
        raise ValueError(f"a drafted token has q={q}; it was not drawn from that distribution")
    return p / q


def _ratios(draft: Draft, p: Tensor) -> list[float]:
    """p(x_i) / q(x_i) along a chain."""
    positions = list(range(len(draft.tokens)))
    above = p[positions, draft.tokens].tolist()
    below = [
        1.0 if q is None else float(q[x]) for q, x in zip(draft.probs, draft.tokens, strict=False)
    ]
    return [_ratio(a, b) for a, b in zip(above, below, strict=True)]


def _acceptances(draft: Draft, p: Tensor) -> list[float]:
    return [min(1.0, ratio) for ratio in _ratios(draft, p)]
