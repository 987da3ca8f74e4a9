"""Our own measurements: record files (steps, forward passes, served requests) and runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from specsim.acceptance.empirical import load_runs
from specsim.calibration import ForwardTimeRow
from specsim.errors import CalibrationError, RecordError
from specsim.fitting.costs import rows_of_records, step_times
from specsim.fitting.sequences import StepSequence, sequences_of_runs
from specsim.interop.common import Imported, Note, StepTimes, Tally
from specsim.interop.detect import RECORDS, RUNS
from specsim.records import ForwardRecord, Header, RequestRecord, StepRecord, read_records


@dataclass(kw_only=True)
class Measured:
    """What record files give: steps, forward passes, and served requests as an import."""

    steps: list[StepRecord] = field(default_factory=list)
    sequences: list[StepSequence] = field(default_factory=list)
    forward: tuple[ForwardTimeRow, ...] = ()
    imported: list[Imported] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)


def read_record_file(path: Path, into: Measured, k: int | None) -> Imported:
    """Add one record file.

    Raises:
        RecordError: naming file, line and key.
    """
    header, records = read_records(path)
    if header.device:
        into.devices.append(header.device)
    if header.schema == ForwardRecord.SCHEMA:
        rows = rows_of_records(r for r in records if isinstance(r, ForwardRecord))
        into.forward = (*into.forward, *rows)
        imported = Imported(file=str(path), format=RECORDS, device=header.device)
    elif header.schema == StepRecord.SCHEMA:
        steps = [r for r in records if isinstance(r, StepRecord)]
        into.steps.extend(steps)
        imported = Imported(
            file=str(path), format=RECORDS, device=header.device, steps=step_times(steps).result()
        )
    else:
        imported = _requests(path, header, records, k)
    into.imported.append(imported)
    return imported


def _requests(path: Path, header: Header, records: Iterator[object], k: int | None) -> Imported:
    """Chunks of served requests: the first is the prefill's, every other one a step."""
    asked = header.settings.get("num_draft_tokens", k)
    known = asked if isinstance(asked, int) and not isinstance(asked, bool) else None
    tally = Tally(known or 0)
    tally.by_request, times = True, StepTimes()
    served = 0
    contexts = [float("inf"), 0.0]
    for r in records:
        if not isinstance(r, RequestRecord) or r.failed or len(r.chunk_times_s) < 2:
            continue
        served += 1
        steps, emitted = len(r.chunk_tokens) - 1, sum(r.chunk_tokens[1:])
        span = r.chunk_times_s[-1] - r.chunk_times_s[0]
        middle = r.prompt_tokens + r.output_tokens / 2
        contexts = [min(contexts[0], middle), max(contexts[1], middle)]
        times.add(known, None, span / steps, steps, middle)
        if known:
            accepted = max(0, emitted - steps)
            if accepted > known * steps:
                raise RecordError(
                    f"{path}: request {r.request}: {emitted} tokens in {steps} steps: expected at "
                    f"most K + 1 = {known + 1} per step"
                )
            tally.add(steps=steps, drafted=known * steps, accepted=accepted, emitted=emitted)
    if not served:
        raise RecordError(f"{path}: no served request with two chunks or more")
    notes = ()
    if known is None:
        notes = (Note(code="unknown-k", message=f"{path}: K is not in the header; say --k"),)  # type: ignore[assignment]
    return Imported(
        file=str(path), format=RECORDS, tallies=(tally,) if known else (), steps=times.result(),
        device=header.device, context=(contexts[0], contexts[1]), notes=notes,
    )  # fmt: skip


def read_runs_file(path: Path, into: Measured, k: int | None, drafter: str | None) -> Imported:
    """Add recorded runs, replayed at K.

    Raises:
        RecordError: naming file, line and key.
        CalibrationError: without K.
    """
    if k is None:
        raise CalibrationError(f"{path}: recorded runs fit every K; say --k, the K to replay")
    into.sequences.extend(sequences_of_runs(load_runs(path, drafter).requests, k))
    imported = Imported(file=str(path), format=RUNS)
    into.imported.append(imported)
    return imported
