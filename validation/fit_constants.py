"""`python -m validation.fit_constants`: from measured kernels to catalogue/constants.toml.

For every GPU with tables, the constants of `specsim.cost.roofline` that minimise the
absolute logarithmic error on half of the shapes (`kernel_rows.held_out` keeps the other
half for `validation.silicon`). For every other GPU the median over chips, or the
constants of its sibling where the chip is the same.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from specsim.catalogue import loader
from specsim.catalogue.rows import gpu_from_row
from specsim.catalogue.specs import GpuSpec
from specsim.cost.kernels import tables
from validation.kernel_fits import Constants, fit_gpu

PATH = Path(loader.__file__).with_name("constants.toml")

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
