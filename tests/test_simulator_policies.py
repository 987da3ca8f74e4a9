"""When and how much to draft: pure functions, and runs that they decide."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulator_setups import deployment, length, run, setup, timings

from specsim.acceptance import Iid
from specsim.simulator.run import simulate
from specsim.simulator.setup import Limits
from specsim.simulator.speculation import (
    Policy,
    adapted_k,
    clamped_k,
    confident_k,
    goodput_k,
    scheduled_k,
)
from specsim.simulator.step_cost import StepCost

SCHEDULE = ((1, 4, 5), (5, 8, 2), (9, 32, 0))


@pytest.mark.parametrize(("batch", "k"), [(1, 5), (4, 5), (5, 2), (8, 2), (9, 0), (32, 0), (99, 0)])
def test_schedule_by_hand(batch: int, k: int) -> None:
    assert scheduled_k(SCHEDULE, batch) == k


@given(k=st.integers(0, 64), batch=st.integers(0, 500), budget=st.integers(1, 9000))
def test_clamped_k_fits_the_budget(k: int, batch: int, budget: int) -> None:
    got = clamped_k(k, batch, budget)
    assert 0 <= got <= k
    if batch <= budget:
        assert batch * (got + 1) <= budget
    if got < k:  # and it is the largest that fits
        assert batch * (got + 2) > budget or batch == 0


@given(share=st.floats(0, 1), slope=st.floats(0, 1), largest=st.integers(0, 12))
def test_goodput_k_is_the_best_of_all(share: float, slope: float, largest: int) -> None:
    def step_s(k: int) -> float:
        return 1.0 + slope * k

    got = goodput_k(share, largest, step_s)
    rates = [float(np.sum(share ** np.arange(k + 1.0))) / step_s(k) for k in range(largest + 1)]
    assert rates[got] == pytest.approx(max(rates))


def test_confident_k_by_hand() -> None:
    """0.8^5 = 0.328 is above 0.3, 0.8^6 = 0.262 is not."""
    got = confident_k(np.array([0.8, 0.0, 1.0, 0.3]), 0.3, 7)
    assert got.tolist() == [5, 1, 7, 1]


def test_adaptive_steps_have_hysteresis() -> None:
    ladder, up, down = (1, 3, 7), 0.0, -0.25
    assert adapted_k(3, 2.6, ladder, up, down) == 7
    assert adapted_k(3, 1.2, ladder, up, down) == 1
    assert adapted_k(3, 2.0, ladder, up, down) == 3
    assert adapted_k(7, 3.3, ladder, up, down) == 7  # just above 3 + 0.5 - 0.25
    assert adapted_k(7, 3.2, ladder, up, down) == 3
    assert adapted_k(1, 0.6, ladder, up, down) == 3
    assert adapted_k(1, 0.0, ladder, up, down) == 1


@pytest.mark.parametrize("k", [0, 2, 5])
def test_a_schedule_of_one_row_is_fixed_k(k: int) -> None:
    """K > 0: the same bytes. K = 0: a drafter that is loaded costs its pass and its slots."""
    fixed = run(setup(k=5, policy=Policy(kind="fixed", num_draft_tokens=k)))
    rows = Policy(kind="batch-schedule", num_draft_tokens=k, schedule=((1, 256, k),))
    scheduled = run(setup(k=5, policy=rows))
    assert timings(fixed) == timings(scheduled)


def test_scheduled_zero_is_not_off() -> None:
    """Above four sequences K = 0: verification is as without a drafter, but every step pays
    one pass of it, and the KV cache keeps its slots."""
    policy = Policy(kind="batch-schedule", num_draft_tokens=4, schedule=((1, 1, 4), (2, 99, 0)))
    given_setup = setup(k=4, policy=policy, count=24, rate=None, concurrency=8, output=length(20))
    cluster = run(given_setup)
    off = run(setup(k=0, count=24, rate=None, concurrency=8, output=length(20)))
    cost = StepCost(given_setup.deployment, given_setup.source, 512)
    kept = cost.keep_current_s(8, 8 * 70.0)
    per_step = cluster.replicas[0].timer.draft_s / len(cluster.replicas[0].step_end_s)
    assert kept * 0.5 < per_step < kept * 1.5
    assert cluster.ledger.finish_s.max() > off.ledger.finish_s.max()
    assert cluster.replicas[0].batch._lookahead == 5  # type: ignore[union-attr]


def test_switching_graphs_is_paid() -> None:
    """Every change of K costs `switch_s`; nothing else changes in a saturated run."""
    from dataclasses import replace

    policy = Policy(kind="batch-schedule", num_draft_tokens=4, schedule=((1, 3, 4), (4, 99, 2)))
    base = setup(k=4, policy=policy, count=20, rate=None, concurrency=6, output=length(30))
    free = run(base)
    paid = run(replace(base, policy=replace(policy, switch_s=0.01)))
    switches = paid.replicas[0].timer.switches
    assert switches == free.replicas[0].timer.switches > 0
    more = paid.replicas[0].timer.draft_s - free.replicas[0].timer.draft_s
    assert more == pytest.approx(0.01 * switches)


def test_goodput_policy_gives_up_when_nothing_is_accepted() -> None:
    """It ends at K <= 1: with a drafter loaded, K = 0 costs a draft pass as well."""
    policy = Policy(kind="goodput", num_draft_tokens=5, initial_share=0.9)
    cluster = run(setup(k=5, policy=policy, law=Iid(0.0), count=60, output=length(800)))
    drafts = np.frombuffer(cluster.ledger.drafts, np.uint8)
    assert drafts[0] > 1
    assert drafts[-5000:].max() <= 1


def test_per_request_policy_drafts_more_where_more_is_accepted() -> None:
    """Two laws in one run: the sequence that accepts everything ends at K = 7."""
    high = run(setup(k=7, policy=Policy(kind="per-request", num_draft_tokens=7), law=Iid(1.0)))
    low = run(setup(k=7, policy=Policy(kind="per-request", num_draft_tokens=7), law=Iid(0.1)))
    assert np.frombuffer(high.ledger.drafts, np.uint8).mean() > 5
    assert np.frombuffer(low.ledger.drafts, np.uint8).mean() < 2.5


def test_adaptive_policy_climbs_and_falls() -> None:
    policy = Policy(kind="adaptive", num_draft_tokens=7, candidates=(1, 3, 7))
    high = run(setup(k=7, policy=policy, law=Iid(1.0), output=length(300)))
    low = run(setup(k=7, policy=policy, law=Iid(0.05), output=length(300)))
    assert np.frombuffer(high.ledger.drafts, np.uint8)[-200:].min() == 7
    assert np.frombuffer(low.ledger.drafts, np.uint8)[-200:].max() == 1


def overlapped(alpha: float) -> tuple[float, StepCost, object]:
    limits = Limits(max_tokens=512, num_blocks=4000, overlapped=True)
    given_setup = setup(
        k=4, count=1, rate=None, law=Iid(alpha), limits=limits, output=length(1 + 20),
        prompt=length(100),
    )  # fmt: skip
    cluster = run(given_setup)
    chunks = np.diff(np.frombuffer(cluster.replicas[0].step_end_s))
    cost = StepCost(given_setup.deployment, given_setup.source, 512)
    return float(chunks[-1]), cost, cluster


def test_overlapped_drafting_by_hand() -> None:
    """α = 1: every block was drafted during the last verification, a step takes the longer
    of the two. α = 0: it was drafted for nothing, and the step drafts first."""
    last_s, cost, _ = overlapped(1.0)
    context = 100 + 15  # before the last of four steps of five tokens
    verify = cost.target_s(5, 1, 5, context + 5.0, 5 * (context + 3.0))
    ahead = cost.draft_s(5, 1, float(context))  # a guess of the added token, then the block
    assert last_s == pytest.approx(max(verify, ahead))
    last_s, cost, _ = overlapped(0.0)
    context = 100 + 19
    verify = cost.target_s(5, 1, 5, context + 5.0, 5 * (context + 3.0))
    draft = cost.draft_s(4, 1, float(context))
    ahead = cost.draft_s(5, 1, float(context))
    assert last_s == pytest.approx(draft + max(verify, ahead))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Policy(kind="fixed", num_draft_tokens=-1), "num_draft_tokens=-1 < 0"),
        (lambda: Policy(kind="batch-schedule"), "needs a schedule"),
        (lambda: Policy(kind="adaptive", candidates=()), "needs candidates"),
    ],
)
def test_impossible_policies(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


def test_exported() -> None:
    import specsim

    assert specsim.simulate is simulate
    assert deployment(0).draft.method == "none"


def test_k_is_chosen_again_after_a_preemption() -> None:
    """One K per sequence, and one sequence less than when they were chosen."""
    limits = Limits(max_num_seqs=8, max_tokens=256, num_blocks=16, watermark=0.0)
    policy = Policy(kind="per-request", num_draft_tokens=3)
    cluster = run(setup(k=3, policy=policy, count=20, rate=None, concurrency=8, limits=limits))
    assert cluster.replicas[0].preemptions > 0
    assert cluster.ledger.completed == 20
