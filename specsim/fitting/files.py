"""From files to a calibration: reads each, fits what they hold together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from specsim.calibration import (
    AcceptanceFit,
    Calibration,
    CostFit,
    MeasuredRange,
    ObservedStep,
    Source,
)
from specsim.errors import CalibrationError
from specsim.fitting.choose import fit_sequences
from specsim.fitting.costs import constants_of_rows, host_time
from specsim.fitting.counts import fit_counts, fit_length
from specsim.fitting.records import Measured, read_record_file, read_runs_file
from specsim.fitting.sequences import StepSequence, sequences_of_records
from specsim.interop.common import Imported, MeanLength, Note, Tally
from specsim.interop.detect import RECORDS, RUNS, read_file, recognise
from specsim.interop.reading import Progress
from specsim.records import StepRecord

ProgressOf = Callable[[Path], Progress | None]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A calibration, and the notes that came up while making it."""

    calibration: Calibration
    notes: tuple[Note, ...]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user says that files do not: K, the drafter, and which records count."""

    k: int | None = None
    method: str | None = None
    domain: str | None = None
    temperature: float | None = None
    drafter: str | None = None


def fit_files(
    paths: Sequence[str | Path], *, format_name: str = "auto", options: Options | None = None,
    progress: ProgressOf | None = None,
) -> Fit:  # fmt: skip
    """Fit everything that the files hold.

    Raises:
        RecordError: for a file that cannot be read; names file, place, key and value.
        CalibrationError: if there is nothing to fit, or too little of it.
    """
    asked = options or Options()
    if not paths:
        raise CalibrationError("no files; expected logs, metrics, bench results or records")
    twice = [p for p, count in Counter(Path(p).resolve() for p in paths).items() if count > 1]
    if twice:
        raise CalibrationError(f"{twice[0]}: given twice; its steps would count twice")
    measured, imports = Measured(), []
    for path in map(Path, paths):
        name = recognise(path) if format_name == "auto" else format_name
        if name == RECORDS:
            imports.append(read_record_file(path, measured, asked.k))
        elif name == RUNS:
            imports.append(read_runs_file(path, measured, asked.k, asked.drafter))
        else:
            imports.append(read_file(path, name, None if progress is None else progress(path)))
    notes = [note for imported in imports for note in imported.notes]
    acceptance, largest = _acceptance(measured, imports, asked, notes)
    cost = _cost(measured, imports)
    if acceptance is None and cost is None:
        raise CalibrationError(_nothing(imports))
    calibration = Calibration(
        acceptance=acceptance, cost=cost, range=_range(measured, imports, largest),
        sources=tuple(Source(file=i.file, format=i.format, device=i.device) for i in imports),
        warnings=tuple(f"{note.code}: {note.message}" for note in notes),
    )  # fmt: skip
    return Fit(calibration=calibration, notes=tuple(notes))


def _nothing(imports: Sequence[Imported]) -> str:
    said = "; ".join(note.message for imported in imports for note in imported.notes[:2])
    recognised = ", ".join(f"{i.file} ({i.format})" for i in imports)
    return f"nothing to fit in {recognised}: expected acceptance or step times" + (
        f" ({said})" if said else ""
    )


def _acceptance(
    measured: Measured, imports: Sequence[Imported], asked: Options, notes: list[Note]
) -> tuple[AcceptanceFit | None, tuple[int, int] | None]:
    """The law, and the range of K behind it."""
    sequences = list(measured.sequences)
    records = _selected(measured.steps, asked)
    tallies = [t for imported in imports for t in imported.tallies]
    lengths = [length for imported in imports for length in imported.lengths]
    if asked.k is not None:
        tallies = [_of_k(t, asked.k) for t in tallies]
    if records or sequences:
        if tallies or lengths:
            notes.append(Note(code="records-first", message="step records decide the law; "
                              "acceptance figures of logs are left out"))  # fmt: skip
        fit, more = _of_records(records, sequences, asked)
        notes.extend(more)
        ks = [int(k) for s in _all_sequences(records, sequences) for k in s.num_draft_tokens[:1]]
        return fit, (min(ks), max(ks))
    if tallies:
        if lengths:
            notes.append(Note(code="counts-first", message="acceptance lengths without token "
                              "counts are left out, since other files have counts"))  # fmt: skip
        fit, more = fit_counts(tallies, method=asked.method)
        notes.extend(more)
        known = [t.num_draft_tokens for t in tallies]
        return fit, (min(known), max(known))
    if lengths:
        length, k = _one_length(lengths, asked.k)
        if len(lengths) > 1:
            notes.append(Note(code="several-lengths", message=f"{len(lengths)} acceptance lengths "
                              "without token counts; the first counts"))  # fmt: skip
        return fit_length(length, k, asked.method), (k, k)
    return None, None


def _of_k(tally: Tally, k: int) -> Tally:
    """The tally as one of K = `k`, where the source could only guess K."""
    if tally.positions_known or tally.num_draft_tokens == k:
        return tally
    if tally.total[Tally.ACCEPTED] > k * tally.steps:
        raise CalibrationError(
            f"--k {k}: {1 + tally.total[Tally.ACCEPTED] / tally.steps:.2f} tokens per step are "
            f"more than K + 1 = {k + 1}"
        )
    moved, size = Tally(k), Tally.POSITIONS
    moved.windows, moved.by_request = tally.windows, tally.by_request
    moved.positions_known, moved.emitted_known = False, tally.emitted_known
    moved.total[:size], moved.outer[:size, :size] = tally.total[:size], tally.outer[:size, :size]
    return moved


def _one_length(lengths: Sequence[MeanLength], k: int | None) -> tuple[MeanLength, int]:
    known = [x for x in lengths if x.num_draft_tokens is not None]
    if k is not None:
        return lengths[0], k
    if not known or known[0].num_draft_tokens is None:
        raise CalibrationError(
            f"{lengths[0].acceptance_length:.3f} tokens per step, but the file does not say for "
            "how many draft tokens; say --k"
        )
    return known[0], known[0].num_draft_tokens


def _selected(steps: Sequence[StepRecord], asked: Options) -> list[StepRecord]:
    """Records that the options ask for; one method and one temperature.

    Raises:
        CalibrationError: if none are left, or several methods or temperatures are.
    """
    kept = [
        r for r in steps
        if (asked.method is None or r.method == asked.method)
        and (asked.domain is None or r.domain == asked.domain)
        and (asked.temperature is None or r.temperature == asked.temperature)
        and (asked.k is None or r.num_draft_tokens in (0, asked.k))
    ]  # fmt: skip
    if steps and not kept:
        raise CalibrationError("no step record has the method, domain, temperature and K asked for")
    for name, option in (("method", "--method"), ("temperature", "--temperature")):
        values = sorted({str(getattr(r, name)) for r in kept if r.num_draft_tokens > 0})
        if len(values) > 1:
            raise CalibrationError(
                f"records of several {name}s ({', '.join(values)}): a law is for one; say {option}"
            )
    return kept


def _all_sequences(
    records: Sequence[StepRecord], sequences: Sequence[StepSequence]
) -> list[StepSequence]:
    return [*sequences_of_records(records), *sequences]


def _of_records(
    records: Sequence[StepRecord], sequences: Sequence[StepSequence], asked: Options
) -> tuple[AcceptanceFit, list[Note]]:
    """A law for all records, and one per domain where there are several."""
    drafted = [r for r in records if r.num_draft_tokens > 0]
    temperature = drafted[0].temperature if drafted else asked.temperature
    method = (drafted[0].method or asked.method) if drafted else asked.method or asked.drafter
    fit, notes = fit_sequences(
        _all_sequences(records, sequences), method=method or None, temperature=temperature
    )
    domains = sorted({r.domain for r in drafted if r.domain})
    if len(domains) < 2:
        return fit, notes
    by_domain = {}
    for domain in domains:
        own = sequences_of_records(r for r in drafted if r.domain == domain)
        try:
            by_domain[domain], more = fit_sequences(own, method=method, temperature=temperature)
        except CalibrationError as error:
            notes.append(Note(code="few-tokens", message=f"domain {domain}: {error}"))
            continue
        notes.extend(Note(code=n.code, message=f"domain {domain}: {n.message}") for n in more)
    return fit.model_copy(update={"by_domain": by_domain}), notes


def _cost(measured: Measured, imports: Sequence[Imported]) -> CostFit | None:
    steps = tuple(
        ObservedStep(
            num_draft_tokens=s.num_draft_tokens,
            batch=s.batch,
            context=s.context,
            seconds=s.seconds,
            standard_error=s.standard_error,
            num_steps=s.num_steps,
        )
        for imported in imports
        for s in imported.steps
    )
    host = host_time(measured.steps) if measured.steps else None
    if not (steps or measured.forward or host):
        return None
    return CostFit(
        forward=measured.forward, constants=constants_of_rows(measured.forward), host=host,
        steps=steps, device=", ".join(dict.fromkeys(measured.devices)),
    )  # fmt: skip


def _range(
    measured: Measured, imports: Sequence[Imported], drafted: tuple[int, int] | None
) -> MeasuredRange:
    batches: list[float] = [s.batch for i in imports for s in i.steps if s.batch is not None]
    contexts = [c for i in imports if i.context is not None for c in i.context]
    contexts += [s.context for i in imports for s in i.steps if s.context is not None]
    batches += [float(r.batch) for r in measured.forward]
    contexts += [float(r.context) for r in measured.forward]
    contexts += [float(r.context) for r in measured.steps]
    return MeasuredRange(
        num_draft_tokens=drafted, batch=_bounds(batches), context=_bounds(contexts)
    )


def _bounds(values: Iterable[float]) -> tuple[float, float] | None:
    found = list(values)
    return (min(found), max(found)) if found else None
