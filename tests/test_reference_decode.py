"""The decoding loop: batches, caches, counters, truncation, seeds."""

import inspect
from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_reference_helpers import (
    FLAT,
    METHODS,
    VARIED_VOCABULARY,
    fresh_logits,
    make_drafter,
    tiny_config,
    varied_model,
)

from reference import policy, report
from reference.cache import make_batch
from reference.decode import LOSSY_RULES, RULES, Decoder
from reference.draft.eagle import EagleConfig, EagleDrafter, load_head, random_head, save_head
from reference.draft.neural import DraftModelDrafter, EarlyExitDrafter
from reference.draft.ngram import NgramDrafter
from reference.model import random_model
from reference.request import Request
from reference.sampling import SeededRandomness, Warp
from reference.stopping import StopRule
from specsim.errors import ConfigError

GREEDY = Warp(temperature=0.0)
VOCAB = VARIED_VOCABULARY


@pytest.fixture(scope="module")
def target():
    return varied_model()


def request(name="r", prompt=(1, 2, 3, 1, 2), new=12, seed=0, **more):
    return Request(
        name, list(prompt), new, SeededRandomness(seed, crc32(name.encode()) % 97), **more
    )


def autoregressive(target, prompt, new):
    """Greedy decoding by full recomputation of every prefix."""
    tokens = list(prompt)
    for _ in range(new):
        tokens.append(int(fresh_logits(target, tokens)[-1].argmax()))
    return tokens[len(prompt) :]


def decode(target, method, requests, *, k=3, rows=1, shape=None, warp=GREEDY, options=None, **more):
    decoder = Decoder(
        target,
        make_drafter(method, target, **(options or {})),
        warp=warp,
        policy=policy.tree(*shape) if shape else policy.fixed(k),
        rows=rows,
        capacity=64,
        **more,
    )
    results = list(decoder.run(requests))
    return decoder, results


def test_the_target_wanders(target):
    """The tests below say little about a model that repeats one token."""
    assert len(set(autoregressive(target, (1, 2, 3, 1, 2), 20))) >= 6


@pytest.mark.parametrize("k", [0, 1, 2, 5, 8])
@pytest.mark.parametrize("method", METHODS)
def test_greedy_equals_autoregressive(target, method, k):
    """Property 18, in float64 on the tiny model, for every method."""
    r = request(new=20)
    decode(target, method, [r], k=k)
    assert r.generated == autoregressive(target, r.prompt, 20)


@pytest.mark.parametrize("shape", [(2, 2), (3, 1, 2), (4,)])
@pytest.mark.parametrize("method", ["early-exit", "draft-model", "eagle"])
def test_greedy_trees_equal_autoregressive(target, method, shape):
    """Property 18 for trees; the caches stay right after scattered paths are kept."""
    r = request(new=20)
    _, results = decode(target, method, [r], shape=shape)
    assert r.generated == autoregressive(target, r.prompt, 20)
    assert method == "eagle" or any(step.num_accepted for step in results)


@pytest.mark.parametrize("warp", [GREEDY, FLAT])
@pytest.mark.parametrize("method", METHODS)
def test_a_row_does_not_depend_on_its_batch(target, method, warp):
    """Property 20: ragged prompts and lengths, rows that end and are replaced."""
    prompts = [(1, 2, 3), (4,), (5, 6, 7, 8, 9, 5, 6), (2, 2), (1, 2, 1, 2, 1)]
    cases = list(zip(prompts, [9, 14, 5, 11, 7], strict=True))
    make = lambda: [  # noqa: E731
        request(f"r{i}", p, n, seed=i) for i, (p, n) in enumerate(cases)
    ]
    together, alone = make(), make()
    decode(target, method, together, rows=3, warp=warp)
    for r in alone:
        decode(target, method, [r], warp=warp)
    assert [r.generated for r in together] == [r.generated for r in alone]


@pytest.mark.parametrize("chunk", [1, 2, 5])
@pytest.mark.parametrize("method", METHODS)
def test_prompts_in_chunks_mixed_with_decoding(target, method, chunk):
    """A row that reads its prompt rides along with rows that decode; nothing changes."""
    make = lambda: [  # noqa: E731
        request("a", (1, 2), 12),
        request("b", tuple(range(12)), 9),
        request("c", (3, 1, 4, 1, 5, 9), 8),
    ]
    chunked, whole = make(), make()
    _, results = decode(target, method, chunked, rows=2, prefill_chunk=chunk)
    decode(target, method, whole, rows=2)
    assert [r.generated for r in chunked] == [r.generated for r in whole]
    assert max(step.fed for step in results if not step.emitted) <= chunk


@pytest.mark.parametrize("shape", [None, (2, 2)])
@pytest.mark.parametrize("method", METHODS)
def test_caches_equal_recompute_at_every_step(target, method, shape):
    """Property 16: lengths and contents of the target's and the draft's cache."""
    drafter = make_drafter(method, target)
    shape = shape or (1, 1, 1)
    decoder = Decoder(target, drafter, warp=FLAT, policy=policy.tree(*shape), capacity=48)
    r = request(new=16, seed=5)
    decoder.admit(r)
    while decoder.rows:
        decoder.step()
        if r.finished:
            break
        assert decoder.cache.lengths[0] == len(r.tokens) - 1
        assert_cache_is_fresh(target, decoder.cache, r.tokens)
        if isinstance(drafter, DraftModelDrafter):
            assert drafter.cache.lengths[0] == expected_draft_length(r, shape)
            assert_cache_is_fresh(drafter.model, drafter.cache, r.tokens)
        if isinstance(drafter, EagleDrafter):
            assert_head_is_fresh(target, drafter, r.tokens)


def expected_draft_length(r, shape):
    """All but the last token; one more is missing when every drafted token was accepted,
    and after a tree step, where drafted nodes are dropped, all tokens of that step."""
    if not r.drafted or r.drafted[-1] == 0:
        return len(r.tokens) - 1
    if any(width > 1 for width in shape):
        return len(r.tokens) - 1 - r.accepted[-1]
    return len(r.tokens) - 1 - (r.accepted[-1] == r.drafted[-1])


def assert_cache_is_fresh(model, cache, tokens):
    length = cache.lengths[0]
    fresh = model.new_cache(1, len(tokens))
    with torch.inference_mode():
        model(make_batch([tokens[:length]], fresh), fresh)
    layers = cache.keys.shape[0]
    for ours, theirs in ((cache.keys, fresh.keys), (cache.values, fresh.values)):
        torch.testing.assert_close(ours[:, 0, :, :length], theirs[:layers, 0, :, :length])


def assert_head_is_fresh(target, drafter, tokens):
    """The head's keys are those of true pairs (features i, token i + 1), none of drafted ones."""
    length = drafter.cache.lengths[0]
    waiting = len(drafter._pending[0])
    assert length + waiting == len(tokens) - 1
    cache = target.new_cache(1, len(tokens))
    with torch.inference_mode():
        features = target(
            make_batch([tokens[:-1]], cache), cache, feature_layers=drafter.feature_layers
        ).features
        torch.testing.assert_close(drafter._pending[0], features[length:])
        if length == 0:
            return
        shape = list(drafter.cache.keys.shape)
        fresh = type(drafter.cache)(tuple(shape), target.dtype, target.device)
        batch = make_batch([tokens[1 : length + 1]], fresh)
        embedding = target.embedding[batch.tokens]
        state = drafter.head.fuse(features[:length])
        drafter.head(state, embedding, batch, fresh.keys[0], fresh.values[0])
    ours = drafter.cache.keys[0, 0, :, :length]
    torch.testing.assert_close(ours, fresh.keys[0, 0, :, :length])


@pytest.mark.parametrize("method", ["early-exit", "draft-model", "eagle"])
def test_drafts_equal_uncached_drafts_at_every_step(target, method):
    """Property 16: what is drafted is what the draft says without a cache (else only speed
    suffers, and nobody notices)."""
    drafter = make_drafter(method, target)
    proposed = []
    propose = drafter.propose
    drafter.propose = lambda *a: proposed.append(propose(*a)[0]) or [proposed[-1]]
    decoder = Decoder(target, drafter, policy=policy.fixed(3), capacity=48)
    r = request(new=18)
    decoder.admit(r)
    while decoder.rows:
        before = list(r.tokens)
        decoder.step()
        if not proposed[-1].tokens:
            continue
        fresh = make_drafter(method, target)
        other = Decoder(target, fresh, policy=policy.fixed(3), capacity=48)
        other.admit(request(prompt=before[:-1], new=20))
        other.rows[0].tokens.append(before[-1])
        if method == "eagle":  # its features come from the target's pass over the context
            other.drafter.observe(0, features_of(target, drafter, before))
        other.cache.lengths[0] = len(before) - 1
        if method == "early-exit":
            with torch.inference_mode():
                other.cache.lengths[0] = 0
                target(make_batch([before[:-1]], other.cache), other.cache)
        levels = (1,) * len(proposed[-1].tokens)
        again = fresh.propose(other.rows, [levels], GREEDY)[0]
        assert again.tokens == proposed[-1].tokens


def features_of(target, drafter, tokens):
    cache = target.new_cache(1, len(tokens))
    with torch.inference_mode():
        batch = make_batch([tokens[:-1]], cache)
        return target(batch, cache, feature_layers=drafter.feature_layers).features


@given(st.integers(0, 10**6), st.sampled_from(METHODS), st.integers(0, 4), st.integers(1, 3))
def test_counters(seed, method, k, rows):
    """Properties 5 and 22: emitted = accepted + 1 but where the end cuts; sums agree."""
    target = varied_model()
    requests = [request(f"r{i}", (1, 2, 1), 4 + 3 * i, seed=seed + i) for i in range(3)]
    _, results = decode(target, method, requests, k=k, rows=rows, warp=FLAT)
    for step in results:
        assert len(step.emitted) == step.num_accepted + 1
        assert 0 <= step.num_accepted <= step.num_drafted <= step.num_draft_tokens <= k
        left = step.request.max_new_tokens - step.position
        assert step.num_draft_tokens <= left - 1  # K is clamped at the end
    for r in requests:
        mine = [step for step in results if step.request is r]
        assert sum(len(step.emitted) for step in mine) == len(r.generated) == r.max_new_tokens
        assert [step.position for step in mine] == [
            sum(len(s.emitted) for s in mine[:i]) for i in range(len(mine))
        ]
    at_least = [sum(step.num_accepted >= i for step in results) for i in range(1, k + 1)]
    assert sum(at_least) == sum(step.num_accepted for step in results)
    assert at_least == sorted(at_least, reverse=True)


def test_a_draft_that_is_the_target_needs_the_fewest_steps():
    """Property 17 on the real loop: 1 prompt step, then K + 1 tokens a step."""
    target = varied_model()
    for warp in (GREEDY, FLAT):
        drafter = DraftModelDrafter(varied_model())
        decoder = Decoder(target, drafter, warp=warp, policy=policy.fixed(3), capacity=48)
        results = list(decoder.run([request(new=13)]))
        assert [len(step.emitted) for step in results] == [1, 4, 4, 4]
        # Feeding all that was missing keeps the draft's own passes at K a step.
        assert all(step.num_accepted == step.num_drafted for step in results)


@pytest.mark.parametrize("method", ["draft-model", "early-exit"])
def test_the_draft_reads_every_token_once(target, method):
    """Rolling the draft back further than needed is lossless, and is caught by counting.

    A draft of K tokens feeds K: the last token and all drafted ones but the last. A model
    of its own also reads the prompt, and the one token that full acceptance leaves unread.
    """
    drafter = make_drafter(method, target)
    fed = []
    inner = drafter.forward
    drafter.forward = lambda batch, *rest: (fed.append(len(batch.tokens)), inner(batch, *rest))[1]
    decoder = Decoder(target, drafter, warp=FLAT, policy=policy.fixed(3), capacity=48)
    r = request(new=24, seed=3)
    results = list(decoder.run([r]))
    drafting = [step for step in results if step.num_drafted]
    expected = sum(step.num_draft_tokens for step in drafting)
    if method == "draft-model":
        whole = [step.num_accepted == step.num_drafted for step in drafting]
        assert any(whole[:-1])
        assert not all(whole)
        expected += len(r.prompt) + sum(whole[:-1])
    assert sum(fed) == expected


@pytest.mark.parametrize("k", [0, 1, 3, 8])
@pytest.mark.parametrize("method", [*METHODS, "same"])
def test_truncation_equals_autoregressive(target, method, k):
    """Property 15: EOS at any place of a block; what follows it is not emitted or counted."""
    prompt = (1, 2, 3, 1, 2)
    whole = autoregressive(target, prompt, 20)
    for eos in set(whole):
        r = request(prompt=prompt, new=20, stop=StopRule(frozenset({eos})))
        drafter = (
            DraftModelDrafter(varied_model()) if method == "same" else make_drafter(method, target)
        )
        decoder = Decoder(target, drafter, policy=policy.fixed(k), capacity=48)
        results = list(decoder.run([r]))
        assert r.generated == whole[: whole.index(eos) + 1]
        assert r.finished == "stop"
        assert sum(len(step.emitted) for step in results) == len(r.generated)
        assert all(step.num_accepted <= len(step.emitted) for step in results)


def test_stop_strings_cut_at_the_first_token_that_completes_one():
    """Property 15: strings may span tokens and end inside a block."""
    words = ["a", "b", "ab", "c", "é"[:1], " "]
    rule = StopRule(strings=("bab", "cc"), decode=lambda ids: "".join(words[i] for i in ids))
    assert rule.cut([0, 1, 2, 3], 0) == 3
    assert rule.cut([3, 3, 0], 1) == 2
    assert rule.cut([0, 0, 0], 0) is None
    with pytest.raises(ValueError, match="decode function"):
        StopRule(strings=("x",))
    with pytest.raises(ValueError, match="empty stop string"):
        StopRule(strings=("",), decode=str)


@pytest.mark.parametrize("method", METHODS)
def test_seeded_and_global_state_untouched(target, method):
    """Property 19: the same seed gives the same text, another seed another."""
    numpy_before, torch_before = np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    texts = []
    for seed in (1, 1, 2):
        r = request(new=16, seed=seed)
        decode(target, method, [r], warp=FLAT)
        texts.append(r.generated)
    assert texts[0] == texts[1] != texts[2]
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_vocabulary_mismatch(target):
    """Property 21."""
    other = random_model(tiny_config(VOCAB + 1), 0, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"draft has 14 tokens, the target 13"):
        Decoder(target, DraftModelDrafter(other), capacity=32)
    head = make_drafter("eagle", other)
    with pytest.raises(ValueError, match="another vocabulary"):
        Decoder(target, head, capacity=32)


def test_the_step_is_readable_on_one_screen():
    """Draft, verify, accept: the whole of `Decoder.step`, in under 60 lines."""
    assert len(inspect.getsource(Decoder.step).splitlines()) < 60


def test_the_baseline_takes_turns_with_the_decoder(target):
    """The speedup that `decode` prints: no run is ever a whole step's tokens behind."""
    settings = ([1, 2, 3, 1, 2], 24, 1, 0, StopRule())
    ours = report.make_run(Decoder(target, NgramDrafter(), policy=policy.fixed(4)), *settings)
    plain = report.make_run(Decoder(target), *settings)
    gaps = []
    report.interleave(ours, plain, lambda run: gaps.append(run.num_tokens - plain.num_tokens))
    assert ours.requests[0].generated == plain.requests[0].generated
    assert len(gaps) == ours.num_steps < plain.num_steps
    # Shown after a speculative step: what that step emitted, the baseline does not have yet.
    assert all(1 <= gap <= 5 for gap in gaps)
    assert ours.seconds > 0
    assert plain.seconds > 0


def test_bad_arguments(target):
    with pytest.raises(ValueError, match="k=-1 < 0"):
        policy.fixed(-1)
    with pytest.raises(ValueError, match="prompt has no tokens"):
        request(prompt=())
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        request(new=0)
    with pytest.raises(ValueError, match="exceed the cache's 16 slots"):
        Decoder(target, capacity=16).admit(request(new=12))
    with pytest.raises(ValueError, match="unknown accept rule 'lucky'"):
        Decoder(target, rule="lucky")
    with pytest.raises(ValueError, match="rows=0"):
        Decoder(target, rows=0)
    with pytest.raises(ValueError, match="early exit after 2 layers"):
        Decoder(target, EarlyExitDrafter(2), capacity=32)
    with pytest.raises(ValueError, match=r"n-gram lengths 3\.\.2"):
        NgramDrafter(longest=2, shortest=3)
    for token in (-1, VARIED_VOCABULARY):
        with pytest.raises(ValueError, match="token ids beyond the target's 13"):
            Decoder(target, capacity=32).admit(request(prompt=(1, token)))
    full = Decoder(target, capacity=32)
    full.admit(request())
    with pytest.raises(ValueError, match="all 1 rows are taken"):
        full.admit(request())


def test_lossy_rules_are_labelled():
    assert frozenset({"typical"}) == LOSSY_RULES
    assert "LOSSY" in (RULES["typical"].__doc__ or "")
    assert not any("LOSSY" in (RULES[r].__doc__ or "") for r in set(RULES) - LOSSY_RULES)


def test_ngram_copies_the_latest_continuation():
    """Longest suffix first, the latest occurrence, and short loops are continued."""
    drafter = NgramDrafter(longest=3, shortest=2)

    def drafted(tokens, k=3):
        return drafter.propose([request(prompt=tokens)], [(1,) * k], GREEDY)[0].tokens

    assert drafted([1, 2, 3, 4, 9, 1, 2, 3]) == [4, 9, 1]
    assert drafted([1, 2, 5, 1, 2, 6, 1, 2]) == [6, 1, 2]
    assert drafted([7, 1, 2, 5, 8, 1, 2, 6, 7, 1, 2]) == [5, 8, 1]
    assert drafted([4, 4, 4]) == [4, 4, 4]
    assert drafted([1, 2, 3]) == []
    assert drafted([1]) == []
    assert drafted([1, 2, 1, 2], k=0) == []


def test_policies():
    history = policy.History([4, 4, 0, 5], [4, 1, 0, 5])
    assert policy.adaptive(1, 8, 4)(history) == (1,) * 7  # 4 → 6 → 5 → (nothing drafted) → 7
    assert policy.schedule([2, 0])(policy.History([2, 0, 0], [1, 0, 0])) == ()
    assert policy.clamp((3, 2, 2), 9, 9) == (3, 2)
    assert policy.clamp((1,) * 8, 3, 99) == (1, 1, 1)
    assert policy.clamp((1, 1), -1, 9) == ()
    for bad in (lambda: policy.tree(), lambda: policy.tree(2, 0), lambda: policy.schedule([])):
        with pytest.raises(ValueError, match="at least one"):
            bad()
    with pytest.raises(ValueError, match="does not hold"):
        policy.adaptive(3, 2, 1)


def test_a_head_of_fewer_positions_limits_the_cache(target):
    """A head has rotary tables of its own: beyond their end it cannot draft."""
    config = EagleConfig.for_target(target.config, 8)
    head = random_head(replace(config, max_positions=24), 5, torch.float64)
    assert Decoder(target, EagleDrafter(head), capacity=40).cache.capacity == 24


def test_eagle_head_survives_a_file(target, tmp_path):
    """save_head and load_head: same tensors, same configuration; other files are refused."""
    head = make_drafter("eagle", target).head
    save_head(head, tmp_path / "head.safetensors")
    again = load_head(tmp_path / "head.safetensors", target.dtype, target.device)
    assert again.config == head.config
    for (name, a), (_, b) in zip(
        head.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    (tmp_path / "foreign.safetensors").write_bytes(b"\x08" + b"\0" * 30)
    with pytest.raises(ConfigError, match="not an EAGLE head"):
        load_head(tmp_path / "foreign.safetensors", target.dtype, target.device)


def test_overlap_recorded_only_where_q_is_known(target):
    decoder = Decoder(
        target, make_drafter("draft-model", target), warp=FLAT, policy=policy.fixed(3),
        capacity=48, with_overlap=True,
    )  # fmt: skip
    results = list(decoder.run([request(new=12)]))
    drafting = [step for step in results if step.num_drafted]
    assert drafting
    assert all(len(step.overlap) == step.num_drafted for step in drafting)
    assert all(0 <= x <= 1 + 1e-9 for step in drafting for x in step.overlap)
