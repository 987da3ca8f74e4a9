"""Router, prefix cache, faults, own GPUs: switching each changes a number known by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from simulator_setups import PER_TOKEN, SERVICE_S, length, run, setup

from specsim.simulator.kv_cache import BlockPool
from specsim.simulator.result import records
from specsim.simulator.router import ROUTERS
from specsim.simulator.setup import Fault, Limits, Setup
from specsim.workload import ArrivalProcess
from specsim.workload.requests import Requests

#: One request at a time, its whole prompt in one step: service = prompt · SERVICE_S.
ONE_BY_ONE = Limits(max_num_seqs=1, max_tokens=100_000, num_blocks=100_000, watermark=0.0)


def queue(
    arrivals: list[float], prompts: list[int], *, prefixes: Any = None, unit: int = 0,
    limits: Limits = ONE_BY_ONE, **more: Any,
) -> Setup:  # fmt: skip
    """Requests of one output token each, so that a request is one step."""
    base = setup(source=PER_TOKEN, limits=limits, **more)
    columns = Requests(
        arrival_s=np.array(arrivals), prompt_tokens=np.array(prompts),
        output_tokens=np.ones(len(prompts), dtype=np.int64),
        traffic_class=np.zeros(len(prompts), dtype=np.int16), class_names=("",),
        prefixes=prefixes, prefix_block_tokens=unit,
    )  # fmt: skip
    process = ArrivalProcess(process="poisson", rate_per_s=1.0)
    return replace(base, requests=columns, arrivals=process)


def stays(given_setup: Setup) -> list[float]:
    ledger = run(given_setup).ledger
    return (ledger.finish_s - ledger.arrival_s).tolist()


@pytest.mark.parametrize(
    ("router", "expected"),
    [
        # 0 → replica 0 for 10 s, 1 → replica 1 for 1 s, then
        # round robin: 2 → replica 0, waits till 10; 3 → replica 1, free since 1.1
        ("round-robin", [10.0, 1.0, 10.0 - 2.0 + 1.0, 1.0]),
        # least loaded: both go to replica 1, free at 2 and at 3
        ("least-loaded", [10.0, 1.0, 1.0, 1.0]),
        ("shortest-queue", [10.0, 1.0, 1.0, 1.0]),
    ],
)
def test_router_by_hand(router: str, expected: list[float]) -> None:
    given_setup = queue([0.0, 0.1, 2.0, 3.5], [10_000, 1000, 1000, 1000], replicas=2, router=router)
    assert stays(given_setup) == pytest.approx(expected)


def test_shortest_queue_counts_requests_and_least_loaded_tokens() -> None:
    """Replica 0 runs one long request; replica 1 runs a short one and holds a second.
    The fewest waiting requests are on replica 0, the fewest tokens on replica 1."""
    arrivals, prompts = [0.0, 0.0, 0.1, 0.2], [50_000, 2000, 2000, 1000]
    short = queue(arrivals, prompts, replicas=2, router="shortest-queue")
    least = queue(arrivals, prompts, replicas=2, router="least-loaded")
    # 2 joins replica 1 either way (replica 0 would be the tie's first for shortest-queue)
    assert stays(least)[3] == pytest.approx(4.0 + 1.0 - 0.2)
    assert run(least).ledger.replica.tolist() == [0, 1, 1, 1]
    assert run(short).ledger.replica.tolist() == [0, 1, 0, 1]


CACHED = replace(ONE_BY_ONE, prefix_tokens=512, num_blocks=1000)


def test_prefix_cache_by_hand() -> None:
    """Two prompts of 1536 tokens share two units of 512: the second computes 512."""
    prefixes = ((1, 2, 3), (1, 2, 4))
    off = queue([0.0, 10.0], [1536, 1536], prefixes=prefixes, unit=512)
    on = replace(off, limits=CACHED)
    assert stays(off) == pytest.approx([1.536, 1.536])
    assert stays(on) == pytest.approx([1.536, 0.512])
    replica = run(on).replicas[0]
    assert replica.prompts.cached_tokens == 1024
    assert replica.timer.prefill_tokens == 1536 + 512


def test_the_last_prompt_token_is_always_computed() -> None:
    """The same prompt twice: 1024 of 1024 tokens are cached, the last unit is computed."""
    prefixes = ((1, 2), (1, 2))
    given_setup = queue([0.0, 10.0], [1024, 1024], prefixes=prefixes, unit=512, limits=CACHED)
    assert stays(given_setup) == pytest.approx([1.024, 0.512])


def test_prefix_aware_router_by_hand() -> None:
    """A (units 1, 2) goes to replica 0, B to 1. The next A finds its prefix on replica 0;
    round robin takes it there too, but B after it to replica 1 only by chance of order."""
    prefixes = ((1, 2, 10), (3, 4, 11), (3, 4, 12), (1, 2, 13))
    arrivals, prompts = [0.0, 0.0, 10.0, 10.0], [1536] * 4
    hits = {}
    for router in ("round-robin", "prefix-aware"):
        given_setup = queue(
            arrivals, prompts, prefixes=prefixes, unit=512, limits=CACHED, replicas=2,
            router=router,
        )  # fmt: skip
        hits[router] = sum(r.prompts.cached_tokens for r in run(given_setup).replicas)
    assert hits == {"round-robin": 0, "prefix-aware": 2048}


def test_cached_prefixes_are_evicted_when_room_is_needed() -> None:
    """Room for 128 blocks: a prompt of 2000 tokens takes 125, so the cached 64 must go."""
    tight = replace(CACHED, num_blocks=128)
    prefixes = ((1, 2), (), (1, 2))
    given_setup = queue(
        [0.0, 10.0, 20.0], [1025, 2000, 1025], prefixes=prefixes, unit=512, limits=tight
    )
    cluster = run(given_setup)
    assert cluster.replicas[0].prompts.cached_tokens == 0
    assert cluster.replicas[0].pool.evictions == 2
    roomy = replace(given_setup, limits=replace(CACHED, num_blocks=300))
    assert run(roomy).replicas[0].prompts.cached_tokens == 1024


def test_shared_units_are_held_once() -> None:
    pool = BlockPool(100, unit=10)
    pool.refer((1, 2))
    pool.refer((1, 3))
    assert pool.used == 30
    pool.release((1, 2), 2)
    assert pool.used == 20
    assert pool.matched((1, 2)) == 2  # 2 is cached, though nobody uses it
    pool.release((1, 3), 2)
    assert pool.used == 0
    assert pool.free == 100
    pool.take(95)
    assert pool.matched((1, 2)) == 0
    with pytest.raises(RuntimeError, match="6 blocks asked, 5 of 100 free"):
        pool.take(6)
    with pytest.raises(RuntimeError, match="more blocks returned"):
        pool.give(96)


@pytest.mark.parametrize("recompute", [True, False])
def test_fault_by_hand(recompute: bool) -> None:
    """A request of 4 s starts at 0; the replica stops at 1 s and is back at 3 s. Computed
    again it ends at 7 s; or it failed at 1 s. A second one arrives at 2 s and waits."""
    fault = Fault(replica=0, stop_s=1.0, restart_s=3.0, recompute=recompute)
    given_setup = queue([0.0, 2.0], [4000, 1000], faults=(fault,))
    cluster = run(given_setup)
    ledger = cluster.ledger
    if recompute:
        assert ledger.finish_s.tolist() == pytest.approx([7.0, 8.0])
        assert not ledger.failed.any()
    else:
        assert ledger.failed.tolist() == [True, False]
        assert ledger.finish_s.tolist() == pytest.approx([1.0, 4.0])
        assert records(cluster)[0].failed
    assert sum(ledger.failed) + ledger.completed == 2


def test_a_fault_moves_requests_to_the_other_replica() -> None:
    fault = Fault(replica=0, stop_s=1.0, restart_s=100.0)
    given_setup = queue([0.0], [4000], replicas=2, faults=(fault,))
    cluster = run(given_setup)
    assert cluster.ledger.replica.tolist() == [1]
    assert cluster.ledger.finish_s.tolist() == pytest.approx([1.0 + 4.0])


def test_replicas_share_the_load() -> None:
    """Two replicas, arrivals in pairs: twice the requests in the same time."""
    one = queue([0.0, 0.0], [1000, 1000])
    two = replace(one, replicas=2)
    assert run(one).ledger.finish_s.max() == pytest.approx(2 * 1000 * SERVICE_S)
    assert run(two).ledger.finish_s.max() == pytest.approx(1000 * SERVICE_S)


def test_every_router_is_named() -> None:
    assert set(ROUTERS) == {"round-robin", "least-loaded", "shortest-queue", "prefix-aware"}
    assert length(3).value == 3


def test_a_load_generator_holds_requests_back() -> None:
    """Services of 1 s, sent every 0.25 s, at most two open: the third is sent when the
    first is done, and its time counts from then."""
    base = queue([0.0, 0.25, 0.5, 0.75], [1000] * 4)
    held = replace(
        base, arrivals=ArrivalProcess(process="constant", rate_per_s=4.0, max_in_flight=2)
    )
    assert run(base).ledger.arrival_s.tolist() == [0.0, 0.25, 0.5, 0.75]
    ledger = run(held).ledger
    assert ledger.arrival_s.tolist() == pytest.approx([0.0, 0.25, 1.0, 2.0])
    assert ledger.finish_s.tolist() == pytest.approx([1.0, 2.0, 3.0, 4.0])


def test_prefill_and_decode_split_by_hand() -> None:
    """1000 prompt tokens take 1 s where they are prefilled; their KV cache of 131,072 bytes
    a token goes over at 100 MB/s in 1.31072 s; then nine tokens of 1 ms each."""
    together = queue([0.0], [1000])
    together = replace(together, requests=replace(together.requests, output_tokens=np.array([10])))
    split = replace(together, prefill_replicas=1, kv_link_bytes_per_s=1e8)
    for given_setup, wait in ((together, 0.0), (split, 1000 * 131_072 / 1e8)):
        cluster = run(given_setup)
        times = records(cluster)[0].chunk_times_s
        assert times[0] == pytest.approx(1.0)
        assert times[1] == pytest.approx(1.0 + wait + 0.001)
        assert times[-1] == pytest.approx(1.0 + wait + 0.009)
        assert [r.pool.used for r in cluster.replicas] == [0] * len(cluster.replicas)
    assert cluster.ledger.replica.tolist() == [0]  # it ended where it decodes


def test_split_keeps_prompts_out_of_the_way() -> None:
    """A long prompt stalls decoding on a shared replica, not on a split one."""
    base = queue([0.0, 0.010], [10, 2000], limits=replace(ONE_BY_ONE, max_num_seqs=4))
    base = replace(base, requests=replace(base.requests, output_tokens=np.array([30, 1])))
    split = replace(base, prefill_replicas=1, kv_link_bytes_per_s=1e12)
    together_s, split_s = (stays(s)[0] for s in (base, split))
    assert together_s > 2.0
    assert split_s == pytest.approx(0.010 + 10 * 131_072 / 1e12 + 29 * 0.001)


def test_time_of_a_mixed_step_is_split_by_tokens() -> None:
    """One sequence decodes while a prompt of 9 tokens comes in: 1 of 10 tokens is its own.
    Every step takes 1 ms a token, so the shares are the tokens."""
    base = queue([0.0, 0.0015], [1, 9], limits=replace(ONE_BY_ONE, max_num_seqs=4))
    base = replace(base, requests=replace(base.requests, output_tokens=np.array([5, 1])))
    timer = run(base).replicas[0].timer
    assert timer.prefill_s == pytest.approx(0.010)
    assert timer.verify_s == pytest.approx(0.004)


def test_drafter_computes_prompts_only_where_it_is_loaded() -> None:
    """A deployment with a drafter: policy off does not pay for its pass over prompts."""
    from simulator_setups import deployment

    from specsim.simulator.speculation import Policy

    placed = deployment(3)
    off = run(setup(placed=placed, policy=Policy(kind="off"), count=1, rate=None))
    loaded = run(setup(placed=placed, policy=Policy(num_draft_tokens=3), count=1, rate=None))
    assert off.ledger.first_s[0] < loaded.ledger.first_s[0]
    assert off.ledger.first_s[0] == run(setup(count=1, rate=None)).ledger.first_s[0]


def test_prefix_aware_router_does_not_pile_up() -> None:
    """Forty requests at once that share one prefix: the first nine go where it is cached,
    then each goes to the replica with less to do."""
    prefixes = ((1, 2),) * 41
    given_setup = queue(
        [0.0] + [5.0] * 40, [1500] * 41, prefixes=prefixes, unit=512, limits=CACHED, replicas=2,
        router="prefix-aware",
    )  # fmt: skip
    where = run(given_setup).ledger.replica
    assert where[:10].tolist() == [0] * 10
    assert abs(int((where == 0).sum()) - int((where == 1).sum())) <= 9
