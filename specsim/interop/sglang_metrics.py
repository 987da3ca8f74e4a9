"""Prometheus text of an SGLang server: gauges of the last interval, without counts."""

from __future__ import annotations

import re
from pathlib import Path

from specsim.errors import RecordError
from specsim.interop.common import MAX_POSITIONS, Imported, MeanLength, Notes
from specsim.interop.reading import Progress, number, read_lines
from specsim.interop.sglang_log import RateMeaning

FORMAT = "sglang-metrics"
_GAUGES = ("spec_accept_length", "spec_accept_rate", "spec_num_steps")
_LINE = re.compile(
    r"^sglang:(spec_accept_length|spec_accept_rate|spec_num_steps)(?:\{.*\})?\s+(\S+)"
)


def read(path: Path, progress: Progress | None = None) -> Imported:
    """Read one scrape.

    Raises:
        RecordError: where the gauges are missing or impossible.
    """
    found: dict[str, list[float]] = {name: [] for name in _GAUGES}
    for line_number, line in read_lines(path, progress):
        if match := _LINE.match(line):
            high = 1.0 if match[1].endswith("rate") else MAX_POSITIONS + 1.0
            value = number(match[2], f"{path}, line {line_number}", match[1], high=high)
            if len(found[match[1]]) < 4096:
                found[match[1]].append(value)
    lengths = [x for x in found["spec_accept_length"] if x >= 1]
    if not lengths:
        raise RecordError(
            f"{path}: no series sglang:spec_accept_length above 0; is speculation on?"
        )
    length, k = sum(lengths) / len(lengths), None
    notes = Notes()
    steps = {round(x) for x in found["spec_num_steps"] if x >= 1}
    if len(steps) == 1:
        k = steps.pop()
        if length > k + 1:
            raise RecordError(f"{path}: spec_accept_length = {length:g}: expected <= {k + 1}")
    elif rates := [x for x in found["spec_accept_rate"] if x > 0]:
        meaning = RateMeaning()
        meaning.add(length, sum(rates) / len(rates), rounding=0.0005)
        name, best, agrees = meaning.best()
        if agrees:
            k = max(best, int(length - 1e-9))
            notes.add("accept-rate-meaning", f"{path}: accept rate in its {name} meaning, K = {k}")
    notes.add(
        "no-token-count", f"{path}: gauges of the last interval, over an unknown number of tokens"
    )
    return Imported(
        file=str(path), format=FORMAT, notes=notes.result(),
        lengths=(MeanLength(acceptance_length=length, num_draft_tokens=k),),
    )  # fmt: skip
