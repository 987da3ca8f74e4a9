"""How constants are fitted and carried over, on tables whose truth is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from specsim.catalogue import loader
from specsim.cost.kernels.operations import gemm_operation, held_out
from specsim.cost.roofline import Roofline
from specsim.errors import MissingDataError
from validation.fit_constants import CHIPS, datasheet, predicted_constants
from validation.kernel_fits import allowed, best_constants


def shapes() -> pd.DataFrame:
    sizes = [512, 1024, 2048, 4096, 8192, 16384]
    rows = [(m, n, k) for m in (1, 8, 16, 64, 128, 512) for n in sizes for k in sizes]
    return pd.DataFrame(rows, columns=["m", "n", "k"])


def test_known_constants_are_found_again() -> None:
    """Times made by the roofline itself, with 3 % of noise."""
    truth = {"bandwidth_share": 0.82, "compute_share": 0.7, "fixed_s": 2.4e-6, "loop_s": 1.5e-9}
    gpu = dataclasses.replace(datasheet("h100-sxm-80gb"), ridge_exponent=3.0)
    operation = gemm_operation(shapes(), "bf16")
    exact = Roofline(gpu=dataclasses.replace(gpu, **truth)).operation_time(operation).seconds  # type: ignore[arg-type]
    noisy = exact * np.exp(np.random.default_rng(1).normal(0, 0.03, len(exact)))
    start = (0.9, 0.8, 3e-6, 1e-9)
    found, _ = best_constants(gpu, tuple(truth), [start], operation, noisy, np.ones(len(exact)))
    for name, value in truth.items():
        assert found[name] == pytest.approx(value, rel=0.05), name


def test_too_few_rows_are_refused() -> None:
    table = shapes().iloc[:5]
    with pytest.raises(MissingDataError, match="5 rows are too few"):
        best_constants(
            loader.gpu("h100"), ("fixed_s",), [(1e-6,)], gemm_operation(table, "bf16"),
            np.ones(5), np.ones(5),
        )  # fmt: skip


def test_shares_above_one_are_never_accepted() -> None:
    assert not allowed({"bandwidth_share": 1.01})
    assert not allowed({"fixed_s": -1e-9})
    assert allowed({"bandwidth_share": 1.0, "fixed_s": 0.0})


def test_prediction_leaves_the_chip_and_its_siblings_out() -> None:
    measured = {name: {"fixed_s": 1.0, "warm_kv_bytes": 9.0} for name in CHIPS}
    for name in ("h100-sxm-80gb", "h200-sxm-141gb"):
        measured[name] = {"fixed_s": 100.0}
    predicted = predicted_constants(measured, (CHIPS["h100-sxm-80gb"],))
    assert predicted == {"fixed_s": 1.0}  # and the size of a cache does not carry over


def test_siblings_count_once_in_the_median() -> None:
    """Four Blackwell boards are one voice among five."""
    measured = {name: {"fixed_s": 5.0 if chip == "GB100" else 1.0} for name, chip in CHIPS.items()}
    assert predicted_constants(measured, ())["fixed_s"] == 1.0


def test_held_out_shapes_are_held_out_whole() -> None:
    table = shapes()
    held = held_out(table, "n", "k")
    assert 0.3 < held.mean() < 0.7
    by_shape = table.assign(held=held).groupby(["n", "k"])["held"].nunique()
    assert (by_shape == 1).all()
