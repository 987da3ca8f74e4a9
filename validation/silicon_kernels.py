"""Rows of the silicon comparison, one generator per kind of kernel.

Each yields statistics over rows that the constants of the GPU were not fitted on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from specsim.catalogue import loader
from specsim.catalogue.specs import GpuSpec
from specsim.cost.experts import TYPICAL, UNIFORM, expert_popularity
from specsim.cost.kernels import Kernels, tables
from specsim.cost.kernels.operations import (
    all_reduce_operation,
    attention_operation,
    context_operation,
    evenly_visited,
    expert_operation,
    gemm_operation,
    held_out,
    latent_operation,
)
from specsim.cost.kernels.ratios import build
from specsim.cost.operations import Operation
from specsim.cost.roofline import Roofline
from specsim.deployment import PlacedModel
from specsim.errors import MissingDataError
from validation.kernel_fits import BIG
from validation.rows import Row, absolute_errors, bounds, statistic

if TYPE_CHECKING:
    import pandas as pd

BANDS = ((1, 16), (17, 64), (65, 256), (257, 512))
#: Query heads per key–value head that make as many rows as verifying K + 1 = 4 tokens with
#: the usual four query heads per key–value head.
WIDE = 16
#: Models whose passes are composed, with their parallel degree.
COMPOSED = (("llama-3.1-8b", 1), ("llama-3.1-70b", 4), ("qwen3-30b-a3b", 1))
SOURCE = "aiconfigurator-core 0.12.0, {engine} {version}"


def errors(gpu: GpuSpec, operation: Operation, table: pd.DataFrame) -> Any:
    """Absolute relative errors of the warm roofline, one per row of the table."""
    predicted = Roofline(gpu=gpu, warm=True).operation_time(operation).seconds
    return absolute_errors(predicted, table["seconds"])


def gemm_errors(
    gpu: GpuSpec, dtype: str = "bf16", engine: str = "vllm", *, held: bool = True
) -> pd.DataFrame:
    """Columns m, n, k, seconds, error, big for m ≤ 512; held-out shapes only, or all."""
    table = tables.gemm(gpu.name, dtype, engine)
    table = table[table["m"] <= BANDS[-1][1]]
    if held:
        table = table[held_out(table, "n", "k")]
    return table.assign(
        error=errors(gpu, gemm_operation(table, dtype), table),
        big=table["n"] * table["k"] >= BIG,
    )


def gemm_rows(gpu: GpuSpec) -> Iterator[Row]:
    limit = bounds("silicon")
    table = gemm_errors(gpu)
    big = table[table["big"]]
    source = table_source(gpu, "gemm", "gemm_perf", "vllm") + f", {len(table)} held-out rows"
    name = f"{gpu.name} bf16 gemm"
    median = limit["gemm_median"].get(gpu.name)
    yield statistic(f"{name} median", big["error"].median(), bound=median, provenance=source)
    for low, high in BANDS:
        band = big[(big["m"] >= low) & (big["m"] <= high)]["error"].median()
        yield statistic(
            f"{name} m={low}–{high}", band, bound=limit["gemm_band"] if median else None,
            provenance=source,
        )  # fmt: skip
    bounded = median and gpu.name not in limit["gemm_p90_except"]
    yield statistic(
        f"{name} p90", big["error"].quantile(0.9),
        bound=limit["gemm_p90"] if bounded else None, provenance=source,
    )  # fmt: skip
    yield statistic(
        f"{name} all shapes", table["error"].median(),
        bound=limit["gemm_all_shapes"] if median else None, provenance=source,
    )  # fmt: skip
    every = gemm_errors(gpu, held=False)
    yield statistic(
        f"{name} median, fitted shapes too", every[every["big"]]["error"].median(), bound=median,
        provenance=source,
    )  # fmt: skip


def narrow_rows(gpu: GpuSpec) -> Iterator[Row]:
    fp8 = bounds("silicon")["gemm_fp8"]
    cases = (("fp8", "vllm", fp8), ("fp4", "vllm", None), ("int8", "trtllm", None))
    for dtype, engine, bound in (*cases, ("int4", "trtllm", None)):
        try:
            # nothing was fitted to other engines: all of their shapes are held out
            table = gemm_errors(gpu, dtype, engine, held=engine == "vllm")
        except MissingDataError:
            continue
        label = dtype if engine == "vllm" else f"{dtype} ({engine})"
        yield statistic(
            f"{gpu.name} {label} gemm median", table[table["big"]]["error"].median(), bound=bound,
            provenance=table_source(gpu, "gemm", "gemm_perf", engine),
        )  # fmt: skip


def other_engines_rows(gpu: GpuSpec) -> Iterator[Row]:
    """Products as other engines run them: nothing was fitted to these."""
    for engine in ("sglang", "trtllm"):
        try:
            table = gemm_errors(gpu, engine=engine, held=False)
        except MissingDataError:
            continue
        yield statistic(
            f"{gpu.name} bf16 gemm median, {engine}", table[table["big"]]["error"].median(),
            provenance=table_source(gpu, "gemm", "gemm_perf", engine),
        )  # fmt: skip


def attention_rows(gpu: GpuSpec) -> Iterator[Row]:
    source = table_source(gpu, "attention", "generation_attention_perf", "vllm")
    bound = bounds("silicon")["generation_attention"]
    for kv, limit in (("bf16", bound), ("fp8", None)):
        try:
            table = tables.generation_attention(gpu.name, kv)
        except MissingDataError:
            continue
        held = table[held_out(table, "heads", "kv_heads", "head_dim") & (table["window"] == 0)]
        error = errors(gpu, attention_operation(held, kv), held)
        name = f"{gpu.name} generation attention, {kv} cache"
        yield statistic(f"{name}, median", np.median(error), bound=limit, provenance=source)
        yield statistic(f"{name}, p90", np.quantile(error, 0.9), provenance=source)
        windows = table[table["window"] > 0]
        if len(windows):
            error = errors(gpu, attention_operation(windows, kv), windows)
            yield statistic(f"{name}, sliding window", np.median(error), provenance=source)
    table = tables.generation_attention(gpu.name)
    wide = table[(table["heads"] >= WIDE * table["kv_heads"]) & (table["window"] == 0)]
    error = errors(gpu, attention_operation(wide), wide)
    yield statistic(
        f"{gpu.name} generation attention, {WIDE} and more queries per key–value head, median",
        np.median(error), provenance=source,
    )  # fmt: skip
    prompts = tables.context_attention(gpu.name)
    prompts = prompts[(prompts["window"] == 0) & (prompts["context"] >= 128)]
    error = errors(gpu, context_operation(prompts), prompts)
    yield statistic(f"{gpu.name} context attention, median", np.median(error), provenance=source)


def latent_rows(gpu: GpuSpec) -> Iterator[Row]:
    """Nothing was fitted to latent attention."""
    table = tables.latent_attention(gpu.name)
    error = errors(gpu, latent_operation(table), table)
    engine = str(table["engine"].iloc[0])
    yield statistic(
        f"{gpu.name} latent attention, median", np.median(error),
        provenance=table_source(gpu, "mla", "generation_mla_perf", engine),
    )  # fmt: skip


def experts_rows(gpu: GpuSpec) -> Iterator[Row]:
    for engine in tables.ENGINES:
        table = tables.moe(gpu.name, engine=engine)
        even = (table["distribution"] == "balanced") & (table["expert_parallel"] == 1)
        table = table[even & (table["tokens"] <= 512)]
        if len(table):
            break
    else:
        return
    table = table[held_out(table, "hidden", "inter", "experts")]
    error = errors(gpu, expert_operation(table, "bf16", evenly_visited(table)), table)
    source = table_source(gpu, "moe", "moe_perf", engine)
    yield statistic(f"{gpu.name} experts, even routing", np.median(error), provenance=source)
    try:
        narrow = tables.moe(gpu.name, "fp8")
    except MissingDataError:
        narrow = table.iloc[:0]
    even = (narrow["distribution"] == "balanced") & (narrow["expert_parallel"] == 1)
    narrow = narrow[even & (narrow["tokens"] <= 512)]
    if len(narrow):
        error = errors(gpu, expert_operation(narrow, "fp8", evenly_visited(narrow)), narrow)
        yield statistic(f"{gpu.name} experts, fp8", np.median(error), provenance=source)
    skewed = tables.moe(gpu.name, engine=engine)
    law = (skewed["distribution"] == "power_law_1.01") & (skewed["experts"] >= 32)
    skewed = skewed[law & (skewed["expert_parallel"] == 1) & (skewed["tokens"] <= 512)]
    for label, routing in (("uniform", UNIFORM), ("typical skew", TYPICAL)):
        visited = _visited(skewed, routing.skew)
        error = errors(gpu, expert_operation(skewed, "bf16", visited), skewed)
        yield statistic(
            f"{gpu.name} experts, power law, predicted as {label}", np.median(error),
            provenance=source,
        )  # fmt: skip


def _visited(table: pd.DataFrame, skew: float) -> Any:
    """Expected distinct experts of independent tokens, row by row."""
    shapes = table[["experts", "top_k"]].drop_duplicates()
    visited = np.zeros(len(table))
    for count, top_k in shapes.itertuples(index=False):
        rows = ((table["experts"] == count) & (table["top_k"] == top_k)).to_numpy()
        popularity = expert_popularity(int(count), int(top_k), skew)
        tokens = table["tokens"].to_numpy(dtype=float)[rows]
        visited[rows] = np.sum(1 - (1 - popularity) ** tokens[:, None], axis=1)
    return visited


def interpolation_rows(gpu: GpuSpec) -> Iterator[Row]:
    """The kernel source itself: each big shape predicted from the other shapes."""
    table = tables.gemm(gpu.name, "bf16")
    table = table[table["m"] <= BANDS[-1][1]]
    roofline = Roofline(gpu=gpu, warm=True).operation_time(gemm_operation(table, "bf16")).seconds
    table = table.assign(roofline=roofline)
    log_ratio = np.log(table["seconds"].to_numpy() / roofline)
    ratios = build(table, log_ratio, ("n", "k"), "m")
    found: list[float] = []
    for n, k in table[["n", "k"]].drop_duplicates().itertuples(index=False):
        shape = table[(table["n"] == n) & (table["k"] == k)]
        if n * k < BIG:
            continue
        ratio, _ = ratios.without((n, k)).at((n, k), shape["m"].to_numpy(dtype=float))
        found += absolute_errors(shape["roofline"] * ratio, shape["seconds"]).tolist()
    yield statistic(
        f"{gpu.name} kernels: bf16 gemm median, each shape from the others", np.median(found),
        provenance=table_source(gpu, "gemm", "gemm_perf", "vllm"),
    )  # fmt: skip


def composed_rows(gpu: GpuSpec) -> Iterator[Row]:
    """Whole decode and verify passes: the roofline's against those composed of kernels."""
    measured, modelled = Kernels(gpu=gpu), Roofline(gpu=gpu)
    batch, context = np.array([1, 4, 16, 64])[:, None], np.array([512, 2048, 8192])[None, :]
    for name, degree in COMPOSED:
        model = PlacedModel(spec=loader.model(name), tensor_parallel=degree)
        for new, label in ((1, "decode"), (5, "verify, K = 4")):
            slow = measured.forward_time(model, batch, new, context).seconds
            fast = modelled.forward_time(model, batch, new, context).seconds
            yield statistic(
                f"{gpu.name} {name} ×{degree} {label}: roofline against kernels, median",
                np.median(absolute_errors(fast, slow)), provenance=measured.name,
            )  # fmt: skip


def links_rows(gpu: GpuSpec) -> Iterator[Row]:
    table = tables.all_reduce(gpu.name)
    for low, high, label in ((0, 1e6, "up to 1 MB"), (1e6, 2e7, "1–16 MB"), (2e7, 1e10, "more")):
        part = table[(table["message_bytes"] > low) & (table["message_bytes"] <= high)]
        part = part[part["gpus"] <= 8]
        error = errors(gpu, all_reduce_operation(part), part)
        yield statistic(
            f"{gpu.name} all-reduce {label}", np.median(error),
            provenance=table_source(gpu, "comm", "custom_allreduce_perf", "vllm"),
        )  # fmt: skip


def table_source(gpu: GpuSpec, operation: str, file: str, engine: str) -> str:
    version = tables.newest_version(gpu.name, operation, file, engine)
    return SOURCE.format(engine=engine, version=version)


PARTS = (
    gemm_rows, narrow_rows, other_engines_rows, attention_rows, latent_rows, experts_rows,
    links_rows, interpolation_rows, composed_rows,
)  # fmt: skip
