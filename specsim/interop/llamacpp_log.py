"""llama.cpp server logs: `draft acceptance = r (a accepted / g generated), …` of each
request, and the `eval time` lines.

A line is one request, so standard errors are clustered by request. A draft may be shorter
than --spec-draft-n-max (p-min, end of text).
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from specsim.errors import RecordError
from specsim.interop.common import MAX_POSITIONS, Imported, Notes, StepTimes, TallyByK
from specsim.interop.reading import Progress, check_survival, number, read_lines

FORMAT = "llamacpp-log"
MARK = re.compile(
    r"draft acceptance(?: rate)?\s*=\s*(\S+)\s*\(\s*(\S+) accepted /\s*(\S+) generated\)"
)
_LENGTH = re.compile(r"mean acceptance length\s*=\s*([\d.eE+-]+)")
_POSITIONS = re.compile(r"acceptance rate per position\s*=\s*\(([^)]*)\)")
EVAL = re.compile(r"(?<!prompt )\beval time\s*=\s*(\S+) ms /\s*(\S+) (?:tokens|runs)")
_PROMPT = re.compile(r"prompt eval time\s*=\s*\S+ ms /\s*(\S+) tokens")


def read(path: Path, progress: Progress | None = None) -> Imported:
    """Read one log.

    Raises:
        RecordError: for impossible figures, or a file without any.
    """
    tallies, times, notes = TallyByK(), StepTimes(), Notes()
    eval_ms: tuple[float, float] | None = None
    prompt = 0.0
    evals, last, drafts = 0, "", 0
    contexts: list[float] = []
    for line_number, line in read_lines(path, progress):
        where = f"{path}, line {line_number}"
        if found := _PROMPT.search(line):
            prompt = number(found[1], where, "prompt tokens")
        elif found := EVAL.search(line):
            eval_ms = (number(found[1], where, "eval time"), number(found[2], where, "eval tokens"))
            evals += 1
        elif found := MARK.search(line):
            drafts += 1
            if line == last:
                notes.add("duplicate-lines", f"{where} repeats the line before it; left out")
                continue
            last = line
            emitted = None if eval_ms is None else eval_ms[1]
            k, steps = _add(tallies, line, found, where, notes, emitted)
            if k and eval_ms is not None and steps > 0:
                context = prompt + eval_ms[1] / 2
                contexts = [min([*contexts, context]), max([*contexts, context])]
                times.add(k, 1.0, eval_ms[0] * 1e-3 / steps, steps, context)
            eval_ms = None
    if not tallies:
        if not evals and not drafts:
            raise RecordError(
                f"{path}: no line with 'draft acceptance =' or 'eval time ='; expected the log of "
                "llama-server"
            )
        notes.add("no-speculation", f"{path}: {evals} timings, no usable line of drafts")
    return Imported(
        file=str(path), format=FORMAT, tallies=tuple(tallies.values()), steps=times.result(),
        context=(contexts[0], contexts[1]) if contexts else None, notes=notes.result(),
    )  # fmt: skip


def _add(
    tallies: TallyByK, line: str, found: re.Match[str], where: str, notes: Notes,
    emitted: float | None,
) -> tuple[int, float]:  # fmt: skip
    """K (0 if unknown) and steps of one request."""
    rate = number(found[1], where, "draft acceptance", high=1.0)
    accepted = number(found[2], where, "accepted")
    generated = number(found[3], where, "generated")
    if accepted > generated:
        raise RecordError(
            f"{where}: {accepted:g} accepted / {generated:g} generated: expected no more accepted "
            "than generated"
        )
    if generated == 0:
        return 0, 0.0
    if abs(accepted / generated - rate) > 0.001:
        raise RecordError(
            f"{where}: draft acceptance = {rate:g}: expected {accepted:g} / {generated:g} = "
            f"{accepted / generated:.5f}"
        )
    positions = _POSITIONS.search(line)
    length = _LENGTH.search(line)
    if positions is None or length is None:
        return _without_positions(tallies, accepted, generated, where, notes, emitted)
    texts = [t.strip() for t in positions[1].split(",") if t.strip()]
    survival = check_survival(texts[:MAX_POSITIONS], where)  # type: ignore[arg-type]
    k = len(survival)
    mean = number(length[1], where, "mean acceptance length", low=1.0, high=k + 1.0)
    # generated over K where every draft was full, else from the first position or the mean
    steps = accepted / (mean - 1) if mean > 1 else generated / max(k, 1)
    if survival and sum(survival) > 0:
        steps = accepted / sum(survival)
    steps = max(round(steps), 1.0)
    if not k:
        return 0, 0.0
    tally = tallies.of(k)
    tally.by_request, tally.counts_all_steps = True, False
    tally.add(
        steps=steps, drafted=max(generated, accepted), accepted=accepted,
        at_least=[s * steps for s in survival],
        emitted=emitted,
    )  # fmt: skip
    return k, float(steps)


def _without_positions(
    tallies: TallyByK, accepted: float, generated: float, where: str, notes: Notes,
    emitted: float | None,
) -> tuple[int, float]:  # fmt: skip
    """Builds before 2026 print the rate alone: a step emits what it accepts and one more, so
    the tokens of the eval line tell the number of steps, and with it K."""
    if emitted is None or emitted <= accepted:
        notes.add("unknown-k", f"{where}: neither rates per position nor eval tokens; left out")
        return 0, 0.0
    steps = emitted - accepted
    k = math.ceil(generated / steps - 0.01)
    if not 1 <= k <= MAX_POSITIONS or accepted > k * steps:
        notes.add("unknown-k", f"{where}: {generated:g} drafted in {steps:g} steps; left out")
        return 0, 0.0
    notes.add("k-from-counts", f"{where}: K = {k} follows from drafted tokens and steps")
    tally = tallies.of(k)
    tally.by_request = True
    tally.add(steps=steps, drafted=generated, accepted=accepted, emitted=emitted)
    return k, steps
