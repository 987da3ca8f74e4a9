"""How many experts the tokens of one forward pass visit.

Weights of a mixture-of-experts layer are read once per *distinct* expert, so the cost of
verifying K + 1 tokens depends on how much their choices coincide.

What was measured and reported (128 experts, top 8):

- tables of aiconfigurator-core 0.12 (`moe_perf`, H100, 16 tokens): 0.420 ms when tokens
  are spread evenly, 0.230 and 0.209 ms under its two power laws. Over all its shapes with
  32 experts and more, a Zipf popularity of exponent 0.6 (milder law) to 0.7 (stronger)
  reproduces the power-law rows best, 1.0 the one shape quoted;
- at K = 4 the tokens of one sequence were seen to visit 3.2 times as many experts as one
  token, where uniform independent routing says 4.4.

`TYPICAL` reproduces the milder law and the 3.2 together; `INTERVAL` is what the reports
leave open. docs/cost.md shows the numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from specsim.catalogue.specs import FeedForwardSpec
from specsim.cost.work import Array, Work
from specsim.deployment import Routing

#: Every token draws its experts uniformly and for itself: the most weights one can read.
UNIFORM = Routing(skew=0.0, overlap=0.0)
#: Exponent that fits the milder power law of the kernel tables.
POWER_LAW_SKEW = 0.6
#: Overlap that turns 4.4 times into 3.2 times the experts of one token, without skew.
REPORTED_OVERLAP = 0.39
#: Both reports at once: part of the likeness of a sequence's tokens is popularity.
TYPICAL = Routing(skew=POWER_LAW_SKEW, overlap=0.31)
#: The cheapest routing that a report supports (the steepest popularity and all of the
#: overlap) and the dearest.
INTERVAL = (Routing(skew=1.0, overlap=REPORTED_OVERLAP), UNIFORM)


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


def busiest_share(visited: Any, ff: FeedForwardSpec, expert_parallel: int) -> Array:
    """Experts visited on the busiest of `expert_parallel` GPUs, which all others wait for.

    Each GPU holds E/g experts, of which a share f = visited/E is visited: mean μ = f·E/g,
    variance μ(1 − f); the largest of g such numbers lies about √(2 ln g) deviations above
    the mean (extremes of normal variables), and at most at E/g.
    """
    mean = np.asarray(visited, dtype=float) / expert_parallel
    if expert_parallel == 1:
        return mean
    spread = np.sqrt(np.maximum(mean * (1 - visited / ff.num_experts), 0.0))
    busiest = mean + np.sqrt(2 * np.log(expert_parallel)) * spread
    return np.asarray(np.minimum(busiest, ff.num_experts / expert_parallel))
