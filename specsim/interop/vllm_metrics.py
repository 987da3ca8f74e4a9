"""Prometheus text of a vLLM server (`curl HOST/metrics`): counters since its start.

Counters end in `_total`; `_created` lines are times and are skipped. Several engines (data
parallel) add up. A series that occurs more than once (several scrapes in one file) counts
with its last value. OpenMetrics exemplars (`# {…} …`) are cut off, and Ray's spelling of the
names (`ray_vllm_…`) is read too.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from specsim.errors import RecordError
from specsim.interop.common import MAX_POSITIONS, Imported, Notes, StepTimes, Tally
from specsim.interop.reading import LARGEST, Progress, check_survival, number, read_lines

FORMAT = "vllm-metrics"
PREFIX = "vllm:"
_PREFIX = re.compile(r"^(?:ray_)?vllm[:_]")
_EXEMPLAR = re.compile(r"\s#\s\{.*$")
_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+\S+)?$")
_LABEL = re.compile(r'(\w+)\s*=\s*"((?:[^"\\]|\\.)*)"')
DRAFTS, DRAFTED = "spec_decode_num_drafts", "spec_decode_num_draft_tokens"
ACCEPTED, BY_POSITION = "spec_decode_num_accepted_tokens", "spec_decode_num_accepted_tokens_per_pos"
GENERATED, SUCCESSES = "generation_tokens", "request_success"
_ITL = ("inter_token_latency_seconds_sum", "inter_token_latency_seconds_count")
#: What _ITL was called until 2025: one observation per request and step too.
_TPOT = ("time_per_output_token_seconds_sum", "time_per_output_token_seconds_count")
#: V0's: emitted tokens, and the gauge of emitted over the most that could have been.
EMITTED, EFFICIENCY = "spec_decode_num_emitted_tokens", "spec_decode_efficiency"
_WANTED = {EMITTED, EFFICIENCY, DRAFTS, DRAFTED, ACCEPTED, BY_POSITION, GENERATED, SUCCESSES, *_ITL,
           *_TPOT}  # fmt: skip
#: More series than any server has: a file that is not what it seems.
MAX_SERIES = 20_000

Labels = tuple[tuple[str, str], ...]


def read(path: Path, progress: Progress | None = None) -> Imported:
    """Read one scrape.

    Raises:
        RecordError: for another server's metrics, or impossible counters.
    """
    notes = Notes()
    series, foreign, seen = _series(path, notes, progress)
    if not series:
        if seen:
            raise RecordError(
                f"{path}: vLLM metrics, but no series {PREFIX}{DRAFTS}_total; was the server "
                "started with --speculative-config?"
            )
        found = f"found series such as {foreign}" if foreign else "found no series"
        raise RecordError(f"{path}: metrics of another server ({found}); expected {PREFIX}…")
    return _imported(path, series, notes)


def _series(
    path: Path, notes: Notes, progress: Progress | None
) -> tuple[dict[tuple[str, Labels], float], str, bool]:
    """(name, labels) → value of the wanted series; a foreign name; whether any is vLLM's."""
    values: dict[tuple[str, Labels], float] = {}
    foreign, seen = "", False
    for line_number, line in read_lines(path, progress):
        if not line or line.startswith("#"):
            continue
        where = f"{path}, line {line_number}"
        found = _LINE.match(_EXEMPLAR.sub("", line))
        prefix = None if found is None else _PREFIX.match(found[1])
        if found is None or prefix is None:
            if found is not None:
                foreign = foreign or found[1]
            elif _PREFIX.match(line):
                notes.add("incomplete-lines", f"{where} is cut short; left out")
            continue
        seen = True
        name = found[1][prefix.end() :].removesuffix("_total")
        if name not in _WANTED:
            continue
        labels: Labels = tuple(sorted(_LABEL.findall(found[2] or "")))
        value = number(found[3], where, found[1], high=LARGEST)
        key = (name, labels)
        if key in values:
            notes.add("repeated-series", f"{where}: {found[1]} again; its last value counts")
            if value < values[key]:
                notes.add("counter-reset", f"{where}: {found[1]} fell; the server was restarted")
        elif len(values) >= MAX_SERIES:
            raise RecordError(f"{path}: more than {MAX_SERIES} series; expected one server's")
        values[key] = value
    spec = {DRAFTS, DRAFTED, ACCEPTED, BY_POSITION, EMITTED}
    return (values if any(name in spec for name, _ in values) else {}), foreign, seen


def _imported(path: Path, series: dict[tuple[str, Labels], float], notes: Notes) -> Imported:
    total: dict[str, float] = {}
    by_position: dict[int, float] = {}
    models: set[str] = set()
    for (name, labels), value in series.items():
        known = dict(labels)
        if "model_name" in known:
            models.add(known["model_name"])
        if name == BY_POSITION:
            position = number(known.get("position", ""), str(path), f"{name} label position")
            if position != int(position) or position >= MAX_POSITIONS:
                raise RecordError(f"{path}: {name} at position {position:g}: expected 0..63")
            by_position[int(position)] = by_position.get(int(position), 0.0) + value
        else:
            total[name] = total.get(name, 0.0) + value
    if DRAFTS not in total and {EMITTED, EFFICIENCY, DRAFTED} <= set(total):
        return _of_v0(path, total, notes)
    if DRAFTS not in total and {DRAFTED, ACCEPTED, GENERATED} <= set(total):
        return _without_drafts(path, total, notes)
    for name in (DRAFTS, DRAFTED, ACCEPTED):
        if name not in total:
            raise RecordError(f"{path}: series {PREFIX}{name}_total is missing")
    if len(models) > 1:
        notes.add("several-models", f"{path}: {', '.join(sorted(models))} are added up")
    drafts, drafted, accepted = total[DRAFTS], total[DRAFTED], total[ACCEPTED]
    if drafts == 0:
        raise RecordError(f"{path}: {PREFIX}{DRAFTS}_total = 0: no speculative step was taken yet")
    if accepted > drafted:
        raise RecordError(
            f"{path}: {accepted:g} accepted of {drafted:g} draft tokens: expected no more accepted "
            "than drafted"
        )
    k = max(max(by_position, default=-1) + 1, math.ceil(drafted / drafts - 0.01))
    if not 1 <= k <= MAX_POSITIONS:
        raise RecordError(
            f"{path}: {drafted:g} draft tokens in {drafts:g} drafts: expected K <= 64"
        )
    at_least = _at_least(path, by_position, k, drafts, accepted, notes)
    tally = Tally(k)
    tally.counts_all_steps = False
    emitted = None
    if GENERATED in total:  # each request's first token comes from its prefill
        emitted = max(0.0, total[GENERATED] - total.get(SUCCESSES, 0.0))
    tally.add(steps=drafts, drafted=drafted, accepted=accepted, at_least=at_least, emitted=emitted)
    times = StepTimes()
    names = _ITL if _ITL[1] in total else _TPOT
    seconds, count = (total.get(name, 0.0) for name in names)
    if count > 0:
        times.add(k, None, seconds / count, count)
    return Imported(
        file=str(path), format=FORMAT, tallies=(tally,), steps=times.result(),
        notes=notes.result(),
    )  # fmt: skip


def _without_drafts(path: Path, total: dict[str, float], notes: Notes) -> Imported:
    """0.8 counts no drafts: a step emits what it accepts and one more, so the tokens after
    each request's first tell the number of steps."""
    drafted, accepted = total[DRAFTED], total[ACCEPTED]
    steps = total[GENERATED] - total.get(SUCCESSES, 0.0) - accepted
    k = math.ceil(drafted / steps - 0.05) if steps > 0 else 0
    if not 1 <= k <= MAX_POSITIONS or accepted > drafted:
        raise RecordError(
            f"{path}: series {PREFIX}{DRAFTS}_total is missing, and {total[GENERATED]:g} generated "
            f"tokens with {accepted:g} accepted of {drafted:g} drafted ones give no K in 1..64"
        )
    notes.add(
        "k-from-counts",
        f"{path}: no {PREFIX}{DRAFTS}_total (vLLM 0.8); K = {k} follows from drafted and "
        "generated tokens",
    )
    tally = Tally(k)
    tally.add(steps=steps, drafted=drafted, accepted=min(accepted, k * steps),
              emitted=accepted + steps)  # fmt: skip
    return Imported(file=str(path), format=FORMAT, tallies=(tally,), notes=notes.result())


def _of_v0(path: Path, total: dict[str, float], notes: Notes) -> Imported:
    """V0 has no count of drafts: efficiency = emitted/((K + 1) · steps) and drafted = K · steps
    give K/(K + 1) = drafted · efficiency/emitted."""
    emitted, drafted = total[EMITTED], total[DRAFTED]
    share = number(total[EFFICIENCY], str(path), EFFICIENCY, high=1.0) * drafted
    share = share / emitted if emitted > 0 else 1.0
    k = round(share / (1 - share)) if 0 < share < 1 else 0
    if not 1 <= k <= MAX_POSITIONS or not drafted / k <= emitted <= drafted / k * (k + 1.05):
        raise RecordError(
            f"{path}: {drafted:g} draft and {emitted:g} emitted tokens at efficiency "
            f"{total[EFFICIENCY]:g}: expected emitted = efficiency · (K + 1) · draft/K for some K"
        )
    notes.add("k-from-counts", f"{path}: K = {k} follows from V0's system efficiency")
    tally, steps = Tally(k), drafted / k
    tally.add(steps=steps, drafted=drafted, accepted=min(emitted - steps, drafted), emitted=emitted)
    return Imported(file=str(path), format=FORMAT, tallies=(tally,), notes=notes.result())


def _at_least(
    path: Path, by_position: dict[int, float], k: int, drafts: float, accepted: float, notes: Notes
) -> list[float] | None:
    counts = [by_position.get(i) for i in range(k)] if by_position else []
    known = [c for c in counts if c is not None]
    if len(known) < k or abs(sum(known) - accepted) > max(1.0, 0.02 * accepted):
        if by_position:
            notes.add("incomplete-lines", f"{path}: accepted tokens by position are incomplete")
        return None
    survival = check_survival([c / drafts for c in known], str(path))
    return [s * drafts for s in survival]
