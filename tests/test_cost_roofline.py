"""The roofline: formulas by hand, properties, constants of every GPU, quick bars."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import specsim.catalogue
from specsim.catalogue import GpuSpec, loader
from specsim.cost.kernels import tables
from specsim.cost.operations import Operation, Work
from specsim.cost.provenance import cost_warnings
from specsim.cost.roofline import Roofline, compute_dtype, ridge_tokens
from specsim.cost.source import BOUNDS, OperationTime, smooth_maximum
from specsim.deployment import NO_DRAFT, Deployment, PlacedModel

H100 = loader.gpu("h100")
LLAMA = PlacedModel(spec=loader.model("llama-3.1-8b"))

batches, new_tokens, contexts = st.integers(1, 512), st.integers(1, 16), st.integers(0, 60_000)
models = st.sampled_from(["llama-3.1-8b", "gpt-oss-20b", "deepseek-v3", "qwen3.5-27b"])


def round_gpu(**constants: float) -> GpuSpec:
    """1 TB/s, 100 TFLOP/s bf16, 200 fp8; every constant at its ideal unless given."""
    ideal = {
        f.name: 1.0 if f.name.endswith("_share") else 0.0
        for f in dataclasses.fields(GpuSpec)
        if f.name.endswith(("_share", "_s")) and not f.name.endswith("_per_s")
    }
    ideal |= {"ridge_exponent": 2.0, "attention_exponent": 2.0, **constants}
    return GpuSpec(
        name="round", vendor="test", architecture="test", memory_bytes=80e9,
        bandwidth_bytes_per_s=1e12, peak_flops={"bf16": 1e14, "fp8": 2e14}, link="test",
        link_bytes_per_s=1e11, **ideal,
    )  # type: ignore[arg-type]  # fmt: skip


def product(m: float, n: int, k: int, dtype: str = "bf16", width: float = 2.0) -> Operation:
    return Operation(
        name="gemm", kind="gemm", count=1, dtype=dtype, flops=2.0 * m * n * k,
        weight_bytes=n * k * width, activation_bytes=2.0 * m * (n + k), m=m, n=n, k=k,
    )  # fmt: skip


def time_of(gpu: GpuSpec, op: Operation) -> OperationTime:
    return Roofline(gpu=gpu).operation_time(op)


def test_product_by_hand() -> None:
    gpu = round_gpu(
        bandwidth_share=0.8, compute_share=0.5, fixed_s=3e-6, loop_s=1e-9, loop_depth=1000.0,
        loop_growth=0.5,
    )  # fmt: skip
    time = time_of(gpu, product(128, 4096, 1000))
    loop = 1e-9 * 1000 / 2
    memory = (2 * 4096 * 1000 + 2 * 128 * 5096) / 0.8e12 + loop
    compute = 2 * 128 * 4096 * 1000 / 0.5e14 + loop * 1.5
    assert time.memory_s == pytest.approx(memory, rel=1e-12)
    assert time.compute_s == pytest.approx(compute, rel=1e-12)
    assert time.seconds == pytest.approx(3e-6 + np.hypot(memory, compute), rel=1e-12)


def test_wide_kernels_reach_less_of_the_bandwidth() -> None:
    gpu = round_gpu(wide_share=0.5)
    one, many = (time_of(gpu, product(m, 1000, 1000)) for m in (1, 512))
    assert one.memory_s == pytest.approx(2 * (1e6 + 2000) / 1e12, rel=1e-4)
    assert many.memory_s == pytest.approx(2 * (1e6 + 512 * 2000) / 0.5e12, rel=1e-4)


def test_narrow_products_quantise_their_input_first() -> None:
    gpu = round_gpu(quantise_s=1e-6, quantise_element_s=1e-12, narrow_compute_share=0.5)
    time = time_of(gpu, product(10, 2000, 1000, "fp8", 1.0))
    assert time.fixed_s == pytest.approx(1e-6 + 1e-12 * 10 * 1000)
    assert time.compute_s == pytest.approx(2 * 10 * 2e6 / 1e14)


def test_attention_by_hand() -> None:
    gpu = round_gpu(
        attention_share=0.5, attention_fixed_s=9e-6, attention_tile_s=1e-8,
        attention_depth_s=1e-6, attention_compute_share=0.5,
    )  # fmt: skip
    op = Operation(
        name="attention", kind="attention", count=2, dtype="bf16", flops=1e6, kv_bytes=1e6,
        m=4, n=8, k=128, tiles=100.0, depth=256.0 * 3,
    )  # fmt: skip
    time = time_of(gpu, op)
    memory = np.hypot(1e6 / 0.5e12, 100 * 1e-8)
    compute = (1e6 + 4 * 4 * 8 * 128 * 128) / 0.5e14
    assert time.seconds == pytest.approx(2 * (np.hypot(memory, compute) + 9e-6 + 2e-6), rel=1e-12)


def test_all_reduce_by_hand() -> None:
    gpu = round_gpu(link_share=0.5, link_latency_s=5e-6, link_hop_s=1e-6)
    op = Operation(
        name="all-reduce", kind="allreduce", count=3, dtype="bf16", activation_bytes=1e6, group=4
    )
    # a ring moves 2 · 3/4 of the message; two hops beyond the first pair
    assert time_of(gpu, op).seconds == pytest.approx(3 * (1.5e6 / 0.5e11 + 7e-6), rel=1e-12)
    assert time_of(gpu, op).bound == "latency"


@given(st.floats(0, 1e3), st.floats(0, 1e3), st.floats(1, 20))
def test_smooth_maximum_lies_between_maximum_and_sum(a: float, b: float, p: float) -> None:
    value = float(smooth_maximum(a, b, p))
    assert max(a, b) - 1e-9 <= value <= (a + b) * (1 + 1e-9)
    assert value == float(smooth_maximum(b, a, p))


@pytest.mark.parametrize("name", loader.list_gpus())
def test_constants_of_every_gpu_are_sane(name: str) -> None:
    gpu = loader.gpu(name)
    for field in dataclasses.fields(GpuSpec):
        value = getattr(gpu, field.name)
        if field.name.endswith(("_share", "_saving")):
            assert 0 <= value <= 1, field.name
    assert gpu.constants_source != "default"
    seconds = Roofline(gpu=gpu).forward_time(LLAMA, 1, 1, 100).seconds
    assert seconds > 14.9e9 / gpu.bandwidth_bytes_per_s  # never faster than its memory


def test_constants_file_says_where_each_row_is_from() -> None:
    path = Path(specsim.catalogue.__file__).with_name("constants.toml")
    rows = tomllib.loads(path.read_text())
    assert set(rows) == set(loader.list_gpus())
    fitted = {n for n, row in rows.items() if row["constants_source"].startswith("fitted")}
    assert fitted == set(tables.SYSTEMS)


@settings(max_examples=60, deadline=None)
@given(models, batches, new_tokens, contexts)
def test_more_work_never_takes_less_time(model: str, batch: int, new: int, context: int) -> None:
    source, placed = Roofline(gpu=H100), PlacedModel(spec=loader.model(model))
    base = source.forward_time(placed, batch, new, context).seconds
    for more in ((batch + 1, new, context), (batch, new, context + 100)):
        assert source.forward_time(placed, *more).seconds >= base * (1 - 1e-12)


def test_more_tokens_never_take_much_less_time() -> None:
    """Kernels change where a tile is full: a step down of a part in a thousand is theirs."""
    tokens = np.arange(1, 513)
    seconds = Roofline(gpu=H100).forward_time(LLAMA, 1, tokens, 100).seconds
    assert np.all(np.diff(seconds) > -1e-3 * seconds[:-1])


@settings(max_examples=60, deadline=None)
@given(models, batches, new_tokens, contexts)
def test_parts_add_up(model: str, batch: int, new: int, context: int) -> None:
    source, placed = Roofline(gpu=H100), PlacedModel(spec=loader.model(model))
    time = source.forward_time(placed, batch, new, context)
    assert time.memory_s + time.compute_s + time.latency_s == pytest.approx(time.seconds)
    assert time.bound in BOUNDS
    operations = source.explain(placed, Work.uniform(batch, new, context))
    assert sum(float(op.seconds) for op in operations) == pytest.approx(float(time.seconds))


def test_shapes_broadcast_and_equal_scalars() -> None:
    source = Roofline(gpu=H100)
    grid = source.forward_time(LLAMA, np.array([1, 8])[:, None], 3, np.array([0, 500, 9000]))
    assert grid.seconds.shape == (2, 3)
    assert grid.seconds[1, 2] == pytest.approx(
        float(source.forward_time(LLAMA, 8, 3, 9000).seconds), rel=1e-12
    )


def test_verification_costs_more_than_one_token_and_less_than_as_many_steps() -> None:
    source = Roofline(gpu=H100)
    for batch in (1, 16, 256):
        one = source.forward_time(LLAMA, batch, 1, 1000).seconds
        five = source.forward_time(LLAMA, batch, 5, 1000).seconds
        assert one < five < 5 * one


def test_a_twice_faster_gpu_halves_the_time_without_fixed_parts() -> None:
    gpu = round_gpu()
    twice = dataclasses.replace(
        gpu, bandwidth_bytes_per_s=2e12, peak_flops={"bf16": 2e14}, link_bytes_per_s=2e11
    )
    slow, fast = (Roofline(gpu=g).forward_time(LLAMA, 7, 3, 900).seconds for g in (gpu, twice))
    assert fast == pytest.approx(slow / 2, rel=1e-12)


def test_without_the_unit_weights_shrink_and_compute_does_not() -> None:
    a100 = loader.gpu("a100")
    assert compute_dtype(a100, "fp8") == "bf16"
    assert compute_dtype(H100, "fp8") == "fp8"
    assert compute_dtype(H100, "int4") == "bf16"
    # Blackwell Ultra has int8 units, but slower ones than its bf16 units
    assert compute_dtype(loader.gpu("b300"), "int8") == "bf16"
    wide, narrow = product(512, 8192, 8192), product(512, 8192, 8192, "fp8", 1.0)
    assert time_of(a100, narrow).compute_s == time_of(a100, wide).compute_s
    assert time_of(a100, narrow).memory_s < time_of(a100, wide).memory_s
    assert time_of(H100, narrow).compute_s < 0.7 * time_of(H100, wide).compute_s


def test_ridge_is_where_memory_and_compute_meet() -> None:
    tokens = ridge_tokens(H100, "bf16")
    time = time_of(dataclasses.replace(H100, loop_s=0.0), product(tokens, 200_000, 200_000))
    assert time.memory_s == pytest.approx(float(time.compute_s), rel=0.02)
    assert 150 < tokens < 350


def test_tensor_parallelism_pays_for_its_all_reduce() -> None:
    source = Roofline(gpu=H100)
    spec = loader.model("llama-3.1-70b")
    times = [
        float(source.forward_time(PlacedModel(spec=spec, tensor_parallel=g), 1, 1, 500).seconds)
        for g in (1, 2, 4, 8)
    ]
    assert times == sorted(times, reverse=True)
    assert times[0] / times[3] < 8


def test_warm_is_faster_where_a_cache_is_large() -> None:
    l40s, op = loader.gpu("l40s"), product(4, 2048, 2048)
    warm, cold = (Roofline(gpu=l40s, warm=w).operation_time(op).seconds for w in (True, False))
    assert warm < 0.8 * cold
    large = product(4, 32_768, 8192)
    warm, cold = (Roofline(gpu=l40s, warm=w).operation_time(large).seconds for w in (True, False))
    assert warm == pytest.approx(cold, rel=1e-3)


@pytest.mark.skipif(not tables.installed(), reason="the kernels extra is not installed")
@pytest.mark.parametrize("name", ["h100-sxm-80gb", "a100-sxm-80gb"])
def test_products_keep_their_bar_on_held_out_shapes(name: str) -> None:
    """A sample of `python -m validation.silicon`, so that CI notices."""
    from validation.rows import bounds
    from validation.silicon_kernels import gemm_errors

    table = gemm_errors(loader.gpu(name))
    big = table[table["big"]]
    limit = bounds("silicon")
    assert big["error"].median() <= limit["gemm_median"][name]
    assert big["error"].quantile(0.9) <= limit["gemm_p90"]
    assert table["error"].median() <= limit["gemm_all_shapes"]


@pytest.mark.parametrize(
    ("gpu", "runtime", "codes"),
    [
        ("h100", "vllm", []),
        ("h100", "ideal", []),
        ("a100", "vllm", ["runtime-extrapolated"]),
        ("h100", "trtllm", ["runtime-unmeasured"]),
        ("t4", "vllm", ["unmeasured-gpu", "runtime-extrapolated"]),
    ],
)
def test_predictions_say_what_was_not_measured(gpu: str, runtime: str, codes: list[str]) -> None:
    deployment = Deployment(
        target=LLAMA, draft=NO_DRAFT, gpu=loader.gpu(gpu), runtime=loader.runtime(runtime)
    )
    assert [code for code, _ in cost_warnings(deployment)] == codes
