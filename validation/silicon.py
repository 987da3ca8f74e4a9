"""`python -m validation.silicon`: the roofline against measured kernels.

Per GPU, operation, dtype and token count, always on the half of the shapes that the
constants were not fitted on, with operands as warm as the tables had them. Then every GPU
again with constants predicted from other chips alone. The tables come from the package
`aiconfigurator-core` (Apache-2.0); without it there are no rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from specsim.catalogue import loader
from specsim.catalogue.specs import GpuSpec
from specsim.cost.kernels import tables
from specsim.errors import MissingDataError
from validation.fit_constants import CHIPS, PATH, datasheet, predicted_constants
from validation.rows import Row, bounds, missed, statistic, summary
from validation.silicon_kernels import PARTS, gemm_errors, table_source

if TYPE_CHECKING:
    pass


def rows() -> list[Row]:
    """Every row; empty if the tables are not installed."""
    if not tables.installed():
        return []
    result: list[Row] = []
    for name in tables.SYSTEMS:
        result += gpu_rows(loader.gpu(name))
    return result + left_out_rows()


def gpu_rows(gpu: GpuSpec) -> list[Row]:
    """All comparisons of one GPU."""
    result: list[Row] = []
    for part in PARTS:
        try:
            result += part(gpu)
        except MissingDataError:
            continue
    return result


def left_out_rows() -> list[Row]:
    """Every measured GPU with constants predicted from other chips."""
    limit = bounds("silicon")
    measured = measured_constants()
    medians: list[float] = []
    result: list[Row] = []
    for name in measured:
        predicted = predicted_constants(measured, (CHIPS[name],))
        gpu = dataclasses.replace(datasheet(name), **predicted)  # type: ignore[arg-type]
        table = gemm_errors(gpu, held=False)
        medians.append(float(table[table["big"]]["error"].median()))
        result.append(
            statistic(
                f"{name} bf16 gemm median, {CHIPS[name]} left out", medians[-1],
                bound=limit["left_out_worst"],
                provenance=table_source(gpu, "gemm", "gemm_perf", "vllm"),
            )
        )  # fmt: skip
    median = statistic(
        "GPU left out: median over GPUs", float(np.median(medians)), bound=limit["left_out_median"]
    )
    return [*result, median]


def measured_constants() -> dict[str, dict[str, float]]:
    """Constants of the measured GPUs, as committed."""
    with PATH.open("rb") as stream:
        constants = tomllib.load(stream)
    return {
        name: {k: float(v) for k, v in constants[name].items() if k != "constants_source"}
        for name in tables.SYSTEMS
    }


def main(arguments: list[str] | None = None) -> int:
    """Print the table; exit 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args(arguments)
    found = rows()
    if not found:
        print("not run: the kernel tables are not installed (extra: kernels)", file=sys.stderr)
        return 0
    if options.json:
        text = json.dumps([row.as_dict() for row in found], indent=1, ensure_ascii=False)
        options.json.write_text(text + "\n")
    print(summary(found))
    return 1 if missed(found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
