"""`python -m validation.fit_constants`: from measured kernels to catalogue/constants.toml.

For every GPU with tables, the constants of `specsim.cost.roofline` that minimise the
absolute logarithmic error on half of the shapes (`kernel_rows.held_out` keeps the other
half for `validation.silicon`). For every other GPU the median over chips, or the
constants of its sibling where the chip is the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from specsim.catalogue import loader
from specsim.catalogue.rows import gpu_from_row
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

PATH = Path(loader.__file__).with_name("constants.toml")
Constants = dict[str, float]

#: GPUs that share a die: only one of them counts in a prediction for others.
CHIPS: dict[str, str] = {
    "a100-sxm-80gb": "GA100",
    "h100-sxm-80gb": "GH100",
    "h200-sxm-141gb": "GH100",
    "b200-sxm-180gb": "GB100",
    "b300-sxm-288gb": "GB100",
    "gb200-186gb": "GB100",
    "gb300-288gb": "GB100",
    "l40s-48gb": "AD102",
    "rtxpro6000-server-96gb": "GB202",
}
#: Unmeasured GPUs with the die of a measured one: its shares carry over.
SAME_DIE: dict[str, str] = {
    "a100-sxm-40gb": "a100-sxm-80gb",
    "a100-pcie-80gb": "a100-sxm-80gb",
    "a800-sxm-80gb": "a100-sxm-80gb",
    "h100-pcie-80gb": "h100-sxm-80gb",
    "h100-nvl-94gb": "h100-sxm-80gb",
    "h20-96gb": "h100-sxm-80gb",
    "l40-48gb": "l40s-48gb",
    "rtx4090-24gb": "l40s-48gb",
    "rtx5090-32gb": "rtxpro6000-server-96gb",
}
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
    cold = _best(gpu, names[:8], starts, operation, seconds, weight)
    # a second look with operands that stay in the level-2 cache; kept where it matters
    ends = [tuple(cold[0][name] for name in names[:8]), *starts]
    warm_starts = [(*end, 0.65, 17e6) for end in ends]
    warm = _best(gpu, names, warm_starts, operation, seconds, weight)
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
    return _best(
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
    cold = _best(gpu, names[:5], [start], operation, seconds, weight)
    warm = _best(gpu, names, [(*start, 0.5, 50e6)], operation, seconds, weight)
    decode = warm[0] if warm[1] < WORTH_IT * cold[1] else cold[0]
    return decode | _fit_prompts(dataclasses.replace(gpu, **decode))  # type: ignore[arg-type]


def fit_narrow_attention(gpu: GpuSpec) -> Constants:
    """What changes with a cache in 8 bits: bandwidth share and fixed time."""
    table = tables.generation_attention(gpu.name, "fp8")
    table = table[(table["window"] == 0) & ~held_out(table, "heads", "kv_heads", "head_dim")]
    names = ("attention_narrow_share", "attention_narrow_fixed_s")
    return _best(
        gpu, names, [(0.8, 1.2e-5)], attention_operation(table, "fp8"),
        table["seconds"].to_numpy(), np.ones(len(table)),
    )[0]  # fmt: skip


def _fit_prompts(gpu: GpuSpec) -> Constants:
    prompts = tables.context_attention(gpu.name)
    prompts = prompts[(prompts["window"] == 0) & (prompts["context"] >= 128)]
    flops = context_operation(prompts).flops
    prompts = prompts[flops > 1e10]  # below, launches decide
    return _best(
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
    return _best(
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
    return _best(gpu, names, [(0.6, 5e-6, 1e-7, 5e6)], operation, seconds, np.ones(len(table)))[0]


def fit_small(gpu: GpuSpec) -> Constants:
    """Time of an elementwise kernel with next to nothing to do (scaling a few rows)."""
    table = tables.read(gpu.name, "quantize", "scale_matrix_perf", "vllm")
    tiny = table[(table["m"] * table["k"] <= SMALL_ELEMENTS)]
    if tiny.empty:
        raise MissingDataError(f"no small kernels for {gpu.name!r}")
    return {"small_s": float(tiny["seconds"].median())}


def _best(
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
        if not _allowed(values):
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


def _allowed(values: Constants) -> bool:
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


def predicted_constants(measured: dict[str, Constants], leave_out: Iterable[str]) -> Constants:
    """Constants of a GPU that nobody measured: the median over chips, each chip the mean
    of its GPUs. `leave_out` names chips that must not contribute."""
    chips: dict[str, list[Constants]] = {}
    for gpu, constants in measured.items():
        if CHIPS[gpu] not in leave_out:
            chips.setdefault(CHIPS[gpu], []).append(constants)
    names = {name for group in chips.values() for one in group for name in one}
    result: Constants = {}
    for name in sorted(names):
        if name.startswith("warm_"):  # the size of a cache does not carry over
            continue
        means = [
            float(np.mean([one[name] for one in group if name in one]))
            for group in chips.values()
            if any(name in one for one in group)
        ]
        result[name] = float(np.median(means))
    return result


def constants_text(measured: dict[str, Constants]) -> str:
    """The whole of constants.toml."""
    lines = [
        "# Constants of cost/roofline.py per GPU. Made by `python -m validation.fit_constants`",
        "# from the kernel tables of aiconfigurator-core 0.12.0 (Apache-2.0); do not edit.",
    ]
    fallback = predicted_constants(measured, ())
    for gpu in loader.list_gpus():
        constants, source = fallback, "median over measured chips; this one was not measured"
        if gpu in measured:
            missing = {n: v for n, v in fallback.items() if n not in measured[gpu]}
            constants = measured[gpu] | missing
            source = "fitted to measured kernels of this GPU (aiconfigurator-core 0.12.0)"
            if missing:
                source += "; median over chips for " + ", ".join(missing)
        elif gpu in SAME_DIE and SAME_DIE[gpu] in measured:
            warm = {n for n in measured[SAME_DIE[gpu]] if n.startswith("warm_")}
            own = {n: v for n, v in measured[SAME_DIE[gpu]].items() if n not in warm}
            constants = fallback | own
            source = f"carried over from {SAME_DIE[gpu]}, which has the same die"
        if gpu not in measured:
            constants = constants | _link_constants(measured, gpu)
        lines += ["", f'["{gpu}"]', f'constants_source = "{source}"']
        lines += [f"{name} = {_number(name, constants[name])}" for name in sorted(constants)]
    return "\n".join(lines) + "\n"


def _link_constants(measured: dict[str, Constants], gpu: str) -> Constants:
    """Median over measured GPUs with the same kind of link: PCIe, or a fabric."""

    def is_pcie(name: str) -> bool:
        return datasheet(name).link.startswith("PCIe")

    alike = [measured[name] for name in measured if is_pcie(name) == is_pcie(gpu)]
    names = ("link_share", "link_latency_s", "link_hop_s", "link_ramp_bytes")
    return {n: float(np.median([one[n] for one in alike if n in one])) for n in names}


def _number(name: str, value: float) -> str:
    """Four digits; what is nothing beside the rest is written as nothing."""
    nothing = 1e-13 if name.endswith("_s") else 1e-3
    return repr(0.0 if value < nothing else float(f"{value:.4g}"))


def main(arguments: list[str] | None = None) -> int:
    """Fit and write; `--gpu NAME` prints the constants of one GPU and writes nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpu", help="fit this one and print")
    parser.add_argument("--output", type=Path, default=PATH)
    options = parser.parse_args(arguments)
    names = [options.gpu] if options.gpu else list(tables.SYSTEMS)
    measured: dict[str, Constants] = {}
    for name in names:
        measured[name] = fit_gpu(datasheet(name))
        print(name, {k: _number(k, v) for k, v in measured[name].items()}, file=sys.stderr)
    if not options.gpu:
        options.output.write_text(constants_text(measured))
    return 0


def datasheet(name: str) -> GpuSpec:
    """The GPU without fitted constants, so that a fit never starts from its own result."""
    with Path(loader.__file__).with_name("gpus.toml").open("rb") as stream:
        return gpu_from_row(name, tomllib.load(stream)[name], {})


if __name__ == "__main__":
    raise SystemExit(main())
