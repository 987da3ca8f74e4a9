"""`specsim.sweep`: a grid of scenarios, in parallel through joblib, resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specsim import __version__
from specsim.errors import ScenarioError, SpecsimError
from specsim.planner.grids import SweepGrid, make_grid
from specsim.planner.shards import (
    Chunk,
    chunks,
    claim,
    merge,
    sweep_hash,
    to_parquet,
    write_bytes,
)
from specsim.scenario.document import Scenario

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa  # type: ignore[import-untyped]

#: (points done, points in all, seconds left or None).
Progress = Callable[[int, int, float | None], None]
#: A Dask scheduler answers within this time or is taken to be absent.
CLUSTER_TIMEOUT_S = 10
#: What a run is: the simulator, or the closed form at the scenario's operating point.
RUNS = ("simulate", "predict")
#: Columns of a simulated run beyond the varied keys: name → path in the summary.
SIMULATED = {
    **{name: (name,) for name in (
        "requests", "completed", "duration_s", "output_tokens", "throughput_tokens_per_s",
        "throughput_requests_per_s", "goodput_requests_per_s", "acceptance_length", "num_steps",
        "mean_batch", "preemptions", "kv_occupancy",
    )},
    **{f"{name}_{which}": (name, which) for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s")
       for which in ("mean", "p50", "p90", "p99")},
}  # fmt: skip
PREDICTED = (
    "best_num_draft_tokens", "best_speedup", "baseline_step_s", "baseline_tokens_per_s",
    "step_s", "tokens_per_s", "acceptance_length", "speedup_low", "speedup_high",
    "break_even_alpha", "max_concurrency",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What was run. `path` is the merged Parquet file (None after an interruption)."""

    folder: Path
    path: Path | None
    runs: int
    reused: int
    failed: int
    interrupted: bool = False

    def to_frame(self) -> pd.DataFrame:
        """One row per point, in grid order: the varied keys, then the results.

        Raises:
            ScenarioError: if the sweep was interrupted.
        """
        import pandas as pd

        if self.path is None:
            raise ScenarioError(f"{self.folder}: the sweep is not complete; resume it first")
        return pd.read_parquet(self.path)

    def _repr_html_(self) -> str:
        if self.path is None:
            return f"<p>{self.runs} points done, interrupted</p>"
        html: str = self.to_frame().to_html(index=False, float_format=lambda x: f"{x:.4g}")
        return html

    def to_dict(self) -> dict[str, Any]:
        """As in `sweep --json`."""
        found = {
            "runs": self.runs, "reused": self.reused, "failed": self.failed,
            "path": None if self.path is None else str(self.path),
        }  # fmt: skip
        return {**found, "interrupted": True} if self.interrupted else found


def sweep(
    scenario: Scenario, vary: Mapping[str, Sequence[Any]], out: str | Path, *,
    run: str = "simulate", workers: int = -1, cluster: str | None = None, resume: bool = False,
    max_requests: int | None = None, progress: Progress | None = None,
) -> Sweep:  # fmt: skip
    """Run a scenario at every point of a grid.

    Args:
        vary: scenario key (`a.b.c`) → values; the last key varies fastest.
        out: a folder for the shards, the manifest and the merged `sweep.parquet`.
        run: "simulate" or "predict" (the closed form at the scenario's `point`).
        workers: processes; -1 is one per core. `cluster` is the address of a Dask
            scheduler, whose workers are used instead.
        resume: go on with what is in `out`; without it, a folder in use is refused.

    Returns:
        A `Sweep`; `.to_frame()` has one row per point. A point that fails (a model that
        does not fit) has its message in `error` and nothing in the other columns. The
        bytes do not depend on the workers.

    Raises:
        ScenarioError: for a key or value that is not valid, or another sweep's folder.
    """
    if run not in RUNS:
        raise ScenarioError(f"--run {run!r}: expected {' or '.join(RUNS)}")
    if workers == 0 or workers < -1:
        raise ScenarioError(f"--workers {workers}: expected at least 1, or -1 for all cores")
    grid = make_grid(scenario, vary)
    folder = Path(out)
    options = {"max_requests": max_requests}
    wanted = chunks(grid, run, options)
    manifest = {
        "sweep": sweep_hash(wanted), "specsim_version": __version__, "run": run,
        "vary": dict(zip(grid.keys, map(list, grid.values), strict=True)), "points": len(grid),
        "scenario": grid.base.to_dict(), **options,
    }  # fmt: skip
    present = claim(folder, wanted, manifest, resume=resume)
    missing = [chunk for chunk in wanted if chunk.name not in present]
    reused = sum(len(c.points) for c in wanted if c.name in present)
    schema = table_schema(grid, run)
    done, started = 0, time.perf_counter()
    path, interrupted = None, False
    tasks = [(grid, chunk, run, max_requests) for chunk in missing]
    try:
        for chunk, rows in _parallel(tasks, workers, cluster):
            write_bytes(folder / chunk.name, to_parquet(_table(rows, schema)))
            done += len(chunk.points)
            if progress is not None:
                spent = time.perf_counter() - started
                left = spent / done * (len(grid) - reused - done)
                progress(reused + done, len(grid), left)
        path = merge(folder, wanted)
    except KeyboardInterrupt:
        interrupted = True
    # The disk knows what is done: Ctrl-C may come between a shard's rename and our count.
    runs = sum(len(chunk.points) for chunk in missing if (folder / chunk.name).exists())
    return Sweep(folder=folder, path=path, runs=runs, reused=reused,
                 failed=_failures(folder, wanted), interrupted=interrupted)  # fmt: skip


Task = tuple[SweepGrid, Chunk, str, int | None]
Rows = list[dict[str, Any]]


def _parallel(
    tasks: Sequence[Task], workers: int, cluster: str | None
) -> Iterator[tuple[Chunk, Rows]]:
    """Chunks with their rows as they are finished, in any order."""
    import joblib

    if cluster is not None:
        yield from _on_cluster(tasks, cluster)
        return
    if workers == 1:
        yield from map(run_chunk, tasks)
        return
    jobs = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", pre_dispatch="2*n_jobs")
    yield from jobs(joblib.delayed(run_chunk)(task) for task in tasks)


def _on_cluster(tasks: Sequence[Task], cluster: str) -> Iterator[tuple[Chunk, Rows]]:
    """Through joblib's Dask backend, a round of chunks at a time so that shards are
    written as the sweep goes on.

    Raises:
        ScenarioError: if Dask is not installed or the scheduler does not answer.
    """
    import joblib

    try:
        from distributed import Client
    except ImportError:
        raise ScenarioError("--cluster needs Dask: pip install 'specsim-llm[cluster]'") from None
    try:
        client: Any = Client(cluster, timeout=CLUSTER_TIMEOUT_S)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TimeoutError) as error:
        raise ScenarioError(f"--cluster {cluster!r}: {' '.join(str(error).split())}") from None
    try:
        at_once = 4 * max(1, sum(client.nthreads().values()))
        with joblib.parallel_config(backend="dask"):
            for start in range(0, len(tasks), at_once):
                part = tasks[start : start + at_once]
                yield from joblib.Parallel()(joblib.delayed(run_chunk)(task) for task in part)
    finally:
        client.close()


def run_chunk(task: Task) -> tuple[Chunk, Rows]:
    """All points of one chunk; a worker's whole job."""
    grid, chunk, run, max_requests = task
    return chunk, [run_point(grid, point, run, max_requests) for point in chunk.points]


def run_point(
    grid: SweepGrid, point: Sequence[Any], run: str, max_requests: int | None
) -> dict[str, Any]:
    """The row of one point; an error that a user can cause becomes its `error`."""
    row: dict[str, Any] = dict(zip(grid.keys, point, strict=True))
    try:
        scenario = grid.scenario(point)
        if run == "simulate":
            row |= simulated_columns(scenario, max_requests)
        else:
            row |= predicted_columns(scenario)
    except (SpecsimError, ValueError) as error:
        row["error"] = " ".join(str(error).split())
    return row


def simulated_columns(scenario: Scenario, max_requests: int | None) -> dict[str, Any]:
    """The numbers of `simulate --json` that fit a cell."""
    from specsim.simulator.run import simulate

    result = simulate(scenario, max_requests=max_requests).whole()
    summary = result.summary().to_dict()
    found: dict[str, Any] = {}
    for name, path in SIMULATED.items():
        value: Any = summary
        for key in path:
            value = None if value is None else value[key]
        found[name] = value
    return found


def predicted_columns(scenario: Scenario) -> dict[str, Any]:
    """The closed form's best K at the scenario's operating point."""
    from specsim.analytic.prediction import predict_deployment
    from specsim.scenario.resolve import resolve

    resolved = resolve(scenario)
    off = resolved.deployment.draft.method == "none"
    tree = resolved.deployment.draft.tree
    ks = (0,) if off else tuple(scenario.draft_tokens)
    if tree is not None:
        ks = (tree.nodes,)
    prediction = predict_deployment(
        resolved.deployment, resolved.source, resolved.law, resolved.acceptance_source, ks,
        scenario.point.batch, scenario.point.context,
    )  # fmt: skip
    rows = prediction.rows()
    best = max(rows, key=lambda row: float(row["speedup"]))
    base = prediction.baseline()
    return {
        "best_num_draft_tokens": prediction.best["num_draft_tokens"],
        "best_speedup": best["speedup"], "baseline_step_s": base["step_s"],
        "baseline_tokens_per_s": base["tokens_per_s"], "step_s": best["step_s"],
        "tokens_per_s": best["tokens_per_s"], "acceptance_length": best["acceptance_length"],
        "speedup_low": best["speedup_low"], "speedup_high": best["speedup_high"],
        "break_even_alpha": None if off else prediction.break_even["alpha"],
        "max_concurrency": prediction.memory.max_concurrency,
    }  # fmt: skip


def table_schema(grid: SweepGrid, run: str) -> pa.Schema:
    """Columns of every shard: fixed by the grid, so that all shards agree."""
    import pyarrow as pa

    fields = [pa.field(k, _arrow_type(v)) for k, v in zip(grid.keys, grid.values, strict=True)]
    names: Iterable[str] = SIMULATED if run == "simulate" else PREDICTED
    fields += [pa.field(name, pa.float64()) for name in names if name not in grid.keys]
    return pa.schema([*fields, pa.field("error", pa.string())])


def _arrow_type(values: Sequence[Any]) -> pa.DataType:
    import pyarrow as pa

    kinds = {type(v) for v in values}
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else pa.string()


def _table(rows: Rows, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    return pa.table(
        {f.name: pa.array([_cell(row.get(f.name), f.type) for row in rows], f.type)
         for f in schema},
        schema=schema,
    )  # fmt: skip


def _cell(value: Any, kind: pa.DataType) -> Any:
    import json

    import pyarrow as pa

    if value is None:
        return None
    if kind == pa.string():
        return value if isinstance(value, str) else json.dumps(value)
    if kind == pa.float64():
        return float(value) if math.isfinite(value) else None
    return value


def _failures(folder: Path, wanted: Sequence[Chunk]) -> int:
    """Points whose row holds an error, in the shards that are there."""
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    count = 0
    for chunk in wanted:
        path = folder / chunk.name
        if path.exists():
            column = pq.read_table(path, columns=["error"])["error"]
            count += len(column) - column.null_count
    return count
