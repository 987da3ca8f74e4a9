"""Corners of the engine, worked out by hand: ties, outages, tight memory, Ctrl-C."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import FrameType
from typing import Any

import numpy as np
from simulator_setups import PER_TOKEN, SINGLE_SERVER, length, run, setup

from specsim.metrics import Objective
from specsim.simulator.cluster import Cluster
from specsim.simulator.result import Result
from specsim.simulator.setup import Fault, Limits, Setup
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
