"""EAGLE (Li et al. 2024, 2025): one layer that continues the target's hidden states.

Position i of the head pairs the target's features of token i with the embedding of token
i + 1, and predicts token i + 2. While drafting, the head's own output stands in for the
features it does not have yet. The output covers a reduced vocabulary (FR-Spec, Zhao et
al. 2025), since most of a small draft's time is the rows of its output matrix.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reference.cache import Batch, KVCache
from reference.draft.base import Row
from reference.draft.neural import NeuralDrafter
from reference.draft.tree import Draft
from reference.model import Layer, Linear, Model, ModelConfig, RMSNorm
from reference.rope import rope_tables
from reference.sampling import Warp
from specsim.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EagleConfig:
    """Shapes of a head: of the target it belongs to, which features, how many tokens."""

    vocab_size: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    draft_vocab_size: int
    feature_layers: tuple[int, ...]  # target hidden states, see `Model.forward`
    max_positions: int = 2048
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    @classmethod
    def for_target(
        cls, target: ModelConfig, draft_vocab_size: int, feature_layers: Sequence[int] | None = None
    ) -> EagleConfig:
        """A head as wide as the target; by default fed by its last hidden state."""
        layers = (target.num_layers,) if feature_layers is None else tuple(feature_layers)
        names = ("vocab_size", "hidden_size", "num_heads", "num_kv_heads", "head_dim",
                 "intermediate_size", "max_positions", "rope_theta", "norm_eps")  # fmt: skip
        shared = {name: getattr(target, name) for name in names}
        return cls(draft_vocab_size=draft_vocab_size, feature_layers=layers, **shared)

    @property
    def layer(self) -> ModelConfig:
        """The head's transformer layer, as a one-layer model's configuration."""
        return ModelConfig(
            vocab_size=self.draft_vocab_size, hidden_size=self.hidden_size, num_layers=1,
            num_heads=self.num_heads, num_kv_heads=self.num_kv_heads, head_dim=self.head_dim,
            intermediate_size=self.intermediate_size, max_positions=self.max_positions,
            rope_theta=self.rope_theta, norm_eps=self.norm_eps,
        )  # fmt: skip


class EagleHead(nn.Module):
    """Features and the next token's embedding in; a hidden state and draft logits out.

    Shapes: F = len(feature_layers) · d features, R draft tokens.
    """

    token_ids: Tensor  # (R,) the target's ids of the draft's tokens
    rope: Tensor

    def __init__(self, config: EagleConfig, token_ids: Tensor) -> None:
        super().__init__()
        d, c = config.hidden_size, config
        if token_ids.shape != (c.draft_vocab_size,):
            raise ValueError(f"{len(token_ids)} token ids for {c.draft_vocab_size} draft tokens")
        self.config = config
        self.fuse = Linear(len(c.feature_layers) * d, d)
        self.token_norm, self.state_norm = RMSNorm(d, c.norm_eps), RMSNorm(d, c.norm_eps)
        self.combine = Linear(2 * d, d)
        self.layer = Layer(c.layer)
        self.norm = RMSNorm(d, c.norm_eps)
        self.head = Linear(d, c.draft_vocab_size)
        self.register_buffer("token_ids", token_ids)
        self.register_buffer("rope", torch.empty(0), persistent=False)
        self.set_rope()

    def set_rope(self) -> None:
        """Fill the rotary tables, in the head's dtype and on its device."""
        c = self.config
        self.rope = rope_tables(c.head_dim, c.max_positions, c.rope_theta).to(self.norm.weight)

    def forward(
        self, state: Tensor, embedding: Tensor, batch: Batch, keys: Tensor, values: Tensor
    ) -> Tensor:
        """(T, d) states and embeddings of the tokens after them → (T, d) next states."""
        x = torch.cat((self.token_norm(embedding), self.state_norm(state)), dim=-1)  # (T, 2d)
        cos, sin = self.rope[batch.positions].unbind(1)
        return self.layer(self.combine(x), batch, keys, values, cos, sin)  # type: ignore[no-any-return]

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache of the head's one layer."""
        c, weight = self.config, self.norm.weight
        shape = (1, rows, c.num_kv_heads, capacity, c.head_dim)
        return KVCache(shape, weight.dtype, weight.device)

    def logits(self, state: Tensor) -> Tensor:
        """(…, d) → (…, R)."""
        return self.head(self.norm(state))  # type: ignore[no-any-return]


class EagleDrafter(NeuralDrafter):
    """Drafts with an `EagleHead` on the target's features."""

    name = "eagle"

    def __init__(self, head: EagleHead, *, distinct: bool = False, stop_below: float = 0.0) -> None:
        super().__init__(distinct=distinct, stop_below=stop_below)
        self.head = head
        self.max_positions = head.config.max_positions
        self.feature_layers = head.config.feature_layers

    def bind(self, target: Model, cache: KVCache, rows: int, capacity: int) -> None:
        ours, theirs = self.head.config, target.config
        if (ours.vocab_size, ours.hidden_size) != (theirs.vocab_size, theirs.hidden_size):
            raise ValueError(
                f"the head belongs to a target of {ours.vocab_size} tokens × {ours.hidden_size}, "
                f"this one has {theirs.vocab_size} × {theirs.hidden_size}: "
                "another vocabulary or model"
            )
        self.target = target
        self.cache = self.head.new_cache(rows, capacity)
        empty = torch.empty(0, len(self.feature_layers) * ours.hidden_size)
        self._empty = empty.to(target.embedding)
        # Features seen but not yet fed, and, during a step, the states of root and nodes.
        self._pending = [self._empty] * rows
        self._states: list[Tensor] = [self._empty] * rows

    def observe(self, row: int, features: Tensor) -> None:
        self._pending[row] = torch.cat((self._pending[row], features))

    def propose(
        self, rows: Sequence[Row], shapes: Sequence[tuple[int, ...]], warp: Warp
    ) -> list[Draft]:
        drafts = super().propose(rows, shapes, warp)
        for b, shape in enumerate(shapes):
            if shape:  # what was fed from drafted states is forgotten, true pairs stay
                self.cache.rollback(b, len(rows[b].tokens) - 1)
        return drafts

    def _unseen(self, b: int, row: Row, wanted: bool) -> list[int]:
        """Tokens whose predecessor's features are waiting: pair i is (features i, token i+1)."""
        start = self.cache.lengths[b] + 1
        return row.tokens[start : start + len(self._pending[b])] if wanted else []

    def forward(self, batch: Batch, select: Tensor, parents: list[list[int]] | None) -> Tensor:
        if parents is None:
            state = self.head.fuse(self._take(batch))  # (T, d)
        else:
            fed = [(b, [i + 1 for i in row]) for b, row in enumerate(parents) if row]
            state = torch.cat([self._states[b][nodes] for b, nodes in fed])
        embedding = F.embedding(batch.tokens, self.target.embedding)
        keys, values = self.cache.keys[0], self.cache.values[0]
        state = self.head(state, embedding, batch, keys, values)[select]  # (selected, d)
        self._remember(batch, state, parents)
        logits: Tensor = state.new_full((len(state), self.head.config.vocab_size), -torch.inf)
        logits[:, self.head.token_ids] = self.head.logits(state)  # (selected, R) → (selected, V)
        return logits

    def _take(self, batch: Batch) -> Tensor:
        """(T, F) waiting features of the pairs in the batch; what is not fed yet stays."""
        taken = []
        for b, count in enumerate(batch.counts):
            taken.append(self._pending[b][:count])
            self._pending[b] = self._pending[b][count:]
        return torch.cat(taken)

    def _remember(self, batch: Batch, state: Tensor, parents: list[list[int]] | None) -> None:
        """Keep the states of the nodes just fed: their children continue them."""
        if parents is None:
            fed = [b for b, count in enumerate(batch.counts) if count]
            for b, line in zip(fed, state, strict=True):
                self._states[b] = line[None]  # the root's
            return
        for b, lines in enumerate(torch.split(state, [len(row) for row in parents])):
            if len(lines):
                self._states[b] = torch.cat((self._states[b], lines))

    def rollback(self, row: int, length: int) -> None:
        """Nothing: after drafting only true pairs are kept, and those never go wrong."""

    def clear(self, row: int) -> None:
        self.cache.rollback(row, 0)
        self._pending[row] = self._empty

    def move_row(self, source: int, target: int) -> None:
        self.cache.move_row(source, target)
        self._pending[target] = self._pending[source]


def random_head(config: EagleConfig, seed: int, dtype: torch.dtype = torch.float32) -> EagleHead:
    """An untrained head on randomly chosen tokens: lossless all the same, only useless."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(config.vocab_size, generator=generator)[: config.draft_vocab_size]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        head = EagleHead(config, ids.sort().values).to(dtype)
        for parameter in head.parameters():
            if parameter.dim() > 1:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    head.set_rope()
    return head.requires_grad_(False)


def save_head(head: EagleHead, path: str | Path) -> None:
    """Write a head as one safetensors file, its configuration in the file's metadata."""
    from safetensors.torch import save_file

    tensors = {name: t.detach().contiguous() for name, t in head.state_dict().items()}
    save_file(tensors, str(path), metadata={"eagle_config": json.dumps(asdict(head.config))})


def load_head(path: str | Path, dtype: torch.dtype, device: torch.device) -> EagleHead:
    """Read a head written by `save_head`.

    Raises:
        ConfigError: when the file is not such a head.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        values = json.loads(metadata["eagle_config"])
        config = replace(EagleConfig(**values), feature_layers=tuple(values["feature_layers"]))
        head = EagleHead(config, tensors["token_ids"]).to(dtype=dtype, device=device)
        head.load_state_dict(tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise ConfigError(f"{path}: not an EAGLE head ({error})") from None
    head.set_rope()
    return head.requires_grad_(False)
