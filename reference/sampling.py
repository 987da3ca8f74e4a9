"""From logits to a distribution, and from a distribution to a token.

Every random decision of the decoder goes through a `Randomness`: `bernoulli(a)` and
`categorical(weights)`. Production draws from a seeded generator; the tests pass an object
that walks through every outcome (`exact.Enumerator`), so what is proved is what runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

SUM_TOLERANCE = 1e-9


class Randomness(Protocol):
    """Where the verifier's and the sampler's choices come from."""

    def bernoulli(self, probability: float) -> bool:
        """True with this probability."""

    def categorical(self, weights: Tensor) -> int:
        """Index drawn from weights (V,) that sum to 1."""


class SeededRandomness:
    """Randomness from NumPy's PCG64, keyed by (seed, stream); never the global state."""

    def __init__(self, seed: int, stream: int = 0) -> None:
        sequence = np.random.SeedSequence(seed, spawn_key=(stream,))
        self._generator = np.random.Generator(np.random.PCG64(sequence))

    def bernoulli(self, probability: float) -> bool:
        """u < probability with u in [0, 1) in float64: never true at 0, always at 1."""
        return bool(self._generator.random() < probability)

    def categorical(self, weights: Tensor) -> int:
        """Inverse of the cumulative sum; a weight of zero is never drawn.

        Raises:
            ValueError: unless the weights sum to 1 within 1e-9.
        """
        cumulative = weights.cumsum(0)  # (V,)
        check_total(float(cumulative[-1]))
        return invert(cumulative, self._generator.random())


def invert(cumulative: Tensor, uniform: float) -> int:
    """First index whose cumulative weight (V,) exceeds `uniform`, so its weight is positive.

    Rounding may leave the total just below a uniform close to 1; the last index that adds
    weight is the answer then.
    """
    point = torch.tensor(uniform, dtype=cumulative.dtype, device=cumulative.device)
    index = int(torch.searchsorted(cumulative, point, right=True))
    if index < len(cumulative):
        return index
    return int(torch.searchsorted(cumulative, cumulative[-1]))


def check_total(total: float) -> None:
    """Refuse weights that are not a distribution, so no un-normalised residual can hide."""
    if not abs(total - 1.0) <= SUM_TOLERANCE:
        raise ValueError(f"weights sum to {total!r}, not to 1")


@dataclass(frozen=True, kw_only=True)
class Warp:
    """Temperature, top-k and top-p, applied in that order, alike to target and draft.

    temperature 0 is greedy. top_k 0 and top_p 1 keep every token.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} is not a number >= 0")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} < 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is not in (0, 1]")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (…, V) of any dtype → probabilities (…, V) in float64.

        Greedy gives all mass to the first maximum. float64 because sums must be 1 to
        1e-9 and ratios of small probabilities decide acceptance.
        """
        if self.greedy:
            return one_hot(logits.argmax(dim=-1), logits.shape[-1])
        scaled = logits.double() / self.temperature
        if 0 < self.top_k < scaled.shape[-1]:
            smallest = scaled.topk(self.top_k, dim=-1).values[..., -1:]
            scaled = scaled.masked_fill(scaled < smallest, -torch.inf)
        probabilities = scaled.softmax(dim=-1)
        return probabilities if self.top_p == 1 else _nucleus(probabilities, self.top_p)


def one_hot(index: Tensor, size: int) -> Tensor:
    """(…) → (…, size) in float64."""
    return torch.nn.functional.one_hot(index, size).double()


def without(p: Tensor, token: int) -> Tensor:
    """p conditioned on not being `token` (V,); p itself if nothing else has mass."""
    rest = p.clone()
    rest[token] = 0.0
    total = rest.sum()
    return rest / total if total > 0 else p


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose mass reaches top_p (Holtzman 2020)."""
    ordered, index = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered  # mass of strictly likelier tokens
    kept = ordered.masked_fill(before >= top_p, 0.0)
    result = torch.zeros_like(probabilities).scatter(-1, index, kept)
    return result / result.sum(dim=-1, keepdim=True)
