"""The joint distribution of real decoding, exactly: every random branch of the production
decoder with a real transformer and its KV cache, against autoregressive sampling."""

import pytest
import torch
from test_reference_helpers import (
    METHODS,
    decoder_joint,
    make_drafter,
    tiny_model,
    true_joint,
)

from reference import policy
from reference.exact import total_variation
from reference.sampling import Warp
from reference.stopping import StopRule

TOLERANCE = 1e-12
PROMPT = [1, 0, 1]
NEURAL = [m for m in METHODS if m != "ngram"]


def assert_lossless(target, method, make_policy, horizon, *, options=None, **settings):
    """The joint of `horizon` tokens emitted by speculative steps is autoregressive.

    A prompt of one token needs no pass of its own, so speculation starts at once. The
    n-gram needs a prompt to look up and EAGLE features: there the first token comes from
    reading the prompt, and the horizon grows by it.
    """
    temperature = settings.get("warp", Warp(temperature=1.0)).temperature
    prompt = PROMPT if method in ("ngram", "eagle") else PROMPT[:1]
    horizon += len(prompt) > 1
    expected = true_joint(target, prompt, horizon, temperature)
    actual = decoder_joint(
        target,
        lambda: make_drafter(method, target, **(options or {})),
        make_policy,
        prompt,
        horizon,
        **settings,
    )
    assert sum(actual.values()) == pytest.approx(1, abs=1e-12)
    assert total_variation(actual, expected) <= TOLERANCE


@pytest.mark.parametrize("rule", ["chain", "block"])
@pytest.mark.parametrize("method", METHODS)
def test_joint_of_two_tokens_over_k_plus_two(method, rule):
    """Property 2 (and 9 for n-grams): K = 2, horizon 4 = K + 2, so bonus tokens are followed."""
    assert_lossless(tiny_model(2, seed=3), method, lambda: policy.fixed(2), 4, rule=rule)


@pytest.mark.parametrize("method", METHODS)
def test_joint_with_three_tokens(method):
    """Property 2 where residuals have two tokens: K = 1, horizon 3."""
    assert_lossless(tiny_model(3, seed=4), method, lambda: policy.fixed(1), 3)


@pytest.mark.parametrize("rule", ["chain", "block"])
@pytest.mark.parametrize("method", METHODS)
def test_joint_with_three_tokens_and_two_drafts(method, rule):
    """Property 2 at vocabulary 3, K = 2, horizon 4: thousands of branches."""
    assert_lossless(tiny_model(3, seed=4), method, lambda: policy.fixed(2), 4, rule=rule)


def test_block_with_three_drafts():
    """Block verification decides over prefixes of length 1 and 2: K = 3, horizon 5."""
    target = tiny_model(2, seed=3)
    assert_lossless(target, "draft-model", lambda: policy.fixed(3), 5, rule="block")


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("method", NEURAL)
def test_tree_joint(method, distinct):
    """Property 12: two children of the root, one of each; horizon 4 = depth + 2."""
    target = tiny_model(2, seed=3)
    options = {"distinct": distinct}
    assert_lossless(target, method, lambda: policy.tree(2, 1), 4, options=options)


@pytest.mark.parametrize("distinct", [False, True])
def test_siblings_joint_with_three_tokens(distinct):
    """Properties 10 and 11 on a real model: two drafts for one position, horizon 3."""
    options = {"distinct": distinct}
    target = tiny_model(3, seed=4)
    assert_lossless(target, "draft-model", lambda: policy.tree(2), 3, options=options)


@pytest.mark.parametrize("distinct", [pytest.param(False, marks=pytest.mark.slow), True])
def test_wide_tree_joint(distinct):
    """Property 12 with siblings at two levels."""
    options = {"distinct": distinct}
    target = tiny_model(2, seed=3)
    assert_lossless(target, "draft-model", lambda: policy.tree(2, 2), 4, options=options)


@pytest.mark.parametrize("method", METHODS)
def test_switching_k_every_step(method):
    """Property 14: K = 2, 0, 1, …; the draft falls behind and catches up."""
    assert_lossless(tiny_model(2, seed=6), method, lambda: policy.schedule([2, 0, 1]), 4)


def test_adaptive_k():
    """Property 14: K that follows past acceptances."""
    adaptive = lambda: policy.adaptive(lowest=1, highest=2, start=1)  # noqa: E731
    assert_lossless(tiny_model(2, seed=6), "draft-model", adaptive, 4)


@pytest.mark.parametrize("rule", ["chain", "block"])
def test_stopping_after_an_unsure_token(rule):
    """Stopping the draft after including an unlikely token is lossless."""
    target = tiny_model(3, seed=4)
    options = {"stop_below": 0.4}
    assert_lossless(target, "draft-model", lambda: policy.fixed(2), 4, rule=rule, options=options)


def test_other_temperature():
    """The same warp on both sides at a temperature that is not 1."""
    warp = Warp(temperature=1.7)
    assert_lossless(tiny_model(2, seed=3), "draft-model", lambda: policy.fixed(2), 4, warp=warp)


def test_prefill_in_chunks():
    """A prompt read in pieces gives the same distribution."""
    target = tiny_model(2, seed=3)
    assert_lossless(target, "eagle", lambda: policy.fixed(2), 4, prefill_chunk=1)


@pytest.mark.parametrize("method", METHODS)
def test_truncation_is_autoregressive(method):
    """Property 15: with an end-of-sequence token, the joint of the cut sequences."""
    target, eos = tiny_model(3, seed=9), 2
    expected = true_joint(target, PROMPT, 3, 1.0, stop=lambda generated: generated[-1] == eos)
    actual = decoder_joint(
        target,
        lambda: make_drafter(method, target),
        lambda: policy.fixed(1),
        PROMPT,
        3,
        stop=StopRule(frozenset({eos})),
    )
    assert total_variation(actual, expected) <= TOLERANCE


def test_typical_acceptance_is_lossy():
    """Medusa's rule is the exception, and the harness sees it."""
    target = tiny_model(2, seed=3)
    expected = true_joint(target, PROMPT, 4, 1.0)
    actual = decoder_joint(
        target,
        lambda: make_drafter("draft-model", target),
        lambda: policy.fixed(2),
        PROMPT,
        4,
        rule="typical",
    )
    assert total_variation(actual, expected) > 0.01


def test_the_models_are_flat():
    """Peaked models would hide errors: every outcome of every model used has weight."""
    for target in (tiny_model(2, seed=3), tiny_model(3, seed=4), tiny_model(2, seed=6)):
        assert min(true_joint(target, PROMPT, 2, 1.0).values()) > 1e-3


def test_threads_do_not_matter_here():
    """float64 throughout: the proofs are about the algorithm, not about rounding."""
    assert tiny_model(2).dtype == torch.float64
