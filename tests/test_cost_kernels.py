"""Measured kernels as a cost source: exact where measured, honest where not."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from specsim.catalogue import loader
from specsim.cost.kernels import Kernels, tables
from specsim.cost.kernels.operations import gemm_operation
from specsim.cost.kernels.ratios import Grid, Ratios
from specsim.cost.operations import Work
from specsim.cost.roofline import Roofline
from specsim.deployment import PlacedModel
from specsim.errors import MissingDataError

H100 = loader.gpu("h100")
LLAMA = PlacedModel(spec=loader.model("llama-3.1-8b"))
needs_tables = pytest.mark.skipif(not tables.installed(), reason="the kernels extra is missing")


def test_grid_interpolates_between_its_points_and_holds_beyond() -> None:
    grid = Grid(np.array([0.0, 1.0]), np.array([0.0, 2.0]), np.array([[0.0, 2.0], [4.0, 6.0]]))
    assert grid.at(1, 1) == 0
    assert grid.at(2, 4) == 6
    assert grid.at(2**0.5, 2) == pytest.approx(0.25 * (0 + 2 + 4 + 6))
    assert grid.at(1000, 0.001) == 4  # the edge
    assert grid.at(np.array([1, 2]), 1).tolist() == [0, 4]


def test_ratios_prefer_the_exact_shape_and_say_when_there_is_none() -> None:
    grids = tuple(Grid(np.zeros(1), np.zeros(1), np.full((1, 1), np.log(r))) for r in (1.0, 4.0))
    ratios = Ratios(np.log2([[8.0, 8.0], [32.0, 32.0]]), grids, ("8×8", "32×32"))
    exact, label = ratios.at((32, 32), 5.0)
    assert (float(exact), label) == (pytest.approx(4.0), "32×32")
    between, label = ratios.at((16, 16), 5.0)  # half way: the geometric mean
    assert float(between) == pytest.approx(2.0)
    assert label.startswith("scaled from")
    nearer, label = ratios.at((25, 25), 5.0)
    assert 3.0 < float(nearer) < 4.0
    assert label == "scaled from 32×32 and its like"


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDataError, match=r"specsim-llm\[kernels\]"):
        Kernels(gpu=H100)


@needs_tables
def test_unmeasured_gpu_lists_the_measured_ones() -> None:
    with pytest.raises(MissingDataError, match="h100-sxm-80gb"):
        Kernels(gpu=loader.gpu("t4"))
    with pytest.raises(ValueError, match="engine 'triton'"):
        Kernels(gpu=H100, engine="triton")


@needs_tables
def test_a_measured_product_comes_back_as_measured() -> None:
    table = tables.gemm("h100-sxm-80gb", "bf16")
    rows = table[(table["n"] == 4096) & (table["k"] == 4096) & (table["m"] <= 512)]
    source = Kernels(gpu=H100, warm=True)
    for _, row in rows.iterrows():
        single = rows.loc[[row.name]]
        op = gemm_operation(single, "bf16")
        seconds = source.operation_time(
            type(op)(**{name: _scalar(getattr(op, name)) for name in op.__slots__})
        ).seconds
        assert float(seconds) == pytest.approx(row["seconds"], rel=1e-9)


def _scalar(value: object) -> object:
    return float(value[0]) if isinstance(value, np.ndarray) else value


@needs_tables
def test_between_two_token_counts_lies_a_time_between() -> None:
    source, model = Kernels(gpu=H100), LLAMA
    times = [
        float(source.explain(model, Work.uniform(1, n, 0))[0].seconds) for n in (256, 350, 512)
    ]
    assert times == sorted(times)


@needs_tables
def test_interchangeable_with_the_roofline() -> None:
    """Both answer the same questions; on a measured GPU they stay near each other."""
    batch, new, context = np.array([1, 8, 64])[:, None], np.array([1, 4, 8]), 1000
    measured = Kernels(gpu=H100).forward_time(LLAMA, batch, new, context)
    modelled = Roofline(gpu=H100).forward_time(LLAMA, batch, new, context)
    assert measured.seconds.shape == modelled.seconds.shape == (3, 3)
    assert np.all(np.abs(measured.seconds / modelled.seconds - 1) < 0.15)
    parts = measured.memory_s + measured.compute_s + measured.latency_s
    assert parts == pytest.approx(measured.seconds)


@needs_tables
def test_explain_says_where_each_time_is_from() -> None:
    names = [t.operation.name for t in Kernels(gpu=H100).explain(LLAMA, Work.uniform(4, 2, 700))]
    assert "o_proj [4096×4096]" in names
    assert any(n.startswith("gate_up_proj [scaled from") for n in names)
    assert "norms, rotary, activation [roofline]" in names
    hybrid = PlacedModel(spec=loader.model("qwen3.5-27b"))
    names = [t.operation.name for t in Kernels(gpu=H100).explain(hybrid, Work.uniform(4, 2, 700))]
    assert "linear attention [roofline]" in names


@needs_tables
def test_latent_attention_is_measured_by_heads_per_gpu() -> None:
    """vLLM's tables time whole modules only: the kernel is another engine's, and says so."""
    model = PlacedModel(spec=loader.model("deepseek-v3"), tensor_parallel=8)
    source = Kernels(gpu=H100)
    names = [t.operation.name for t in source.explain(model, Work.uniform(4, 2, 700))]
    assert "attention (latent) [16 heads, sglang]" in names
    prompt = source.explain(model, Work.prefill(1, 500))
    assert "attention (latent) [roofline]" in [t.operation.name for t in prompt]


@needs_tables
def test_more_queries_over_the_same_cache_take_longer() -> None:
    """No table has several queries: the ratio of one query carries the roofline's growth."""
    source = Kernels(gpu=H100)

    def attention(new: int) -> float:
        times = source.explain(LLAMA, Work.uniform(32, new, 4000 - new))
        return float(next(t.seconds for t in times if "attention" in t.operation.name))

    assert attention(1) < attention(5) < attention(16) < 16 * attention(1)


@needs_tables
@pytest.mark.parametrize("weights", ["bf16", "fp8", "int4"])
def test_a_dtype_without_a_table_falls_back(weights: str) -> None:
    model = PlacedModel(spec=loader.model("llama-3.1-8b"), weights=weights)
    times = Kernels(gpu=H100).explain(model, Work.uniform(1, 1, 500))
    assert all(np.isfinite(float(t.seconds)) for t in times)
    fell_back = "[roofline]" in times[0].operation.name
    assert fell_back == (weights == "int4")


@needs_tables
def test_all_reduce_is_measured_per_group_size() -> None:
    spec = loader.model("llama-3.1-70b")
    for degree, source in ((4, "[4]"), (16, "[roofline]")):
        model = PlacedModel(spec=spec, tensor_parallel=degree)
        times = Kernels(gpu=H100).explain(model, Work.uniform(1, 1, 500))
        assert f"all-reduce {source}" in [t.operation.name for t in times]


@needs_tables
def test_every_engine_and_gpu_has_products() -> None:
    for name in tables.SYSTEMS:
        source = Kernels(gpu=loader.gpu(name))
        seconds = float(source.forward_time(LLAMA, 1, 1, 100).seconds)
        assert seconds > 14.9e9 / loader.gpu(name).bandwidth_bytes_per_s
        assert name in source.name
