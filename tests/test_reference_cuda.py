"""The same code on a GPU: on a real one where there is one, on a pretended one anywhere.

The pretended GPU (`pretend_gpu`) refuses tensors of two devices in one operation, as CUDA
does. What only a real one shows is marked `cuda` and skipped, with a message, elsewhere.
"""

import json

import pytest
import torch
from pretend_gpu import pretend_gpu
from test_reference_helpers import (
    METHODS,
    make_drafter,
    run,
    shorten_prompts,
    tiny_directory,
    varied_model,
)

from reference import cache, policy
from reference.cache import make_batch
from reference.decode import Decoder
from reference.graphs import GraphedModel
from reference.measure import time_forward
from reference.request import Request
from reference.sampling import SeededRandomness, Warp
from reference.timing import Stopwatch
from specsim.records import read_records

HAS_GPU = torch.cuda.is_available()
REAL = [pytest.mark.cuda, pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")]


@pytest.fixture
def pretended(monkeypatch):
    if HAS_GPU:  # torch sets up CUDA once in a process, really or not
        pytest.skip("a real GPU is here")
    with pretend_gpu(monkeypatch) as device:
        yield device


@pytest.fixture(params=["pretended", pytest.param("real", marks=REAL)])
def gpu(request):
    if request.param == "real":
        return torch.device("cuda", 0)
    return request.getfixturevalue("pretended")


def generate(device, method, warp, shape, rule="chain"):
    target, drafter = varied_model(), make_drafter(method, varied_model())
    target = target.to(device)
    for part in ("head", "model"):  # an EAGLE head, a draft model
        if hasattr(drafter, part):
            setattr(drafter, part, getattr(drafter, part).to(device))
    decoder = Decoder(
        target, drafter, warp=warp, policy=shape, rule=rule, rows=2, capacity=48,
        prefill_chunk=3, with_overlap=True,
    )  # fmt: skip
    requests = [Request(f"{i}", (1, 2, 1, i), 16, SeededRandomness(1, i)) for i in range(3)]
    results = list(decoder.run(requests))
    assert all(step.seconds["verify"] > 0 for step in results)
    return [r.generated for r in requests], [step.overlap for step in results]


@pytest.mark.parametrize("shape", [policy.fixed(3), policy.tree(2, 2)], ids=["chain", "tree"])
@pytest.mark.parametrize("warp", [Warp(), Warp(temperature=1.0, top_k=6, top_p=0.9)])
@pytest.mark.parametrize("method", METHODS)
def test_gpu_equals_cpu(method, warp, shape, gpu):
    """In float64 the GPU emits what the CPU emits, greedy and sampled, chains and trees."""
    there, overlaps = generate(gpu, method, warp, shape)
    here, expected = generate("cpu", method, warp, shape)
    assert there == here
    for ours, theirs in zip(overlaps, expected, strict=True):
        assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("rule", ["block", "typical"])
def test_other_rules_on_the_gpu(rule, gpu):
    sampled = Warp(temperature=1.0)
    there = generate(gpu, "draft-model", sampled, policy.fixed(3), rule)
    assert there[0] == generate("cpu", "draft-model", sampled, policy.fixed(3), rule)[0]


@pytest.mark.parametrize("record", [True, False], ids=["graph", "buffers"])
@pytest.mark.parametrize("width", [1, 5])
def test_cuda_graph_equals_eager(width, record, gpu):
    """A recorded graph replays with new tokens and a longer context."""
    model = varied_model().to(gpu)
    graphed = GraphedModel(model, bucket=16, record=record)
    pairs = [(model.new_cache(1, 48), model.new_cache(1, 48)) for _ in range(3)]
    kept = []
    for start in range(5):  # with five tokens a pass, over the first bucket's end
        for which, (kv, graphed_kv) in enumerate(pairs):
            tokens = [[(start + 3 * which + i) % 13 for i in range(width)]]
            options = {"feature_layers": (1,) if which == 2 else ()}
            with torch.inference_mode():
                eager = model(make_batch(tokens, kv), kv, **options)
            kept.append((graphed(make_batch(tokens, graphed_kv), graphed_kv, **options), eager))
    for found, eager in kept:  # after all passes: a replay must not overwrite what it gave
        torch.testing.assert_close(found.logits.cpu(), eager.logits.cpu())
        if eager.features is not None:
            torch.testing.assert_close(found.features.cpu(), eager.features.cpu())


def test_a_graph_refuses_work_of_the_host(pretended, monkeypatch):
    """What the host does inside a recording is not replayed: CUDA refuses some of it."""
    model = varied_model().to(pretended)
    head = model.head.forward
    monkeypatch.setattr(model.head, "forward", lambda x: head(x * float(x.max())))
    kv = model.new_cache(1, 16)
    with pytest.raises(RuntimeError, match="capturing"):
        GraphedModel(model)(make_batch([[1]], kv), kv)


@pytest.mark.cuda
@pytest.mark.skipif(not HAS_GPU, reason="needs a CUDA device")
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


def test_passes_are_timed_with_events(gpu, monkeypatch):
    event, events = torch.cuda.Event, []
    monkeypatch.setattr(torch.cuda, "Event", lambda **k: events.append(event(**k)) or events[-1])
    model = varied_model().to(gpu)
    record = time_forward(model, model.new_cache(2, 32), "m", 2, 3, 8, repeats=3)
    assert record.seconds > 0
    assert len(events) == 2 * (2 + 3)  # before and after each; the first two are not counted


@pytest.mark.parametrize("draft", ["ngram", "early-exit:1", "eagle:random", "self"])
def test_commands_on_the_gpu(draft, capsys, tmp_path, monkeypatch, gpu):
    """decode, measure and serve from files to records; the records name the GPU."""
    model = tiny_directory(tmp_path)
    shorten_prompts(monkeypatch)
    draft = str(model) if draft == "self" else draft
    common = ("--target", model, "--device", "cuda:0", "--threads", 1, "--seed", 3)
    found = {}
    for device in ("cuda:0", "cpu"):
        status, out, err = run(
            capsys, "decode", *common, "--device", device, "--prompt", "hello there", "--draft",
            draft, "--max-new-tokens", 12, "--context", 64, "--temperature", 1, "--json",
        )  # fmt: skip
        assert status == 0, err
        found[device] = json.loads(out)
    assert found["cuda:0"]["device"] == "cuda:0"
    assert found["cuda:0"]["text"] == found["cpu"]["text"]

    steps, served = tmp_path / "steps.jsonl", tmp_path / "served.jsonl"
    measure = (
        "measure", *common, "--out", steps, "--methods", draft, "--k", "0,2", "--domains", "code",
        "--prompts", 1, "--max-new-tokens", 4, "--context", 64, "--forward-batch", 1,
        "--forward-tokens", "1,3", "--forward-context", 16, "--repeats", 2,
    )  # fmt: skip
    serve = (
        "serve", *common, "--rate", 50, "--num-requests", 3, "--output-tokens", 4, "--context", 64,
        "--draft", draft, "--out", served,
    )  # fmt: skip
    for command in ((*measure, "--cuda-graphs"), serve):
        status, _, err = run(capsys, *command)
        assert status == 0, err
    for file in (steps, steps.with_name("steps.forward.jsonl"), served):
        header, records = read_records(file)
        assert header.device == torch.cuda.get_device_name(gpu)
        assert list(records)


@pytest.mark.parametrize("draft", ["eagle", "layers-1"])
def test_shipped_drafts_on_the_gpu(draft, capsys, gpu):
    status, out, err = run(
        capsys, "decode", "--draft", draft, "--prompt", "Say hello to the world.", "--device",
        "cuda:0", "--max-new-tokens", 4, "--json",
    )  # fmt: skip
    assert status == 0, err
    found = json.loads(out)
    assert found["text"] == found["baseline_text"]


def test_the_pretended_gpu_refuses_what_cuda_refuses(pretended):
    there, here = torch.zeros(2, 3, device=pretended), torch.ones(3)
    for mixed in (
        lambda: there + here,
        lambda: here[torch.tensor([0], device=pretended)],
        lambda: torch.cat((there, here[None])),
        lambda: there.index_select(0, torch.tensor([0])),
        lambda: there.__setitem__(torch.tensor([0]), here),
    ):
        with pytest.raises(RuntimeError, match="device"):
            mixed()
    there[0] = here  # a copy crosses over, and so does a number, and an index to the GPU
    assert (there * torch.tensor(2.0))[torch.tensor([0, 1])].tolist() == [[2.0] * 3, [0.0] * 3]
    assert there.cpu().sum() == 3
    assert type(there.cpu()) is torch.Tensor


def test_a_mask_left_on_the_cpu_is_noticed(pretended, monkeypatch):
    """The kind of mistake that these tests are for."""
    mask = cache._mask
    monkeypatch.setattr(cache, "_mask", lambda *a, **k: mask(*a, **k).cpu())
    with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
        generate(pretended, "ngram", Warp(), policy.fixed(3))
