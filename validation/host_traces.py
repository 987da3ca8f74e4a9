"""Reads what `validation.measure_host` wrote: units of decoding, as plain arrays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from specsim.acceptance.law import replay
from specsim.cost.table import Table
from specsim.errors import RecordError
from specsim.fitting.costs import constants_of_rows, rows_of_records
from specsim.fitting.sequences import StepSequence
from specsim.records import ForwardRecord, read_all

DATA = Path(__file__).with_name("data") / "host"
SCHEMA = "host-runs"
#: Columns of a step; times are seconds once read.
STEP_COLUMNS = ("rows", "emitted", "drafted", "context", "draft_s", "verify_s", "sample_s",
                "host_s", "whole_s")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RequestTrace:
    """One request of a unit: accepted and drafted tokens of each step after the first
    token, or (plain decoding of the fitting half) the accepted n-gram run from every output
    position, −1 where nothing would have been proposed."""

    request: str
    prompt_tokens: int
    output_tokens: int
    accepted: npt.NDArray[np.int64]
    drafted: npt.NDArray[np.int64]
    runs: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class UnitTrace:
    """A unit of `validation.host_plan`, decoded. `steps` has shape (steps, columns)."""

    purpose: str
    method: str
    num_draft_tokens: int
    temperature: float
    batch: int
    domain: str
    group: int
    core_share: float
    requests: tuple[RequestTrace, ...]
    steps: npt.NDArray[np.float64]

    def column(self, name: str) -> npt.NDArray[np.float64]:
        """One column of the steps."""
        return np.asarray(self.steps[:, STEP_COLUMNS.index(name)])


@dataclass(frozen=True, kw_only=True)
class HostTraces:
    """All of one measurement: its header, its units and its forward passes."""

    header: dict[str, Any]
    units: tuple[UnitTrace, ...]
    forward: tuple[ForwardRecord, ...]

    def of(self, **wanted: Any) -> list[UnitTrace]:
        """Units whose attributes equal `wanted`."""
        return [u for u in self.units if all(getattr(u, k) == v for k, v in wanted.items())]

    @property
    def device(self) -> str:
        """What was measured, in words."""
        h = self.header
        return f"{h['device']}, {h['threads']} thread, {h['dtype']}, {h['settings']['date']}"


def load_all() -> dict[str, HostTraces]:
    """Folder name → measurement: `data/host`, and `data/host-NAME` of other devices."""
    found = {path.name: load(path) for path in sorted(DATA.parent.glob(f"{DATA.name}*"))}
    return {name: traces for name, traces in found.items() if traces is not None}


def load(folder: Path = DATA) -> HostTraces | None:
    """The measurement in `folder`; None if there is none.

    Raises:
        RecordError: for a file that is not such a measurement.
    """
    runs, forward = folder / "runs.jsonl", folder / "forward.jsonl"
    if not (runs.exists() and forward.exists()):
        return None
    lines = runs.read_text(encoding="utf-8").splitlines()
    try:
        header, *units = [json.loads(line) for line in lines]
        if header["schema"] != SCHEMA:
            raise RecordError(f"{runs}: schema {header['schema']!r}; expected {SCHEMA!r}")
        return HostTraces(
            header=header, units=tuple(map(_unit, units)),
            forward=tuple(read_all(forward, ForwardRecord)[1]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{runs}: not a host measurement ({error!r})") from None


def _unit(line: dict[str, Any]) -> UnitTrace:
    steps = np.asarray(line["steps"], dtype=float).reshape(-1, len(STEP_COLUMNS))
    steps[:, STEP_COLUMNS.index("draft_s") :] *= 1e-6
    names = ("purpose", "method", "num_draft_tokens", "temperature", "batch", "domain", "group",
             "core_share")  # fmt: skip
    return UnitTrace(
        **{name: line[name] for name in names}, steps=steps,
        requests=tuple(
            RequestTrace(
                request=r["request"], prompt_tokens=r["prompt_tokens"],
                output_tokens=r["output_tokens"],
                **{k: np.asarray(r.get(k, ()), dtype=np.int64)
                   for k in ("accepted", "drafted", "runs")},
            )
            for r in line["requests"]
        ),
    )  # fmt: skip


def sequences(units: Sequence[UnitTrace], num_draft_tokens: int) -> list[StepSequence]:
    """Step sequences at K, one a request: those that were decoded (repetitions of a request
    follow each other, since they are no independent evidence), or recorded runs replayed.
    The last step counts: runs go on beyond the last position, and no draft was shortened."""
    found: dict[str, list[npt.NDArray[np.int64]]] = {}
    for unit in units:
        for request in unit.requests:
            accepted = request.accepted
            if len(request.runs):
                accepted = replay(np.maximum(request.runs, 0), num_draft_tokens)
            if len(accepted):
                found.setdefault(request.request, []).append(accepted)
    return [
        StepSequence(
            accepted=np.concatenate(parts),
            num_draft_tokens=np.full(sum(map(len, parts)), num_draft_tokens, dtype=np.int64),
        )
        for parts in found.values()
    ]


def proposing_share(units: Sequence[UnitTrace], num_draft_tokens: int) -> float:
    """Share of steps in which the drafter proposes anything, at K."""
    proposing = steps = 0
    for unit in units:
        for request in unit.requests:
            if not len(request.runs):
                proposing += int(np.count_nonzero(request.drafted))
                steps += len(request.drafted)
                continue
            counts = replay(np.maximum(request.runs, 0), num_draft_tokens) + 1
            starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
            proposing += int(np.count_nonzero(request.runs[starts] >= 0))
            steps += len(starts)
    return proposing / steps


def table(traces: HostTraces, names: dict[str, str]) -> Table:
    """The forward passes as a cost source; `names` maps measured names to models'.

    Of several rounds the fastest counts, point by point: what slows a pass down is the
    machine's other work, and rounds that straddle it would distort ratios of passes.
    """
    fastest: dict[tuple[str, int, int, int], ForwardRecord] = {}
    for record in traces.forward:
        key = (record.model, record.batch, record.new_tokens, record.context)
        if key not in fastest or record.seconds < fastest[key].seconds:
            fastest[key] = record
    rows = tuple(
        row.model_copy(update={"model": names.get(row.model, row.model)})
        for row in rows_of_records(fastest.values())
    )
    return Table(rows=rows, constants=constants_of_rows(rows), path=f"of {traces.device}")
