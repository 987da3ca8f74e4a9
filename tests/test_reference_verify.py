"""The accept rules on arbitrary distributions, by exact enumeration of their randomness."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from test_reference_helpers import tables

from reference import verify
from reference.draft.tree import Draft, draw_children
from reference.exact import distribution, outcomes, total_variation
from reference.sampling import SeededRandomness, Warp, check_total, invert, without

TOLERANCE = 1e-12
RULES = {"chain": verify.verify_chain, "block": verify.verify_block, "tree": verify.verify_tree}
SAMPLED = Warp(temperature=1.0)

seeds = st.integers(0, 2**32 - 1)
vocabularies = st.integers(1, 4)
zeros = st.sampled_from([0.0, 0.0, 0.4])


def log(q):
    """Logits whose softmax is q (V,)."""
    return q.log()


def propose_chain(q, k, chooser, prefix=()):
    """K tokens, each drawn from q at its prefix."""
    draft = Draft()
    for i in range(k):
        token = chooser.categorical(q[(*prefix, *draft.tokens)])
        draft.probs[i] = q[(*prefix, *draft.tokens)]
        draft.add(i - 1, token)
    return draft


def chain_rows(p, draft, prefix=()):
    """(K + 1, V): p after each prefix of the draft."""
    return torch.stack([p[(*prefix, *draft.tokens[:i])] for i in range(len(draft.tokens) + 1)])


def node_prefix(draft, node):
    prefix = []
    while node != Draft.ROOT:
        prefix.insert(0, draft.tokens[node])
        node = draft.parents[node]
    return tuple(prefix)


def tree_rows(p, draft):
    """(N + 1, V): p at the root and at each node."""
    nodes = range(-1, len(draft.tokens))
    return torch.stack([p[node_prefix(draft, node)] for node in nodes])


def one_step(p, q, k, rule):
    """Program: one step's emitted tokens."""

    def program(chooser):
        draft = propose_chain(q, k, chooser)
        verdict = RULES[rule](draft, chain_rows(p, draft), chooser)
        return (*(draft.tokens[i] for i in verdict.path), verdict.token)

    return program


def expected_accepted(p, q, k, rule):
    return sum(w * (len(emitted) - 1) for w, emitted in outcomes(one_step(p, q, k, rule)))


def product(p, sequence, start=0):
    return math.prod(float(p[sequence[:i]][sequence[i]]) for i in range(start, len(sequence)))


def overlap(p, q):
    return float(torch.minimum(p, q).sum())


@given(seeds, vocabularies, st.integers(0, 3), zeros, st.sampled_from(sorted(RULES)))
def test_first_token_has_the_target_distribution(seed, v, k, zero, rule):
    """Property 1: the first token's marginal of one step is p."""
    p, q = tables(seed, v, k, zero), tables(seed + 1, v, k, zero)
    first = distribution(lambda chooser: one_step(p, q, k, rule)(chooser)[0])
    assert total_variation(first, dict(enumerate(p[()].tolist()))) <= TOLERANCE


@given(seeds, st.integers(2, 3), st.integers(1, 2), zeros, st.sampled_from(sorted(RULES)))
def test_joint_over_the_loop(seed, v, k, zero, rule):
    """Property 2: the joint over k + 2 tokens of the loop is the product of p's."""
    horizon = k + 2 if v == 2 else 3
    p, q = tables(seed, v, horizon + k, zero), tables(seed + 1, v, horizon + k, zero)

    def program(chooser):
        tokens = ()
        while len(tokens) < horizon:
            draft = propose_chain(q, min(k, horizon - len(tokens) - 1), chooser, tokens)
            verdict = RULES[rule](draft, chain_rows(p, draft, tokens), chooser)
            tokens += (*(draft.tokens[i] for i in verdict.path), verdict.token)
        return tokens

    expected = {
        s: weight
        for s in itertools.product(range(v), repeat=horizon)
        if (weight := product(p, s)) > 0
    }
    assert total_variation(distribution(program), expected) <= TOLERANCE


@given(seeds, vocabularies, st.integers(1, 3), zeros)
def test_chance_of_accepting_the_first_token(seed, v, k, zero):
    """Property 3: P(accept first) = Σ min(p, q) = 1 − TV(p, q)."""
    p, q = tables(seed, v, k, zero), tables(seed + 1, v, k, zero)
    accepted = distribution(lambda chooser: len(one_step(p, q, k, "chain")(chooser)) > 1)
    tv = 0.5 * float((p[()] - q[()]).abs().sum())
    assert accepted.get(True, 0.0) == pytest.approx(1 - tv, abs=TOLERANCE)
    assert accepted.get(True, 0.0) == pytest.approx(overlap(p[()], q[()]), abs=TOLERANCE)


@given(seeds, st.integers(1, 3), st.integers(1, 3), zeros)
def test_expected_number_accepted(seed, v, k, zero):
    """Property 4: E[accepted] = Σ_n Σ_x Π_j min(p_j, q_j) over prefixes x of length n ≤ K."""
    p, q = tables(seed, v, k, zero), tables(seed + 1, v, k, zero)
    expected = 0.0
    for n in range(1, k + 1):
        for x in itertools.product(range(v), repeat=n):
            expected += math.prod(
                min(float(p[x[:j]][x[j]]), float(q[x[:j]][x[j]])) for j in range(n)
            )
    assert expected_accepted(p, q, k, "chain") == pytest.approx(expected, abs=TOLERANCE)


@given(seeds, st.integers(2, 4), st.integers(0, 3))
def test_tokens_per_step_of_a_constant_alpha(seed, v, k):
    """Property 4: with one p and one q for all contexts, τ = (1 − α^{K+1}) / (1 − α)."""
    p, q = tables(seed, v, 0)[()], tables(seed + 1, v, 0)[()]
    prefixes = [x for n in range(k + 1) for x in itertools.product(range(v), repeat=n)]
    constant_p, constant_q = dict.fromkeys(prefixes, p), dict.fromkeys(prefixes, q)
    alpha = overlap(p, q)
    tau = 1 + expected_accepted(constant_p, constant_q, k, "chain")
    assert tau == pytest.approx((1 - alpha ** (k + 1)) / (1 - alpha), rel=1e-9)


@given(seeds, vocabularies, zeros)
def test_residual(seed, v, zero):
    """Property 6: the residual is ≥ 0, sums to 1, and is zero where p ≤ q."""
    p, q = tables(seed, v, 0, zero)[()], tables(seed + 1, v, 0, zero)[()]
    rest = verify.residual(p, q)
    assert float(rest.min()) >= 0
    assert float(rest.sum()) == pytest.approx(1, abs=1e-12)
    if not torch.equal(p, q):
        assert float(rest[p <= q].sum()) == 0
        expected = (p - q).clamp(min=0)
        torch.testing.assert_close(rest, expected / expected.sum())


def test_residual_of_equal_distributions_is_the_target():
    """Property 7: p = q leaves no mass; the stated fallback is p."""
    p = torch.tensor([0.25, 0.75], dtype=torch.float64)
    assert torch.equal(verify.residual(p, p.clone()), p)


def rows(*lines):
    return torch.tensor(lines, dtype=torch.float64)


def chain(tokens, probs):
    draft = Draft()
    for i, token in enumerate(tokens):
        draft.add(i - 1, token)
        draft.probs[i] = None if probs is None else rows(*probs)[i]
    return draft


@pytest.mark.parametrize("rule", sorted(RULES))
class TestDegenerateSupports:
    """Property 7."""

    def emitted(self, rule, draft, p):
        def program(chooser):
            verdict = RULES[rule](draft, p, chooser)
            return len(verdict.path), verdict.token

        return distribution(program)

    def test_disjoint(self, rule):
        p = rows([0, 1, 0], [1, 0, 0])
        assert self.emitted(rule, chain([0], [[1, 0, 0]]), p) == {(0, 1): 1.0}

    def test_one_hot_and_equal(self, rule):
        p = rows([0, 1, 0], [0, 0, 1])
        assert self.emitted(rule, chain([1], [[0, 1, 0]]), p) == {(1, 2): 1.0}

    def test_nothing_drafted(self, rule):
        p = rows([0.5, 0.5])
        assert self.emitted(rule, Draft(), p) == {(0, 0): 0.5, (0, 1): 0.5}

    def test_one_token_vocabulary(self, rule):
        p = rows([1], [1], [1])
        assert self.emitted(rule, chain([0, 0], [[1], [1]]), p) == {(2, 0): 1.0}

    def test_fixed_token_that_the_target_never_emits(self, rule):
        p = rows([0.5, 0.5, 0], [1, 0, 0])
        result = self.emitted(rule, chain([2], None), p)
        assert result == pytest.approx({(0, 0): 0.5, (0, 1): 0.5})

    def test_token_with_q_zero_is_refused(self, rule):
        p = rows([0.5, 0.5], [0.5, 0.5])
        with pytest.raises(ValueError, match="not drawn from that distribution"):
            RULES[rule](chain([1], [[1, 0]]), p, SeededRandomness(0))


class ExtremeRandomness:
    """u = 0, the smallest draw; and the first token of positive weight."""

    def bernoulli(self, probability):
        return probability > 0.0

    def categorical(self, weights):
        check_total(float(weights.sum()))
        return invert(weights.cumsum(0), 0.0)


@given(seeds, st.integers(2, 4), st.integers(1, 3), st.sampled_from(sorted(RULES)))
def test_impossible_tokens_are_never_emitted(seed, v, k, rule):
    """Properties 7 and 8: p(x) = 0 has no branch, and u = 0 does not accept it."""
    p, q = tables(seed, v, k, 0.5), tables(seed + 1, v, k, 0.3)
    for _, emitted in outcomes(one_step(p, q, k, rule)):
        assert product(p, emitted) > 0
    assert product(p, one_step(p, q, k, rule)(ExtremeRandomness())) > 0


@given(seeds, st.integers(2, 4), st.integers(1, 3), st.sampled_from(sorted(RULES)))
def test_fixed_drafts_are_lossless(seed, v, k, rule):
    """Property 9: tokens that were not drawn (q = None) keep p, and accept with p(x)."""
    p = tables(seed, v, k)
    tokens = np.random.default_rng(seed).integers(v, size=k).tolist()
    draft = chain(tokens, None)

    def program(chooser):
        verdict = RULES[rule](draft, chain_rows(p, draft), chooser)
        return (*(tokens[i] for i in verdict.path), verdict.token)

    result = distribution(program)
    first = {x: sum(w for e, w in result.items() if e[0] == x) for x in range(v)}
    assert total_variation(first, dict(enumerate(p[()].tolist()))) <= TOLERANCE
    accepted = sum(w for e, w in result.items() if len(e) > 1)
    if rule != "block":
        assert accepted == pytest.approx(float(p[()][tokens[0]]), abs=TOLERANCE)


def test_greedy_is_the_sampled_rule_on_one_hot_targets():
    """Property 18: at temperature 0 two rules meet: argmax, and one-hot probabilities."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        logits = torch.randn(4, 5, generator=generator, dtype=torch.float64)
        tokens = torch.randint(5, (3,), generator=generator).tolist()
        tokens[:2] = logits[:2].argmax(-1).tolist()
        p = Warp(temperature=0).probabilities(logits)
        draft = chain(tokens, None)
        sampled = verify.verify_chain(draft, p, SeededRandomness(1))
        assert verify.verify_greedy(draft, logits.argmax(-1).tolist()) == sampled


def test_greedy_compares_with_the_argmax():
    """A token likelier than not to be sampled is still rejected when it is not the argmax."""
    assert verify.verify_greedy(chain([1, 0], None), [1, 2, 0]).path == (0,)
    assert verify.verify_greedy(chain([1, 0], None), [1, 2, 0]).token == 2
    assert verify.verify_greedy(chain([1, 2], None), [1, 2, 0]) == verify.Verdict((0, 1), 0)


# --- Several drafts for a position, and trees -----------------------------------------


def siblings_program(p, q, m, distinct):
    def program(chooser):
        draft = Draft(distinct=distinct)
        draw_children(draft, Draft.ROOT, log(q[()]), m, SAMPLED, chooser)
        verdict = verify.verify_tree(draft, tree_rows(p, draft), chooser)
        return (*(draft.tokens[i] for i in verdict.path), verdict.token)

    return program


@given(seeds, st.integers(2, 4), st.integers(1, 3), zeros, st.booleans())
def test_siblings_keep_the_target(seed, v, m, zero, distinct):
    """Properties 10 and 11: m drafts of one position, with and without replacement."""
    p, q = tables(seed, v, 1, zero), tables(seed + 1, v, 1, zero)
    result = distribution(siblings_program(p, q, m, distinct))
    first = {x: sum(w for e, w in result.items() if e[0] == x) for x in range(v)}
    assert total_variation(first, dict(enumerate(p[()].tolist()))) <= TOLERANCE


@given(seeds, st.integers(2, 4), st.integers(1, 3), zeros)
def test_acceptance_of_independent_siblings(seed, v, m, zero):
    """Property 10: P(accept) = 1 − Π(1 − α_j), α_j the overlap of q with round j's residual."""
    p, q = tables(seed, v, 1, zero), tables(seed + 1, v, 1, zero)
    rest, miss = p[()], 1.0
    for _ in range(m):
        miss *= 1 - overlap(rest, q[()])
        surplus = (rest - q[()]).clamp(min=0)
        rest = surplus / surplus.sum() if surplus.sum() > 0 else rest
    result = distribution(siblings_program(p, q, m, False))
    accepted = sum(w for e, w in result.items() if len(e) > 1)
    assert accepted == pytest.approx(1 - miss, abs=1e-9)


def optimal_transport(p, q, m):
    """Best possible P(output ∈ drafts) of any coupling of p with m i.i.d. drafts (an LP)."""
    v = len(p)
    drafts = list(itertools.product(range(v), repeat=m))
    chance = [math.prod(q[x] for x in d) for d in drafts]
    cost = [-1.0 if x in d else 0.0 for d in drafts for x in range(v)]
    equal, value = [], []
    for i, c in enumerate(chance):  # the drafts' marginal
        equal.append([1.0 if i == j else 0.0 for j in range(len(drafts)) for _ in range(v)])
        value.append(c)
    for x in range(v):  # the target's marginal
        equal.append([1.0 if x == y else 0.0 for _ in drafts for y in range(v)])
        value.append(p[x])
    return -linprog(cost, A_eq=equal, b_eq=value, bounds=(0, 1)).fun


@given(seeds, st.integers(2, 3))
def test_single_recursive_optimal(seed, v):
    """Property 10: one draft ≤ recursive rejection of two ≤ optimal transport."""
    p, q = tables(seed, v, 1), tables(seed + 1, v, 1)
    result = distribution(siblings_program(p, q, 2, False))
    recursive = sum(w for e, w in result.items() if len(e) > 1)
    best = optimal_transport(p[()].tolist(), q[()].tolist(), 2)
    assert overlap(p[()], q[()]) <= recursive + 1e-9
    assert recursive <= best + 1e-7


def test_second_sibling_without_replacement_differs():
    """Property 11: the second draw has the first one's mass removed and is renormalised."""
    q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

    def program(chooser):
        draft = Draft(distinct=True)
        draw_children(draft, Draft.ROOT, log(q), 3, SAMPLED, chooser)
        return tuple(draft.tokens)

    result = distribution(program)
    assert len(result) == 6
    assert result[(0, 1, 2)] == pytest.approx(0.5 * 0.3 / 0.5)
    assert result[(2, 0, 1)] == pytest.approx(0.2 * 0.5 / 0.8)


def draw_tree(q, shape, chooser, distinct):
    draft, level = Draft(distinct=distinct), [Draft.ROOT]
    for width in shape:
        level = [
            child
            for node in level
            for child in draw_children(
                draft, node, log(q[node_prefix(draft, node)]), width, SAMPLED, chooser
            )
        ]
    return draft


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize(("v", "shape"), [(2, (2, 2)), (3, (2, 1)), (3, (1, 2)), (3, (3,))])
@pytest.mark.parametrize("seed", range(4))
def test_tree_joint(seed, v, shape, distinct):
    """Property 12: a step over a tree, then autoregression, has the product of p's."""
    horizon = len(shape) + 2
    p, q = tables(seed, v, horizon, 0.1), tables(seed + 50, v, horizon)

    def program(chooser):
        draft = draw_tree(q, shape, chooser, distinct)
        verdict = verify.verify_tree(draft, tree_rows(p, draft), chooser)
        return (*(draft.tokens[i] for i in verdict.path), verdict.token)

    emitted = distribution(program)
    joint = {}
    for prefix, weight in emitted.items():
        for rest in itertools.product(range(v), repeat=horizon - len(prefix)):
            s = (*prefix, *rest)
            joint[s] = joint.get(s, 0.0) + weight * product(p, s, len(prefix))
    expected = {s: product(p, s) for s in itertools.product(range(v), repeat=horizon)}
    assert total_variation(joint, expected) <= TOLERANCE


@given(seeds, st.integers(2, 3), st.integers(1, 3))
def test_block_accepts_more_than_chain(seed, v, k):
    """Property 13: chain ≤ block ≤ Σ_n Σ_x min(P(x), Q(x)), the most any coupling accepts."""
    p, q = tables(seed, v, k), tables(seed + 1, v, k)
    bound = sum(
        min(product(p, x), product(q, x))
        for n in range(1, k + 1)
        for x in itertools.product(range(v), repeat=n)
    )
    block = expected_accepted(p, q, k, "block")
    assert expected_accepted(p, q, k, "chain") <= block + TOLERANCE
    assert block <= bound + TOLERANCE


def test_block_is_strictly_better_somewhere():
    """Property 13 is not an equality: block verification gains on an ordinary pair."""
    p, q = tables(3, 3, 2), tables(4, 3, 2)
    assert expected_accepted(p, q, 2, "block") > expected_accepted(p, q, 2, "chain") + 1e-3


@given(seeds, vocabularies, st.integers(0, 3), st.sampled_from(sorted(RULES)))
def test_draft_that_is_the_target_is_accepted_whole(seed, v, k, rule):
    """Property 17."""
    p = tables(seed, v, k)
    lengths = distribution(lambda chooser: len(one_step(p, p, k, rule)(chooser)))
    assert lengths.get(k + 1, 0.0) == pytest.approx(1, abs=1e-9)


@given(seeds, st.integers(2, 4), st.integers(1, 3))
def test_overlap_is_what_the_records_say(seed, v, k):
    """The recorded overlap is 1 − TV(p, q) at each drafted position."""
    p, q = tables(seed, v, k), tables(seed + 1, v, k)
    draft = propose_chain(q, k, SeededRandomness(seed))
    for i, value in enumerate(verify.overlap(draft, chain_rows(p, draft))):
        prefix = tuple(draft.tokens[:i])
        assert value == pytest.approx(overlap(p[prefix], q[prefix]), abs=TOLERANCE)


# --- Sampling -------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [[0.5, 0.4], [0.5, 0.6], [1.0, 1e-8], [float("nan"), 1]])
def test_categorical_refuses_weights_that_do_not_sum_to_one(weights):
    """An un-normalised residual cannot hide."""
    with pytest.raises(ValueError, match="not to 1"):
        SeededRandomness(0).categorical(torch.tensor(weights, dtype=torch.float64))


@given(seeds, st.integers(1, 6), st.floats(0, 1, exclude_max=True))
def test_inversion_never_picks_weight_zero(seed, v, u):
    """Property 8: the index drawn has positive weight and brackets u."""
    weights = tables(seed, v, 0, 0.5)[()]
    cumulative = weights.cumsum(0)
    index = invert(cumulative, u)
    assert float(weights[index]) > 0
    assert u < float(cumulative[index]) or index == int(weights.nonzero()[-1])


@given(seeds, st.integers(2, 9), st.integers(0, 5), st.floats(0.05, 1), st.floats(0.2, 3))
def test_warp_against_plain_python(seed, v, top_k, top_p, temperature):
    """Temperature, top-k, top-p against a direct computation on sorted lists."""
    logits = torch.tensor(np.random.default_rng(seed).normal(size=v))
    warp = Warp(temperature=temperature, top_k=top_k, top_p=top_p)
    order = sorted(range(v), key=lambda i: -float(logits[i]))
    order = order[: top_k or v]
    weight = {i: math.exp(float(logits[i]) / temperature) for i in order}
    total, mass, expected = sum(weight.values()), 0.0, {}
    for i in order:
        if mass >= top_p:
            break
        expected[i] = weight[i] / total
        mass += expected[i]
    scale = sum(expected.values())
    got = warp.probabilities(logits)
    assert float(got.sum()) == pytest.approx(1, abs=1e-12)
    assert got.tolist() == pytest.approx([expected.get(i, 0) / scale for i in range(v)], abs=1e-9)


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}]
)
def test_warp_refuses(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Warp(**bad)


def test_draws_are_fresh_seeded_and_leave_global_state_alone():
    """Property 19: same seed, same draws; other stream, other draws; no global state."""
    numpy_before, torch_before = np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    weights = torch.full((1000,), 1e-3, dtype=torch.float64)

    def draws(seed, stream):
        randomness = SeededRandomness(seed, stream)
        return [randomness.categorical(weights) for _ in range(20)]

    assert draws(1, 0) == draws(1, 0)
    assert draws(1, 0) != draws(1, 1) != draws(2, 1)
    assert len(set(draws(1, 0))) > 15
    assert np.random.get_state()[1].tolist() == numpy_before  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_before)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_bernoulli_frequency(probability):
    randomness = SeededRandomness(4)
    n = 20000
    hits = sum(randomness.bernoulli(probability) for _ in range(n))
    spread = math.sqrt(probability * (1 - probability) / n)
    assert abs(hits / n - probability) <= 6 * spread


def test_successive_draws_are_independent():
    """Property 19: a choice tells nothing about the next one (a shared uniform would)."""
    randomness, tenth = SeededRandomness(11), torch.full((10,), 0.1, dtype=torch.float64)
    counts = np.zeros((2, 10))
    repeats = np.zeros(10)
    before = None
    for _ in range(4000):
        accepted, token = randomness.bernoulli(0.5), randomness.categorical(tenth)
        counts[int(accepted), token] += 1
        repeats[token] += token == before
        before = token
    assert abs(counts - 200).max() < 6 * math.sqrt(200)
    assert abs(repeats - 40).max() < 6 * math.sqrt(40)


def test_smallest_uniform_accepts_nothing_impossible():
    """Property 7: u = 0 from the production generator; a = 0 stays impossible."""

    class Zero:
        def random(self):
            return 0.0

    randomness = SeededRandomness(0)
    randomness._generator = Zero()
    assert not randomness.bernoulli(0.0)
    assert randomness.bernoulli(1e-300)
    assert randomness.categorical(torch.tensor([0.0, 1.0], dtype=torch.float64)) == 1


def test_without_the_only_token():
    p = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert torch.equal(without(p, 1), p)


def test_typical_acceptance_threshold():
    """Medusa: accept iff p(x) > min(ε, δ·exp(−H)); at one-hot p it is exact."""
    p = rows([0.5, 0.3, 0.2], [1, 0, 0])
    entropy = -sum(x * math.log(x) for x in (0.5, 0.3, 0.2))
    for delta, kept in ((0.3 * math.exp(entropy) * 0.99, 1), (0.3 * math.exp(entropy) * 1.01, 0)):
        verdict = verify.verify_typical(
            chain([1], None), p, SeededRandomness(0), epsilon=1.0, delta=delta
        )
        assert len(verdict.path) == kept
