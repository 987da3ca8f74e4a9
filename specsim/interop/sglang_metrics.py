"""Prometheus text of an SGLang server: gauges of the last interval, and since 2026 the counter
of verified steps, summed over finished requests as generated tokens are."""

from __future__ import annotations

import re
from pathlib import Path

from specsim.errors import RecordError
from specsim.interop.common import MAX_POSITIONS, Imported, MeanLength, Notes, Tally
from specsim.interop.reading import Progress, number, read_lines
from specsim.interop.sglang_log import RateMeaning

FORMAT = "sglang-metrics"
_GAUGES = ("spec_accept_length", "spec_accept_rate", "spec_num_steps", "spec_num_draft_tokens")
_STEPS, _TOKENS, _REQUESTS = (
    "spec_verify_calls_total",
    "generation_tokens_total",
    ("num_requests_total"),
)
_LINE = re.compile(
    rf"^sglang:({'|'.join((*_GAUGES, _STEPS, _TOKENS, _REQUESTS))})(?:(\{{.*?\}}))?\s+(\S+)"
)


def read(path: Path, progress: Progress | None = None) -> Imported:
    """Read one scrape.

    Raises:
        RecordError: where the gauges are missing or impossible.
    """
    found: dict[str, list[float]] = {name: [] for name in _GAUGES}
    counters: dict[str, dict[str, float]] = {name: {} for name in (_STEPS, _TOKENS, _REQUESTS)}
    for line_number, line in read_lines(path, progress):
        if (match := _LINE.match(line)) and match[1] in counters:
            by_label = counters[match[1]]
            if len(by_label) < 4096:  # of several scrapes the last counts
                by_label[match[2] or ""] = number(match[3], f"{path}, line {line_number}", match[1])
        elif match:
            high = 1.0 if match[1].endswith("rate") else MAX_POSITIONS + 1.0
            if match[3].lower() == "nan":
                continue
            value = number(match[3], f"{path}, line {line_number}", match[1], high=high)
            if len(found[match[1]]) < 4096:
                found[match[1]].append(value)
    total = {name: sum(values.values()) for name, values in counters.items()}
    lengths = [x for x in found["spec_accept_length"] if x >= 1]
    if not lengths and not total[_STEPS]:
        raise RecordError(
            f"{path}: no series sglang:spec_accept_length above 0; is speculation on?"
        )
    notes, k = Notes(), None
    # each request's first token comes from its prefill
    emitted = total[_TOKENS] - total[_REQUESTS]
    counted = total[_STEPS] if 0 < total[_STEPS] <= emitted else 0.0
    if total[_STEPS] and not counted:
        notes.add("incomplete-lines", f"{path}: {_STEPS} does not go with {_TOKENS}; left out")
    if not counted and not lengths:
        raise RecordError(f"{path}: {_STEPS} = {total[_STEPS]:g} with {emitted:g} tokens: expected "
                          "no more steps than tokens")  # fmt: skip
    length = emitted / counted if counted else sum(lengths) / len(lengths)
    steps = {round(x) for x in found["spec_num_steps"] if x >= 1}
    verified = {round(x) - 1 for x in found["spec_num_draft_tokens"] if x >= 2}  # less the root
    if steps in (set(), {1}) and verified:  # a block drafter takes one step
        steps = verified
    if len(steps) == 1:
        k = steps.pop()
        if length > k + 1:
            raise RecordError(f"{path}: {length:g} tokens per step: expected <= {k + 1}")
    elif lengths and (rates := [x for x in found["spec_accept_rate"] if x > 0]):
        meaning = RateMeaning()
        meaning.add(sum(lengths) / len(lengths), sum(rates) / len(rates), rounding=0.0005)
        name, best, agrees = meaning.best()
        if agrees:
            k = max(best, int(length - 1e-9))
            notes.add("accept-rate-meaning", f"{path}: accept rate in its {name} meaning, K = {k}")
    if counted and k is not None and length <= k + 1:
        tally = Tally(k)
        tally.add(steps=counted, drafted=k * counted, accepted=emitted - counted, emitted=emitted)
        return Imported(file=str(path), format=FORMAT, tallies=(tally,), notes=notes.result())
    notes.add(
        "no-token-count", f"{path}: gauges of the last interval, over an unknown number of tokens"
    )
    return Imported(
        file=str(path), format=FORMAT, notes=notes.result(),
        lengths=(MeanLength(acceptance_length=length, num_draft_tokens=k),),
    )  # fmt: skip
