"""CUDA graphs for passes of static shape: record the kernels once, replay them.

A decode step launches hundreds of small kernels; replaying a recorded graph removes that
launch time. Shapes must not change between replays, so a graph serves one (rows, tokens a
row, rounded key length) and attends over the rounded length under a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reference.cache import Batch, KVCache
from reference.model import Model, Output


@dataclass
class _Recorded:
    cache: KVCache  # kept alive: the graph holds its addresses, the key its id
    batch: Batch  # the buffers that a replay reads
    output: Output  # the buffers that it fills
    graph: torch.cuda.CUDAGraph | None


class GraphedModel:
    """Calls like `Model`; uniform batches are replayed from a graph, others run eagerly.

    Args:
        bucket: key lengths are rounded up to a multiple of this many slots.
        record: false runs the same static buffers without a graph (to test them anywhere).
    """

    def __init__(self, model: Model, *, bucket: int = 256, record: bool = True) -> None:
        self.model, self.bucket, self.record = model, bucket, record
        self._recorded: dict[tuple[object, ...], _Recorded] = {}

    @torch.inference_mode()
    def __call__(
        self,
        batch: Batch,
        cache: KVCache,
        *,
        select: Tensor | None = None,
        num_layers: int | None = None,
        feature_layers: Sequence[int] = (),
    ) -> Output:
        """As `Model.forward`."""
        options: dict[str, Any] = {
            "num_layers": num_layers,
            "feature_layers": tuple(feature_layers),
        }
        if batch.grid is not None:
            eager: Output = self.model(batch, cache, select=select, **options)
            return eager
        static = self._static(batch, cache)
        key = (id(cache), static.num_rows, static.width, static.key_length, *options.values())
        if key not in self._recorded:
            self._recorded[key] = self._make(static, cache, options)
        recorded = self._recorded[key]
        _copy(static, recorded.batch)
        if recorded.graph is None:
            recorded.output = self.model(recorded.batch, cache, **options)
        else:
            with torch.cuda.device(cache.device):
                recorded.graph.replay()
        logits = recorded.output.logits
        # The buffers are overwritten by the next replay, so what leaves is a copy.
        kept = logits.clone() if select is None else logits[select]
        features = recorded.output.features
        return Output(kept, None if features is None else features.clone())

    def _static(self, batch: Batch, cache: KVCache) -> Batch:
        """The batch with its key length rounded up, and a mask that hides the rest."""
        length = min(-(-batch.key_length // self.bucket) * self.bucket, cache.capacity)
        shape = (batch.num_rows, 1, batch.width, batch.key_length)
        mask = batch.mask
        if mask is None:
            mask = torch.ones(shape, dtype=torch.bool, device=cache.device)
        mask = F.pad(mask, (0, length - batch.key_length), value=False)
        return replace(batch, mask=mask, key_length=length, span=None)

    def _make(self, static: Batch, cache: KVCache, options: dict[str, Any]) -> _Recorded:
        tensors = ("tokens", "rows", "slots", "positions", "mask")
        batch = replace(static, **{name: getattr(static, name).clone() for name in tensors})
        if not self.record:
            return _Recorded(cache, batch, Output(torch.empty(0)), None)
        with torch.cuda.device(cache.device):
            return self._capture(batch, cache, options)

    def _capture(self, batch: Batch, cache: KVCache, options: dict[str, Any]) -> _Recorded:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries allocate workspaces on their first calls
                self.model(batch, cache, **options)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.model(batch, cache, **options)
        return _Recorded(cache, batch, output, graph)


def _copy(source: Batch, target: Batch) -> None:
    for name in ("tokens", "rows", "slots", "positions", "mask"):
        getattr(target, name).copy_(getattr(source, name))
