"""Which devices the report is about, and who measured on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from specsim import catalogue
from validation import host_traces, published_rows, published_steps, serving
from validation.rows import Row


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device, who measured on it, and what."""

    name: str
    by_us: bool
    what: str


def ours() -> Iterator[Device]:
    """Those that `validation.measure_host` and `measure_serving` ran on."""
    for traces in host_traces.load_all().values():
        units = sum(u.purpose != "acceptance" for u in traces.units)
        what = f"host: {len(traces.forward)} passes, {units} units of decoding"
        yield Device(name=traces.device, by_us=True, what=what)
    runs = Counter(run.device for run in serving.load())
    for name, count in runs.items():
        yield Device(name=name, by_us=True, what=f"serving: {count} runs")


def others(silicon: Iterable[Row]) -> Iterator[Device]:
    """Those of published kernels (the rows of `silicon`), steps and speedups."""
    what: dict[str, list[str]] = {}
    kernels = Counter(row.name.split(" ")[0] for row in silicon if "-" in row.name.split(" ")[0])
    for name in kernels:
        what.setdefault(name, []).append("silicon: kernels of aiconfigurator-core")
    speedups = Counter(
        case.deployment.gpu.name for case in published_rows.cases(("C_tau_hw", "D_hw_only"))[0]
    )
    for name, count in speedups.items():
        what.setdefault(name, []).append(f"published: {count} speedups")
    steps = Counter(
        catalogue.gpu(step.gpu).name
        for source in published_steps.SOURCES for step in published_steps.published(source)
    )  # fmt: skip
    for name, count in steps.items():
        what.setdefault(name, []).append(f"full_steps: {count} step times")
    what.setdefault("h100-sxm-80gb", []).append("serving_h100: a vLLM service")
    for name, parts in sorted(what.items()):
        yield Device(name=name, by_us=False, what="; ".join(parts))


def table(silicon: Iterable[Row]) -> list[str]:
    """A Markdown table, our own devices first."""
    lines = ["| device | measured by | what |", "|---|---|---|"]
    for device in (*ours(), *others(silicon)):
        by = "**us**" if device.by_us else "others"
        lines.append(f"| {device.name} | {by} | {device.what} |")
    return lines
