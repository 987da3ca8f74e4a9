"""Logs, metrics, bench results or records become a calibration file.

Files are recognised by their content: vLLM (log, /metrics, bench serve, per-request metrics),
SGLang (log, /metrics, bench_serving, meta_info, /server_info), llama.cpp (log), guidellm,
inference-perf, aiperf, and the records of the reference decoder. Several files are fitted
together.

Example: specsim fit server.log -o calibration.yaml && specsim predict --target
llama-3.1-8b --method eagle3 --gpu h100-sxm --calibration calibration.yaml --k 1:8
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from specsim.cli.output import print_json, print_table, warn
from specsim.errors import CalibrationError
from specsim.units import human_seconds

#: Files above this size get a progress bar.
PROGRESS_FROM_BYTES = 32 << 20


def command(
    files: Annotated[list[Path], typer.Argument(help="Logs, metrics, bench results, records.")],
    format_name: Annotated[
        str,
        typer.Option("--format", help="auto, vllm-log, vllm-metrics, vllm-bench, sglang-log, …"),
    ] = "auto",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the calibration file.")
    ] = None,
    k: Annotated[
        int | None, typer.Option(min=1, max=64, help="Draft tokens, where files do not say.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Drafting method: eagle3, mtp, ngram, draft-model, …")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="Only records of this domain.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Only records of this sampling temperature.")
    ] = None,
    drafter: Annotated[
        str | None, typer.Option(help="Drafter, where recorded runs hold several.")
    ] = None,
    requests: Annotated[
        Path | None,
        typer.Option(help="Write served-request records instead (vLLM bench, inference-perf)."),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write arrivals and lengths as a CSV to replay instead.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """See the module's docstring, which is this command's help."""
    from specsim.fitting import fit_files
    from specsim.fitting.files import Options
    from specsim.interop.detect import FORMATS

    if requests is not None or trace is not None:
        _convert(files, requests, trace)
        return
    if format_name not in ("auto", *FORMATS):
        raise CalibrationError(
            f"--format {format_name!r}: expected auto or one of {', '.join(FORMATS)}"
        )
    options = Options(k=k, method=method, domain=domain, temperature=temperature, drafter=drafter)
    with _Bar() as bar:
        fit = fit_files(files, format_name=format_name, options=options, progress=bar.of)
    if output is not None:
        fit.calibration.save(output)
    if as_json:
        print_json(summary(fit))
    else:
        _print(fit, output)
    for note in fit.notes:
        warn(note.code, note.message)


def _convert(files: list[Path], requests: Path | None, trace: Path | None) -> None:
    """Per-request arrays of one result file as records and as a trace; nothing is fitted."""
    from specsim.interop.served import served_requests, write_trace
    from specsim.records import write_records

    if len(files) != 1:
        raise CalibrationError(f"--requests and --trace take one file, not {len(files)}")
    header, records = served_requests(files[0])
    try:
        if requests is not None:
            write_records(requests, header, records)
            print(f"{requests}: {len(records)} served requests")
        if trace is not None:
            print(f"{trace}: {write_trace(records, trace)} arrivals")
    except OSError as problem:
        raise CalibrationError(f"{problem.filename}: {problem.strerror}") from None


class _Bar:
    """A progress bar on stderr for large files, where stderr is a terminal."""

    def __init__(self) -> None:
        self._progress: Any = None

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def of(self, path: Path) -> Any:
        """Told the bytes read so far; None where no bar is wanted."""
        try:
            size = path.stat().st_size
        except OSError:
            return None
        if size < PROGRESS_FROM_BYTES or not sys.stderr.isatty():
            return None
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
                TimeRemainingColumn(), console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._progress.start()
        task = self._progress.add_task(path.name, total=size)
        return lambda done: self._progress.update(task, completed=done)


def summary(fit: Any) -> dict[str, Any]:
    """The keys of `fit --json`."""
    calibration = fit.calibration
    acceptance, cost = calibration.acceptance, calibration.cost
    described: dict[str, Any] | None = None
    if acceptance is not None:
        key, value = acceptance.source
        described = {
            "law": acceptance.law,
            "parameters": {key: value},
            "standard_errors": acceptance.standard_errors,
            "survival": survival(acceptance),
            "acceptance_length": acceptance.acceptance_length,
            "at_k": acceptance.at_k,
            "num_tokens": acceptance.num_tokens,
            "num_steps": acceptance.num_steps,
            "num_requests": acceptance.num_requests,
            "rule": acceptance.rule,
            "by_k": [m.model_dump(mode="json") for m in acceptance.by_k],
            "by_domain": {
                name: {"law": d.law, "parameters": dict([d.source]),
                       "acceptance_length": d.acceptance_length, "num_tokens": d.num_tokens}
                for name, d in acceptance.by_domain.items()
            },
        }  # fmt: skip
    return {
        "acceptance": described,
        "cost": {} if cost is None else cost.model_dump(mode="json"),
        "range": calibration.range.model_dump(mode="json"),
        "sources": [source.model_dump(mode="json") for source in calibration.sources],
        "warnings": [{"code": n.code, "message": n.message} for n in fit.notes],
    }


def survival(acceptance: Any) -> list[float]:
    """Survival of the fitted law at the measured K."""
    from specsim.scenario.resolve import law_of_keys
    from specsim.scenario.sections import DraftKeys

    key, value = acceptance.source
    law = law_of_keys(key, value, DraftKeys())
    return [float(s) for s in law.survival(acceptance.at_k or 1)]


def _print(fit: Any, output: Path | None) -> None:
    calibration = fit.calibration
    for source in calibration.sources:
        print(f"{source.file}: {source.format}")
    fitted = calibration.acceptance
    if fitted is None:
        print("Acceptance: none in these files")
    else:
        tau, k = fitted.acceptance_length, fitted.at_k
        errors = fitted.length_errors
        error = f" ± {1.96 * errors[k - 1]:.3f}" if errors and k <= len(errors) else ""
        print(f"Acceptance: {fitted.law}; {tau:.3f}{error} tokens per step at K = {k}")
        if fitted.num_tokens is not None:
            of = f" of {fitted.num_requests:,} requests" if fitted.num_requests else ""
            print(f"  from {fitted.num_tokens:,} tokens in {fitted.num_steps:,} steps{of}")
        print(f"  survival by position: {', '.join(f'{s:.3f}' for s in survival(fitted))}")
        print(f"  rule: {fitted.rule}")
    cost = calibration.cost
    if cost is not None and cost.steps:
        print("Step times:")
        print_table(
            ["K", "batch", "context", "step", "steps"],
            [[_or_dash(s.num_draft_tokens), _or_dash(s.batch), _or_dash(s.context),
              human_seconds(s.seconds), _or_dash(s.num_steps)] for s in cost.steps[:20]],
        )  # fmt: skip
    if cost is not None and cost.forward:
        print(f"Forward passes: {len(cost.forward)} measured points")
    if output is not None:
        print(f"Written: {output}")


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
