"""Property 23: G-tests of what the decoder emits, end to end, against the exact joint.

A 2-layer model with 64 tokens and its KV cache, in float32, decoded in ragged batches
with seeded randomness; n = 20,000 sequences a method, significance 1e-6.
"""

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from test_reference_helpers import make_drafter, tiny_config

from reference import policy
from reference.cache import make_batch
from reference.decode import Decoder
from reference.model import random_model
from reference.request import Request
from reference.sampling import SeededRandomness, Warp

SAMPLES, SIGNIFICANCE = 20_000, 1e-6
HORIZON = 5  # one token from the prompt's pass, then K + 2 from speculative steps
PROMPT = [3, 14, 15, 9, 3, 14]
VOCAB = 64
SAMPLED = Warp(temperature=1.3)
NARROW = Warp(temperature=1.3, top_k=20, top_p=0.9)


def g_test(observed, expected):
    """p-value of G = 2 Σ O ln(O/E) over cells pooled until each expects at least 5.

    Counts and expectations are (cells,). A hit where the expectation is 0 fails at once.
    """
    observed, expected = np.asarray(observed, float), np.asarray(expected, float)
    if observed[expected == 0].any():
        return 0.0
    order = np.argsort(-expected)
    observed, expected = observed[order], expected[order]
    own = expected >= 5
    o = [*observed[own], observed[~own].sum()]
    e = [*expected[own], expected[~own].sum()]
    if e[-1] < 5:  # too little left for a cell: join the smallest one
        o, e = [*o[:-2], o[-2] + o[-1]], [*e[:-2], e[-2] + e[-1]]
    o, e = np.array(o), np.array(e)
    terms = np.where(o > 0, o * np.log(np.where(o > 0, o, 1) / e), 0.0)
    return float(chi2.sf(2 * terms.sum(), len(o) - 1))


def batched_next(model, prefixes, warp):
    """(N, V) exact next-token probabilities after prompt + each prefix."""
    result = []
    for chunk in prefixes.split(2048):
        cache = model.new_cache(len(chunk), len(PROMPT) + chunk.shape[1])
        rows = [[*PROMPT, *line] for line in chunk.tolist()]
        batch = make_batch(rows, cache)
        last = torch.arange(1, len(rows) + 1) * len(rows[0]) - 1
        with torch.inference_mode():
            result.append(warp.probabilities(model(batch, cache, select=last).logits))
    return torch.cat(result)


def exact_joints(model, warp):
    """Joint (64, 64) of output tokens 1–2, and of tokens 3–4, summed over the first two."""
    single = torch.arange(VOCAB)[:, None]
    first = batched_next(model, torch.empty(1, 0, dtype=torch.long), warp)[0]
    second = batched_next(model, single, warp)
    early = first[:, None] * second
    pairs = torch.cartesian_prod(torch.arange(VOCAB), torch.arange(VOCAB))
    third = batched_next(model, pairs, warp)  # (64², 64)
    late = torch.zeros(VOCAB, VOCAB, dtype=torch.float64)
    for pair, weight, line in zip(pairs, early.flatten(), third, strict=True):
        if weight == 0:
            continue
        triples = torch.cat((pair.expand(VOCAB, 2), single), dim=1)
        possible = line > 0
        after = torch.zeros(VOCAB, VOCAB, dtype=torch.float64)
        after[possible] = batched_next(model, triples[possible], warp)
        late += weight * line[:, None] * after
    return early, late


@pytest.fixture(scope="module")
def model():
    config = tiny_config(VOCAB, hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=8)
    return random_model(config, 21, scale=0.8)


@pytest.fixture(scope="module")
def joints(model):
    return {warp: exact_joints(model, warp) for warp in (SAMPLED, NARROW)}


def sample(model, method, policy_, rule, warp, *, distinct=False, seed=0, samples=SAMPLES):
    """(samples, HORIZON) emitted tokens, through batches whose rows accept differently."""
    options = {"distinct": True} if distinct else {}
    decoder = Decoder(
        model, make_drafter(method, model, **options), warp=warp, policy=policy_, rule=rule,
        rows=256, capacity=16,
    )  # fmt: skip
    requests = [Request(f"{i}", PROMPT, HORIZON, SeededRandomness(seed, i)) for i in range(samples)]
    for _ in decoder.run(requests):
        pass
    return np.array([r.generated for r in requests])


def assert_distribution(tokens, joints):
    for pair, joint in zip((tokens[:, :2], tokens[:, 2:4]), joints, strict=True):
        cells = np.bincount(pair[:, 0] * VOCAB + pair[:, 1], minlength=VOCAB**2)
        assert g_test(cells, joint.flatten().numpy() * len(tokens)) > SIGNIFICANCE


CASES = {
    "autoregressive": ("none", policy.fixed(0), "chain", SAMPLED, False),
    "ngram": ("ngram", policy.fixed(2), "chain", SAMPLED, False),
    "early-exit": ("early-exit", policy.fixed(2), "chain", SAMPLED, False),
    "draft-model": ("draft-model", policy.fixed(2), "chain", SAMPLED, False),
    "eagle": ("eagle", policy.fixed(2), "chain", SAMPLED, False),
    "block": ("early-exit", policy.fixed(2), "block", SAMPLED, False),
    "tree": ("early-exit", policy.tree(2, 1), "tree", SAMPLED, False),
    "distinct": ("draft-model", policy.tree(3), "tree", SAMPLED, True),
    "top-k-top-p": ("early-exit", policy.fixed(2), "chain", NARROW, False),
}


@pytest.mark.parametrize("case", CASES)
def test_g_test(model, joints, case):
    """Every method and rule passes; see `test_g_test_has_power` for what would not."""
    method, shape, rule, warp, distinct = CASES[case]
    assert_distribution(sample(model, method, shape, rule, warp, distinct=distinct), joints[warp])


def test_g_test_has_power(model, joints):
    """The same test refuses typical acceptance, and a target at another temperature."""
    tokens = sample(model, "early-exit", policy.fixed(2), "typical", SAMPLED, samples=8000)
    with pytest.raises(AssertionError):
        assert_distribution(tokens, joints[SAMPLED])
    tokens = sample(model, "none", policy.fixed(0), "chain", Warp(temperature=1.0), samples=8000)
    with pytest.raises(AssertionError):
        assert_distribution(tokens, joints[SAMPLED])


def test_g_test_itself():
    """Uniform counts pass, a shifted count and an impossible hit fail."""
    expected = np.full(50, 400.0)
    assert g_test(np.random.default_rng(1).multinomial(20000, [0.02] * 50), expected) > 1e-3
    assert g_test(expected + np.where(np.arange(50) < 25, 60, -60), expected) < 1e-6
    assert g_test([1, 19999], [0, 20000]) == 0.0
