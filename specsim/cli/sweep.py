"""Run a scenario over a grid of keys, in parallel, resumable.

Every point of the grid is simulated (or predicted, with --run predict). Results go to
OUT: one Parquet file per chunk, and all of them merged as OUT/sweep.parquet at the end.
After a crash or Ctrl-C, the same command with --resume goes on where it stopped.

Example: specsim sweep examples/chat-70b.yaml --vary draft.num_draft_tokens=1:8
--vary workload.arrivals.rate_per_s=2,4,8 --out out/sweep
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from specsim.cli.output import EXIT_INTERRUPTED, print_json, warn
from specsim.scenario.document import Scenario
from specsim.units import human_seconds


def command(
    scenario: Annotated[Path, typer.Argument(help="A scenario file (YAML).")],
    vary: Annotated[
        list[str] | None,
        typer.Option(help="key=1:8, key=0:64:8 or key=a,b,c; repeatable, the last is fastest."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("out/sweep"),
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any scenario key: key=value.")
    ] = None,
    run: Annotated[str, typer.Option(help="simulate, or predict (the closed form).")] = "simulate",
    workers: Annotated[int, typer.Option(help="Processes; -1 is one per core.")] = -1,
    cluster: Annotated[
        str | None, typer.Option(help="A Dask scheduler instead: tcp://host:8786.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is in OUT.")] = False,
    max_requests: Annotated[
        int | None, typer.Option(min=1, help="Simulate at most so many requests.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> int:
    """See the module's docstring, which is this command's help."""
    from specsim.planner.grids import parse_vary
    from specsim.planner.sweeping import sweep

    described = Scenario.load(scenario).with_set(set_ or [])
    bar = SweepBar() if sys.stderr.isatty() else None
    done = sweep(
        described, parse_vary(vary or []), out, run=run, workers=workers, cluster=cluster,
        resume=resume, max_requests=max_requests, progress=bar,
    )  # fmt: skip
    if bar is not None:
        bar.clear()
    if as_json:
        print_json(done.to_dict())
    else:
        print(f"{done.runs} runs, {done.reused} reused, {done.failed} failed")
        print(f"Results: {done.path or done.folder}")
    if done.failed:
        warn("failed-points", f"{done.failed} points failed; their `error` column says why")
    return EXIT_INTERRUPTED if done.interrupted else 0


class SweepBar:
    """Points done and time left, on one line of the terminal."""

    def __init__(self) -> None:
        self._shown = 0.0

    def __call__(self, done: int, total: int, left_s: float | None) -> None:
        """Redraw, ten times a second at most, and at the end."""
        now = time.perf_counter()
        if now - self._shown < 0.1 and done < total:
            return
        self._shown = now
        bar = "#" * (30 * done // max(total, 1))
        left = "" if left_s is None else f", {human_seconds(left_s)} left"
        sys.stderr.write(f"\r[{bar:<30}] {done}/{total} points{left}      ")
        sys.stderr.flush()

    def clear(self) -> None:
        """Remove the line."""
        sys.stderr.write("\r" + " " * 78 + "\r")
