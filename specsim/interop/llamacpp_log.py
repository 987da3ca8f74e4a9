"""llama.cpp server logs: `draft acceptance = r (a accepted / g generated), …` of each
request, and the `eval time` lines.

A line is one request, so standard errors are clustered by request. A draft may be shorter
than --spec-draft-n-max (p-min, end of text). Builds since mid-2026 print `mean len` and put
the rates per position on a line of their own (`acc per pos`, at trace verbosity).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from specsim.errors import RecordError
from specsim.interop.common import MAX_POSITIONS, Imported, Notes, StepTimes, TallyByK
from specsim.interop.reading import Progress, check_survival, number, read_lines

FORMAT = "llamacpp-log"
MARK = re.compile(
    r"draft acceptance(?: rate)?\s*=\s*(\S+)\s*\(\s*(\S+) accepted /\s*(\S+) generated\)"
)
_LENGTH = re.compile(r"mean (?:acceptance length|len)\s*=\s*([\d.eE+-]+)")
_POSITIONS = re.compile(r"acc(?:eptance rate)? per pos(?:ition)?\s*=\s*\(([^)]*)\)")
#: `slot print_timing: id  1 | task 0 | …`
_SLOT = re.compile(r"\bid\s+(\d+) \| task (-?\d+)")
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
    slots: set[str] = set()
    waiting: _Request | None = None

    def take(request: _Request | None) -> None:
        nonlocal contexts
        if request is None:
            return
        k, steps = _add(tallies, request, notes)
        if k and request.eval_ms is not None and steps > 0:
            context = request.prompt + request.eval_ms[1] / 2
            contexts = [min([*contexts, context]), max([*contexts, context])]
            batch = 1.0 if len(slots) < 2 else None
            times.add(k, batch, request.eval_ms[0] * 1e-3 / steps, steps, context)

    for line_number, line in read_lines(path, progress):
        where = f"{path}, line {line_number}"
        if found := _PROMPT.search(line):
            prompt = number(found[1], where, "prompt tokens")
        elif found := EVAL.search(line):
            eval_ms = (number(found[1], where, "eval time"), number(found[2], where, "eval tokens"))
            evals += 1
        elif found := MARK.search(line):
            drafts += 1
            if line == last and eval_ms is None:  # with a timing between, it is a request alike
                notes.add("duplicate-lines", f"{where} repeats the line before it; left out")
                continue
            take(waiting)
            last = line
            if (slot := _SLOT.search(line)) and len(slots) < 1024:
                slots.add(slot[1])
            waiting = _Request(found, line, line, where, eval_ms, prompt)
            eval_ms = None
        elif waiting is not None and _POSITIONS.search(line) and "statistics" not in line:
            waiting.positions = line
    take(waiting)
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


@dataclass(slots=True)
class _Request:
    """The lines of one request."""

    found: re.Match[str]
    line: str
    positions: str
    where: str
    eval_ms: tuple[float, float] | None
    prompt: float

    @property
    def emitted(self) -> float | None:
        """Tokens of the steps: the first comes from the prefill."""
        return None if self.eval_ms is None else self.eval_ms[1] - 1


def _add(tallies: TallyByK, request: _Request, notes: Notes) -> tuple[int, float]:
    """K (0 if unknown) and steps of one request."""
    found, line, where, emitted = request.found, request.line, request.where, request.emitted
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
    positions = _POSITIONS.search(request.positions)
    length = _LENGTH.search(line)
    if positions is None or length is None:
        mean = None if length is None else number(length[1], where, "mean len", low=1.0)
        return without_positions(tallies, accepted, generated, where, notes, emitted, mean)
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


def without_positions(
    tallies: TallyByK, accepted: float, generated: float, where: str, notes: Notes,
    emitted: float | None, mean: float | None,
) -> tuple[int, float]:  # fmt: skip
    """K (0 if unknown) and steps of one request.

    Builds before 2026 print the rate alone: a step emits what it accepts and one more, so
    the tokens of the eval line tell the number of steps, and with it K. Later ones print the
    mean length, and with it the number of steps that drafted (rounded to 0.01)."""
    drafting = accepted / (mean - 1) if mean is not None and mean > 1 else None
    if emitted is None and drafting is not None:
        emitted = accepted + drafting
    if emitted is None or emitted <= accepted:
        notes.add("unknown-k", f"{where}: neither rates per position nor eval tokens; left out")
        return 0, 0.0
    steps = emitted - accepted
    # the last draft may be cut short, and a step or two may draft nothing
    k = math.ceil(generated / (drafting or steps) - 0.02)
    if not 1 <= k <= MAX_POSITIONS or accepted > k * steps:
        notes.add("unknown-k", f"{where}: {generated:g} drafted in {steps:g} steps; left out")
        return 0, 0.0
    notes.add("k-from-counts", f"{where}: K = {k} follows from drafted tokens and steps")
    tally = tallies.of(k)
    tally.by_request = True
    tally.add(steps=steps, drafted=generated, accepted=accepted, emitted=emitted)
    return k, steps
