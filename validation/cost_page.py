"""`python -m validation.cost_page`: the generated parts of docs/cost.md.

Runs `silicon` and `full_steps`, writes every row to docs/cost.json, the tables and the
worked example into docs/cost.md between its markers, and two figures. Exit 1 if a bound
is missed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from specsim import plots
from specsim.catalogue import loader
from specsim.cost.drafting import draft_round
from specsim.cost.experts import INTERVAL, TYPICAL, distinct_experts
from specsim.cost.kernels import Kernels, tables
from specsim.cost.kernels.operations import gemm_operation
from specsim.cost.operations import Work
from specsim.cost.roofline import Roofline
from specsim.cost.step import decode_step
from specsim.deployment import PlacedModel
from specsim.plots.comparisons import MARKS
from specsim.plots.style import BLUE, RED, legend
from validation import full_steps, silicon
from validation.full_steps import vllm_deployment
from validation.rows import Row, missed
from validation.silicon_kernels import gemm_errors

DOCS = Path(__file__).parent.parent / "docs"
#: The worked example: Llama-3.1-8B on one H100 under vLLM 0.10, EAGLE head.
BATCH, K, CONTEXT = 8, 4, 1000
BANDS = ("m=1–16", "m=17–64", "m=65–256", "m=257–512")


def replaced(text: str, marker: str, content: str) -> str:
    """`text` with everything between `<!-- marker -->` and `<!-- end marker -->` new.

    Raises:
        ValueError: if the markers are not there.
    """
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- end {marker} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"docs/cost.md has no markers for {marker!r}")
    return pattern.sub(lambda found: found[1] + content + found[2], text)


def silicon_table(rows: list[Row]) -> str:
    """One line per GPU: what the bars are about."""
    errors = {row.name: row for row in rows}

    def cell(name: str) -> str:
        row = errors.get(name)
        if row is None or row.error is None:
            return "–"
        text = f"{100 * row.error:.1f}"
        return f"**{text}**" if row.passed is False else text

    names = (
        "bf16 gemm median", *(f"bf16 gemm {band}" for band in BANDS), "bf16 gemm p90",
        "bf16 gemm all shapes", "fp8 gemm median", "fp4 gemm median",
        "generation attention, bf16 cache, median", "generation attention, fp8 cache, median",
        "context attention, median", "experts, even routing",
    )  # fmt: skip
    head = (
        "bf16, n·k ≥ 4M", *BANDS, "p90", "all shapes", "fp8", "fp4", "decode attention",
        "fp8 cache", "prompt attention", "experts", "chip left out",
    )  # fmt: skip
    lines = ["| GPU | " + " | ".join(head) + " |", "|---|" + "---:|" * len(head)]
    for gpu in tables.SYSTEMS:
        cells = [cell(f"{gpu} {name}") for name in names]
        left_out = next(
            (row.name for row in rows if row.name.startswith(gpu) and "left out" in row.name), ""
        )
        lines.append(f"| {gpu} | " + " | ".join([*cells, cell(left_out)]) + " |")
    return "\n".join(lines) + "\n"


def rows_table(rows: list[Row], contains: tuple[str, ...]) -> str:
    """Chosen rows as they are."""
    lines = ["| | predicted | published | error | bound |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        if not any(part in row.name for part in contains) or row.error is None:
            continue
        scale, unit = (1e3, " ms") if row.unit == "s" else (1.0, row.unit)
        values = [
            "" if value is None else f"{value * scale:.2f}{unit}"
            for value in (row.predicted, row.observed)
        ]
        bound = "" if row.bound is None else f"{100 * row.bound:g} %"
        mark = " **missed**" if row.passed is False else ""
        error = f"{100 * row.error:.1f} %"
        lines.append(f"| {row.name} | {values[0]} | {values[1]} | {error}{mark} | {bound} |")
    return "\n".join(lines) + "\n"


def example_table() -> str:
    """The verify pass of the worked example, operation by operation, then the step."""
    placed, source = vllm_deployment("eagle"), Roofline(gpu=loader.gpu("h100"))
    work = Work.uniform(BATCH, K + 1, CONTEXT)
    lines = [
        "| operation | count | bytes each | FLOPs each | memory | compute | fixed | each | all |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    total = 0.0
    for time in source.explain(placed.target, work):
        op, n = time.operation, time.operation.count
        parts = [float(x) / n * 1e6 for x in (time.memory_s, time.compute_s, time.fixed_s)]
        seconds = float(time.seconds)
        total += seconds
        lines.append(
            f"| {op.name} | {n} | {float(op.num_bytes):,.0f} | {float(op.flops):,.0f} | "
            + " | ".join(f"{part:.2f}" for part in parts)
            + f" | {seconds / n * 1e6:.2f} | {seconds * 1e6:.1f} |"
        )
    step = decode_step(placed, source, K, BATCH, CONTEXT)
    plain = decode_step(placed.without_draft(), source, 0, BATCH, CONTEXT)
    drafting = draft_round(placed, source, K, BATCH, CONTEXT)
    lines += [
        f"| **verify pass** | | | | | | | | **{total * 1e6:.1f}** |", "",
        "| part of the step | µs |", "|---|---:|",
        f"| draft round, {K} passes of the EAGLE head | {float(drafting.seconds) * 1e6:.1f} |",
        f"| verify pass | {float(step.verify.seconds) * 1e6:.1f} |",
        f"| host time | {float(step.overhead_s) * 1e6:.1f} |",
        f"| **step** | **{float(step.seconds) * 1e6:.1f}** |",
        f"| plain step, for comparison | {float(plain.seconds) * 1e6:.1f} |",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def routing_table() -> str:
    """What routing does to verification: distinct experts and T_V/T_AR at K = 4."""
    spec, source = loader.model("qwen3-30b-a3b"), Roofline(gpu=loader.gpu("h100"))
    feed_forward = spec.layers[0].feed_forward
    cheap, dear = INTERVAL
    cases = (
        ("uniform, independent (dearest)", dear),
        ("typical (default)", TYPICAL),
        ("cheapest supported", cheap),
    )
    lines = [
        "| routing | skew | overlap | experts / 8 at K = 4 | of 16 independent tokens | "
        "T_V/T_AR, batch 1 | batch 8 |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for label, routing in cases:
        model = PlacedModel(spec=spec, routing=routing)
        five = distinct_experts(feed_forward, Work.uniform(1, K + 1, 0), routing)
        sixteen = distinct_experts(feed_forward, Work.uniform(16, 1, 0), routing)
        ratios = [
            float(
                source.forward_time(model, b, K + 1, CONTEXT).seconds
                / source.forward_time(model, b, 1, CONTEXT).seconds
            )
            for b in (1, 8)
        ]
        lines.append(
            f"| {label} | {routing.skew:g} | {routing.overlap:g} | {float(five) / 8:.1f} | "
            f"{float(sixteen):.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |"
        )
    return "\n".join(lines) + "\n"


def gpu_constants_table() -> str:
    """The constants of the H100 that the example uses."""
    gpu = loader.gpu("h100")
    names = (
        "bandwidth_share", "wide_share", "compute_share", "ridge_exponent", "fixed_s", "loop_s",
        "loop_depth", "loop_growth", "attention_share", "attention_fixed_s", "attention_tile_s",
        "attention_depth_s", "attention_exponent", "attention_compute_share", "small_s",
    )  # fmt: skip
    lines = ["| constant | value |", "|---|---:|"]
    return "\n".join(lines + [f"| `{n}` | {getattr(gpu, n):.4g} |" for n in names]) + "\n"


def figures(directory: Path) -> None:
    """Products predicted against measured; passes over tokens, roofline beside kernels."""
    directory.mkdir(exist_ok=True)
    figure, axes = plots.side_by_side(2)
    _scatter(axes[0])
    _passes(axes[1])
    plots.save(figure, directory / "cost.png")


def _scatter(ax: Any) -> None:
    names = ("h100-sxm-80gb", "a100-sxm-80gb", "b200-sxm-180gb", "l40s-48gb")
    for name, (colour, marker, _) in zip(names, MARKS, strict=False):
        table = gemm_errors(loader.gpu(name))
        table = table[table["big"]].sample(400, random_state=0)
        operation = gemm_operation(table, "bf16")
        gpu = loader.gpu(name)
        predicted = Roofline(gpu=gpu, warm=True).operation_time(operation).seconds
        ax.loglog(table["seconds"] * 1e6, predicted * 1e6, marker, color=colour, markersize=3,
                  alpha=0.6, label=name)  # fmt: skip
    span = np.array([3.0, 2e4])
    ax.fill_between(span, span * 0.9, span * 1.1, color="0.85", zorder=0, label="±10 %")
    ax.set(xlabel="measured, µs", ylabel="roofline, µs", title="bf16 products, held-out shapes")
    legend(ax)


def _passes(ax: Any) -> None:
    tokens = np.arange(1, 513)
    model = vllm_deployment("eagle").target
    for name, colour in (("h100", BLUE), ("l40s", RED)):
        gpu = loader.gpu(name)
        for source, style in ((Roofline(gpu=gpu), "-"), (Kernels(gpu=gpu), "--")):
            seconds = source.forward_time(model, np.maximum(1, tokens // 8), 8, 1000).seconds
            label = f"{name}, {'roofline' if style == '-' else 'kernels'}"
            ax.plot(tokens, seconds * 1e3, style, color=colour, lw=1.2, label=label)
    ax.set(
        xlabel="tokens in the pass (8 a sequence, context 1000)", ylabel="time of the pass, ms",
        ylim=(0, None), title="Llama-3.1-8B, one pass",
    )  # fmt: skip
    legend(ax)


def main(arguments: list[str] | None = None) -> int:
    """Write docs/cost.md, docs/cost.json and docs/figures/cost.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args(arguments)
    kernel_rows, step_rows = silicon.rows(), full_steps.rows()
    if not kernel_rows:
        print("not run: the kernel tables are not installed (extra: kernels)", file=sys.stderr)
        return 0
    document = {
        "schema_version": 1,
        "silicon": [row.as_dict() for row in kernel_rows],
        "full_steps": [row.as_dict() for row in step_rows],
    }
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (options.docs / "cost.json").write_text(text + "\n")
    page = (options.docs / "cost.md").read_text()
    page = replaced(page, "constants", gpu_constants_table())
    page = replaced(page, "example", example_table())
    page = replaced(page, "routing", routing_table())
    page = replaced(page, "silicon", silicon_table(kernel_rows))
    page = replaced(page, "composed", rows_table(kernel_rows, ("roofline against kernels",)))
    page = replaced(page, "steps", rows_table(step_rows, ("",)))
    (options.docs / "cost.md").write_text(page)
    figures(options.docs / "figures")
    return 1 if missed([*kernel_rows, *step_rows]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
