"""Counts of bytes and FLOPs against hand-derived numbers and limits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specsim.catalogue import loader
from specsim.cost import experts
from specsim.cost.operations import Operation, Work, operations
from specsim.deployment import PlacedModel, Routing

LLAMA = PlacedModel(spec=loader.model("llama-3.1-8b"))


def by_name(model: PlacedModel, work: Work) -> dict[str, Operation]:
    return {op.name: op for op in operations(model, work)}


def total(model: PlacedModel, work: Work, field: str) -> float:
    return float(sum(op.count * np.asarray(getattr(op, field)) for op in operations(model, work)))


def test_every_weight_of_a_dense_model_is_read_once() -> None:
    # 8,030,261,248 parameters, less the input embedding (128256 × 4096) and 65 norms
    matrices = 8_030_261_248 - 128_256 * 4096 - 65 * 4096
    assert total(LLAMA, Work.uniform(1, 1, 0), "weight_bytes") == 2 * matrices


def test_flops_are_two_per_weight_and_token_plus_attention() -> None:
    work = Work.uniform(4, 3, 100)
    matrices = total(LLAMA, work, "weight_bytes") / 2
    # scores and values: 2 · 2 · 32 heads · 128 per pair; 3 queries see 101, 102, 103 keys
    attention = 32 * 4 * 32 * 128 * 4 * (101 + 102 + 103)
    assert total(LLAMA, work, "flops") == 2 * 12 * matrices + attention


def test_cache_bytes_by_hand() -> None:
    # 32 layers · 2 · 8 heads · 128 · 2 bytes = 131,072 bytes a token
    assert total(LLAMA, Work.uniform(5, 1, 99), "kv_bytes") == 5 * 100 * 131_072


def test_verification_reads_the_cache_once() -> None:
    one = by_name(LLAMA, Work.uniform(2, 1, 1000))["attention (full)"]
    five = by_name(LLAMA, Work.uniform(2, 5, 996))["attention (full)"]
    assert five.kv_bytes == one.kv_bytes
    # queries i = 1…5 see 996 + i keys
    assert five.flops / one.flops == pytest.approx((5 * 996 + 15) / 1001)


@pytest.mark.parametrize("degree", [2, 4, 8])
def test_tensor_parallelism_divides_matrices_and_cache(degree: int) -> None:
    split = dataclasses.replace(LLAMA, tensor_parallel=degree)
    work = Work.uniform(8, 4, 500)
    for field in ("weight_bytes", "flops", "kv_bytes"):
        assert total(split, work, field) == pytest.approx(total(LLAMA, work, field) / degree)
    reduce = by_name(split, work)["all-reduce"]
    assert (reduce.count, reduce.group) == (64, degree)  # two a layer
    assert reduce.activation_bytes == 32 * 4096 * 2


def test_key_value_heads_are_replicated_beyond_their_number() -> None:
    """Llama-3.1-8B has 8: 16 GPUs hold twice as much together."""
    work = Work.uniform(1, 1, 999)
    wide = dataclasses.replace(LLAMA, tensor_parallel=16)
    assert total(wide, work, "kv_bytes") == total(LLAMA, work, "kv_bytes") / 8


def test_sliding_windows_stop_growing() -> None:
    model = PlacedModel(spec=loader.model("gpt-oss-20b"))  # half of its layers see 128 tokens
    short, long = (by_name(model, Work.uniform(1, 1, n)) for n in (100, 10_000))
    assert long["attention (sliding)"].kv_bytes == 128 * 2 * 8 * 64 * 2
    assert short["attention (sliding)"].kv_bytes == 101 * 2 * 8 * 64 * 2
    assert long["attention (full)"].kv_bytes == 10_001 * 2 * 8 * 64 * 2


def test_latent_attention_reads_one_vector_for_all_heads() -> None:
    model = PlacedModel(spec=loader.model("deepseek-v3"))
    attention = by_name(model, Work.uniform(1, 1, 999))["attention (latent)"]
    assert attention.kv_bytes == 1000 * (512 + 64) * 2
    assert attention.flops == 2 * 128 * (512 + 512 + 64) * 1000


def test_linear_attention_does_not_see_the_context() -> None:
    model = PlacedModel(spec=loader.model("qwen3.5-27b"))
    near, far = (by_name(model, Work.uniform(2, 3, n))["linear attention"] for n in (10, 100_000))
    assert near.kv_bytes == far.kv_bytes > 0
    assert near.flops == far.flops > 0


@pytest.mark.parametrize(
    ("weights", "per_weight"), [("fp8", 1.0), ("int8", 1.0), ("int4", 0.515625), ("fp4", 0.5625)]
)
def test_quantised_weights_shrink_but_for_the_head(weights: str, per_weight: float) -> None:
    small = by_name(dataclasses.replace(LLAMA, weights=weights), Work.uniform(1, 1, 0))
    assert small["down_proj"].weight_bytes == 14336 * 4096 * per_weight
    assert small["lm_head"].weight_bytes == 128_256 * 4096 * 2


def test_fp8_cache_halves_what_attention_reads() -> None:
    work = Work.uniform(3, 2, 700)
    half = dataclasses.replace(LLAMA, kv="fp8")
    assert total(half, work, "kv_bytes") == total(LLAMA, work, "kv_bytes") / 2


def test_prefill_needs_logits_of_one_token_a_prompt() -> None:
    work = Work.prefill(2, 300)
    assert by_name(LLAMA, work)["lm_head"].flops == 2 * 2 * 4096 * 128_256
    assert (work + Work.uniform(1, 1, 5)).tokens == 601


@pytest.mark.parametrize(("batch", "new", "context"), [(0, 1, 1), (1, 0, 1), (1, 1, -1)])
def test_impossible_work_is_refused(batch: int, new: int, context: int) -> None:
    with pytest.raises(ValueError, match=r"batch|new_tokens|context"):
        Work.uniform(batch, new, context)


MOE = loader.model("qwen3-30b-a3b").layers[0].feed_forward  # 128 experts, 8 a token


def visited(tokens: float, sequences: float, routing: Routing) -> float:
    work = Work(tokens=tokens, sequences=sequences, logit_rows=0, kv_tokens=0, pairs=0)
    return float(experts.distinct_experts(MOE, work, routing))


def test_uniform_routing_by_hand() -> None:
    assert visited(1, 1, experts.UNIFORM) == pytest.approx(8)
    # E(1 − (1 − 8/128)^5) = 35.3: the 4.4 times of one token that the formula gives at K = 4
    assert visited(5, 1, experts.UNIFORM) == pytest.approx(128 * (1 - (120 / 128) ** 5))
    assert visited(5, 1, experts.UNIFORM) / 8 == pytest.approx(4.4, abs=0.02)
    assert visited(1e6, 1e6, experts.UNIFORM) == pytest.approx(128)


def test_typical_routing_gives_the_reported_likeness() -> None:
    assert visited(5, 1, experts.TYPICAL) / 8 == pytest.approx(3.2, abs=0.06)
    overlap_only = Routing(overlap=experts.REPORTED_OVERLAP)
    assert visited(5, 1, overlap_only) / 8 == pytest.approx(3.2, abs=0.03)


def test_the_interval_holds_the_typical_routing() -> None:
    cheap, dear = experts.INTERVAL
    for tokens in (2, 5, 40, 300):
        low, middle, high = (visited(tokens, 1, r) for r in (cheap, experts.TYPICAL, dear))
        assert low < middle < high


@given(st.floats(0, 1.5), st.floats(0, 1), st.integers(1, 64), st.integers(1, 8))
def test_experts_grow_with_tokens_and_never_exceed_their_number(
    skew: float, overlap: float, sequences: int, new: int
) -> None:
    routing = Routing(skew=skew, overlap=overlap)
    few = visited(sequences * new, sequences, routing)
    more = visited(sequences * (new + 1), sequences, routing)
    assert 8 - 1e-9 <= few <= more + 1e-9 <= 128 + 1e-6


def test_full_overlap_makes_drafted_tokens_free_of_experts() -> None:
    same = Routing(overlap=1.0)
    assert visited(6, 1, same) == pytest.approx(visited(1, 1, experts.UNIFORM))


@given(st.floats(0, 3))
def test_popularity_is_a_probability_that_sums_to_top_k(skew: float) -> None:
    popularity = experts.expert_popularity(128, 8, skew)
    assert popularity.sum() == pytest.approx(8)
    assert popularity.max() <= 1 + 1e-12
    assert np.all(np.diff(popularity) <= 1e-12)


def test_expert_parallelism_waits_for_the_busiest_gpu() -> None:
    spec = loader.model("qwen3-30b-a3b")
    work = Work.uniform(16, 1, 100)
    split = PlacedModel(spec=spec, tensor_parallel=4)
    spread = PlacedModel(spec=spec, tensor_parallel=4, expert_parallel=4)
    ratio = (
        by_name(spread, work)["experts"].weight_bytes / by_name(split, work)["experts"].weight_bytes
    )
    assert 1 < ratio < 1.5
    # everything is visited anyway: no GPU is busier than another
    crowd = Work.uniform(4096, 1, 100)
    assert by_name(spread, crowd)["experts"].weight_bytes == pytest.approx(
        by_name(split, crowd)["experts"].weight_bytes
    )


def test_expert_parallel_degree_must_divide() -> None:
    with pytest.raises(ValueError, match="expert_parallel=3"):
        PlacedModel(spec=loader.model("qwen3-30b-a3b"), tensor_parallel=4, expert_parallel=3)
