"""The engine: conservation, an independent plain engine, common random numbers."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator_setups import IDEAL, deployment, length, run, setup, timings

from specsim.acceptance import BetaRequests, Iid, Markov, PerPosition, replay
from specsim.errors import ScenarioError
from specsim.metrics import Served, e2e, little
from specsim.simulator.cluster import Cluster
from specsim.simulator.result import records, served_columns
from specsim.simulator.runs import RunSampler, plan_steps
from specsim.simulator.setup import Fault, Limits, Setup
from specsim.simulator.speculation import Policy
from specsim.simulator.step_cost import StepCost
from specsim.workload.requests import Requests

POLICIES = [
    Policy(kind="off"),
    Policy(kind="fixed", num_draft_tokens=0),
    Policy(kind="fixed", num_draft_tokens=1),
    Policy(kind="fixed", num_draft_tokens=5),
    Policy(kind="batch-schedule", num_draft_tokens=4, schedule=((1, 2, 4), (3, 6, 2), (7, 99, 0))),
    Policy(kind="goodput", num_draft_tokens=6),
    Policy(kind="per-request", num_draft_tokens=6),
    Policy(kind="adaptive", num_draft_tokens=7, warmup=2),
]
LAWS = [Iid(0.0), Iid(0.8), Iid(1.0), PerPosition((0.9, 0.5, 0.2)), BetaRequests(4.0, 2.0),
        Markov(0.95, 0.3, 12.0, 6.0)]  # fmt: skip


class Watch:
    """Collects what every step did, and checks the engine's limits as it goes."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.steps = 0
        self._last_s = 0.0

    def step(
        self, replica: Any, k: Any, decode_tokens: int, prefill: Any, draft_s: float,
        pass_s: float, host_s: float,
    ) -> None:  # fmt: skip
        self.steps += 1
        prompt_tokens = prefill.tokens if prefill is not None else 0
        prompts = prefill.sequences if prefill is not None else 0
        assert 0 < decode_tokens + prompt_tokens <= self.limits.max_tokens
        assert replica.batch.count + prompts <= self.limits.max_num_seqs
        assert 0 <= replica.pool.used <= self.limits.num_blocks
        assert replica.env.now >= self._last_s
        assert min(draft_s, pass_s, host_s) >= 0
        self._last_s = replica.env.now


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    """Random small runs: tight memory, small budgets, several replicas, faults."""
    policy = draw(st.sampled_from(POLICIES))
    block_size = draw(st.sampled_from([1, 8, 16]))
    prompt, output = draw(st.integers(1, 300)), draw(st.integers(1, 60))
    longest = 8 * prompt + 8 * output + policy.largest
    limits = Limits(
        max_num_seqs=draw(st.sampled_from([1, 3, 16])),
        max_tokens=draw(st.sampled_from([16, 64, 4096])),
        num_blocks=longest // block_size + draw(st.sampled_from([1, 5, 50])),
        block_size=block_size,
        watermark=draw(st.sampled_from([0.0, 0.1])),
        overlapped=draw(st.booleans()),
    )
    replicas = draw(st.integers(1, 3))
    faults: tuple[Fault, ...] = ()
    if draw(st.booleans()):
        faults = (Fault(replica=draw(st.integers(0, replicas - 1)), stop_s=0.3, restart_s=0.9,
                        recompute=draw(st.booleans())),)  # fmt: skip
    rate = draw(st.sampled_from([None, 1.0, 20.0, 500.0]))
    return setup(
        k=policy.largest, policy=policy, law=draw(st.sampled_from(LAWS)), count=25, rate=rate,
        concurrency=draw(st.integers(1, 8)), prompt=length(prompt, "lognormal"),
        output=length(output, "lognormal"), limits=limits, replicas=replicas, faults=faults,
        prefill_replicas=draw(st.sampled_from([0, 0, 1, 2])), kv_link_bytes_per_s=1e9,
        router=draw(st.sampled_from(["round-robin", "least-loaded", "shortest-queue"])),
        seed=draw(st.integers(0, 99)),
    )  # fmt: skip


@settings(max_examples=120)
@given(given_setup=setups())
def test_conservation(given_setup: Setup) -> None:
    """Every request once; its tokens all; blocks all back; stamps in order; Little's law."""
    watch = Watch(given_setup.limits)
    cluster = Cluster(given_setup, log=watch)  # type: ignore[arg-type]
    cluster.run()
    ledger, asked = cluster.ledger, given_setup.requests
    count = len(asked)
    assert sorted(ledger.order) == list(range(count))
    assert ledger.completed + ledger.num_failed == count
    assert int(ledger.failed.sum()) == ledger.num_failed
    if not given_setup.faults or given_setup.faults[0].recompute:
        assert ledger.num_failed == 0
    for replica in cluster.replicas:
        assert replica.pool.used == 0
        assert replica.batch.count == 0
        assert replica.batch.context_sum == 0
        assert replica.outstanding_tokens() == 0
        assert list(replica.step_end_s) == sorted(replica.step_end_s)
    found = records(cluster)  # RequestRecord checks sums of tokens and order of times
    for record in found:
        if not record.failed:
            assert sum(record.chunk_tokens) == record.output_tokens
            assert min(record.chunk_tokens) >= 1
            assert record.arrival_s < record.chunk_times_s[0]
            assert all(a < b for a, b in pairwise(record.chunk_times_s))
            largest = given_setup.policy.largest + 1
            assert max(record.chunk_tokens) <= largest
    if ledger.completed:
        inside, rate_times_stay = little(served_columns(cluster, worst_gaps=False))
        assert inside == pytest.approx(rate_times_stay, rel=1e-9)


@settings(max_examples=40)
@given(given_setup=setups())
def test_columns_equal_records(given_setup: Setup) -> None:
    """Metrics from the ledger's columns and from records of chunks are the same."""
    cluster = run(given_setup)
    fast, slow = served_columns(cluster, worst_gaps=True), Served.from_records(records(cluster))
    assert np.array_equal(fast.first_s, slow.first_s, equal_nan=True)
    assert np.array_equal(fast.last_s, slow.last_s, equal_nan=True)
    done = fast.completed
    assert fast.worst_gap_s is not None
    assert slow.worst_gap_s is not None
    assert np.allclose(fast.worst_gap_s[done], slow.worst_gap_s[done])
    if not ledger_failed(cluster):  # a failed request's gaps are in no record
        repeated = np.sort(np.repeat(fast.gap_s, fast.gap_weight.astype(int)))
        assert np.allclose(repeated, np.sort(slow.gap_s))


def ledger_failed(cluster: Cluster) -> bool:
    return cluster.ledger.num_failed > 0


@settings(max_examples=60)
@given(given_setup=setups(), k=st.integers(0, 6))
def test_timetable_equals_roster(given_setup: Setup, k: int) -> None:
    """The fast book-keeping at fixed K and the step-by-step one decide the same bits."""
    policy = Policy(kind="fixed", num_draft_tokens=k)
    limits = replace(given_setup.limits, overlapped=False, max_tokens=512)
    fixed = replace(given_setup, policy=policy, limits=limits, deployment=deployment(k))
    fast, plain = run(fixed), run(fixed, force_roster=True)
    assert timings(fast) == timings(plain)
    assert records(fast) == records(plain)
    for a, b in zip(fast.replicas, plain.replicas, strict=True):
        assert a.batch.steps == b.batch.steps
        assert a.batch.accepted == b.batch.accepted
        assert a.preemptions == b.preemptions
        assert a.timer.draft_s == b.timer.draft_s


# --- an independent engine without any speculation code --------------------------------


class Plain:
    """One request of the plain engine."""

    def __init__(self, number: int, arrival: float, prompt: int, output: int) -> None:
        self.number, self.arrival, self.prompt, self.output = number, arrival, prompt, output
        self.said = self.computed = self.blocks = 0
        self.times: list[float] = []


def plain_engine(given_setup: Setup) -> list[list[float]]:
    """Continuous batching of one replica in forty lines: lists, and loops over tokens.
    Times of every token of every request."""
    limits, cost = (
        given_setup.limits,
        StepCost(given_setup.deployment, given_setup.source, given_setup.limits.max_tokens),
    )
    columns = given_setup.requests
    everything = [
        Plain(i, *row) for i, row in enumerate(zip(columns.arrival_s.tolist(),
        columns.prompt_tokens.tolist(), columns.output_tokens.tolist(), strict=True))
    ]  # fmt: skip
    pending, waiting = deque(everything), deque[Plain]()
    running: list[Plain] = []
    free, now = limits.num_blocks, 0.0
    while pending or waiting or running:
        if not (waiting or running):
            now = max(now, pending[0].arrival)
        while pending and pending[0].arrival <= now:
            waiting.append(pending.popleft())
        if not (waiting or running):
            continue
        decoding = [r for r in running if r.computed >= r.prompt + r.said - 1 and r.said]
        preempted = False
        while True:
            needed = {r: max(0, -(-(r.computed + 1) // limits.block_size) - r.blocks)
                      for r in decoding}  # fmt: skip
            if sum(needed.values()) <= free:
                break
            victim = running.pop()
            free += victim.blocks
            victim.blocks = victim.computed = 0
            waiting.appendleft(victim)
            decoding = [r for r in decoding if r is not victim]
            preempted = True
        for r, blocks in needed.items():
            r.blocks += blocks
            free -= blocks
        budget = limits.max_tokens - len(decoding)
        chunks: dict[Plain, int] = {}
        if not (preempted and decoding):
            for r in running:
                if r not in decoding and budget > 0:
                    chunks[r] = min(budget, r.prompt + r.said - r.computed)
                    budget -= chunks[r]
            while waiting and budget > 0 and len(running) < limits.max_num_seqs:
                r = waiting[0]
                blocks = -(-(r.prompt + r.said) // limits.block_size)
                kept = int(limits.watermark * limits.num_blocks) if running else 0
                if blocks > free - kept:
                    break
                running.append(waiting.popleft())
                r.blocks, free = blocks, free - blocks
                chunks[r] = min(budget, r.prompt + r.said)
                budget -= chunks[r]
        tokens = len(decoding) + sum(chunks.values())
        kv = float(sum(r.computed + 1 for r in decoding))
        kv += sum(r.computed + n for r, n in chunks.items())
        pairs = sum(r.computed + 1.0 for r in decoding)
        pairs += sum(n * (r.computed + (n + 1) / 2) for r, n in chunks.items())
        seqs = len(decoding) + len(chunks)
        now += cost.target_s(tokens, seqs, seqs, kv, pairs) + cost.host_s(seqs, 0)
        now += given_setup.deployment.runtime.prompt_token_s.value * sum(chunks.values())
        for r in decoding:
            r.computed += 1
        for r, n in chunks.items():
            r.computed += n
        for r in [*decoding, *chunks]:
            if r in chunks and r.computed < r.prompt + r.said:
                continue
            r.said += 1
            r.times.append(now)
            if r.said == r.output:
                running.remove(r)
                free += r.blocks
    return [r.times for r in everything]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 99), rate=st.sampled_from([2.0, 50.0, 1000.0]),
    blocks=st.sampled_from([60, 90, 5000]), seqs=st.sampled_from([1, 4, 64]),
    tokens=st.sampled_from([24, 100, 4096]), none=st.booleans(),
)  # fmt: skip
def test_without_speculation_it_is_the_plain_engine(
    seed: int, rate: float, blocks: int, seqs: int, tokens: int, none: bool
) -> None:
    """`off` and an engine that knows nothing of speculation: the same token times."""
    limits = Limits(max_num_seqs=seqs, max_tokens=tokens, num_blocks=blocks, watermark=0.02)
    policy = Policy(kind="off") if none else Policy(kind="fixed", num_draft_tokens=0)
    given_setup = setup(
        count=30, rate=rate, prompt=length(60, "lognormal"), output=length(30, "lognormal"),
        limits=limits, policy=policy, seed=seed, placed=deployment(runtime="vllm"),
    )  # fmt: skip
    expected = plain_engine(given_setup)
    found = records(run(given_setup))
    for record, times in zip(found, expected, strict=True):
        assert record.chunk_times_s == pytest.approx(times, rel=1e-12)


# --- common random numbers --------------------------------------------------------------


def test_same_seed_same_bytes_and_other_seed_others() -> None:
    first, second = run(setup(k=3, seed=1)), run(setup(k=3, seed=1))
    assert timings(first) == timings(second)
    assert timings(run(setup(k=3, seed=2))) != timings(first)


@pytest.mark.parametrize("policy", POLICIES[2:])
def test_policy_changes_no_arrival_length_or_run(policy: Policy) -> None:
    """What is drawn depends on seed and request alone."""
    drawn: dict[int, bytes] = {}

    def draw(chosen: Policy) -> tuple[Requests, dict[int, bytes]]:
        cluster = Cluster(setup(k=chosen.largest, policy=chosen, count=40))
        seen: dict[int, bytes] = {}
        assert cluster._sampler is not None
        sample = cluster._sampler.runs

        def remember(request: int, traffic: int, tokens: int) -> bytes:
            seen[request] = sample(request, traffic, tokens)
            return seen[request]

        cluster._sampler.runs = remember  # type: ignore[method-assign]
        cluster.run()
        return cluster.setup.requests, seen

    base, drawn = draw(POLICIES[2])
    other, again = draw(policy)
    assert np.array_equal(base.arrival_s, other.arrival_s)
    assert np.array_equal(base.output_tokens, other.output_tokens)
    assert drawn == again


def test_runs_do_not_depend_on_the_order_of_drawing() -> None:
    forward, backward = RunSampler([Iid(0.6)], 5), RunSampler([Iid(0.6)], 5)
    ids = range(20)
    a = {i: forward.runs(i, 0, 30 + i) for i in ids}
    b = {i: backward.runs(i, 0, 30 + i) for i in reversed(ids)}
    assert a == b
    assert len({runs[:30] for runs in a.values()}) == 20
    longer = RunSampler([Iid(0.6)], 5).runs(3, 0, 500)
    assert longer[:30] == a[3][:30]  # position t uses the t-th uniform, whatever the length


@settings(max_examples=60)
@given(alpha=st.sampled_from([0.0, 0.3, 0.8, 0.99, 1.0]), tokens=st.integers(1, 400),
       request=st.integers(0, 9), k=st.integers(0, 64))  # fmt: skip
def test_bytes_of_runs_are_those_of_the_law(
    alpha: float, tokens: int, request: int, k: int
) -> None:
    """The sampler's own way for an i.i.d. law gives what `sample_runs` draws, and a plan is
    its replay."""

    class Plain(Iid):
        """The same law, not taken for `Iid`."""

    fast = RunSampler([Iid(alpha)], 3).runs(request, 0, tokens)
    assert fast == RunSampler([Plain(alpha)], 3).runs(request, 0, tokens)
    runs = np.frombuffer(fast, np.uint8).astype(np.int64)
    assert list(plan_steps(fast, k, 0)) == (replay(runs, k) + 1).tolist()


# --- dominance ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_higher_alpha_needs_no_more_steps(seed: int) -> None:
    """A saturated fixed batch at fixed K: the runs are coupled, so that every request
    takes at most as many steps when α rises."""
    steps = []
    for alpha in (0.3, 0.6, 0.9):
        cluster = run(setup(k=4, rate=None, concurrency=8, count=40, law=Iid(alpha), seed=seed))
        steps.append(cluster.ledger.num_steps)
    assert np.all(steps[1] <= steps[0])
    assert np.all(steps[2] <= steps[1])
    assert steps[2].sum() < steps[0].sum()


@pytest.mark.parametrize("seed", range(5))
def test_more_bandwidth_is_not_slower(seed: int) -> None:
    from specsim.cost.roofline import Roofline

    means = []
    for factor in (1.0, 1.5, 3.0):
        base = setup(k=3, count=200, rate=8.0, seed=seed)
        gpu = replace(
            base.deployment.gpu,
            bandwidth_bytes_per_s=base.deployment.gpu.bandwidth_bytes_per_s * factor,
        )
        faster = replace(
            base, source=Roofline(gpu=gpu), deployment=replace(base.deployment, gpu=gpu)
        )
        means.append(float(np.mean(e2e(served_columns(run(faster), worst_gaps=False)))))
    assert means == sorted(means, reverse=True)


# --- switches whose effect is worked out by hand -----------------------------------------


def test_budget_of_speculating_sequences() -> None:
    """12 tokens a step at K = 4: two sequences decode at once, never three (a third prompt
    would find room for two of its tokens)."""
    limits = Limits(max_num_seqs=16, max_tokens=12, num_blocks=4000)
    watch = Watch(limits)
    given_setup = setup(k=4, rate=500.0, prompt=length(6), limits=limits)
    cluster = Cluster(given_setup, log=watch)  # type: ignore[arg-type]
    cluster.run()
    assert max(cluster.replicas[0].decoding) == 2


def test_preemption_recomputes_what_was_said() -> None:
    """Two requests of 16 + 32 tokens in 5 blocks of 16: the second is preempted when both
    need a third block, and its tokens are computed again."""
    limits = Limits(max_num_seqs=4, max_tokens=64, num_blocks=5, watermark=0.0)
    given_setup = setup(
        count=2, rate=None, concurrency=2, prompt=length(16), output=length(32), limits=limits
    )
    cluster = run(given_setup)
    replica = cluster.replicas[0]
    assert replica.preemptions == 1
    assert cluster.ledger.preemptions.tolist() == [0, 1]
    # 16 prompt tokens and 16 said ones fill two blocks when the third is asked for
    assert replica.timer.prefill_tokens == 16 + 16 + (16 + 17)
    chunks = records(cluster)[1].chunk_times_s
    assert len(chunks) == 32
    assert np.argmax(np.diff(chunks)) == 16  # it waits after its 17th token


def test_preempted_request_keeps_its_runs() -> None:
    limits = Limits(max_num_seqs=8, max_tokens=256, num_blocks=14, watermark=0.0)
    tight = setup(k=3, count=20, rate=None, concurrency=8, limits=limits)
    cluster = run(tight)
    assert cluster.replicas[0].preemptions > 0
    assert all(sum(r.chunk_tokens) == r.output_tokens for r in records(cluster))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_blocks": 3}, "do not fit the KV cache of 48 tokens"),
        ({"max_tokens": 3}, "K = 4: one sequence needs 5 tokens a step"),
        ({"max_tokens": 20, "chunked_prefill": False}, "prompt of 64 tokens exceeds"),
    ],
)
def test_a_run_that_cannot_finish_is_refused(change: dict[str, Any], message: str) -> None:
    limits = replace(Limits(max_tokens=512, num_blocks=4000), **change)
    with pytest.raises(ScenarioError, match=message):
        Cluster(setup(k=4, limits=limits))


def test_unchunked_prompts_are_computed_whole() -> None:
    """20 + 20 tokens do not fit a step of 30: one prompt a step."""
    limits = Limits(max_num_seqs=8, max_tokens=30, num_blocks=4000, chunked_prefill=False)
    cluster = run(
        setup(count=2, rate=None, concurrency=2, prompt=length(20), output=length(5), limits=limits)
    )
    first = cluster.ledger.first_step
    assert first.tolist() == [0, 1]
    chunked = replace(limits, chunked_prefill=True)
    given_setup = setup(
        count=2, rate=None, concurrency=2, prompt=length(20), output=length(5), limits=chunked
    )
    watch: list[int] = []

    class Log:
        def step(self, replica: Any, k: Any, tokens: int, prefill: Any, *times: float) -> None:
            watch.append(0 if prefill is None else prefill.tokens)

    cluster = Cluster(given_setup, log=Log())  # type: ignore[arg-type]
    cluster.run()
    assert watch[:2] == [30, 10]


def test_ideal_runtime_has_no_host_time() -> None:
    cluster = run(setup(k=2))
    assert IDEAL.step_s.value == 0
    assert cluster.replicas[0].timer.host_s == 0
