"""Decode one prompt speculatively and, interleaved, autoregressively; what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from reference.cache import make_batch
from reference.decode import LOSSY_RULES, Decoder, StepResult
from reference.model import Model
from reference.request import Request
from reference.sampling import SeededRandomness
from reference.stopping import StopRule
from reference.timing import synchronise
from reference.tokenizer import Tokenizer


@dataclass
class Run:
    """One decoder's requests, its steps, and the time they took."""

    decoder: Decoder
    requests: list[Request]
    steps: list[StepResult] = field(default_factory=list)
    seconds: float = 0.0
    num_steps: int = 0

    def advance(self) -> None:
        """One timed step."""
        start = time.perf_counter()
        self.steps += self.decoder.step()
        synchronise(self.decoder.target.device)
        self.seconds += time.perf_counter() - start
        self.num_steps += 1

    @property
    def num_tokens(self) -> int:
        return sum(len(request.generated) for request in self.requests)

    @property
    def tokens_per_s(self) -> float | None:
        return self.num_tokens / self.seconds if self.seconds else None


def make_run(
    decoder: Decoder, prompt: Sequence[int], new: int, batch: int, seed: int, stop: StopRule
) -> Run:
    """`batch` requests with one prompt; request i draws from stream i of the seed."""
    requests = [
        Request(f"row{i}", prompt, new, SeededRandomness(seed, i), stop) for i in range(batch)
    ]
    for request in requests:
        decoder.admit(request)
    return Run(decoder, requests)


def interleave(run: Run, baseline: Run | None, show: Callable[[Run], None]) -> None:
    """Alternate: a speculative step, then baseline steps until as many tokens are out.

    Both meet the same disturbances of the machine, so their ratio is a fair one even
    where their times are noisy.
    """
    while run.decoder.rows:
        run.advance()
        show(run)
        while baseline and baseline.decoder.rows and baseline.num_tokens < run.num_tokens:
            baseline.advance()
    while baseline and baseline.decoder.rows:
        baseline.advance()


@torch.inference_mode()
def warm_up(model: Model, widths: Sequence[int]) -> None:
    """Pay for lazy initialisation before the clock runs: one pass of each width."""
    cache = model.new_cache(1, max(widths))
    for width in widths:
        cache.rollback(0, 0)
        model(make_batch([[0] * width], cache), cache)


def survival(steps: Sequence[StepResult]) -> list[float]:
    """P(at least i drafted tokens accepted) for i = 1..K, over steps past the prompt."""
    decoding = [step for step in steps if not step.mixed]
    longest = max((step.num_draft_tokens for step in decoding), default=0)
    return [
        sum(step.num_accepted >= i for step in decoding) / len(decoding)
        for i in range(1, longest + 1)
    ]


def acceptance_length(steps: Sequence[StepResult]) -> float | None:
    """τ: mean tokens a step of one row, the bonus or correction included."""
    decoding = [step for step in steps if not step.mixed]
    if not decoding:
        return None
    return sum(len(step.emitted) for step in decoding) / len(decoding)


def summary(run: Run, baseline: Run | None, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The numbers of a run (`reference decode --json`); undefined ones are None."""

    def text(request: Request) -> str:
        return tokenizer.decode(request.generated) if tokenizer else str(request.generated)

    rate, base_rate = run.tokens_per_s, baseline.tokens_per_s if baseline else None
    decoder = run.decoder
    result: dict[str, Any] = {
        "text": text(run.requests[0]),
        "baseline_text": text(baseline.requests[0]) if baseline else None,
        "num_tokens": run.num_tokens,
        "tokens_per_s": rate,
        "baseline_tokens_per_s": base_rate,
        "speedup": rate / base_rate if rate and base_rate else None,
        "acceptance_length": acceptance_length(run.steps),
        "survival": survival(run.steps),
        "num_steps": run.num_steps,
        "finished": run.requests[0].finished or "interrupted",
        "lossless": decoder.rule not in LOSSY_RULES or decoder.warp.greedy,
    }
    if baseline and decoder.warp.greedy:
        result["identical_to_baseline"] = all(
            _same(a, b) for a, b in zip(run.requests, baseline.requests, strict=True)
        )
    if len(run.requests) > 1:
        result["texts"] = [text(request) for request in run.requests]
    return result


def _same(ours: Request, baseline: Request) -> bool:
    """Equal output; as far as both have come, where an interrupt left one behind."""
    if ours.finished and baseline.finished:
        return ours.generated == baseline.generated
    n = min(len(ours.generated), len(baseline.generated))
    return ours.generated[:n] == baseline.generated[:n]


def closing_lines(result: dict[str, Any]) -> str:
    """The summary that a person reads after the text."""

    def number(value: float | None, form: str) -> str:
        return "—" if value is None else format(value, form)

    rates = " ".join(f"{s:.2f}" for s in result["survival"]) or "—"
    lines = [
        f"{result['num_tokens']} tokens in {result['num_steps']} steps, "
        f"{number(result['tokens_per_s'], '.1f')} tokens/s on {result['device']} in "
        f"{result['dtype']}",
        f"acceptance length τ = {number(result['acceptance_length'], '.2f')} tokens a step "
        f"(draft {result['draft']}, K = {result['num_draft_tokens']})",
        f"P(at least i accepted), i = 1…: {rates}",
    ]
    if result["baseline_tokens_per_s"] is not None:
        lines.append(
            f"speedup {number(result['speedup'], '.2f')}× over autoregressive decoding "
            f"interleaved in this process ({result['baseline_tokens_per_s']:.1f} tokens/s)"
        )
    if "identical_to_baseline" in result:
        same = result["identical_to_baseline"]
        lines.append(f"identical to greedy autoregressive output: {'yes' if same else 'NO'}")
    if not result["lossless"]:
        lines.append("LOSSY: this accept rule does not keep the target's distribution")
    return "\n".join(lines)
