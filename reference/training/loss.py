"""Distillation on the target's full distribution, and what it is judged by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reference.training.trainees import Scored


def divergence(scored: Scored) -> Tensor:
    """Mean over positions of KL(p‖q) on the draft's vocabulary (up to p's own entropy).

    p is not renormalised: a position whose mass is mostly elsewhere weighs less.
    """
    log_q = F.log_softmax(scored.logits, dim=-1)
    return -(scored.p * log_q).sum(-1).mean()


@dataclass(frozen=True)
class Judged:
    """Each scored position (M,): 1 − TV(p, q), p's mass on the draft's vocabulary, whether
    the draft's likeliest token is what came next (NaN where nothing did), its example."""

    overlap: Tensor
    mass: Tensor
    agrees: Tensor
    examples: Tensor


@torch.no_grad()
def judge(scored: Scored, token_ids: Tensor) -> Judged:
    """1 − TV = Σ min(p, q) over the draft's tokens: q is zero on all others."""
    q = scored.logits.softmax(-1)
    best = token_ids[scored.logits.argmax(-1)]
    agrees = (best == scored.next_tokens).float()
    return Judged(
        overlap=torch.minimum(scored.p, q).sum(-1),
        mass=scored.p.sum(-1),
        agrees=agrees.masked_fill(scored.next_tokens < 0, torch.nan),
        examples=scored.examples,
    )
