"""Every figure of specsim, from frames and arrays; the only module that imports matplotlib.

Colours are those of Okabe and Ito (2008), told apart by the colour-blind; lines also
differ in dashes so that a figure survives grey print.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

if "MPLBACKEND" not in os.environ:  # notebooks have chosen; scripts write files
    matplotlib.use("Agg", force=False)

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    ScalarFormatter,
)

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#666666",
)  # fmt: skip
#: Ticks of a logarithmic axis as plain numbers.
WHOLE = "{x:g}"
#: Distinct values of a quantity up to which each gets a median of its own.
MAX_LEVELS = 10
PARTS = {"draft_s": ("draft", ORANGE), "verify_s": ("verify", BLUE), "overhead_s": ("host", GREY)}
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "svg.fonttype": "none",
    "svg.hashsalt": "specsim",  # the same figure gives the same bytes
    "figure.dpi": 110,
}

if "inline" in os.environ.get("MPLBACKEND", ""):
    # loaded now: what it sets when it is loaded within `rc_context` would be undone
    plt.switch_backend(os.environ["MPLBACKEND"])


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    with plt.rc_context(STYLE):
        return plt.subplots(figsize=(5.2, 3.6), layout="constrained")[1]


def speedup_curve(rows: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Speedup against K with its 95 % interval as a band; rows as in `predict`."""
    ax = _axes(ax)
    k = [row["num_draft_tokens"] for row in rows]
    speedup = [row["speedup"] for row in rows]
    low, high = [row["speedup_low"] for row in rows], [row["speedup_high"] for row in rows]
    ax.fill_between(k, low, high, color=BLUE, alpha=0.18, linewidth=0, label="95 % interval")
    ax.plot(k, speedup, color=BLUE, marker="o", markersize=4, label="predicted")
    ax.axhline(1.0, color=GREY, linestyle="--", linewidth=1)
    ax.annotate("no speculation", (k[-1], 1.0), ha="right", va="bottom", color=GREY, fontsize=8)
    best = int(np.argmax(speedup))
    if speedup[best] > 1:
        ax.annotate(
            f"K = {k[best]}: {speedup[best]:.2f}×", (k[best], speedup[best]),
            textcoords="offset points", xytext=(0, 9), ha="center", color=BLUE,
        )  # fmt: skip
    ax.set(xlabel="draft tokens per step, K", ylabel="speedup over plain decoding",
           ylim=(0, 1.12 * max(*high, 1.0)), title="Speedup")  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, fontsize=8, loc="lower left")
    return ax


def step_breakdown(
    rows: Sequence[Mapping[str, Any]], ax: Axes | None = None, *, unit: str = "ms"
) -> Axes:
    """A step's time by part, stacked, against K; rows as in `predict`."""
    ax = _axes(ax)
    k = np.array([row["num_draft_tokens"] for row in rows])
    scale = 1e3 if unit == "ms" else 1.0
    bottom = np.zeros(len(k))
    for key, (label, colour) in PARTS.items():
        height = scale * np.array([row[key] for row in rows])
        ax.bar(k, height, 0.75, bottom=bottom, color=colour, label=label)
        bottom += height
    ax.set(xlabel="draft tokens per step, K", ylabel=f"time of a step, {unit}",
           title="Where a step's time goes")  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    return ax


def speedup_over_batch(curve: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Speedup against batch: the best K at each batch, and one K kept fixed; the shaded
    part is where speculation loses. `curve` as from `analytic.curves`."""
    ax = _axes(ax)
    batch = np.asarray(curve["batch"])
    fixed = np.asarray(curve["fixed_speedup"])
    ax.plot(batch, curve["best_speedup"], color=GREEN, label="best K at each batch")
    ax.plot(batch, fixed, color=BLUE, linestyle="--", label=f"K = {curve['fixed_k']} kept")
    ax.axhline(1.0, color=GREY, linestyle=":", linewidth=1)
    ax.fill_between(batch, fixed, 1.0, where=fixed < 1, color=RED, alpha=0.15, linewidth=0)
    crossings = np.flatnonzero(np.diff((fixed > 1).astype(int)))
    for i in crossings:
        ax.axvline(batch[i + 1], color=RED, linewidth=0.8)
        ax.annotate(
            f"{batch[i + 1]}", (batch[i + 1], 0.02), xycoords=("data", "axes fraction"),
            ha="left", color=RED, fontsize=8, xytext=(3, 0), textcoords="offset points",
        )  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set(xlabel="batch, sequences", ylabel="speedup over plain decoding", ylim=(0, None),
           title="Load and crossover")  # fmt: skip
    ax.xaxis.set_major_formatter(WHOLE)
    ax.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 0.08))
    return ax


def prediction_figure(
    rows: Sequence[Mapping[str, Any]], curve: Mapping[str, Any] | None, title: str = ""
) -> Figure:
    """The three figures of `specsim predict` side by side (two without a deployment)."""
    with plt.rc_context(STYLE):
        count = 2 if curve is None else 3
        figure, axes = plt.subplots(1, count, figsize=(4.6 * count, 3.8), layout="constrained")
        speedup_curve(rows, axes[0])
        step_breakdown(rows, axes[1], unit="ms" if curve is not None else "target passes")
        if curve is not None:
            speedup_over_batch(curve, axes[2])
        if title:
            figure.suptitle(title)
    return figure


class WhatIfFigure:
    """The three figures of `prediction_figure`, kept and redrawn: what moving a slider needs.

    Making axes and ticks takes longer than all the curves, so they are made once.
    """

    def __init__(self, dpi: float = 80.0) -> None:
        with plt.rc_context(STYLE):
            self.figure = Figure(figsize=(13.2, 4.0), dpi=dpi)
            self.axes = self.figure.subplots(1, 3)
            self.figure.subplots_adjust(left=0.05, right=0.985, bottom=0.14, top=0.82, wspace=0.2)
            self._title = self.figure.suptitle("")
            self._canvas = FigureCanvasAgg(self.figure)

    def draw(self, rows: Sequence[Mapping[str, Any]], curve: Mapping[str, Any], title: str) -> None:
        """Put other rows (as in `predict`) and another curve into the same axes."""
        # a title at a fixed height spares a measurement of every label
        with plt.rc_context({**STYLE, "axes.titley": 1.02}):
            for ax in self.axes:
                _empty(ax)
            speedup_curve(rows, self.axes[0])
            step_breakdown(rows, self.axes[1])
            speedup_over_batch(curve, self.axes[2])
            self._title.set_text(title)

    def png(self) -> bytes:
        """The picture as it is now; drawn once, where `savefig` draws twice."""
        stream = io.BytesIO()
        with plt.rc_context(STYLE):
            self._canvas.draw()  # type: ignore[no-untyped-call]
            pixels = np.asarray(self._canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        plt.imsave(stream, pixels, format="png", pil_kwargs={"compress_level": 1})
        return stream.getvalue()


def _empty(ax: Axes) -> None:
    """Take out what was drawn; axes, scales and ticks stay."""
    for artist in (*ax.lines, *ax.collections, *ax.patches, *ax.texts):
        artist.remove()
    ax.containers.clear()
    ax.relim()
    ax.autoscale(True)


def claim_figure(number: int, chart: Mapping[str, Any]) -> Figure:
    """One claim of the audit: bars over categories, or lines over numbers, with the
    claimed value as a dashed reference. `chart` as in `audit.Claim`."""
    with plt.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(6.2, 4.0), layout="constrained")
        x, colours = chart["x"], (BLUE, ORANGE, GREEN)
        if isinstance(x[0], str):
            width = 0.8 / len(chart["y"])
            for i, (label, y) in enumerate(chart["y"].items()):
                at = np.arange(len(x)) + (i - (len(chart["y"]) - 1) / 2) * width
                ax.bar(at, y, width, label=label, color=colours[i])
            ax.set_xticks(range(len(x)), x)
        else:
            dashes = ("-", "--", ":")
            for i, (label, y) in enumerate(chart["y"].items()):
                ax.plot(x, y, label=label, color=colours[i], linestyle=dashes[i])
            if min(x) >= 1 and max(x) > 100:
                ax.set_xscale("log", base=2)
                ax.xaxis.set_major_formatter(WHOLE)
        for value in chart["reference"] or ():
            ax.axhline(value, color=RED, linestyle="--", linewidth=1)
        ax.set(xlabel=chart["xlabel"], ylabel=chart["ylabel"], ylim=(0, None),
               title=f"Claim {number}: {chart['title']}")  # fmt: skip
        ax.legend(frameon=False, fontsize=8)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure whole or not at all; the format follows the name.

    Raises:
        OSError: if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.partial{path.suffix}")
    try:
        with plt.rc_context(STYLE):
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(temporary, metadata=metadata)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        plt.close(figure)


def simulation_latency(latencies: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Share of requests served within a time, for each kind of latency (seconds)."""
    ax = _axes(ax)
    for (label, values), colour, dash in zip(
        latencies.items(), (BLUE, ORANGE, GREEN, PURPLE), ("-", "--", ":", "-."), strict=False
    ):
        finite = np.sort(np.asarray(values, dtype=float))
        finite = finite[np.isfinite(finite) & (finite > 0)]
        if len(finite):
            share = np.arange(1, len(finite) + 1) / len(finite)
            ax.step(finite, share, where="post", label=label, color=colour, linestyle=dash)
    ax.set(xscale="log", xlabel="seconds", ylabel="share of requests", ylim=(0, 1.02))
    ax.legend(frameon=False, fontsize=8)
    return ax


def simulation_shares(utilisation: Mapping[str, float], ax: Axes | None = None) -> Axes:
    """Where a replica's time goes, as one bar of shares that sum to 1."""
    ax = _axes(ax)
    left = 0.0
    colours = (ORANGE, BLUE, GREEN, GREY, "#DDDDDD")
    for (label, share), colour in zip(utilisation.items(), colours, strict=True):
        ax.barh([0], [share], left=[left], height=0.4, color=colour, label=f"{label} {share:.0%}")
        left += share
    ax.set(xlabel="share of time", xlim=(0, 1), ylim=(-0.4, 1.0), yticks=[])
    ax.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")
    return ax


def simulation_figure(
    latencies: Mapping[str, Any], utilisation: Mapping[str, float], title: str = ""
) -> Figure:
    """The figure of `specsim simulate`: latencies, and where the time goes."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.8), layout="constrained")
        simulation_latency(latencies, axes[0])
        simulation_shares(utilisation, axes[1])
        if title:
            figure.suptitle(title)
    return figure


def predicted_against_measured(
    groups: Mapping[str, Sequence[tuple[float, float]]], ax: Axes | None = None,
    *, label: str = "speedup", band: float = 0.10,
) -> Axes:  # fmt: skip
    """Scatter of (predicted, measured) by group, with the diagonal and a ±`band` strip."""
    ax = _axes(ax)
    points = np.array([pair for pairs in groups.values() for pair in pairs])
    low, high = 0.9 * float(points.min()), 1.1 * float(points.max())
    line = np.array([low, high])
    ax.fill_between(line, line * (1 - band), line * (1 + band), color=GREY, alpha=0.15,
                    linewidth=0, label=f"±{band:.0%}")  # fmt: skip
    ax.plot(line, line, color=GREY, linewidth=1)
    markers = zip((BLUE, ORANGE, GREEN, RED, PURPLE, GREY, "black"), "osD^vPX", strict=True)
    for (name, pairs), (colour, marker) in zip(groups.items(), markers, strict=False):
        measured, predicted = [p[1] for p in pairs], [p[0] for p in pairs]
        ax.scatter(measured, predicted, s=22, color=colour, marker=marker, label=name, alpha=0.8)
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high),
           xlabel=f"measured {label}", ylabel=f"predicted {label}")  # fmt: skip
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(base=10, subs=(1, 1.5, 2, 3, 5)))
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(NullFormatter())
    ax.legend(frameon=False, fontsize=7)
    return ax


def errors_over(
    x: Sequence[float], errors: Sequence[float], ax: Axes | None = None, *, xlabel: str
) -> Axes:
    """Signed relative errors against a quantity on a log axis, with their running median."""
    ax = _axes(ax)
    xs, ys = np.asarray(x, dtype=float), 100 * np.asarray(errors, dtype=float)
    ax.axhline(0, color=GREY, linewidth=1)
    ax.axhspan(-10, 10, color=GREY, alpha=0.12, linewidth=0)
    ax.scatter(xs, ys, s=14, color=BLUE, alpha=0.6)
    levels = np.unique(xs)
    if len(levels) > MAX_LEVELS:  # continuous: medians of equally filled bins
        parts = np.array_split(np.argsort(xs), MAX_LEVELS)
        middles = [np.median(xs[part]) for part in parts]
        medians = [np.median(ys[part]) for part in parts]
    else:
        middles, medians = list(levels), [np.median(ys[xs == level]) for level in levels]
    ax.plot(middles, medians, color=RED, marker="o", markersize=4, label="median")
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(WHOLE)
    ax.set(xlabel=xlabel, ylabel="error, %")
    ax.legend(frameon=False, fontsize=8)
    return ax


def side_by_side(count: int, width: float = 4.8, height: float = 4.4) -> tuple[Figure, Any]:
    """A figure with `count` axes in a row, in this module's style."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, count, figsize=(width * count, height), layout="constrained", squeeze=False
        )
    return figure, axes[0]


def plan_curves(
    curves: Sequence[Mapping[str, Any]], limits: Mapping[str, Any], ax: Axes | None = None
) -> Axes:
    """Time per output token against load, per GPU, for rival plans; the tightest limit and
    the demand as lines, and a dot where the SLO's share is last attained. `curves` and
    `limits` as from `Plan.curves()` and `Plan.limits()`."""
    ax = _axes(ax)
    colours, dashes = (BLUE, ORANGE, GREEN, PURPLE), ("-", "--", "-.", ":")
    for i, curve in enumerate(curves):
        keep = np.asarray(curve["batch"]) <= curve["slots"]
        rate = np.asarray(curve["rate_per_s_per_gpu"])[keep]
        tpot = 1e3 * np.asarray(curve["tpot_s"])[keep]
        colour = colours[i % 4] if curve["speculates"] else GREY
        ax.plot(rate, tpot, color=colour, linestyle=dashes[i % 4], label=curve["label"])
    if limits["tpot_s"] is not None:
        ax.axhline(1e3 * limits["tpot_s"], color=RED, linewidth=0.9)
        ax.annotate("TPOT limit", (0.01, 1e3 * limits["tpot_s"]), color=RED, fontsize=8,
                    xycoords=("axes fraction", "data"), va="bottom")  # fmt: skip
    if limits["rate_per_s_per_gpu"] is not None:
        ax.axvline(limits["rate_per_s_per_gpu"], color=GREY, linestyle=":", linewidth=1)
        ax.annotate(
            "demand", (limits["rate_per_s_per_gpu"], 0.33), xycoords=("data", "axes fraction"),
            color=GREY, fontsize=8, rotation=90, va="center", ha="right",
        )  # fmt: skip
    top = 2.2 * 1e3 * limits["tpot_s"] if limits["tpot_s"] is not None else None
    ax.set(xlabel="requests/s per GPU", ylabel="time per output token, ms", ylim=(0, top),
           title="Load and latency")  # fmt: skip
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, 0.93))
    return ax


def regret_bars(
    draft_tokens: Sequence[int], regret: Sequence[float], ax: Axes | None = None
) -> Axes:
    """The share of the best speed that each K loses."""
    ax = _axes(ax)
    loss = 100 * np.asarray(regret, dtype=float)
    best = int(np.argmin(loss))
    colours = [GREEN if i == best else BLUE for i in range(len(loss))]
    ax.bar(draft_tokens, loss, 0.75, color=colours)
    ax.annotate("best", (draft_tokens[best], loss[best]), ha="center", va="bottom", color=GREEN,
                fontsize=8)  # fmt: skip
    ax.set(xlabel="draft tokens per step, K", ylabel="speed lost, %", title="What each K loses")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def tornado_bars(bars: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Speed over no speculation at both ends of each input; `bars` have `parameter`, `low`
    and `high`."""
    ax = _axes(ax)
    ordered = list(reversed(bars))
    for i, bar in enumerate(ordered):
        ax.barh(i, bar["high"] - bar["low"], left=bar["low"], height=0.6, color=ORANGE)
    ax.axvline(1.0, color=RED, linestyle="--", linewidth=1)
    ax.set_yticks(range(len(ordered)), [bar["parameter"] for bar in ordered])
    ax.set(xlabel="speed over no speculation", title="What the answer is sensitive to")
    return ax


def context_curve(rows: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Gain over context, K written at each point; rows have `context`, `speedup` and
    `num_draft_tokens`."""
    ax = _axes(ax)
    x = [row["context"] for row in rows]
    ax.plot(x, [row["speedup"] for row in rows], color=BLUE, marker="o", markersize=4)
    for row in rows:
        ax.annotate(f"K={row['num_draft_tokens']}", (row["context"], row["speedup"]), fontsize=8,
                    textcoords="offset points", xytext=(0, 7), ha="center")  # fmt: skip
    ax.axhline(1.0, color=GREY, linestyle="--", linewidth=1)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(WHOLE)
    ax.tick_params(axis="x", labelrotation=30)
    top = max([1.0, *(row["speedup"] for row in rows)])
    ax.set(xlabel="context, tokens", ylabel="speed over plain decoding", ylim=(0, 1.2 * top),
           title="Long context")  # fmt: skip
    return ax


def svg(ax: Axes) -> str:
    """The figure of `ax` as an `<svg>` element for a page; the same figure gives the same
    text."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    stream = io.StringIO()
    with plt.rc_context(STYLE):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = stream.getvalue()
    return text[text.index("<svg") :]


def curves(
    x: Sequence[float], lines: Mapping[str, Any], ax: Axes | None = None, *, xlabel: str,
    ylabel: str, title: str = "", reference: float | None = None, log2: bool = False,
    bands: Mapping[str, tuple[Any, Any]] | None = None, measured: Sequence[str] = (),
    ylim: tuple[float, float] | None = None,
) -> Axes:  # fmt: skip
    """Lines over a common x, each labelled at its end; NaN leaves a gap.

    `bands` gives (low, high) of a line's interval; the lines named in `measured` are drawn
    as points; `reference` is a dashed level.
    """
    ax = _axes(ax)
    xs = np.asarray(x, dtype=float)
    colours = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY)
    dashes = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
    ends: list[tuple[float, str, str]] = []
    for (label, values), colour, dash in zip(lines.items(), colours, dashes, strict=False):
        y = np.asarray(values, dtype=float)
        if label in measured:
            ax.plot(xs, y, color=colour, linestyle="none", marker="o", markersize=5)
        else:
            ax.plot(xs, y, color=colour, linestyle=dash)
        if bands and label in bands:
            low, high = bands[label]
            ax.fill_between(xs, low, high, color=colour, alpha=0.18, linewidth=0)
        known = np.flatnonzero(np.isfinite(y))
        if len(known):
            ends.append((float(y[known[-1]]), label, colour))
    if reference is not None:
        ax.axhline(reference, color=GREY, linestyle="--", linewidth=1)
    if log2:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(WHOLE)
    ax.set(xlabel=xlabel, ylabel=ylabel, title=title)
    bottom = float(np.nanmin([np.nanmin(np.asarray(v, dtype=float)) for _, v in lines.items()]))
    if ylim is not None:
        ax.set_ylim(*ylim)
    elif bottom >= 0:
        ax.set_ylim(0, None)
    _label_ends(ax, ends)
    return ax


def _label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Labels right of the axes at the height of each line's end, kept apart."""
    low, high = ax.get_ylim()
    gap, ordered = 0.075, sorted(ends)
    heights = [(y - low) / (high - low) for y, _, _ in ordered]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    ceiling = 1.0
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], ceiling)
        ceiling = heights[i] - gap
    for height, (_, label, colour) in zip(heights, ordered, strict=True):
        ax.annotate(label, (1.02, height), xycoords="axes fraction", color=colour, fontsize=8,
                    va="center")  # fmt: skip


def part_bars(
    bars: Mapping[str, Sequence[Mapping[str, Any]]], ax: Axes | None = None, *, title: str = ""
) -> Axes:
    """One horizontal bar per label: shares of a time by part, coloured by what binds the
    part; rows with `name`, `share` and `bound` as from `analytic.series`."""
    ax = _axes(ax)
    colours = {"memory": BLUE, "compute": ORANGE, "latency": "#BBBBBB"}
    seen: set[str] = set()
    for height, rows in enumerate(reversed(list(bars.values()))):
        left = 0.0
        for row in rows:
            bound, share = str(row["bound"]), float(row["share"])
            ax.barh(
                height, share, 0.62, left=left, color=colours[bound], edgecolor="white",
                label=f"{bound}-bound" if bound not in seen else None,
            )  # fmt: skip
            seen.add(bound)
            if share >= 0.09:
                ink = "white" if bound == "memory" else "black"
                ax.text(left + share / 2, height, f"{row['name']}\n{share:.0%}", ha="center",
                        va="center", fontsize=6.5, color=ink)  # fmt: skip
            left += share
    ax.set_yticks(range(len(bars)), list(reversed(list(bars))))
    ax.set(xlim=(0, 1), ylim=(-0.5, len(bars) + 0.1), xlabel="share of one target pass",
           title=title)  # fmt: skip
    ax.grid(visible=False)
    ax.legend(frameon=False, fontsize=8, ncols=3, loc="upper center")
    return ax


def roofline_chart(found: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Passes under the roofline of their GPU; `found` as from `analytic.series`."""
    ax = _axes(ax)
    peak, bandwidth = found["peak_flops"], found["bandwidth_bytes_per_s"]
    intensity = np.geomspace(0.5, 4 * peak / bandwidth, 200)
    ax.plot(intensity, np.minimum(peak, intensity * bandwidth) / 1e12, color=GREY)
    ax.annotate("memory bandwidth", (2.0, 2.6 * bandwidth / 1e12), rotation=38, fontsize=8,
                color=GREY, ha="left", va="bottom")  # fmt: skip
    ax.annotate("peak of the tensor cores", (intensity[-1], peak / 1e12), ha="right", va="bottom",
                fontsize=8, color=GREY)  # fmt: skip
    marks = zip((BLUE, ORANGE, GREEN, RED), "osD^", strict=True)
    for (label, point), (colour, marker) in zip(found["points"].items(), marks, strict=False):
        ax.plot(point["intensity"], point["flops"] / 1e12, color=colour, marker=marker,
                markersize=5, linewidth=1, label=label)  # fmt: skip
    first = next(iter(found["points"].values()))
    for i in (0, len(found["batch"]) - 1):
        at = first["intensity"][i], first["flops"][i] / 1e12
        ax.annotate(f"batch {found['batch'][i]}", at, textcoords="offset points",
                    xytext=(6, -10), fontsize=8, color=BLUE)  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="FLOPs per byte moved",
           ylabel="TFLOP/s on one GPU", title="Passes under the roofline")  # fmt: skip
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    return ax
