"""Drafts as they are trained: the decoder's own modules over whole sequences at once.

A trainee gives, for a batch of examples, the draft's logits at every position where the
decoder could draft, and the target's probabilities there. An EAGLE head is also rolled out
on its own states, as in decoding (EAGLE-3's training-time test, Li et al. 2025): in pass j
the state at a position is the head's output of pass j − 1 one position earlier, and it
sees true pairs up to j positions back and its own states since.

Shapes: T packed tokens, A examples, n the longest, R draft tokens, M scored positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from reference.cache import Batch, KVCache, make_batch
from reference.draft.eagle import EagleHead
from reference.model import Model, ModelConfig
from reference.training.batches import Example
from reference.training.generate import TeacherHead


@dataclass(frozen=True)
class Scored:
    """One pass's predictions: logits (M, R) float32, the target's p (M, R), which example.

    p sums to less than 1: the rest of its mass is outside the draft's vocabulary.
    next_tokens: (M,) what the target wrote there, −1 where its output ended.
    """

    logits: Tensor
    p: Tensor
    examples: Tensor
    next_tokens: Tensor


class Trainee:
    """A draft with `module` to train; `teacher` gives p on the draft's tokens."""

    module: EagleHead | Model
    reads_ahead: int  # draft position i predicts token i + reads_ahead

    def __init__(self, embedding: Tensor, teacher: TeacherHead, dtype: torch.dtype) -> None:
        self.embedding, self.teacher, self.dtype = embedding.to(dtype), teacher, dtype

    def passes(self, examples: Sequence[Example], rollout: int) -> Iterator[Scored]:
        """The draft's predictions at drafted position 1, and on to `rollout` if it can."""
        raise NotImplementedError

    def _scored(
        self, logits: Tensor, batch: Batch, examples: Sequence[Example], index: Tensor, p: Tensor
    ) -> Scored:
        ahead, unknown = self.reads_ahead, torch.tensor([-1])
        following = torch.cat(
            [torch.cat((e.tokens[ahead:], unknown)) for e in examples]
        )  # (T,): every example has n − ahead + 1 positions
        return Scored(logits.float(), p, batch.rows[index], following[index])

    def _positions(self, examples: Sequence[Example], later: int) -> Tensor:
        """(M,) packed positions whose prediction falls in the output, `later` passes on."""
        ahead = self.reads_ahead
        kept = []
        for e in examples:
            position = torch.arange(len(e.tokens) - ahead + 1)
            kept.append(position - later >= e.prompt_length - ahead + 1)
        return torch.cat(kept).nonzero().flatten()

    def _target_probs(self, examples: Sequence[Example], index: Tensor) -> Tensor:
        """(M, R) the target's probabilities of the draft's tokens at packed positions."""
        skip, d = self.reads_ahead - 1, self.embedding.shape[1]
        state = torch.cat([e.features[skip:, -d:] for e in examples])[index]
        log_z = torch.cat([e.log_z[skip:] for e in examples])[index]
        with torch.no_grad():
            return (self.teacher(state) - log_z[:, None]).exp_()


class EagleTrainee(Trainee):
    """Pair i is (features of token i, embedding of token i + 1): it predicts token i + 2."""

    reads_ahead = 2
    module: EagleHead

    def __init__(self, head: EagleHead, embedding: Tensor, teacher: TeacherHead) -> None:
        super().__init__(embedding, teacher, head.combine.weight.dtype)
        self.module = head

    def passes(self, examples: Sequence[Example], rollout: int) -> Iterator[Scored]:
        head, c = self.module, self.module.config
        batch, stores = _pack(
            [e.tokens[1:].tolist() for e in examples], head.config.layer, self.dtype
        )
        embedding = F.embedding(batch.tokens, self.embedding)
        width = len(c.feature_layers) * c.hidden_size
        features = torch.cat([e.features[:-1, :width] for e in examples]).to(self.dtype)
        state = head.fuse(features)
        everywhere = self._positions(examples, 0)
        p = self._target_probs(examples, everywhere)
        keys, values = stores
        for j in range(rollout):
            if j:
                # Rows' first positions get a neighbour's state: no scored position sees them.
                state = state.roll(1, 0)
                keys, values = (torch.cat((x, torch.zeros_like(y)), 2)
                                for x, y in zip((keys, values), stores, strict=True))  # fmt: skip
            state = head(state, embedding, _rolled(batch, j), keys, values)
            index = self._positions(examples, j)
            known = torch.searchsorted(everywhere, index)
            yield self._scored(head.logits(state[index]), batch, examples, index, p[known])


class LayersTrainee(Trainee):
    """Token i in, token i + 1 out: a small model of the target's kind."""

    reads_ahead = 1
    module: Model

    def __init__(self, model: Model, teacher: TeacherHead) -> None:
        super().__init__(model.embedding.detach(), teacher, model.dtype)
        self.module = model

    def passes(self, examples: Sequence[Example], rollout: int) -> Iterator[Scored]:
        model = self.module
        lines = [e.tokens.tolist() for e in examples]
        x, batch = None, None
        for layer in model.layers:
            batch, (keys, values) = _pack(lines, model.config, self.dtype)
            cos, sin = model.rope[batch.positions].unbind(1)
            x = F.embedding(batch.tokens, self.embedding) if x is None else x
            x = layer(x, batch, keys, values, cos, sin)
        assert x is not None
        assert batch is not None
        index = self._positions(examples, 0)
        p = self._target_probs(examples, index)
        yield self._scored(model.head(model.norm(x[index])), batch, examples, index, p)


def _pack(
    lines: Sequence[Sequence[int]], config: ModelConfig, dtype: torch.dtype
) -> tuple[Batch, tuple[Tensor, Tensor]]:
    """Examples as one packed batch, and empty keys and values (A, J, n, D) of one layer.

    A layer of its own each: what autograd keeps for one layer must not be written again.
    """
    c = config
    shape = (1, len(lines), c.num_kv_heads, max(map(len, lines)), c.head_dim)
    cache = KVCache(shape, dtype, torch.device("cpu"))
    batch = replace(make_batch(lines, cache), span=None)
    if batch.mask is None:  # single tokens: everything is visible
        batch = replace(batch, mask=torch.ones(len(lines), 1, 1, 1, dtype=torch.bool))
    return batch, (cache.keys[0], cache.values[0])


def _rolled(batch: Batch, j: int) -> Batch:
    """The batch of pass j: its keys go after those of j earlier passes, n slots each."""
    n = batch.width
    query, key = torch.arange(n)[:, None], torch.arange(n)
    blocks = [key <= query - j, *(key == query - (j - m) for m in range(1, j + 1))]
    mask = torch.cat(blocks, dim=1).expand(batch.num_rows, 1, n, (j + 1) * n)
    return replace(batch, slots=batch.slots + j * n, mask=mask, key_length=(j + 1) * n)
