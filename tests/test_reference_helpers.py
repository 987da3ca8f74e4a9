"""Small real models and independent computations that the reference tests share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from reference import prompts
from reference.cache import make_batch
from reference.cli import main
from reference.decode import Decoder
from reference.draft.base import Drafter
from reference.draft.eagle import EagleConfig, EagleDrafter, random_head
from reference.draft.neural import DraftModelDrafter, EarlyExitDrafter
from reference.draft.ngram import NgramDrafter
from reference.exact import Enumerator, distribution
from reference.model import Model, ModelConfig, random_model
from reference.policy import Policy
from reference.request import Request
from reference.sampling import Warp
from reference.stopping import StopRule

torch.set_num_threads(1)  # tiny models: a second thread only waits

#: Flat enough that every branch has weight, peaked enough that p and q differ.
FLAT = Warp(temperature=1.0)


def tiny_config(vocab_size: int = 3, num_layers: int = 2, **changes: object) -> ModelConfig:
    values = {
        "vocab_size": vocab_size,
        "hidden_size": 8,
        "num_layers": num_layers,
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 4,
        "intermediate_size": 12,
        "max_positions": 64,
        **changes,
    }
    return ModelConfig(**values)  # type: ignore[arg-type]


def tiny_model(vocab_size: int = 3, seed: int = 0, **changes: object) -> Model:
    return random_model(tiny_config(vocab_size, **changes), seed, dtype=torch.float64)


VARIED_VOCABULARY = 13


def varied_model() -> Model:
    """A model whose greedy output wanders: constant output would hide most mistakes."""
    return random_model(tiny_config(VARIED_VOCABULARY), 3, scale=2.0, dtype=torch.float64)


#: Every way of drafting that has a q, and the n-gram that has none.
METHODS = ("ngram", "early-exit", "draft-model", "eagle")


def make_drafter(method: str, target: Model, **options: object) -> Drafter:
    if method == "none":
        return Drafter()
    if method == "ngram":
        return NgramDrafter(longest=2, shortest=1)
    if method == "early-exit":
        return EarlyExitDrafter(1, **options)  # type: ignore[arg-type]
    if method == "draft-model":
        model = random_model(target.config, 77, dtype=target.dtype)
        for ours, theirs in zip(model.parameters(), target.parameters(), strict=True):
            ours.lerp_(theirs, 0.7)  # right often enough, wrong often enough
        return DraftModelDrafter(model, **options)  # type: ignore[arg-type]
    config = EagleConfig.for_target(
        target.config, max(2, target.config.vocab_size - 1), feature_layers=(1, 2)
    )
    return EagleDrafter(random_head(config, 5, target.dtype), **options)  # type: ignore[arg-type]


def fresh_logits(model: Model, tokens: Sequence[int]) -> Tensor:
    """(n, V) logits of one sequence by a single pass over an empty cache."""
    cache = model.new_cache(1, len(tokens))
    with torch.inference_mode():
        return model(make_batch([list(tokens)], cache), cache).logits


def softmax(logits: Sequence[float], temperature: float) -> list[float]:
    """Written apart from the production warp, in plain Python."""
    top = max(logits)
    weights = [math.exp((x - top) / temperature) for x in logits]
    return [w / sum(weights) for w in weights]


def true_joint(
    model: Model,
    prompt: Sequence[int],
    horizon: int,
    temperature: float,
    stop: Callable[[Sequence[int]], bool] = lambda generated: False,
) -> dict[tuple[int, ...], float]:
    """Exact joint of autoregressive sampling, every prefix recomputed without a cache."""
    result: dict[tuple[int, ...], float] = {}

    def extend(generated: tuple[int, ...], weight: float) -> None:
        if len(generated) == horizon or (generated and stop(generated)):
            result[generated] = weight
            return
        line = fresh_logits(model, [*prompt, *generated])[-1].tolist()
        for token, p in enumerate(softmax(line, temperature)):
            extend((*generated, token), weight * p)

    extend((), 1.0)
    return result


def decoder_joint(
    target: Model,
    drafter: Callable[[], Drafter],
    policy: Callable[[], Policy],
    prompt: Sequence[int],
    horizon: int,
    *,
    warp: Warp = FLAT,
    rule: str = "chain",
    stop: StopRule | None = None,
    prefill_chunk: int | None = None,
) -> dict[tuple[int, ...], float]:
    """Exact joint of what the production decoder emits, over all of its randomness."""

    def program(chooser: Enumerator) -> tuple[int, ...]:
        decoder = Decoder(
            target, drafter(), warp=warp, policy=policy(), rule=rule, capacity=48,
            prefill_chunk=prefill_chunk,
        )  # fmt: skip
        request = Request("r", prompt, horizon, randomness=chooser, stop=stop or StopRule())
        for _ in decoder.run([request]):
            pass
        return tuple(request.generated)

    return distribution(program)


def tables(seed: int, vocab: int, depth: int, zeros: float = 0.0) -> dict[tuple[int, ...], Tensor]:
    """A random distribution for every prefix up to a depth; some entries exactly zero."""
    generator = np.random.default_rng(seed)
    result = {}
    for n in range(depth + 1):
        for prefix in itertools.product(range(vocab), repeat=n):
            weights = generator.gamma(0.7, size=vocab) * (generator.random(vocab) >= zeros)
            if weights.sum() == 0:
                weights[generator.integers(vocab)] = 1.0
            result[prefix] = torch.tensor(weights / weights.sum(), dtype=torch.float64)
    return result


WORDS = ("<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", " ", ".")


def tiny_directory(path, vocab: Sequence[str] = WORDS, seed: int = 1):  # type: ignore[no-untyped-def]
    """A model directory as the hub has them: config, safetensors, tokenizer, tiny."""
    import tokenizers
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=len(vocab), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
        initializer_range=0.5, tie_word_embeddings=True, eos_token_id=0, bos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformers.LlamaForCausalLM(config).save_pretrained(path)
    words = {word: i for i, word in enumerate(vocab)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.decoder = tokenizers.decoders.Fuse()
    backend.save(str(path / "tokenizer.json"))
    return path


def run(capsys, *arguments):  # type: ignore[no-untyped-def]
    """Exit status, stdout, stderr of a command run in this process."""
    capsys.readouterr()
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as stop:
        status = stop.code  # type: ignore[assignment]
    out, err = capsys.readouterr()
    return status, out, err


def shorten_prompts(patch) -> None:  # type: ignore[no-untyped-def]
    """The tiny model has one token a character; its cache is short."""
    whole = prompts.load_prompts
    patch.setattr(
        prompts,
        "load_prompts",
        lambda d: [prompts.Prompt(p.id, p.text[:40].lower(), p.domain) for p in whole(d)],
    )
