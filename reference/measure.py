"""Measuring: what every step cost and accepted, and what a forward pass costs.

Step records come from speculative runs over prompts × methods × K × temperature × batch.
Forward-pass records are timed apart from those runs, on synthetic contexts. Accepted runs
say, for every output position, how many drafted tokens a step starting there would see
accepted: at temperature 0 that follows from the output itself.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reference.cache import Batch, KVCache, make_batch
from reference.decode import Decoder, StepResult
from reference.draft.base import Drafter
from reference.draft.eagle import EagleHead
from reference.draft.ngram import NgramDrafter
from reference.model import Model
from reference.policy import fixed
from reference.prompts import Prompt
from reference.request import Request
from reference.sampling import SeededRandomness, Warp
from reference.stopping import StopRule
from reference.timing import Stopwatch
from reference.tokenizer import Tokenizer
from specsim.records import ForwardRecord, StepRecord

LAPS = ("draft", "verify", "sample", "host")  # the parts of a step that are timed


@dataclass(frozen=True)
class Unit:
    """The smallest piece of a measurement: one batch of prompts under one setting.

    Its records are named `<prompt>/<method>/k<K>/t<temperature>/b<batch>@<first prompt>`.
    """

    prompts: tuple[Prompt, ...]
    method: str
    k: int
    temperature: float

    @property
    def name(self) -> str:
        """Unique within a file, and the same whenever the unit is repeated."""
        batch = f"b{len(self.prompts)}@{self.prompts[0].id}"
        return f"{self.method}/k{self.k}/t{self.temperature:g}/{batch}"

    def request_name(self, row: int) -> str:
        """The name that a row's records carry."""
        return f"{self.prompts[row].id}/{self.name}"


def plan_units(
    prompts: Sequence[Prompt],
    methods: Sequence[str],
    ks: Sequence[int],
    temperatures: Sequence[float],
    batches: Sequence[int],
) -> list[Unit]:
    """Every unit once, in a fixed order; K = 0 (autoregressive) needs only one method.

    A batch larger than the prompts left takes those, so two batch sizes may give the same
    last unit: it is measured once, as names must be unique for a file to be resumed.
    """
    units = []
    for batch, temperature in itertools.product(batches, temperatures):
        for start in range(0, len(prompts), batch):
            group = tuple(prompts[start : start + batch])
            for k in ks:
                units += [
                    Unit(group, method if k else "none", k, temperature)
                    for method in (methods if k else methods[:1])
                ]
    return list(dict.fromkeys(units))


def run_unit(
    unit: Unit,
    target: Model,
    drafter: Drafter,
    tokenizer: Tokenizer,
    *,
    new: int,
    capacity: int,
    seed: int,
) -> Iterator[StepRecord]:
    """Step records of one unit, as the steps happen. Prompt steps are left out."""
    decoder = Decoder(
        target, drafter, warp=Warp(temperature=unit.temperature), policy=fixed(unit.k),
        rows=len(unit.prompts), capacity=capacity, with_overlap=True,
    )  # fmt: skip
    requests = [
        Request(
            unit.request_name(row),
            tokenizer.chat(prompt.text),
            new,
            SeededRandomness(seed, row),
            StopRule(tokenizer.eos),
        )
        for row, prompt in enumerate(unit.prompts)
    ]
    domain = {unit.request_name(row): prompt.domain for row, prompt in enumerate(unit.prompts)}
    counts = dict.fromkeys(domain, 0)
    for step in decoder.run(requests):
        if not step.mixed:
            name = step.request.name
            yield step_record(step, counts[name], unit, domain[name])
            counts[name] += 1


def step_record(step: StepResult, index: int, unit: Unit, domain: str) -> StepRecord:
    """A `StepResult` in the shared schema, to the nanosecond (what clocks resolve)."""
    times = {name: round(step.seconds.get(name, 0.0), 9) for name in LAPS}
    return StepRecord(
        request=step.request.name,
        step=index,
        position=step.position,
        batch=step.batch,
        context=step.context,
        num_draft_tokens=step.num_draft_tokens,
        num_drafted=step.num_drafted,
        num_accepted=step.num_accepted,
        draft_s=times["draft"],
        verify_s=times["verify"],
        sample_s=times["sample"],
        host_s=times["host"],
        overlap=None if step.overlap is None else tuple(round(x, 9) for x in step.overlap),
        method=unit.method,
        domain=domain,
        temperature=unit.temperature,
    )


def ngram_runs(
    prompt: Prompt, tokens: Sequence[int], prompt_length: int, k: int
) -> Iterator[StepRecord]:
    """For every output position of a greedy output: how many n-gram drafts it accepts.

    Args:
        tokens: prompt and greedy output; position i drafts from all tokens before it.
    """
    row = Request(prompt.id, tokens[:prompt_length], max(1, len(tokens) - prompt_length))
    drafter = NgramDrafter()
    for position in range(len(tokens) - prompt_length):
        at = prompt_length + position
        row.tokens = list(tokens[:at])
        draft = drafter.propose([row], [(1,) * k], Warp())[0].tokens
        yield _run_record(prompt, "ngram", k, position, at, draft, tokens[at:])


@torch.inference_mode()
def early_exit_runs(
    prompt: Prompt,
    target: Model,
    num_layers: int,
    tokens: Sequence[int],
    prompt_length: int,
    k: int,
) -> Iterator[StepRecord]:
    """The same for early exit, from one pass: while a draft is right, its prefix is the
    output itself, so the early layers' argmax after every output prefix says it all."""
    length = len(tokens) - prompt_length
    cache = target.new_cache(1, len(tokens), num_layers)
    context = make_batch([list(tokens)], cache)
    index = torch.arange(prompt_length - 1, len(tokens) - 1, device=target.device)
    best = target(context, cache, select=index, num_layers=num_layers).logits.argmax(-1).tolist()
    for position in range(length):
        at = prompt_length + position
        draft = best[position : position + k]
        name = f"early-exit:{num_layers}"
        yield _run_record(prompt, name, k, position, at, draft, tokens[at:])


def _run_record(
    prompt: Prompt,
    method: str,
    k: int,
    position: int,
    context: int,
    draft: Sequence[int],
    following: Sequence[int],
) -> StepRecord:
    draft = draft[: len(following)]  # beyond the end of the output nothing is known
    accepted = 0
    for drafted, actual in zip(draft, following, strict=False):
        if drafted != actual:
            break
        accepted += 1
    return StepRecord(
        request=f"{prompt.id}/{method}/k{k}/t0/every-position", step=position, position=position,
        batch=1, context=context, num_draft_tokens=k,
        num_drafted=len(draft), num_accepted=accepted,
        draft_s=0.0, verify_s=0.0, sample_s=0.0, host_s=0.0,
        method=method, domain=prompt.domain, temperature=0.0,
    )  # fmt: skip


def greedy_output(
    target: Model, prompt_ids: Sequence[int], new: int, capacity: int, eos: frozenset[int]
) -> list[int]:
    """Prompt and greedy output, autoregressively."""
    decoder = Decoder(target, capacity=capacity)
    request = Request("greedy", prompt_ids, new, stop=StopRule(eos))
    for _ in decoder.run([request]):
        pass
    return request.tokens


@torch.inference_mode()
def time_forward(
    model: Callable[..., object],
    cache: KVCache,
    name: str,
    batch: int,
    new_tokens: int,
    context: int,
    *,
    repeats: int,
    num_layers: int | None = None,
) -> ForwardRecord:
    """T(batch, new tokens, context): median and interquartile range of `repeats` passes.

    The context's keys and values are whatever the cache holds: their values do not change
    the time. Making the batch is host work of the decoder and not part of the pass.
    """
    seconds = []
    for repeat in range(repeats + 2):
        cache.lengths[:batch] = [context] * batch
        packed = make_batch([[1] * new_tokens] * batch, cache)
        watch = Stopwatch(cache.device)
        model(packed, cache, num_layers=num_layers)
        watch.lap("pass")
        if repeat >= 2:  # the first two pay for caches and lazy initialisation
            seconds.append(watch.laps()["pass"])
    low, middle, high = quartiles(seconds)
    return ForwardRecord(
        model=name, batch=batch, new_tokens=new_tokens, context=context, seconds=middle,
        repeats=repeats, spread=high - low,
    )  # fmt: skip


class HeadPass:
    """An EAGLE head's pass called as a `Model`, to be timed: from the target's features of
    every token to the draft's logits after it, over the reduced vocabulary.

    The features are made up, since values do not change the time. Later passes of a draft
    continue the head's own states, and do without the product that fuses features.
    """

    def __init__(self, head: EagleHead, target: Model) -> None:
        self.head, self.embedding = head, target.embedding
        self.new_cache = head.new_cache

    def __call__(self, batch: Batch, cache: KVCache, *, num_layers: int | None = None) -> Tensor:
        """(T, R) logits; `num_layers` is a model's, the head has one."""
        config = self.head.config
        width = len(config.feature_layers) * config.hidden_size
        features = self.embedding.new_ones((len(batch.tokens), width))
        embedding = F.embedding(batch.tokens, self.embedding)
        state = self.head.fuse(features)
        state = self.head(state, embedding, batch, cache.keys[0], cache.values[0])
        return self.head.logits(state)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile; a single value is all three."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
