"""Serve a scenario's requests in a discrete-event simulation and measure what users would.

SCENARIO is a YAML file (docs/scenario.md). Ctrl-C ends the run and prints what is finished.

With --replications, several runs with independent seeds: every number with its standard error.

Example: specsim simulate examples/chat-70b.yaml --set workload.arrivals.rate_per_s=8
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from specsim.cli.output import EXIT_INTERRUPTED, print_json, print_table, warn
from specsim.errors import ScenarioError
from specsim.scenario.document import Scenario
from specsim.units import human_seconds


def command(
    scenario: Annotated[Path, typer.Argument(help="A scenario file (YAML).")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any scenario key: key=value.")
    ] = None,
    max_requests: Annotated[
        int | None, typer.Option(min=1, help="Serve at most so many requests.")
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="Stop after so many seconds of simulated time.")
    ] = None,
    records: Annotated[
        Path | None, typer.Option(help="Write one row per request to FILE.parquet.")
    ] = None,
    timeline: Annotated[
        Path | None, typer.Option(help="Write a Chrome trace of the steps to FILE.json.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a figure to FILE.png or FILE.svg.")
    ] = None,
    replications: Annotated[
        int | None,
        typer.Option(min=2, help="Run so often, with independent seeds: means and their errors."),
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Processes for the replications; -1 is one per core.")
    ] = -1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> int:
    """See the module's docstring, which is this command's help."""
    from specsim.simulator.run import simulate
    from specsim.simulator.trace_log import StepLog

    described = Scenario.load(scenario).with_set(set_ or [])
    _check_outputs(records, timeline, plot)
    if max_seconds is not None and not 0 < max_seconds < float("inf"):
        raise ScenarioError(f"--max-seconds {max_seconds}: expected a time > 0")
    if workers == 0 or workers < -1:
        raise ScenarioError(f"--workers {workers}: expected a number of processes, or -1")
    if replications is not None:
        for option, path in (("--records", records), ("--timeline", timeline), ("--plot", plot)):
            if path is not None:
                raise ScenarioError(f"{option} shows one run: not with --replications")
        return _replicated(described, replications, workers, max_requests, max_seconds, as_json)
    log = StepLog() if timeline is not None else None
    progress = ProgressLine() if sys.stderr.isatty() else None
    result = simulate(
        described, max_requests=max_requests, max_seconds=max_seconds, progress=progress, log=log
    )
    if progress is not None:
        progress.clear()
    summary = result.summary().to_dict()
    _write_outputs(result, log, records, timeline, plot, summary, scenario.name)
    if as_json:
        print_json(summary)
    else:
        print_summary(summary)
    for warning in summary["warnings"]:
        warn(warning["code"], warning["message"])
    return EXIT_INTERRUPTED if summary.get("interrupted") else 0


def _replicated(
    described: Scenario, replications: int, workers: int, max_requests: int | None,
    max_seconds: float | None, as_json: bool,
) -> int:  # fmt: skip
    from specsim.simulator.replications import replicate

    bar = ReplicationBar() if sys.stderr.isatty() else None
    done = replicate(
        described, replications, workers=workers, max_requests=max_requests,
        max_seconds=max_seconds, progress=bar,
    )  # fmt: skip
    if bar is not None:
        bar.clear()
    summary = done.to_dict()
    if as_json:
        print_json(summary)
    else:
        print_replications(summary)
    for warning in summary["warnings"]:
        warn(warning["code"], warning["message"])
    return EXIT_INTERRUPTED if done.interrupted else 0


class ReplicationBar:
    """Replications done, on one line of the terminal."""

    def __call__(self, done: int, total: int) -> None:
        """Redraw."""
        sys.stderr.write(f"\r[{'#' * (20 * done // total):<20}] {done}/{total} replications ")
        sys.stderr.flush()

    def clear(self) -> None:
        """Remove the line."""
        sys.stderr.write("\r" + " " * 78 + "\r")


class ProgressLine:
    """Requests done, simulated time and speed, on one line of the terminal."""

    def __init__(self) -> None:
        self._started = self._shown = time.perf_counter()

    def __call__(self, done: int, total: int, simulated_s: float) -> None:
        """Redraw, ten times a second at most."""
        now = time.perf_counter()
        if now - self._shown < 0.1:
            return
        self._shown = now
        speed = done / (now - self._started)
        bar = "#" * (20 * done // total)
        sys.stderr.write(
            f"\r[{bar:<20}] {done}/{total} requests, {simulated_s:.0f} s simulated, "
            f"{speed:.0f} requests/s "
        )
        sys.stderr.flush()

    def clear(self) -> None:
        """Remove the line."""
        sys.stderr.write("\r" + " " * 78 + "\r")


def _check_outputs(records: Path | None, timeline: Path | None, plot: Path | None) -> None:
    """Refuse names that cannot be written before minutes are spent.

    Raises:
        ScenarioError: naming option and file.
    """
    for option, path, suffixes in (
        ("--records", records, (".parquet",)), ("--timeline", timeline, (".json",)),
        ("--plot", plot, (".png", ".svg", ".pdf")),
    ):  # fmt: skip
        if path is None:
            continue
        if path.suffix.lower() not in suffixes:
            raise ScenarioError(f"{option} {str(path)!r}: expected a name in {', '.join(suffixes)}")
        if not path.parent.is_dir():
            raise ScenarioError(f"{option} {str(path)!r}: no such directory")
        if path.is_dir():
            raise ScenarioError(f"{option} {str(path)!r}: is a directory, expected a file")


def _write_outputs(
    result: Any, log: Any, records: Path | None, timeline: Path | None, plot: Path | None,
    summary: dict[str, Any], title: str,
) -> None:  # fmt: skip
    try:
        if records is not None:
            result.to_parquet(records)
        if timeline is not None:
            log.write(timeline)
            if log.dropped:
                warn("timeline", f"the first {log.limit} steps are kept, {log.dropped} are not")
        if plot is not None:
            from specsim.plots import save, simulation_figure

            save(simulation_figure(result.latencies, summary["utilisation"], title), plot)
    except OSError as problem:
        raise ScenarioError(f"cannot write: {problem.strerror or problem}") from None


def print_summary(summary: dict[str, Any]) -> None:
    """The table for a person."""
    print(
        f"{summary['completed']} of {summary['requests']} requests in "
        f"{human_seconds(summary['duration_s'])} of simulated time; "
        f"{summary['output_tokens']} output tokens"
    )
    print()
    rows = []
    for name, label in (
        ("ttft_s", "time to first token"), ("tpot_s", "time per output token"),
        ("itl_s", "gap between chunks"), ("e2e_s", "end to end"),
    ):  # fmt: skip
        d = summary[name]
        interval = "-" if d["ci95"] is None else " - ".join(human_seconds(x) for x in d["ci95"])
        rows.append([label, *(_time(d[q]) for q in ("mean", "p50", "p90", "p99")), interval])
    print_table(["", "mean", "p50", "p90", "p99", "95 % interval of the mean"], rows)
    print()
    for label, value in _facts(summary):
        print(f"{label:<27}{value}")
    print()
    print(f"Cost: {summary['sources']['cost']}")
    print(f"Acceptance: {summary['sources']['acceptance']}")


#: What `print_replications` shows: label, path in the summary, how to write a number.
_SHOWN: tuple[tuple[str, tuple[str, ...], Callable[[float], str]], ...] = (
    *(
        (f"{label}, {q}", (name, q), human_seconds)
        for name, label in (
            ("ttft_s", "time to first token"), ("tpot_s", "time per output token"),
            ("itl_s", "gap between chunks"), ("e2e_s", "end to end"),
        )
        for q in ("mean", "p50", "p99")
    ),
    ("output tokens/s", ("throughput_tokens_per_s",), "{:.1f}".format),
    ("requests/s", ("throughput_requests_per_s",), "{:.3f}".format),
    ("requests/s within the objective", ("goodput_requests_per_s",), "{:.3f}".format),
    ("tokens per step", ("acceptance_length",), "{:.3f}".format),
    ("mean decoding batch", ("mean_batch",), "{:.2f}".format),
    ("idle share", ("utilisation", "idle"), "{:.1%}".format),
    ("KV cache in use", ("kv_occupancy",), "{:.1%}".format),
    ("preemptions", ("preemptions",), "{:.1f}".format),
)  # fmt: skip


def print_replications(summary: dict[str, Any]) -> None:
    """Means over replications, their standard errors and intervals, for a person."""
    runs = summary["replications"]
    print(
        f"{runs['count']} of {runs['asked']} replications, {summary['completed']:.0f} of "
        f"{summary['requests']:.0f} requests in each"
    )
    print()
    rows = []
    for label, path, text in _SHOWN:
        mean, error, interval = (
            _at(part, path) for part in (summary, runs["standard_error"], runs["ci95"])
        )
        rows.append([
            label, *("-" if x is None else text(x) for x in (mean, error)),
            "-" if interval is None else " - ".join(text(x) for x in interval),
        ])  # fmt: skip
    print_table(["", "mean", "standard error", "95 % interval"], rows)
    print()
    print(f"Cost: {summary['sources']['cost']}")
    print(f"Acceptance: {summary['sources']['acceptance']}")


def _at(nested: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        nested = nested[key]
    return nested


def _facts(s: dict[str, Any]) -> list[list[str]]:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in s["utilisation"].items())
    bound = ", ".join(f"{name} {share:.0%}" for name, share in s["bound"].items())
    wasted = s["wasted"]
    facts = [
        ["throughput", f"{s['throughput_tokens_per_s']:.1f} tokens/s, "
         f"{s['throughput_requests_per_s']:.2f} requests/s"],
        ["goodput", f"{s['goodput_requests_per_s']:.2f} requests/s within the objective"],
    ]  # fmt: skip
    if len(s["goodput_by_class"]) > 1:
        for name, rate in s["goodput_by_class"].items():
            facts.append([f"  {name}", f"{rate:.2f} requests/s"])
    facts += [
        ["tokens per step", _number(s["acceptance_length"], ".3f")],
        ["mean decoding batch", _number(s["mean_batch"], ".1f")],
        ["time goes to", shares],
        ["busy time is bound by", bound or "-"],
        ["KV cache in use", _number(s["kv_occupancy"], ".1%")],
        ["prefix cache hits", _number(s["prefix_hit_rate"], ".1%")],
        ["preemptions", str(s["preemptions"])],
        ["wasted on rejected tokens", f"{wasted['tokens']:.0f} tokens, "
         f"{wasted['flops']:.2e} FLOPs, {wasted['bytes']:.2e} bytes, {wasted['seconds']:.1f} s"],
    ]  # fmt: skip
    if s["cost_usd_per_million_tokens"]:
        low, high = s["cost_usd_per_million_tokens"]
        facts.append(["price", f"{low:.2f} to {high:.2f} USD per million output tokens"])
    if s["energy_j_per_token"]:
        facts.append(["energy", f"at most {s['energy_j_per_token']:.2f} J per output token"])
    return facts


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else human_seconds(seconds)


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)
