"""Decodes units of `validation.host_plan` and writes down what every step did and took.

Units of one group (the same prompts under several settings) are decoded together, one step
at a time in turn: the unit that has emitted least goes on. So all settings see the same
machine, however its speed drifts, and their ratio does not.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reference.decode import Decoder, StepResult
from reference.measure import ngram_runs
from reference.options import make_drafter
from reference.policy import fixed
from reference.prompts import Prompt
from reference.request import Request
from reference.sampling import SeededRandomness, Warp
from reference.stopping import StopRule
from reference.weights import Loaded
from validation.host_plan import NGRAM, OUTPUT_TOKENS, REPORTED_K, Unit

SEED = 20_261_124
CAPACITY = 320
LONGEST_DRAFT = max(max(ks) for ks in REPORTED_K.values())


@dataclass(frozen=True)
class Until(StopRule):
    """Stops at a stop token, or after the step that reaches `limit` tokens: unlike a
    maximum length it shortens no draft, so that every step drafts K tokens."""

    limit: int = 0

    def cut(self, generated: Sequence[int], start: int) -> int | None:
        """See StopRule."""
        kept = super().cut(generated, start)
        return len(generated) if kept is None and len(generated) >= self.limit else kept


def requests_of(unit: Unit, target: Loaded, output_tokens: int) -> list[Request]:
    """One request a prompt; its random stream depends on the prompt alone."""
    assert target.tokenizer is not None
    return [
        Request(
            prompt.id, target.tokenizer.chat(prompt.text), output_tokens + LONGEST_DRAFT + 1,
            SeededRandomness(SEED, int(prompt.id.rpartition("-")[2])),
            Until(tokens=target.tokenizer.eos, limit=output_tokens),
        )
        for prompt in unit.prompts
    ]  # fmt: skip


class Decoding:
    """A unit that is being decoded, step by step."""

    def __init__(self, unit: Unit, target: Loaded, output_tokens: int = OUTPUT_TOKENS) -> None:
        drafter, _ = make_drafter(unit.method if unit.num_draft_tokens else "none", target)
        self.unit, self.output_tokens, self.emitted = unit, output_tokens, 0
        self._decoder = Decoder(
            target.model, drafter, warp=Warp(temperature=unit.temperature),
            policy=fixed(unit.num_draft_tokens), rows=unit.batch, capacity=CAPACITY,
        )  # fmt: skip
        self._runs = unit.purpose == "acceptance" and unit.method == NGRAM
        self._requests = requests_of(unit, target, output_tokens + LONGEST_DRAFT * self._runs)
        self._waiting = self._requests[::-1]
        self._accepted: dict[str, list[int]] = {r.name: [] for r in self._requests}
        self._drafted: dict[str, list[int]] = {r.name: [] for r in self._requests}
        self._steps: list[list[int]] = []
        self._elapsed = self._processor = 0.0

    @property
    def done(self) -> bool:
        """Whether every prompt is answered."""
        return not (self._waiting or self._decoder.rows)

    def step(self) -> None:
        """One step of the batch; prompts that wait take free rows first."""
        start, processor = time.perf_counter(), time.process_time()
        while self._waiting and len(self._decoder.rows) < self.unit.batch:
            self._decoder.admit(self._waiting.pop())
        begin = time.perf_counter()
        results = self._decoder.step()
        whole = time.perf_counter() - begin
        for result in results:
            self.emitted += len(result.emitted)
            if result.num_draft_tokens:
                self._accepted[result.request.name].append(result.num_accepted)
                self._drafted[result.request.name].append(result.num_drafted)
        if not results[0].mixed:
            self._steps.append(step_row(results, whole))
        self._elapsed += time.perf_counter() - start
        self._processor += time.process_time() - processor

    def line(self) -> dict[str, Any]:
        """What is written down.

        `steps` are those in which no row read its prompt: rows, emitted, drafted and context
        tokens, then draft, verify, sample, host and whole time in microseconds.
        """
        acceptance = self.unit.purpose == "acceptance"
        line: dict[str, Any] = {
            **{k: v for k, v in asdict(self.unit).items() if k != "prompts"},
            "name": self.unit.name, "core_share": round(self._processor / self._elapsed, 3),
            "requests": [
                {"request": r.name, "prompt_tokens": len(r.prompt),
                 "output_tokens": len(r.generated), "accepted": self._accepted[r.name],
                 "drafted": self._drafted[r.name]}
                for r in self._requests
            ],
            "steps": [] if acceptance else self._steps,
        }  # fmt: skip
        if self._runs:
            for prompt, request, entry in zip(
                self.unit.prompts, self._requests, line["requests"], strict=True
            ):
                entry["runs"] = runs_of(prompt, request, self.output_tokens)
        return line


def decode_together(
    units: Sequence[Unit], target: Loaded, output_tokens: int = OUTPUT_TOKENS
) -> list[dict[str, Any]]:
    """The lines of units that are decoded in turn, the one that has emitted least first."""
    running = [Decoding(unit, target, output_tokens) for unit in units]
    while left := [decoding for decoding in running if not decoding.done]:
        min(left, key=lambda decoding: decoding.emitted).step()
    return [decoding.line() for decoding in running]


def step_row(results: Sequence[StepResult], whole: float) -> list[int]:
    """One step's totals; see `Decoding.line`."""
    first = results[0]
    times = [first.seconds.get(n, 0.0) for n in ("draft", "verify", "sample", "host")]
    return [
        first.batch, sum(len(r.emitted) for r in results), sum(r.num_drafted for r in results),
        sum(r.context for r in results), *(round(1e6 * t) for t in (*times, whole)),
    ]  # fmt: skip


def runs_of(prompt: Prompt, request: Request, output_tokens: int) -> list[int]:
    """Accepted run of an n-gram draft from every output position but the first (which the
    prompt's own pass emits); −1 where nothing is proposed. Tokens beyond the last position
    were generated so that runs are not cut."""
    found = ngram_runs(prompt, request.tokens, len(request.prompt), LONGEST_DRAFT)
    return [
        r.num_accepted if r.num_drafted else -1 for r in found if 1 <= r.position < output_tokens
    ]
