"""Corners of the engine, worked out by hand: ties, outages, tight memory, Ctrl-C."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import FrameType
from typing import Any

import numpy as np
import pytest
from simulator_setups import PER_TOKEN, SINGLE_SERVER, deployment, length, run, setup

from specsim.acceptance import Iid
from specsim.metrics import Objective
from specsim.simulator.cluster import Cluster, kv_bytes_per_token
from specsim.simulator.prompts import Prompts
from specsim.simulator.request import Request
from specsim.simulator.result import Result
from specsim.simulator.roster import Roster
from specsim.simulator.setup import Fault, Limits, Setup
from specsim.simulator.speculation import Policy
from specsim.workload import ArrivalProcess
from specsim.workload.requests import Requests


def given(
    arrivals: list[float], prompts: list[int], outputs: list[int], *, prefixes: Any = None,
    unit: int = 0, limits: Limits = SINGLE_SERVER, **more: Any,
) -> Setup:  # fmt: skip
    """These requests, at a millisecond a token."""
    columns = Requests(
        arrival_s=np.array(arrivals), prompt_tokens=np.array(prompts),
        output_tokens=np.array(outputs), traffic_class=np.zeros(len(prompts), dtype=np.int16),
        class_names=("",), prefixes=prefixes, prefix_block_tokens=unit,
    )  # fmt: skip
    process = ArrivalProcess(process="poisson", rate_per_s=1.0)
    base = setup(source=PER_TOKEN, limits=limits, **more)
    return replace(base, requests=columns, arrivals=process)


def result_of(cluster: Cluster) -> Result:
    return Result(cluster=cluster, objectives=(Objective(itl_s=1.0),), sources={})


# --- faults -------------------------------------------------------------------------------


def test_both_replicas_stop_in_the_same_moment() -> None:
    """Replica 0 stops at 2 s and hands its request to replica 1, which is gone before it can
    wake up. Both are back at 3 s, and the request takes its 5 s again."""
    faults = (
        Fault(replica=0, stop_s=2.0, restart_s=3.0),
        Fault(replica=1, stop_s=2.0, restart_s=3.0),
    )
    assert run(given([0.0], [5000], [1], replicas=2, faults=faults)).ledger.finish_s == 3.0 + 5.0


def test_a_replica_that_stops_as_its_first_request_arrives() -> None:
    faults = (Fault(replica=0, stop_s=0.0, restart_s=3.0),)
    assert run(given([0.0], [5000], [1], faults=faults)).ledger.finish_s == 3.0 + 5.0


def test_overlapping_faults_hold_a_replica_down_till_the_last_ends() -> None:
    """From 1 to 10 s, and within that from 2 to 3 s."""
    faults = (
        Fault(replica=0, stop_s=1.0, restart_s=10.0),
        Fault(replica=0, stop_s=2.0, restart_s=3.0),
    )
    assert run(given([0.0], [5000], [1], faults=faults)).ledger.finish_s == 10.0 + 5.0


# --- memory -------------------------------------------------------------------------------


def test_a_prompt_that_grew_beyond_the_budget_is_cut_though_chunking_is_off() -> None:
    """Prompts of 100 tokens and as many to say, one prompt a step of at most 128. Twenty
    blocks hold 320 tokens, so the younger request is preempted when each has about 160,
    more than any step may compute at once."""
    limits = Limits(
        max_num_seqs=4, max_tokens=128, num_blocks=20, watermark=0.0, chunked_prefill=False
    )
    cluster = run(given([0.0, 0.0], [100, 100], [100, 100], limits=limits))
    assert cluster.replicas[0].preemptions == 1
    assert cluster.ledger.completed == 2


PREFIXED = Limits(
    max_num_seqs=4, max_tokens=64, num_blocks=100, block_size=16, watermark=0.0, prefix_tokens=16
)


def test_a_preempted_prompt_leaves_only_computed_units_cached() -> None:
    """One request decodes while the other computes a prompt of 95 units of 16 tokens, 63 a
    step, and is preempted on the way. Every prompt token is computed once, and none of the
    units that the prompt had not come to is taken for cached."""
    prefixes = ((), tuple(range(95)))
    cluster = run(
        given([0.0, 0.01], [64, 95 * 16], [200, 1], prefixes=prefixes, unit=16, limits=PREFIXED)
    )
    replica = cluster.replicas[0]
    assert replica.preemptions == 1
    assert replica.prompts.cached_tokens > 0
    assert 64 + 95 * 16 <= replica.timer.prefill_tokens < 64 + 95 * 16 + 16


# --- prefill and decode on separate replicas ----------------------------------------------


def test_a_cache_that_is_sent_on_is_no_prefix_hit() -> None:
    """Three prompts of three units share two: the second and third find them where prompts
    are computed; where they decode nothing is looked up."""
    limits = replace(PREFIXED, max_tokens=10_000, num_blocks=1000, prefix_tokens=512)
    setup_ = given(
        [0.0, 10.0, 20.0], [1536] * 3, [5] * 3, prefixes=((1, 2),) * 3, unit=512, limits=limits,
        prefill_replicas=1,
    )  # fmt: skip
    cluster = run(setup_)
    assert [r.prompts.cached_tokens for r in cluster.replicas] == [0, 2048]
    assert result_of(cluster).summary().prefix_hit_rate == pytest.approx(2048 / (3 * 1536))


def test_a_drafters_cache_is_sent_on_too() -> None:
    """An 8B target keeps 128 KiB a token, the 1B drafter 32 KiB; a head without a cache of
    its own sends nothing, and GPUs of its own send at the same time."""
    target = 2 * 32 * 8 * 128 * 2
    drafter = 2 * 16 * 8 * 64 * 2
    placed = deployment(4)
    assert kv_bytes_per_token(deployment(0)) == target
    assert kv_bytes_per_token(placed) == target + drafter
    own = replace(placed, draft=replace(placed.draft, own_gpus=True))
    assert kv_bytes_per_token(own) == target
    head = replace(placed, draft=replace(placed.draft, method="medusa"))
    assert kv_bytes_per_token(head) == target


# --- speculation --------------------------------------------------------------------------


def test_a_schedule_counts_only_prompts_that_are_scheduled() -> None:
    """Four seats, all taken, and four requests that wait: a batch of four. The row of four
    holds in every step, and each sequence drafts four tokens."""
    policy = Policy(kind="batch-schedule", num_draft_tokens=4, schedule=((1, 4, 4), (5, 99, 0)))
    limits = Limits(max_num_seqs=4, max_tokens=512, num_blocks=4000)
    cluster = run(
        setup(k=4, policy=policy, count=40, rate=None, concurrency=8, output=length(20),
              limits=limits)
    )  # fmt: skip
    replica = cluster.replicas[0]
    assert replica.timer.drafted == 4 * replica.batch.steps


@pytest.mark.parametrize(("count_prefills", "drafting"), [(True, 28), (False, 29)])
def test_a_schedule_counts_every_prompt_of_the_step(count_prefills: bool, drafting: int) -> None:
    """One sequence decodes when three prompts arrive: a batch of four has K = 0; unless
    prompts are not counted."""
    policy = Policy(
        kind="batch-schedule", num_draft_tokens=4, schedule=((1, 2, 4), (3, 99, 0)),
        count_prefills=count_prefills,
    )  # fmt: skip
    limits = Limits(max_num_seqs=8, max_tokens=512, num_blocks=4000)
    base = given(
        [0.0, 0.05, 0.05, 0.05], [10] * 4, [30, 1, 1, 1], limits=limits, k=4, policy=policy,
        law=Iid(0.0),
    )  # fmt: skip
    replica = run(base).replicas[0]
    # of the 29 steps of the first, one has the three prompts beside it
    assert replica.timer.drafted == 4 * drafting


@pytest.mark.parametrize("chunked_prefill", [True, False])
def test_counting_prompts_agrees_with_filling_the_step(
    monkeypatch: pytest.MonkeyPatch, chunked_prefill: bool
) -> None:
    """What a schedule is told before the step is what the step then holds, whether seats,
    tokens or blocks are what is short."""
    fill, found = Prompts.fill, []

    def checked(self: Prompts, budget: int, decoding: int, *, admit: bool = True) -> Any:
        counted = self.count(budget, decoding, self.pool.free)
        filled = fill(self, budget, decoding, admit=admit)
        if admit:
            assert counted == (0 if filled is None else len(filled[0]))
            found.append(counted)
        return filled

    monkeypatch.setattr(Prompts, "fill", checked)
    rng = np.random.default_rng(0)
    count = 200
    limits = Limits(
        max_num_seqs=6, max_tokens=300, num_blocks=60, block_size=16,
        chunked_prefill=chunked_prefill,
    )  # fmt: skip
    cluster = run(
        given(
            list(np.cumsum(rng.exponential(0.05, count))), list(rng.integers(1, 250, count)),
            list(rng.integers(1, 60, count)), limits=limits,
        )
    )  # fmt: skip
    assert cluster.ledger.completed == count
    assert {0, 1, 2, 3} <= set(found)


def test_a_block_drafted_ahead_needs_the_right_guess() -> None:
    """Four drafted tokens are accepted and the fifth would not be: the block drafted ahead
    began with that fifth, and is thrown away. With five it stands."""
    ready = []
    for run_length in (4, 5):
        roster = Roster(5, 16, 0.7)
        request = Request(0, 0.0, 8, 20, 0)
        request.runs, request.emitted, request.context = bytes([run_length] * 20), 1, 8
        roster.join(request)
        roster.advance(4)
        assert roster.accepted == 4
        ready.append(roster.num_ready)
    assert ready == [0, 1]


# --- Ctrl-C -------------------------------------------------------------------------------


def interrupted_at(given_setup: Setup, line: int) -> tuple[Cluster, int]:
    """The run, with Ctrl-C before the given line of the simulator; lines run in all."""
    cluster, seen = Cluster(given_setup), 0

    def count(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal seen
        if event == "line":
            seen += 1
            if seen == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return count

    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        name = frame.f_code.co_filename.replace("\\", "/")
        return count if name.endswith(("simulator/replica.py", "simulator/ledger.py")) else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        cluster.run()
    finally:
        sys.settrace(before)
    return cluster, seen


def test_ctrl_c_between_any_two_lines_leaves_whole_requests() -> None:
    """Summary, table and records have the same finished requests, whenever it comes."""
    limits = Limits(max_num_seqs=4, max_tokens=128, num_blocks=12, watermark=0.0)
    small = setup(k=3, count=6, rate=20.0, output=length(9, "lognormal"), limits=limits)
    _, total = interrupted_at(small, -1)
    assert total > 500
    for line in range(1, total, 7):
        cluster, _ = interrupted_at(small, line)
        result = result_of(cluster)
        summary = result.summary().to_dict()
        json.dumps(summary, allow_nan=False)
        records = result.records
        assert summary["completed"] == len(records)
        assert [int(r.request) for r in records] == np.flatnonzero(
            result.requests.finish_s.notna()
        ).tolist()
        assert all(sum(r.chunk_tokens) == r.output_tokens for r in records)
        assert cluster.interrupted or len(records) == 6
