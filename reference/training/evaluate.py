"""What a trained draft is worth: overlap on held-out text, then real decoding.

Overlap is computed along text that the target wrote (prompts of `reference/prompts`, none
trained on). Decoding gives τ, the cost of drafting and the speedup: all drafts and plain
decoding take turns on each prompt in one process of one thread, and time is that thread's
processor time, which other programs on the machine disturb little.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from reference.decode import Decoder
from reference.draft.base import Drafter
from reference.model import Model
from reference.policy import fixed
from reference.prompts import Prompt
from reference.request import Request
from reference.sampling import SeededRandomness, Warp
from reference.stopping import StopRule
from reference.training.batches import Columns, Example, unpack
from reference.training.corpus import Corpus
from reference.training.loss import Judged, judge
from reference.training.statistics import geometric_mean, ratio
from reference.training.trainees import Trainee
from reference.weights import Loaded

BATCH = 8


def held_out_examples(
    corpus: Corpus, columns: Columns
) -> dict[tuple[str, float], list[tuple[Prompt, Example]]]:
    """Held-out examples by domain and temperature."""
    result = defaultdict(list)
    for i in range(corpus.num_held_out_shards):
        examples = unpack([corpus.make(i)], columns, shortest=0)
        for prompt, example in zip(corpus.prompts(i), examples, strict=True):
            if example.num_outputs >= 3:
                result[prompt.domain, corpus.temperature(i)].append((prompt, example))
    return dict(result)


@torch.no_grad()
def overlap(
    trainee: Trainee, examples: Sequence[Example], token_ids: torch.Tensor, k: int
) -> dict[str, Any]:
    """1 − TV, covered mass and greedy agreement at drafted positions 1..k, with errors.

    A draft model reads the target's own tokens at every position, so it has one number.
    """
    sums: dict[str, list[dict[int, list[float]]]] = defaultdict(list)
    for start in range(0, len(examples), BATCH):
        chosen = examples[start : start + BATCH]
        for j, scored in enumerate(trainee.passes(chosen, k)):
            judged = judge(scored, token_ids)
            for name in ("overlap", "mass", "agrees"):
                while len(sums[name]) <= j:
                    sums[name].append({})
                sums[name][j] |= _by_example(judged, name, start)
    names = {"overlap": "one_minus_tv", "mass": "covered_mass", "agrees": "greedy_agreement"}
    return {names[name]: [_estimate(d) for d in positions] for name, positions in sums.items()}


def _by_example(judged: Judged, name: str, start: int) -> dict[int, list[float]]:
    """Example → [sum, count] of a quantity, positions without it left out."""
    values: torch.Tensor = getattr(judged, name)
    known = ~values.isnan()
    values, rows = values[known], judged.examples[known]
    return {
        start + row: [float(values[rows == row].sum()), int((rows == row).sum())]
        for row in sorted(set(rows.tolist()))
    }


def _estimate(sums: Mapping[int, Sequence[float]]) -> list[float]:
    value, error = ratio([s for s, _ in sums.values()], [n for _, n in sums.values()])
    return [round(value, 4), round(error, 4)]


class Meter:
    """Processor seconds spent in a drafter's `propose`."""

    def __init__(self, drafter: Drafter) -> None:
        self.seconds, self.drafter = 0.0, drafter
        self._propose: Callable[..., Any] = drafter.propose
        drafter.propose = self  # type: ignore[method-assign, assignment]

    def __call__(self, *arguments: Any) -> Any:
        start = time.process_time()
        result = self._propose(*arguments)
        self.seconds += time.process_time() - start
        return result


def decode_once(
    target: Model, meter: Meter | None, ids: Sequence[int], k: int, temperature: float,
    *, new: int, eos: frozenset[int], seed: int,
) -> dict[str, Any]:  # fmt: skip
    """One prompt decoded: steps, tokens, accepted by position, processor seconds.

    The pass that reads the prompt is left out, and steps that could not draft K.
    """
    decoder = Decoder(
        target,
        meter.drafter if meter else None,
        warp=Warp(temperature=temperature),
        policy=fixed(k),
        capacity=len(ids) + new,
    )
    request = Request("held-out", ids, new, SeededRandomness(seed), StopRule(eos))
    decoder.admit(request)
    counts = {"steps": 0, "emitted": 0, "drafted": 0, "seconds": 0.0, "draft_seconds": 0.0}
    counts |= {f"accepted_{i}": 0 for i in range(1, k + 1)}
    while decoder.rows:
        start, drafting = time.process_time(), meter.seconds if meter else 0.0
        (step,) = decoder.step()
        seconds = time.process_time() - start
        if step.mixed or step.num_draft_tokens < k:
            continue
        counts["steps"] += 1
        counts["emitted"] += len(step.emitted)
        counts["drafted"] += step.num_drafted
        counts["seconds"] += seconds
        counts["draft_seconds"] += meter.seconds - drafting if meter else 0.0
        for i in range(1, k + 1):
            counts[f"accepted_{i}"] += step.num_accepted >= i
    return counts


def decode_all(
    target: Loaded,
    drafters: Mapping[str, Drafter],
    prompts: Sequence[Prompt],
    k: int,
    temperature: float,
    *,
    new: int,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, list[dict[str, Any]]]:
    """Every draft, and plain decoding as "none", on every prompt, in rotating order."""
    assert target.tokenizer is not None
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in ("none", *drafters)}
    names = list(results)
    meters: dict[str, Meter | None] = {name: Meter(d) for name, d in drafters.items()}
    meters["none"] = None
    for i, prompt in enumerate(prompts):
        ids = target.tokenizer.chat(prompt.text)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            one = decode_once(
                target.model, meters[name], ids, 0 if name == "none" else k, temperature,
                new=new, eos=target.tokenizer.eos, seed=i,
            )  # fmt: skip
            results[name].append(one)
            tick()
    return results


def summarise(
    runs: Sequence[Mapping[str, Any]], plain: Sequence[Mapping[str, Any]], k: int
) -> dict[str, Any]:
    """τ, survival, cost ratio and speedup of one draft against plain decoding, per prompt."""
    pairs = [(r, p) for r, p in zip(runs, plain, strict=True) if r["steps"] and p["steps"]]
    steps = [r["steps"] for r, _ in pairs]
    tau, tau_error = ratio([r["emitted"] for r, _ in pairs], steps)
    survival = [ratio([r[f"accepted_{i}"] for r, _ in pairs], steps) for i in range(1, k + 1)]
    speed = geometric_mean(
        [p["seconds"] / p["emitted"] / (r["seconds"] / r["emitted"]) for r, p in pairs]
    )
    cost = geometric_mean(
        [r["draft_seconds"] / r["drafted"] / (p["seconds"] / p["steps"]) for r, p in pairs]
    )
    return {
        "prompts": len(pairs),
        "steps": sum(steps),
        "tau": [round(tau, 4), round(tau_error, 4)],
        "survival": [[round(value, 4), round(error, 4)] for value, error in survival],
        "speedup": [round(x, 4) for x in speed],
        "cost_ratio": [round(x, 4) for x in cost],
        "plain_seconds_per_token": round(
            sum(p["seconds"] for _, p in pairs) / sum(p["emitted"] for _, p in pairs), 6
        ),
    }
