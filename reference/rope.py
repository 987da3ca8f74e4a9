"""Rotary position embedding (Su et al. 2021), with Llama 3's stretched frequencies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama 3's stretched rotary frequencies (Grattafiori et al. 2024)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021) of (T, heads, D) in the half-split layout."""
    first, second = x.chunk(2, dim=-1)  # (T, heads, D/2) each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rope_tables(
    head_dim: int,
    length: int,
    theta: float,
    scaling: RopeScaling | None = None,
    divisors: Tensor | None = None,
) -> Tensor:
    """cos and sin for positions 0..length-1 in float64: (length, 2, 1, D/2).

    Args:
        divisors: (D/2,) what each frequency is divided by, as GGUF files state scaling.
    """
    # On the CPU whatever the default: arange on the meta device, where models are laid out
    # before they are filled, makes torch import sympy, a second and 60 MB.
    half = torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim
    frequency = theta**-half
    if scaling is not None:
        frequency = _llama3_frequencies(frequency, scaling)
    if divisors is not None:
        frequency = frequency / divisors.double()
    position = torch.arange(length, dtype=torch.float64, device="cpu")
    angle = position[:, None, None] * frequency
    return torch.stack((angle.cos(), angle.sin()), dim=1)


def _llama3_frequencies(frequency: Tensor, scaling: RopeScaling) -> Tensor:
    """Long wavelengths divided by `factor`, short ones kept, a linear blend between."""
    turns = scaling.original_max_positions * frequency / (2 * torch.pi)
    span = scaling.high_freq_factor - scaling.low_freq_factor
    blend = ((turns - scaling.low_freq_factor) / span).clamp(0, 1)
    return blend * frequency + (1 - blend) * frequency / scaling.factor
