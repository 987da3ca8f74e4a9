"""The simulator's step costs are those of `cost`, to the ninth digit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specsim import catalogue
from specsim.cost.drafting import draft_round
from specsim.cost.linear import VLLM_LLAMA_8B_H100, Linear
from specsim.cost.roofline import Roofline
from specsim.cost.scalar import scalar_pass
from specsim.cost.step import decode_step
from specsim.cost.work import Work
from specsim.deployment import Deployment, PlacedModel, Tree, make_draft
from specsim.simulator.step_cost import StepCost

#: Dense, tensor-parallel, experts, sliding windows, latent, linear attention.
MODELS = [
    ("llama-3.1-8b", 1), ("llama-3.1-70b", 4), ("qwen3-30b-a3b", 1), ("gpt-oss-20b", 1),
    ("deepseek-v3", 8), ("gemma-3-27b", 1), ("qwen3.5-27b", 1),
]  # fmt: skip
GPUS = ["h100-sxm", "a100-sxm-80gb"]


def placed(name: str, degree: int = 1) -> PlacedModel:
    return PlacedModel(spec=catalogue.model(name), tensor_parallel=degree)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize(("name", "degree"), MODELS)
def test_scalar_pass_is_fast_and_equals_work_time(name: str, degree: int, gpu: str) -> None:
    source, model = Roofline(gpu=catalogue.gpu(gpu)), placed(name, degree)
    fast = scalar_pass(source, model, 8192)
    assert fast.__qualname__.startswith("_roofline"), "fell back to asking pass by pass"
    rng = np.random.default_rng(1)
    for _ in range(25):
        decoding, new = int(rng.integers(1, 200)), int(rng.integers(1, 9))
        work = Work.uniform(decoding, new, float(rng.integers(0, 20_000)))
        if rng.random() < 0.5:  # a mixed batch: a chunk of a prompt beside decoding
            work = work + Work.prefill(1, int(rng.integers(1, 4000)), int(rng.integers(0, 4000)))
        expected = float(source.work_time(model, work).seconds)
        asked = (int(work.tokens), int(work.sequences), int(work.logit_rows))
        assert fast(*asked, float(work.kv_tokens), float(work.pairs)) == pytest.approx(
            expected, rel=1e-9, abs=1e-12
        )


def test_scalar_pass_beyond_its_table() -> None:
    source, model = Roofline(gpu=catalogue.gpu("h100")), placed("llama-3.1-8b")
    work = Work.prefill(1, 700)
    asked = (700, 1, 1, float(work.kv_tokens), float(work.pairs))
    expected = float(source.work_time(model, work).seconds)
    assert scalar_pass(source, model, 512)(*asked) == pytest.approx(expected, rel=1e-12)


@given(
    tokens=st.integers(1, 10_000), kv=st.integers(1, 60_000),
    a=st.floats(0, 1), b=st.floats(0, 1e-3), c=st.floats(1e-9, 1e-6),
)  # fmt: skip
def test_linear_is_its_formula(tokens: int, kv: int, a: float, b: float, c: float) -> None:
    source, model = Linear(base_s=a, token_s=b, kv_token_s=c), placed("llama-3.1-8b")
    work = Work(tokens=tokens, sequences=1, logit_rows=1, kv_tokens=kv, pairs=1)
    time = source.work_time(model, work)
    assert float(time.seconds) == pytest.approx(a + b * tokens + c * kv)
    parts = time.memory_s + time.compute_s + time.latency_s
    assert float(parts) == pytest.approx(float(time.seconds))
    assert scalar_pass(source, model, 10)(tokens, 1, 1, kv, 1.0) == pytest.approx(
        float(time.seconds)
    )


def test_published_fit() -> None:
    """5.886 ms + 0.0210 ms a token + 3.93e-5 ms a KV token, by hand."""
    time = VLLM_LLAMA_8B_H100.forward_time(placed("llama-3.1-8b"), 10, 1, 999)
    assert float(time.seconds) == pytest.approx(5.886e-3 + 10 * 2.1e-5 + 10_000 * 3.93e-8)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_linear_refuses(value: float) -> None:
    with pytest.raises(ValueError, match="expected times >= 0"):
        Linear(base_s=value)


def drafts(target: PlacedModel) -> list[object]:
    llama = catalogue.model("llama-3.2-1b")
    return [
        make_draft(target, method="none"),
        make_draft(target, method="ngram"),
        make_draft(target, model=llama),
        make_draft(target, model=llama, kv_budget=300),
        make_draft(target, method="eagle3"),
        make_draft(target, method="eagle3", tree=Tree(steps=3, topk=4, nodes=8)),
        make_draft(target, method="medusa"),
        make_draft(target, method="early-exit", exit_layer=8),
        make_draft(target, method="sparse-kv", kv_budget=256),
    ]


@settings(max_examples=25)
@given(
    which=st.integers(0, 8), k=st.integers(0, 8), batch=st.integers(1, 128),
    context=st.integers(1, 4000), runtime=st.sampled_from(["vllm", "sglang", "ideal"]),
)  # fmt: skip
def test_step_cost_is_decode_step(
    which: int, k: int, batch: int, context: int, runtime: str
) -> None:
    target = placed("llama-3.1-8b")
    deployment = Deployment(
        target=target, draft=drafts(target)[which], gpu=catalogue.gpu("h100"),  # type: ignore[arg-type]
        runtime=catalogue.runtime(runtime),
    )  # fmt: skip
    if which == 0:
        k = 0
    if which == 5:
        k = 8  # a tree verifies all its nodes
    source = Roofline(gpu=deployment.gpu)
    cost = StepCost(deployment, source, 8192)
    expected = decode_step(deployment, source, k, batch, context)
    new = k + 1
    tokens, kv = batch * new, float(batch * (context + new))
    target_s = cost.target_s(tokens, batch, tokens, kv, tokens * (context + (new + 1) / 2))
    draft_s = cost.draft_s(k, batch, float(batch * context))
    assert target_s == pytest.approx(float(expected.verify.seconds), rel=1e-9)
    assert draft_s == pytest.approx(float(expected.draft.seconds), rel=1e-9, abs=1e-15)
    assert cost.host_s(batch, batch * k) == pytest.approx(float(expected.overhead_s), abs=1e-15)


def test_keeping_a_drafter_current_costs_one_pass() -> None:
    target = placed("llama-3.1-8b")
    draft = make_draft(target, model=catalogue.model("llama-3.2-1b"))
    deployment = Deployment(
        target=target, draft=draft, gpu=catalogue.gpu("h100"), runtime=catalogue.runtime("ideal")
    )
    source = Roofline(gpu=deployment.gpu)
    cost = StepCost(deployment, source, 512)
    assert draft.model is not None
    one = float(source.forward_time(draft.model, 4, 1, 100).seconds)
    assert cost.keep_current_s(4, 400.0) == pytest.approx(one, rel=1e-9)
    first_and_one = float(draft_round(deployment, source, 2, 4, 100).seconds)
    assert one < first_and_one


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.2-1b", "gpt-oss-20b"])
def test_kernels_have_a_fast_path_too(name: str) -> None:
    """Within half a percent everywhere, a ten-thousandth or so in the middle."""
    pytest.importorskip("aiconfigurator_core")
    from specsim.cost.kernels import Kernels

    source, model = Kernels(gpu=catalogue.gpu("h100-sxm")), placed(name)
    fast = scalar_pass(source, model, 4096)
    assert fast.__qualname__.startswith("kernels_pass")
    rng = np.random.default_rng(2)
    errors = []
    for _ in range(25):
        work = Work.uniform(int(rng.integers(1, 200)), int(rng.integers(1, 9)),
                            float(rng.integers(0, 20_000)))  # fmt: skip
        if rng.random() < 0.5:
            work = work + Work.prefill(1, int(rng.integers(1, 2000)))
        asked = (int(work.tokens), int(work.sequences), int(work.logit_rows))
        got = fast(*asked, float(work.kv_tokens), float(work.pairs))
        errors.append(abs(got / float(source.work_time(model, work).seconds) - 1))
    assert max(errors) < 5e-3
    assert float(np.median(errors)) < 5e-4
