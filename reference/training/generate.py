"""Batched sampling from the target, keeping what distillation needs of every position.

Speed decides how much data there is, so this is not `Decoder`: many rows advance by one
token a pass, and rows that end make room for none. The body runs in the model's dtype; the
output matrix in float32, because log Z in bfloat16 would be off by several per cent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reference.cache import make_batch
from reference.model import Model


@dataclass(frozen=True)
class Sequences:
    """Prompts and outputs, packed one after the other (N tokens of S sequences).

    The last token of each output was sampled but never read: it is left out, so that every
    token has its features and its log Z.

    tokens: (N,) int32; features: (N, F) bfloat16, hidden states of the chosen layers;
    log_z: (N,) float32, log Σ exp of the target's logits after each token (0 inside prompts);
    lengths, prompt_lengths: (S,) int32.
    """

    tokens: Tensor
    features: Tensor
    log_z: Tensor
    lengths: Tensor
    prompt_lengths: Tensor

    @property
    def num_outputs(self) -> int:
        """Tokens that the target wrote."""
        return int((self.lengths - self.prompt_lengths).sum())


class TeacherHead:
    """The target's final norm and output matrix in float32, whole or for chosen tokens."""

    def __init__(self, model: Model, token_ids: Tensor | None = None) -> None:
        if not model.config.tied_embeddings:
            raise ValueError("drafts are trained only for targets with tied embeddings")
        self.weight = model.embedding.detach().float()  # (V, d)
        if token_ids is not None:
            self.weight = self.weight[token_ids]  # (R, d)
        self.norm_weight, self.eps = model.norm.weight.detach().float(), model.norm.eps

    def __call__(self, state: Tensor) -> Tensor:
        """Last-layer states (…, d) → logits (…, V or R)."""
        x = F.rms_norm(state.float(), self.norm_weight.shape, self.norm_weight, self.eps)
        return F.linear(x, self.weight)


@torch.inference_mode()
def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    temperature: float,
    new: int,
    eos: frozenset[int],
    feature_layers: Sequence[int],
    generator: torch.Generator,
) -> Sequences:
    """Up to `new` tokens after each prompt, at temperature 0 or 1.

    Args:
        feature_layers: see `Model.forward`; the last must be the last layer's output.

    Raises:
        ValueError: for another temperature, or features without the last layer's.
    """
    if temperature not in (0.0, 1.0):
        raise ValueError(f"temperature={temperature}: drafts are trained at 0 and 1")
    if not feature_layers or feature_layers[-1] != model.config.num_layers:
        raise ValueError(f"feature layers {feature_layers} do not end with the last layer")
    head, d = TeacherHead(model), model.config.hidden_size
    longest = max(len(p) for p in prompts) + new
    cache = model.new_cache(len(prompts), longest)
    features = torch.zeros(len(prompts), longest, len(feature_layers) * d, dtype=torch.bfloat16)
    log_z = torch.zeros(len(prompts), longest)
    tokens = [list(p) for p in prompts]
    active, fed = list(range(len(prompts))), [list(p) for p in prompts]  # cache row → sequence
    nothing = torch.empty(0, dtype=torch.long)
    while active:
        starts = cache.lengths[: len(active)]
        batch = make_batch(fed, cache)
        out = model(batch, cache, select=nothing, feature_layers=feature_layers)
        assert out.features is not None
        ends = torch.tensor([len(line) for line in fed]).cumsum(0)
        parts = torch.split(out.features, [len(line) for line in fed])
        for sequence, start, part in zip(active, starts, parts, strict=True):
            features[sequence, start : start + len(part)] = part
        last = out.features[ends - 1, -d:].to(features.dtype)  # as stored: p must follow from it
        drawn, z = sample(head(last), temperature, generator)
        going = []
        for row, sequence in enumerate(active):
            log_z[sequence, cache.lengths[row] - 1] = z[row]
            if drawn[row] not in eos and len(tokens[sequence]) + 1 < len(prompts[sequence]) + new:
                tokens[sequence].append(drawn[row])
                going.append(row)
        for place, row in enumerate(going):
            if place != row:
                cache.move_row(row, place)
        active = [active[row] for row in going]
        fed = [[tokens[sequence][-1]] for sequence in active]
    lengths = [len(line) for line in tokens]
    return Sequences(
        tokens=torch.tensor([t for line in tokens for t in line], dtype=torch.int32),
        features=torch.cat([features[i, :n] for i, n in enumerate(lengths)]),
        log_z=torch.cat([log_z[i, :n] for i, n in enumerate(lengths)]),
        lengths=torch.tensor(lengths, dtype=torch.int32),
        prompt_lengths=torch.tensor([len(p) for p in prompts], dtype=torch.int32),
    )


def sample(
    logits: Tensor, temperature: float, generator: torch.Generator
) -> tuple[list[int], Tensor]:
    """A token a row from logits (A, V), and log Z (A,). Temperature 0 takes the largest."""
    z = logits.logsumexp(-1)
    if temperature == 0:
        return logits.argmax(-1).tolist(), z
    cumulative = (logits - z[:, None]).exp_().cumsum(-1)
    uniform = torch.rand(len(logits), 1, generator=generator) * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, uniform, right=True)
    return index.clamp_(max=logits.shape[-1] - 1).flatten().tolist(), z
