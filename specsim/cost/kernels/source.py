"""The cost source that interpolates measured kernels.

Dense products, attention over a cache, attention of whole prompts, experts and all-reduce
come from the tables of one engine; anything without a table (small kernels, linear
attention, a dtype or GPU that was not measured) is the roofline's, and `explain` says so
operation by operation. Tables have one query per sequence: verifying K + 1 tokens takes
the roofline's ratio between K + 1 queries and one (the cache is read once, the arithmetic
grows) on top of the measured single query. Products of `fp8_block` are never used:
the small ones are launch times.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from specsim.catalogue.specs import GpuSpec
from specsim.cost.kernels import tables
from specsim.cost.kernels.operations import (
    LATENT_RANK,
    all_reduce_operation,
    attention_operation,
    context_operation,
    evenly_visited,
    expert_operation,
    gemm_operation,
    latent_operation,
)
from specsim.cost.kernels.ratios import Ratios, build
from specsim.cost.operations import Operation, operations
from specsim.cost.roofline import Roofline
from specsim.cost.source import ForwardTime, OperationTime, total
from specsim.cost.work import Work
from specsim.deployment import PlacedModel
from specsim.errors import MissingDataError

#: More new tokens per sequence than this are a prompt, not a verification.
PROMPT_QUERIES = 64


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """A cost source: measured kernels of one GPU under one engine.

    `warm` returns the tables' own times; a model's pass finds its operands cold, which
    matters where a small product or cache fits in the level-2 cache.

    Raises:
        MissingDataError: if the tables are not installed or do not have the GPU.
    """

    gpu: GpuSpec
    engine: str = "vllm"
    warm: bool = False
    roofline: Roofline = field(init=False)

    def __post_init__(self) -> None:
        tables.data_root()  # says what to install
        if self.gpu.name not in tables.SYSTEMS:
            known = ", ".join(tables.SYSTEMS)
            raise MissingDataError(f"no kernel tables for {self.gpu.name!r}; there are: {known}")
        if self.engine not in tables.ENGINES:
            raise ValueError(f"engine {self.engine!r}; expected one of {', '.join(tables.ENGINES)}")
        object.__setattr__(self, "roofline", Roofline(gpu=self.gpu, warm=self.warm))

    @property
    def name(self) -> str:
        """Which tables the prediction rests on."""
        version = tables.newest_version(self.gpu.name, "gemm", "gemm_perf", self.engine)
        return (
            f"kernels ({self.gpu.name}, {self.engine} {version}, aiconfigurator-core; "
            "roofline where there is no table)"
        )

    def forward_time(
        self, model: PlacedModel, batch: Any, new_tokens: Any, context: Any
    ) -> ForwardTime:
        """T(B, n, L) of one forward pass; shapes broadcast."""
        return self.work_time(model, Work.uniform(batch, new_tokens, context))

    def work_time(self, model: PlacedModel, work: Work) -> ForwardTime:
        """Time of a forward pass over any mix of prefill and decode."""
        return total(self.explain(model, work))

    def explain(self, model: PlacedModel, work: Work) -> list[OperationTime]:
        """Time of every operation; its name says what it was measured or scaled from."""
        return [self.operation_time(operation) for operation in operations(model, work)]

    def operation_time(self, op: Operation) -> OperationTime:
        """Measured (or scaled) time of `op.count` equal operations, in seconds."""
        time = self.roofline.operation_time(op)
        try:
            ratio, source = self._ratio(op)
        except MissingDataError:
            return _scaled(time, 1.0, "roofline")
        return _scaled(time, ratio, source)

    def _ratio(self, op: Operation) -> tuple[Any, str]:
        """Measured over roofline, and where the measurement is from."""
        if op.kind == "gemm":
            ratios = _gemm(self.gpu, self.engine, op.dtype)
            return ratios.at((op.n, op.k), op.m)
        if op.kind == "attention" and op.kv_heads:
            shape = (op.n, op.kv_heads, op.k)
            queries = op.m / op.batch
            ratio, source = _decode(self.gpu, self.engine, op.dtype).at(shape, op.batch, op.depth)
            if np.any(queries > PROMPT_QUERIES):
                prompt, _ = _prompt(self.gpu, self.engine).at(shape, op.batch, op.depth)
                ratio = np.where(queries > PROMPT_QUERIES, prompt, ratio)
            return ratio, source
        if op.kind == "attention" and op.k == LATENT_RANK:
            if np.any(op.m / op.batch > PROMPT_QUERIES):
                raise MissingDataError("no table of prompts over a latent cache")
            return _latent(self.gpu, self.engine, op.dtype).at((op.n,), op.batch, op.depth)
        if op.kind == "experts":
            shape = (op.k, op.n / 3, op.experts)
            return _experts(self.gpu, self.engine, op.dtype).at(shape, op.m / op.top_k)
        if op.kind == "allreduce":
            ratios = _links(self.gpu, self.engine)
            if not np.any(np.abs(ratios.shapes - np.log2(op.group)) < 1e-6):
                raise MissingDataError(f"no all-reduce among {op.group} GPUs")
            return ratios.at((op.group,), op.activation_bytes)
        raise MissingDataError(f"no table of {op.name}")


def _scaled(time: OperationTime, ratio: Any, source: str) -> OperationTime:
    op = dataclasses.replace(time.operation, name=f"{time.operation.name} [{source}]")
    return OperationTime(
        operation=op, seconds=time.seconds * ratio, memory_s=time.memory_s * ratio,
        compute_s=time.compute_s * ratio, link_s=time.link_s * ratio,
        fixed_s=time.fixed_s * ratio,
    )  # fmt: skip


class _ByName:
    """A GPU as a cache key: by name and constants, since its dict of peaks has no hash."""

    def __init__(self, gpu: GpuSpec) -> None:
        self.gpu, self.key = gpu, repr(gpu)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByName) and self.key == other.key


def _log_ratio(gpu: GpuSpec, operation: Operation, seconds: Any) -> Any:
    predicted = Roofline(gpu=gpu, warm=True).operation_time(operation).seconds
    return np.log(np.asarray(seconds, dtype=float) / predicted)


def _gemm(gpu: GpuSpec, engine: str, dtype: str) -> Ratios:
    return _gemm_ratios(_ByName(gpu), engine, dtype)


@cache
def _gemm_ratios(key: _ByName, engine: str, dtype: str) -> Ratios:
    table = tables.gemm(key.gpu.name, dtype, engine)
    ratio = _log_ratio(key.gpu, gemm_operation(table, dtype), table["seconds"])
    return build(table, ratio, ("n", "k"), "m")


def _decode(gpu: GpuSpec, engine: str, kv: str) -> Ratios:
    return _decode_ratios(_ByName(gpu), engine, kv)


@cache
def _decode_ratios(key: _ByName, engine: str, kv: str) -> Ratios:
    table = tables.generation_attention(key.gpu.name, kv, engine)
    table = table[table["window"] == 0]
    ratio = _log_ratio(key.gpu, attention_operation(table, kv), table["seconds"])
    return build(table, ratio, ("heads", "kv_heads", "head_dim"), "batch", "context")


def _latent(gpu: GpuSpec, engine: str, kv: str) -> Ratios:
    return _latent_ratios(_ByName(gpu), engine, kv)


@cache
def _latent_ratios(key: _ByName, engine: str, kv: str) -> Ratios:
    table = tables.latent_attention(key.gpu.name, kv, engine)
    ratio = _log_ratio(key.gpu, latent_operation(table, kv), table["seconds"])
    found = build(table, ratio, ("heads",), "batch", "context")
    whose = str(table["engine"].iloc[0])
    labels = tuple(f"{label} heads, {whose}" for label in found.labels)
    return dataclasses.replace(found, labels=labels)


def _prompt(gpu: GpuSpec, engine: str) -> Ratios:
    return _prompt_ratios(_ByName(gpu), engine)


@cache
def _prompt_ratios(key: _ByName, engine: str) -> Ratios:
    table = tables.context_attention(key.gpu.name, engine)
    table = table[table["window"] == 0]
    ratio = _log_ratio(key.gpu, context_operation(table), table["seconds"])
    return build(table, ratio, ("heads", "kv_heads", "head_dim"), "batch", "context")


def _experts(gpu: GpuSpec, engine: str, dtype: str) -> Ratios:
    return _expert_ratios(_ByName(gpu), engine, dtype)


@cache
def _expert_ratios(key: _ByName, engine: str, dtype: str) -> Ratios:
    table = tables.moe(key.gpu.name, dtype, engine)
    even = (table["distribution"] == "balanced") & (table["expert_parallel"] == 1)
    table = table[even]
    if table.empty:
        raise MissingDataError(f"no evenly routed {dtype} experts for {key.gpu.name!r}")
    operation = expert_operation(table, dtype, evenly_visited(table))
    ratio = _log_ratio(key.gpu, operation, table["seconds"])
    return build(table, ratio, ("hidden", "inter", "experts"), "tokens")


def _links(gpu: GpuSpec, engine: str) -> Ratios:
    return _link_ratios(_ByName(gpu), engine)


@cache
def _link_ratios(key: _ByName, engine: str) -> Ratios:
    table = tables.all_reduce(key.gpu.name, engine)
    ratio = _log_ratio(key.gpu, all_reduce_operation(table), table["seconds"])
    return build(table, ratio, ("gpus",), "message_bytes")
