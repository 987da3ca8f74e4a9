"""The constants of one GPU's kernels, fitted to its tables.

Nelder–Mead on the absolute logarithmic error of `specsim.cost.roofline` itself, on half of
the shapes; one function per kind of kernel. `validation.fit_constants` writes the result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from specsim.catalogue.specs import GpuSpec
from specsim.cost.kernels import tables
from specsim.cost.kernels.operations import (
    Array,
    all_reduce_operation,
    attention_operation,
    context_operation,
    evenly_visited,
    expert_operation,
    gemm_operation,
    held_out,
)
from specsim.cost.operations import Operation
from specsim.cost.roofline import Roofline
from specsim.errors import MissingDataError

if TYPE_CHECKING:
    import pandas as pd

Constants = dict[str, float]

#: Products with at least so many weights are the ones a model is made of.
BIG = 4_000_000
#: Weight of the bands of m in the fit (rows are weighted to give each band this much), and
#: of products below `BIG`. The last band keeps the shares honest for prefill.
BANDS = ((1, 16, 1.6), (17, 64, 0.9), (65, 256, 1.4), (257, 512, 1.8), (513, 8192, 0.7))
SMALL_WEIGHT = 0.35
#: Where a constant would lose its meaning: a loop that ends before the shortest k, a cache
#: larger than any level-2 cache.
LIMITS = {
    "loop_depth": (300.0, 20_000.0),
    "warm_weights_bytes": (1e6, 2e8),
    "warm_kv_bytes": (1e6, 2e8),
}
#: Elements of a kernel with next to nothing to do.
SMALL_ELEMENTS = 32_768
#: A cache term must lower the loss to this part to be kept.
WORTH_IT = 0.9
#: Errors below this are as good as none: keeps the fit smooth.
SOFTNESS = 0.02


def fit_gemm(gpu: GpuSpec) -> Constants:
    """Constants of bf16 products, on the training half of the shapes."""
    table = tables.gemm(gpu.name, "bf16")
    table = table[(table["m"] <= BANDS[-1][1]) & ~held_out(table, "n", "k")]
    weight = _band_weight(table)
    names = (
        "bandwidth_share", "compute_share", "fixed_s", "ridge_exponent", "loop_s", "loop_depth",
        "wide_share", "loop_growth", "warm_weights_saving", "warm_weights_bytes",
    )  # fmt: skip
    starts: list[tuple[float, ...]] = [
        (0.88, 0.80, 2.5e-6, 2.3, 1.3e-9, 2400.0, 0.95, 0.1),
        (0.85, 0.70, 2.0e-6, 3.5, 4.0e-9, 600.0, 0.90, 0.1),
    ]
    operation = gemm_operation(table, "bf16")
    seconds = table["seconds"].to_numpy()
    cold = best_constants(gpu, names[:8], starts, operation, seconds, weight)
    # a second look with operands that stay in the level-2 cache; kept where it matters
    ends = [tuple(cold[0][name] for name in names[:8]), *starts]
    warm_starts = [(*end, 0.65, 17e6) for end in ends]
    warm = best_constants(gpu, names, warm_starts, operation, seconds, weight)
    return warm[0] if warm[1] < WORTH_IT * cold[1] else cold[0]


def _band_weight(table: pd.DataFrame) -> Array:
    m = table["m"].to_numpy(dtype=float)
    big = (table["n"] * table["k"] >= BIG).to_numpy()
    weight = np.where(big, 1.0, SMALL_WEIGHT)
    for low, high, share in BANDS:
        band = (m >= low) & (m <= high)
        weight[band] *= share / max(weight[band].sum(), 1e-9)
    return weight


def fit_narrow(gpu: GpuSpec) -> Constants:
    """Share of the fp8 peak, and what quantising the activations takes."""
    table = tables.gemm(gpu.name, "fp8")
    table = table[(table["m"] <= BANDS[-1][1]) & ~held_out(table, "n", "k")]
    weight = _band_weight(table)
    names = ("narrow_compute_share", "quantise_s", "quantise_element_s")
    return best_constants(
        gpu, names, [(0.7, 2.5e-6, 5e-12)], gemm_operation(table, "fp8"),
        table["seconds"].to_numpy(), weight,
    )[0]  # fmt: skip


def fit_attention(gpu: GpuSpec) -> Constants:
    """Constants of one query per sequence over a 16-bit cache, then of whole prompts."""
    table = tables.generation_attention(gpu.name)
    table = table[(table["window"] == 0) & ~held_out(table, "heads", "kv_heads", "head_dim")]
    operation = attention_operation(table)
    # no size of cache may dominate because it was measured more often
    size = np.round(np.log2(operation.kv_bytes)).astype(int)
    _, inverse, counts = np.unique(size, return_inverse=True, return_counts=True)
    weight = 1 / np.sqrt(counts[inverse])
    names = (
        "attention_fixed_s", "attention_tile_s", "attention_share", "attention_exponent",
        "attention_depth_s", "warm_kv_saving", "warm_kv_bytes",
    )  # fmt: skip
    start = (9e-6, 2.5e-8, 0.9, 2.0, 5e-7)
    seconds = table["seconds"].to_numpy()
    cold = best_constants(gpu, names[:5], [start], operation, seconds, weight)
    warm = best_constants(gpu, names, [(*start, 0.5, 50e6)], operation, seconds, weight)
    decode = warm[0] if warm[1] < WORTH_IT * cold[1] else cold[0]
    return decode | _fit_prompts(dataclasses.replace(gpu, **decode))  # type: ignore[arg-type]


def fit_narrow_attention(gpu: GpuSpec) -> Constants:
    """What changes with a cache in 8 bits: bandwidth share and fixed time."""
    table = tables.generation_attention(gpu.name, "fp8")
    table = table[(table["window"] == 0) & ~held_out(table, "heads", "kv_heads", "head_dim")]
    names = ("attention_narrow_share", "attention_narrow_fixed_s")
    return best_constants(
        gpu, names, [(0.8, 1.2e-5)], attention_operation(table, "fp8"),
        table["seconds"].to_numpy(), np.ones(len(table)),
    )[0]  # fmt: skip


def _fit_prompts(gpu: GpuSpec) -> Constants:
    prompts = tables.context_attention(gpu.name)
    prompts = prompts[(prompts["window"] == 0) & (prompts["context"] >= 128)]
    flops = context_operation(prompts).flops
    prompts = prompts[flops > 1e10]  # below, launches decide
    return best_constants(
        gpu, ("attention_compute_share",), [(0.5,)], context_operation(prompts),
        prompts["seconds"].to_numpy(), np.ones(len(prompts)),
    )[0]  # fmt: skip


def fit_experts(gpu: GpuSpec) -> Constants:
    """Constants of the grouped products, from evenly routed rows without expert
    parallelism."""
    table = balanced_experts(gpu.name)
    table = table[(table["tokens"] <= 512) & ~held_out(table, "hidden", "inter", "experts")]
    names = ("expert_share", "expert_compute_share", "expert_fixed_s")
    operation = expert_operation(table, "bf16", evenly_visited(table))
    return best_constants(
        gpu, names, [(0.8, 0.3, 2e-5)], operation, table["seconds"].to_numpy(),
        np.ones(len(table)),
    )[0]  # fmt: skip


def balanced_experts(gpu: str) -> pd.DataFrame:
    """Evenly routed rows without expert parallelism, of the first engine that has any
    (vLLM's A100 table has power laws only)."""
    for engine in tables.ENGINES:
        table = tables.moe(gpu, engine=engine)
        even = (table["distribution"] == "balanced") & (table["expert_parallel"] == 1)
        if even.any():
            return table[even]
    raise MissingDataError(f"no evenly routed experts for {gpu!r}")


def fit_link(gpu: GpuSpec) -> Constants:
    """Constants of an all-reduce among 2, 4 and 8 GPUs."""
    table = tables.all_reduce(gpu.name)
    table = table[table["gpus"] <= 8]
    names = ("link_share", "link_latency_s", "link_hop_s", "link_ramp_bytes")
    seconds = table["seconds"].to_numpy()
    operation = all_reduce_operation(table)
    start = (0.6, 5e-6, 1e-7, 5e6)
    return best_constants(gpu, names, [start], operation, seconds, np.ones(len(table)))[0]


def fit_small(gpu: GpuSpec) -> Constants:
    """Time of an elementwise kernel with next to nothing to do (scaling a few rows)."""
    table = tables.read(gpu.name, "quantize", "scale_matrix_perf", "vllm")
    tiny = table[(table["m"] * table["k"] <= SMALL_ELEMENTS)]
    if tiny.empty:
        raise MissingDataError(f"no small kernels for {gpu.name!r}")
    return {"small_s": float(tiny["seconds"].median())}


def best_constants(
    gpu: GpuSpec, names: tuple[str, ...], starts: list[tuple[float, ...]], operation: Operation,
    seconds: Array, weight: Array,
) -> tuple[Constants, float]:  # fmt: skip
    """Nelder–Mead on the weighted mean absolute logarithmic error, restarted from its own
    end; scaled so that every constant starts at 1.

    Raises:
        MissingDataError: if there are too few rows.
    """
    from scipy.optimize import minimize

    if len(seconds) < 10 * len(names):
        raise MissingDataError(f"{len(seconds)} rows are too few to fit {', '.join(names)}")
    log_seconds, weight = np.log(seconds), weight / weight.sum()

    def loss(scaled: Array, start: Array) -> float:
        values = dict(zip(names, (scaled * start).tolist(), strict=True))
        if not allowed(values):
            return 10.0
        source = Roofline(gpu=dataclasses.replace(gpu, **values), warm=True)
        residual = np.log(source.operation_time(operation).seconds) - log_seconds
        return float(np.sum(weight * np.sqrt(residual**2 + SOFTNESS**2)))

    best: tuple[Constants, float] = ({}, np.inf)
    for start in starts:
        origin, scaled = np.asarray(start), np.ones(len(start))
        for _ in range(3):
            found = minimize(
                loss, scaled, args=(origin,), method="Nelder-Mead",
                options={"maxiter": 3000, "xatol": 1e-4, "fatol": 1e-7, "adaptive": True},
            )  # fmt: skip
            scaled = found.x
        if found.fun < best[1]:
            best = dict(zip(names, (scaled * origin).tolist(), strict=True)), float(found.fun)
    return best


def allowed(values: Constants) -> bool:
    """Shares in (0, 1], exponents ≥ 1, everything else ≥ 0."""
    for name, value in values.items():
        if name.endswith(("_share", "_saving")) and not 0 < value <= 1:
            return False
        if name.endswith("_exponent") and not 1 <= value <= 20:
            return False
        if not LIMITS.get(name, (0.0, np.inf))[0] <= value <= LIMITS.get(name, (0.0, np.inf))[1]:
            return False
    return True


FITS: tuple[Callable[[GpuSpec], Constants], ...] = (
    fit_gemm, fit_narrow, fit_attention, fit_narrow_attention, fit_experts, fit_link, fit_small,
)  # fmt: skip


def fit_gpu(gpu: GpuSpec) -> Constants:
    """All constants that the tables of this GPU allow to fit; the rest is left out."""
    constants: Constants = {}
    for fit in FITS:
        try:
            fitted = fit(dataclasses.replace(gpu, **constants))  # type: ignore[arg-type]
        except MissingDataError:
            continue
        constants |= fitted
    return constants
