"""Sequences of a corpus in memory, and the batches of an epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reference.training.corpus import hash_seed
from reference.training.generate import Sequences


@dataclass(frozen=True)
class Example:
    """One prompt and output of n tokens: see `Sequences`. features: (n, F); log_z: (n,)."""

    tokens: Tensor
    features: Tensor
    log_z: Tensor
    prompt_length: int

    @property
    def num_outputs(self) -> int:
        return len(self.tokens) - self.prompt_length


@dataclass(frozen=True)
class Columns:
    """Which of the stored hidden states a draft reads, and where the last one is."""

    chosen: tuple[int, ...]  # indices among the stored layers
    hidden_size: int

    def take(self, features: Tensor) -> Tensor:
        """(N, stored · d) → (N, (chosen + last) · d)."""
        d, stored = self.hidden_size, features.shape[1] // self.hidden_size
        wanted = [i for i in self.chosen if i != stored - 1] + [stored - 1]
        return torch.cat([features[:, i * d : (i + 1) * d] for i in wanted], dim=1)


def unpack(
    shards: Iterable[Sequences], columns: Columns | None = None, *, shortest: int = 3
) -> list[Example]:
    """Every sequence of some shards with an output of at least `shortest` tokens."""
    examples = []
    for shard in shards:
        features = shard.features if columns is None else columns.take(shard.features)
        sizes = shard.lengths.tolist()
        parts = zip(
            torch.split(shard.tokens.long(), sizes), torch.split(features, sizes),
            torch.split(shard.log_z, sizes),
            shard.prompt_lengths.tolist(), strict=True,
        )  # fmt: skip
        examples += [Example(*part) for part in parts]
    return [example for example in examples if example.num_outputs >= shortest]


def epoch_batches(
    examples: Sequence[Example], size: int, seed: int, epoch: int
) -> Iterator[list[Example]]:
    """All examples once, in an order that depends on seed and epoch alone."""
    generator = torch.Generator().manual_seed(hash_seed(seed, epoch))
    order = torch.randperm(len(examples), generator=generator).tolist()
    for start in range(0, len(order), size):
        yield [examples[i] for i in order[start : start + size]]
