"""The same code on a GPU. Skipped, with a message, where there is none."""

import pytest
import torch
from test_reference_helpers import METHODS, make_drafter, varied_model

from reference import policy
from reference.cache import make_batch
from reference.decode import Decoder
from reference.graphs import GraphedModel
from reference.measure import time_forward
from reference.request import Request
from reference.sampling import SeededRandomness, Warp
from reference.timing import Stopwatch

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def generate(target, method, warp, shape):
    drafter = make_drafter(method, target)
    if hasattr(drafter, "head"):
        drafter.head = drafter.head.to(target.device)
    if method == "draft-model":
        drafter.model = drafter.model.to(target.device)
    decoder = Decoder(target, drafter, warp=warp, policy=shape, rows=2, capacity=48)
    requests = [Request(f"{i}", (1, 2, 1, i), 16, SeededRandomness(1, i)) for i in range(3)]
    results = list(decoder.run(requests))
    assert all(step.seconds["verify"] > 0 for step in results)
    return [r.generated for r in requests]


@pytest.mark.parametrize("shape", [policy.fixed(3), policy.tree(2, 2)])
@pytest.mark.parametrize("warp", [Warp(), Warp(temperature=1.0, top_k=6, top_p=0.9)])
@pytest.mark.parametrize("method", METHODS)
def test_cuda_equals_cpu(method, warp, shape):
    """In float64 the GPU emits what the CPU emits, greedy and sampled, chains and trees."""
    on_cpu = generate(varied_model(), method, warp, shape)
    assert generate(varied_model().cuda(), method, warp, shape) == on_cpu


@pytest.mark.parametrize("width", [1, 5])
def test_cuda_graph_equals_eager(width):
    """A recorded graph replays with new tokens and a longer context."""
    model = varied_model().cuda()
    graphed = GraphedModel(model, bucket=16)
    caches = [model.new_cache(1, 48) for _ in range(2)]
    for start in range(3):
        tokens = [[(start + i) % 13 for i in range(width)]]
        with torch.inference_mode():
            eager = model(make_batch(tokens, caches[0]), caches[0]).logits
        replayed = graphed(make_batch(tokens, caches[1]), caches[1]).logits
        torch.testing.assert_close(replayed, eager)


def test_cuda_clocks():
    """Laps are measured with events: a big product takes longer than a small one."""
    device = torch.device("cuda")
    big, small = torch.randn(4096, 4096, device=device), torch.randn(16, 16, device=device)
    _ = big @ big, small @ small
    watch = Stopwatch(device)
    _ = big @ big
    watch.lap("big")
    _ = small @ small
    watch.lap("small")
    assert watch.laps()["big"] > watch.laps()["small"] > 0
    model = varied_model().cuda()
    record = time_forward(model, model.new_cache(2, 32), "m", 2, 3, 8, repeats=3)
    assert record.seconds > 0
