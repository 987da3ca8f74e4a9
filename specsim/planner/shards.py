"""Shards of a sweep: one Parquet file per chunk, named by what is in it.

A shard is written to a temporary file, synced to the disk and renamed, so that a file with
a shard's name is always whole. The name is a hash of the resolved scenarios of the chunk,
of the kind of run and of the version, so that a file can only be reused where it would be
computed again to the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specsim import __version__
from specsim.errors import ScenarioError, SpecsimError
from specsim.planner.grids import SweepGrid
from specsim.scenario.document import Scenario

if TYPE_CHECKING:
    import pyarrow as pa  # type: ignore[import-untyped]

MANIFEST, MERGED = "sweep.json", "sweep.parquet"
#: Points of one shard: small enough that a kill loses little, large enough that a file
#: is worth its sync. The number depends on the grid alone, never on the workers.
LARGEST_CHUNK, WANTED_CHUNKS = 64, 64


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Points [start, start + len(points)) of the grid, and the shard's name."""

    start: int
    points: tuple[tuple[Any, ...], ...]
    name: str


def chunks(grid: SweepGrid, run: str, options: Mapping[str, Any]) -> list[Chunk]:
    """The grid in chunks, in grid order."""
    size = max(1, min(LARGEST_CHUNK, -(-len(grid) // WANTED_CHUNKS)))
    points = list(grid.points())
    prints: dict[str, str] = {}
    found = []
    for start in range(0, len(points), size):
        part = tuple(points[start : start + size])
        digest = hashlib.sha256()
        digest.update(json.dumps([__version__, run, dict(options), list(grid.keys)]).encode())
        for point in part:
            digest.update(json.dumps(point, default=str).encode())
            digest.update(_fingerprint(grid, point, prints).encode())
        found.append(Chunk(start=start, points=part, name=f"{digest.hexdigest()[:32]}.parquet"))
    return found


def _fingerprint(grid: SweepGrid, point: Sequence[Any], prints: dict[str, str]) -> str:
    """A scenario with what its names and files resolve to. Points whose values do not go
    together are known by their error."""
    try:
        scenario = grid.scenario(point)
        text = json.dumps(scenario.to_dict(), sort_keys=True)
        names = _names(scenario)
        if names not in prints:
            prints[names] = _resolved(scenario)
        return text + prints[names]
    except (SpecsimError, ValueError) as error:
        return f"error: {error}"


def _names(scenario: Scenario) -> str:
    """The sections that name catalogue rows and files."""
    data = scenario.to_dict()
    kept = {key: data[key] for key in ("target", "draft", "hardware", "acceptance", "engine",
                                       "cost")}  # fmt: skip
    kept["classes"] = data["workload"].get("classes")
    return json.dumps(kept, sort_keys=True)


def _resolved(scenario: Scenario) -> str:
    from specsim.simulator.run import without_speculation

    off = scenario.speculation.policy == "off" or scenario.draft.effective_method == "none"
    resolved = (without_speculation(scenario) if off else scenario).resolve()
    files = [scenario.workload.arrivals.file, scenario.acceptance.trace,
             scenario.acceptance.calibration]  # fmt: skip
    return repr((resolved.deployment, resolved.law, resolved.class_laws)) + "".join(
        hashlib.sha256(Path(f).read_bytes()).hexdigest()
        for f in files if f is not None and Path(f).is_file()
    )  # fmt: skip


def claim(folder: Path, wanted: Sequence[Chunk], manifest: Mapping[str, Any],
          *, resume: bool) -> set[str]:  # fmt: skip
    """Make the folder this sweep's; the names of shards that are there already.

    Raises:
        ScenarioError: if it holds another sweep or other files' shards, or this sweep's and
            `resume` is false. Nothing is changed then.
    """
    names = {chunk.name for chunk in wanted}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        present = {p.name for p in folder.iterdir() if p.suffix == ".parquet"} - {MERGED}
        described = folder / MANIFEST
        old = json.loads(described.read_text(encoding="utf-8")) if described.exists() else None
    except (OSError, ValueError) as error:
        raise ScenarioError(f"--out {folder}: {error}") from None
    foreign = sorted(present - names)
    if (old is not None and old.get("sweep") != manifest["sweep"]) or foreign:
        what = f"shard {foreign[0]}" if foreign else f"sweep {old.get('sweep') if old else ''}"
        raise ScenarioError(
            f"--out {folder}: holds another sweep ({what}); nothing was written. Use an empty "
            "folder"
        )
    if old is None and (folder / MERGED).exists():
        raise ScenarioError(f"--out {folder}: {MERGED} is there without {MANIFEST}; not ours")
    if old is not None and not resume:
        raise ScenarioError(
            f"--out {folder}: this sweep is there with {len(present)} of {len(names)} shards; "
            "use --resume to go on"
        )
    for leftover in folder.glob(".*.partial"):
        leftover.unlink()
    if old is None:
        write_bytes(described, json.dumps(manifest, indent=1, default=str).encode() + b"\n")
    return present & names


def sweep_hash(wanted: Sequence[Chunk]) -> str:
    """Identifies a whole sweep."""
    return hashlib.sha256("".join(c.name for c in wanted).encode()).hexdigest()[:32]


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and have it on the disk when this returns."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """The rename itself, where the system lets one sync a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def to_parquet(table: pa.Table) -> bytes:
    """A table as Parquet; the same table gives the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def merge(folder: Path, wanted: Iterable[Chunk]) -> Path:
    """All shards in grid order as one file.

    Raises:
        ScenarioError: if a shard cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for chunk in wanted:
        try:
            tables.append(pq.read_table(folder / chunk.name))
        except (OSError, pa.ArrowInvalid) as error:
            raise ScenarioError(f"{folder / chunk.name}: {error}; delete it and --resume") from None
    path = folder / MERGED
    write_bytes(path, to_parquet(pa.concat_tables(tables)))
    return path
