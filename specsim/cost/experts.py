"""How many experts the tokens of one forward pass visit.

Weights of a mixture-of-experts layer are read once per *distinct* expert, so the cost of
verifying K + 1 tokens depends on how much their choices coincide.

What was reported: kernels of 128 experts, top 8, 16 tokens on an H100 take 0.420 ms when
the tokens are spread evenly and 0.209 ms under a power law (tables of
aiconfigurator-core 0.12, `moe_perf`); and at K = 4 the tokens of one sequence were seen
to visit 3.2 times as many experts as one token, where uniform independent routing says
4.4. `TYPICAL` and `INTERVAL` are what these two leave open.
"""

from __future__ import annotations

import numpy as np

from specsim.catalogue.specs import FeedForwardSpec
from specsim.cost.work import Array, Work
from specsim.deployment import Routing

#: Every token draws its experts uniformly and for itself: the most weights one can read.
UNIFORM = Routing(skew=0.0, overlap=0.0)
#: Overlap alone that turns 4.4 times into 3.2 times the experts of one token at K = 4
#: (128 experts, top 8): 1 + 4(1 − ρ) independent draws visit 3.2 · 8 experts.
REPORTED_OVERLAP = 0.39
#: Skew alone that brings the even kernel's time to the power law's: see
#: `tests/test_cost_operations.py`, which derives both numbers.
POWER_LAW_SKEW = 0.70
#: Popularity as in the tables' milder power law, tokens of a sequence half as alike as
#: reported (part of the reported likeness is popularity, which the skew already counts).
TYPICAL = Routing(skew=0.35, overlap=0.20)
#: The cheapest and the dearest routing that the reports leave possible.
INTERVAL = (Routing(skew=POWER_LAW_SKEW, overlap=REPORTED_OVERLAP), UNIFORM)


def distinct_experts(ff: FeedForwardSpec, work: Work, routing: Routing) -> Array:
    """Expected number of experts that at least one token of the pass visits.

    Uniform independent routing: E(1 − (1 − k/E)^n). With `skew` the popularity of expert
    i is ∝ i^−skew, scaled so that k experts are visited per token, and the expectation
    is Σ_i 1 − (1 − p_i)^n. With `overlap` ρ a drafted token brings (1 − ρ) independent
    draws; the first token of every sequence brings a whole one.

    Shapes: that of `work.tokens`.
    """
    tokens = np.asarray(work.tokens, dtype=float)
    first = np.minimum(np.asarray(work.sequences, dtype=float), tokens)
    independent = first + (1 - routing.overlap) * (tokens - first)
    top_k, count = ff.experts_per_token, ff.num_experts
    if routing.skew == 0:
        return np.asarray(count * (1 - (1 - top_k / count) ** independent))
    popularity = expert_popularity(count, top_k, routing.skew)
    return np.asarray(np.sum(1 - (1 - popularity) ** independent[..., None], axis=-1))


def expert_popularity(count: int, top_k: int, skew: float) -> Array:
    """P(a token visits expert i), Σ = top_k, each ≤ 1 (excess is passed down the ranks)."""
    weights = np.arange(1, count + 1, dtype=float) ** -skew
    probability = np.zeros(count)
    free = np.ones(count, dtype=bool)
    for _ in range(count):
        scale = (top_k - np.sum(probability[~free])) / np.sum(weights[free])
        probability[free] = weights[free] * scale
        over = free & (probability > 1)
        if not over.any():
            break
        probability[over] = 1.0
        free &= ~over
    return probability
