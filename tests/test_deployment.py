"""Drafts that fit their target, and those that are refused."""

from __future__ import annotations

import pytest

import specsim as ss
from specsim.deployment import (
    Draft,
    PlacedModel,
    Routing,
    Tree,
    make_draft,
    medusa_head,
    truncated,
)

TARGET = PlacedModel(spec=ss.model("llama-3.1-8b"))


def test_method_follows_from_the_model() -> None:
    assert make_draft(TARGET).method == "none"
    assert make_draft(TARGET, model=ss.model("llama-3.2-1b")).method == "draft-model"


def test_heads_are_derived_from_the_target() -> None:
    eagle = make_draft(TARGET, method="eagle").model
    assert eagle is not None
    # one layer of 218.1M, a 2h → h fusion of 33.6M: published as 0.25B for this width
    assert eagle.spec.num_parameters == pytest.approx(0.25e9, rel=0.03)
    eagle3 = make_draft(TARGET, method="eagle3").model
    assert eagle3 is not None
    assert eagle3.spec.head_vocab_size == 32_000


def test_quantised_target_keeps_a_16_bit_draft() -> None:
    target = PlacedModel(spec=ss.model("llama-3.1-70b"), weights="fp8", kv="fp8")
    draft = make_draft(target, model=ss.model("llama-3.2-1b")).model
    assert draft is not None
    assert (draft.weights, draft.kv) == ("bf16", "fp8")


def test_draft_takes_a_degree_that_divides_its_heads() -> None:
    target = PlacedModel(spec=ss.model("qwen2.5-72b"), tensor_parallel=8)
    draft = make_draft(target, model=ss.model("qwen2.5-0.5b")).model  # 14 heads
    assert draft is not None
    assert draft.tensor_parallel == 1


def test_early_exit_is_the_targets_first_layers() -> None:
    spec = truncated(TARGET.spec, 8)
    whole = TARGET.spec.layer_parameters(active=False)
    assert spec.num_layers == 8
    assert spec.layer_parameters(active=False) == pytest.approx(whole / 4, rel=1e-3)


def test_a_medusa_head_is_a_block_and_a_vocabulary() -> None:
    h, v = 4096, 128_256
    assert medusa_head(TARGET.spec).num_parameters == pytest.approx(h * h + h * v, rel=1e-3)


def test_quantised_tables_stay_in_16_bits() -> None:
    spec = TARGET.spec
    tables = 2 * spec.vocab_size * spec.hidden_size
    body = spec.num_parameters - tables
    assert PlacedModel(spec=spec, weights="fp8").weights_bytes == 2 * tables + body


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make_draft(TARGET, method="egle"), "unknown method 'egle'"),
        (lambda: make_draft(TARGET, method="draft-model"), "needs a draft model"),
        (lambda: make_draft(TARGET, method="none", model=ss.model("llama-3.2-1b")), "'none'"),
        (lambda: make_draft(TARGET, method="ngram", model=ss.model("llama-3.2-1b")), "no draft"),
        (lambda: make_draft(TARGET, model=ss.model("qwen3-0.6b")), "tokenizer"),
        (lambda: make_draft(TARGET, method="mtp"), "no multi-token-prediction layer"),
        (lambda: make_draft(TARGET, method="early-exit"), "needs exit_layer"),
        (lambda: make_draft(TARGET, method="early-exit", exit_layer=32), "outside 1..31"),
        (
            lambda: make_draft(TARGET, method="eagle", model=ss.model("llama-3.2-1b")),
            "is a draft model, not a head",
        ),
        (lambda: Draft(method="ngram", kv_budget=0), "kv_budget=0"),
        (lambda: Tree(steps=0, topk=1, nodes=1), "steps=0"),
        (lambda: Tree(steps=5, topk=1, nodes=3), "nodes=3 < steps=5"),
        (lambda: PlacedModel(spec=TARGET.spec, tensor_parallel=3), "does not divide the 32"),
        (lambda: PlacedModel(spec=TARGET.spec, tensor_parallel=0), "tensor_parallel=0"),
        (lambda: PlacedModel(spec=TARGET.spec, weights="int3"), "unknown dtype 'int3'"),
        (lambda: Routing(skew=-1), "skew"),
        (lambda: Routing(overlap=2), "overlap"),
    ],
)
def test_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
