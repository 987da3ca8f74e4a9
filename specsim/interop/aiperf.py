"""aiperf's profile export (profile_export_aiperf.json): times of chunks and tokens, and the
acceptance where the server reports it.

A chunk is streamed once a step, so the latency between chunks is the step time; the one
between tokens is a step's share of a token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specsim.errors import RecordError
from specsim.interop.chunks import LENGTH_GAP, from_latency, per_token
from specsim.interop.common import MAX_POSITIONS, Imported, MeanLength, Notes, StepTimes, TallyByK
from specsim.interop.reading import Progress, number, parse_json, read_document, section

FORMAT = "aiperf"
#: Seconds per unit that aiperf may name.
UNITS = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "milliseconds": 1e-3, "us": 1e-6,
         "µs": 1e-6, "microseconds": 1e-6, "ns": 1e-9, "nanoseconds": 1e-9}  # fmt: skip
HISTOGRAM = "pooled_spec_decode_acceptance_histogram"
#: Tokens per step over all steps; the other lengths are means of requests' means.
LENGTH = "spec_decode_token_weighted_acceptance_length"


def read(path: Path, progress: Progress | None = None) -> Imported:
    """The summary of a run; each metric's own unit counts, what is not needed is not read.

    Raises:
        RecordError: where nothing can be used, naming file, key, value and what was expected.
    """
    where = str(path)
    text = read_document(path)
    first, _, rest = text.partition("\n")
    if rest and first.startswith("{") and first.rstrip().endswith("}"):
        raise RecordError(
            f"{path}: one record a line; expected the summary of the run, "
            "profile_export_aiperf.json"
        )
    document = section(parse_json(text, where), where, "export")
    if not any(is_metric(value) for value in document.values()):
        raise RecordError(f"{path}: no metric with unit and avg; expected aiperf's profile export")
    notes, times, tallies = Notes(), StepTimes(), TallyByK()
    lengths: list[MeanLength] = []
    token, chunk = (_seconds(document, f"inter_{x}_latency", where) for x in ("token", "chunk"))
    k, length, steps = _acceptance(document, where, tallies, lengths, notes)
    ratio = chunk / token if chunk and token else None
    if length is None and ratio is not None:
        k = from_latency(ratio, where, lengths, notes)
    elif length is not None and ratio is not None and abs(ratio / length - 1) > LENGTH_GAP:
        notes.add(
            "length-mismatch",
            f"{where}: a chunk takes {ratio:.2f} times as long as a token, but a step is said to "
            f"emit {length:.2f} tokens",
        )
    step = chunk or (token * (length or 1.0) if token else None)
    if step is not None:
        batch = next((_value(document, f"effective_{x}concurrency", where) for x in ("decode_", "")
                      if f"effective_{x}concurrency" in document), None)  # fmt: skip
        times.add(k, batch or None, step, steps or 1.0, counted=steps is not None)
        if not chunk and length is None:
            per_token(where, notes)
    if not lengths and not tallies:
        notes.add("latency-only", f"{where}: latencies, no acceptance; feed the server's metrics "
                  "or log too")  # fmt: skip
    return Imported(
        file=where, format=FORMAT, tallies=tuple(tallies.values()), lengths=tuple(lengths),
        steps=times.result(), notes=notes.result(),
    )  # fmt: skip


def is_metric(value: Any) -> bool:
    """Whether a value is a block of one metric's statistics."""
    return isinstance(value, Mapping) and {"unit", "avg"} <= set(value)


def _value(document: Mapping[str, Any], key: str, where: str, *, low: float = 0.0) -> float | None:
    """Mean of one metric in its own unit; None where it is missing."""
    value: Any = document.get(key)
    if not is_metric(value) or value["avg"] is None:
        return None
    return number(value["avg"], where, f"{key}.avg", low=low)


def _seconds(document: Mapping[str, Any], key: str, where: str) -> float | None:
    """Mean of a time; None where it is missing or 0, as when nothing was streamed."""
    mean = _value(document, key, where)
    if mean is None:
        return None
    unit = str(document[key]["unit"]).lower()
    if unit not in UNITS:
        raise RecordError(f"{where}: {key}.unit = {unit!r}: expected one of {', '.join(UNITS)}")
    return number(mean * UNITS[unit], where, f"{key}.avg in seconds", high=1e6) or None


def _acceptance(
    document: Mapping[str, Any], where: str, tallies: TallyByK, lengths: list[MeanLength],
    notes: Notes,
) -> tuple[int | None, float | None, float | None]:  # fmt: skip
    """K, tokens per step, steps: what the file says of them."""
    steps, accepted, drafted = (
        _value(document, f"total_{x}", where)
        for x in ("spec_decode_steps", "accepted_draft_tokens", "draft_tokens")
    )
    counts = _histogram(document, where)
    if counts:
        here = sum(counts.values()), sum(j * n for j, n in counts.items())
        told = zip((steps, accepted), here, strict=True)
        if any(total is not None and total != counted for total, counted in told):
            notes.add(
                "length-mismatch",
                f"{where}: {HISTOGRAM} has {here[0]:g} steps and {here[1]:g} accepted tokens, the "
                "totals say otherwise; the histogram counts",
            )
        steps, accepted = here
    if steps and accepted is not None and drafted is not None:
        k = max([math.ceil(drafted / steps - 0.01), *counts])
        if not 1 <= k <= MAX_POSITIONS or accepted > drafted:
            raise RecordError(
                f"{where}: {accepted:g} accepted of {drafted:g} draft tokens in {steps:g} steps: "
                f"expected no more accepted than drafted, and K in 1..{MAX_POSITIONS}"
            )
        tally = tallies.of(k)
        tally.counts_all_steps = False  # of a step without a draft the server need not tell
        reached = [sum(n for j, n in counts.items() if j > i) for i in range(k)]
        tally.add(
            steps=steps, drafted=drafted, accepted=accepted, at_least=reached if counts else None
        )
        return k, 1 + accepted / steps, steps
    length = 1 + accepted / steps if steps and accepted is not None else None
    names = [key for key in document if "accept" in key and "len" in key]
    for key in sorted(names, key=lambda name: name != LENGTH):
        length = _value(document, key, where, low=1.0) if length is None else length
    if length is not None:
        number(length, where, "acceptance length", low=1.0, high=MAX_POSITIONS + 1)
        lengths.append(MeanLength(acceptance_length=length, num_draft_tokens=None))
        notes.add("unknown-k", f"{where}: K is not in the file (say --k)")
    return None, length, steps


def _histogram(document: Mapping[str, Any], where: str) -> dict[int, float]:
    """Accepted tokens → steps, over the run; empty where it is missing."""
    value = document.get(HISTOGRAM)
    if value is None:
        return {}
    counts = {}
    for key, count in section(value, where, HISTOGRAM).items():
        if not (key.isdecimal() and int(key) <= MAX_POSITIONS):
            raise RecordError(f"{where}: {HISTOGRAM}: accepted tokens = {key[:60]}: expected 0.."
                              f"{MAX_POSITIONS}")  # fmt: skip
        counts[int(key)] = number(count, where, f"{HISTOGRAM}.{key}")
    return counts if sum(counts.values()) > 0 else {}
