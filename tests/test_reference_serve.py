"""Serving: continuous batching on a clock that the test controls."""

import gc
import weakref

import pytest
from test_reference_helpers import make_drafter, varied_model

from reference import policy
from reference.cache import make_batch
from reference.decode import Decoder
from reference.graphs import GraphedModel
from reference.request import Request
from reference.sampling import Warp
from reference.serve import Arrival, serve, summarise


class Clock:
    """Every step of the decoder takes one second; sleeping takes what is asked."""

    def __init__(self):
        self.now, self.slept = 100.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


class TimedDecoder(Decoder):
    clock: Clock

    def step(self):
        self.clock.now += 1.0
        return super().step()


def arrival(name, at, prompt=3, new=4):
    return Arrival(name=name, arrival_s=at, prompt=tuple(range(prompt)), output_tokens=new)


def serve_all(arrivals, slots=2, k=0, chunk=None, method="none"):
    target = varied_model()
    clock = Clock()
    decoder = TimedDecoder(
        target, make_drafter(method, target), policy=policy.fixed(k), rows=slots, capacity=48,
        prefill_chunk=chunk,
    )  # fmt: skip
    decoder.clock = clock
    records = list(serve(decoder, arrivals, clock=clock, sleep=clock.sleep))
    return {r.request: r for r in records}, clock


def test_one_request_gets_a_token_a_step():
    records, _ = serve_all([arrival("a", 0.0)])
    assert records["a"].chunk_times_s == (1.0, 2.0, 3.0, 4.0)
    assert records["a"].chunk_tokens == (1, 1, 1, 1)


def test_requests_join_between_steps_and_wait_for_a_slot():
    """b arrives during step 1 and joins step 2; c waits until a's slot is free."""
    records, _ = serve_all([arrival("a", 0.0), arrival("b", 0.5), arrival("c", 0.6)])
    assert records["b"].chunk_times_s == (2.0, 3.0, 4.0, 5.0)
    assert records["c"].chunk_times_s[0] == 5.0


def test_first_come_first_served():
    records, _ = serve_all([arrival("late", 0.3), arrival("early", 0.1)], slots=1)
    assert records["early"].chunk_times_s[-1] < records["late"].chunk_times_s[0]


def test_an_idle_server_sleeps_until_the_next_arrival():
    records, clock = serve_all([arrival("a", 7.0)])
    assert clock.slept == [7.0]
    assert records["a"].chunk_times_s[0] == 8.0


def test_prompts_are_read_in_chunks_beside_decoding():
    """A 6-token prompt in chunks of 2 takes 3 steps, in which the other row decodes on."""
    records, _ = serve_all([arrival("a", 0.0, 2, 6), arrival("b", 0.5, 6, 2)], chunk=2)
    assert records["a"].chunk_times_s == (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    assert records["b"].chunk_times_s == (4.0, 5.0)


def test_speculation_delivers_several_tokens_a_chunk():
    """The same text whether served alone or speculatively in company."""
    arrivals = [arrival(f"r{i}", 0.2 * i, 3, 12) for i in range(4)]
    records, _ = serve_all(arrivals, k=3, method="draft-model")
    assert all(r.output_tokens == 12 for r in records.values())
    assert any(max(r.chunk_tokens) > 1 for r in records.values())


def test_summary():
    records, _ = serve_all([arrival("a", 0.0), arrival("b", 0.5)])
    result = summarise(list(records.values()), 3)
    assert (result["requests"], result["completed"], result["output_tokens"]) == (3, 2, 8)
    assert result["ttft_s"]["mean"] == pytest.approx((1.0 + 1.5) / 2)
    assert result["tpot_s"]["p50"] == pytest.approx(1.0)
    assert summarise([], 3)["ttft_s"] is None


@pytest.mark.parametrize("method", ["ngram", "early-exit", "draft-model", "eagle"])
def test_static_buffers_decode_the_same(method):
    """The buffers that CUDA graphs replay, run without a graph, give the same tokens."""
    outputs = []
    for wrap in (lambda m: m, lambda m: Static(m)):
        target = varied_model()
        decoder = Decoder(
            target, make_drafter(method, target), warp=Warp(temperature=1.0),
            policy=policy.fixed(3), rows=2, capacity=40,
        )  # fmt: skip
        decoder.target = wrap(target)
        requests = [Request(f"{i}", (1, 2, 1, i), 12) for i in range(3)]
        for _ in decoder.run(requests):
            pass
        outputs.append([r.generated for r in requests])
    assert outputs[0] == outputs[1]


def test_a_graph_keeps_the_cache_that_it_reads():
    """A graph replays addresses of its cache: freed memory must not come back under its key."""
    model = varied_model()
    graphed = GraphedModel(model, bucket=16, record=False)
    caches = []
    for _ in range(3):
        cache = model.new_cache(1, 16)
        graphed(make_batch([[1, 2]], cache), cache)
        caches.append(weakref.ref(cache))
        del cache
    gc.collect()
    assert all(cache() is not None for cache in caches)
    assert len({id(cache()) for cache in caches}) == 3


class Static(GraphedModel):
    """A `GraphedModel` that records nothing, with what the decoder reads of a model."""

    def __init__(self, model):
        super().__init__(model, bucket=16, record=False)
        self.device = model.device
