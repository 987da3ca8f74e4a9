"""Predictions against what was claimed or measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from specsim.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    STYLE,
    WHOLE,
    axes_or_new,
    legend,
    plain_ticks,
)  # fmt: skip

#: Colour, marker and dashes of a group or series by its place: apart in grey print too.
MARKS: tuple[tuple[str, str, Any], ...] = (
    (BLUE, "o", "-"), (ORANGE, "s", "--"), (GREEN, "D", "-."), (RED, "^", ":"),
    (PURPLE, "v", (0, (5, 1))), (GREY, "P", (0, (1, 1))), ("black", "X", (0, (3, 1, 1, 1))),
)  # fmt: skip
#: Distinct values of a quantity up to which each gets a median of its own.
MAX_LEVELS = 16
#: Largest whole value up to which each gets a tick of its own.
MAX_TICKED = 16
#: Bins, equally filled, of one that has more.
BINS = 10


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
        references = chart["reference"] or {}
        top = 1.12 * max([ax.get_ylim()[1] / 1.05, *references.values()])
        for label, value in references.items():
            ax.axhline(value, color=RED, linestyle="--", linewidth=1)
            ax.annotate(
                label, (0.01, value), xycoords=("axes fraction", "data"), xytext=(0, -2),
                textcoords="offset points", color=RED, fontsize=8, ha="left", va="top",
            )  # fmt: skip
        ax.set(xlabel=chart["xlabel"], ylabel=chart["ylabel"], ylim=(0, top))
        ax.set_title(f"Claim {number}: {chart['title']}", pad=24)
        # above the axes: bars and lines need all of them
        legend(ax, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def predicted_against_measured(
    groups: Mapping[str, Sequence[tuple[float, float]]], ax: Axes | None = None,
    *, label: str = "speedup", band: float = 0.10,
) -> Axes:  # fmt: skip
    """Scatter of (predicted, measured) by group, with the diagonal and a ±`band` strip."""
    ax = axes_or_new(ax)
    points = np.array([pair for pairs in groups.values() for pair in pairs])
    low, high = 0.9 * float(points.min()), 1.1 * float(points.max())
    line = np.array([low, high])
    ax.fill_between(line, line * (1 - band), line * (1 + band), color=GREY, alpha=0.15,
                    linewidth=0, label=f"±{100 * band:.0f} %")  # fmt: skip
    ax.plot(line, line, color=GREY, linewidth=1)
    for (name, pairs), (colour, marker, _) in zip(groups.items(), MARKS, strict=False):
        measured, predicted = [p[1] for p in pairs], [p[0] for p in pairs]
        ax.scatter(measured, predicted, s=22, color=colour, marker=marker, label=name, alpha=0.8)
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high),
           xlabel=f"measured {label}", ylabel=f"predicted {label}")  # fmt: skip
    for axis in (ax.xaxis, ax.yaxis):
        plain_ticks(axis, low, high)
    legend(ax, fontsize=7)
    return ax


def measured_over_k(
    series: Mapping[str, Sequence[tuple[float, float, float]]], ax: Axes | None = None,
    *, label: str = "speedup",
) -> Axes:  # fmt: skip
    """Series of (K, predicted, measured): a line for the prediction, points for what was
    measured, in one colour."""
    ax = axes_or_new(ax)
    handles: list[Any] = []
    for (name, points), (colour, marker, dash) in zip(series.items(), MARKS, strict=False):
        k, predicted, measured = np.array(sorted(points)).T
        ax.plot(k, predicted, color=colour, linestyle=dash)
        ax.plot(k, measured, color=colour, linestyle="none", marker=marker, markersize=5)
        handles.append(
            Line2D([], [], color=colour, label=name, linestyle=dash, marker=marker, markersize=5)
        )
    ax.axhline(1, color=GREY, linestyle="--", linewidth=1)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="draft tokens per step, K", ylabel=f"{label} (line predicted, points measured)")
    # above the axes: points need all of them
    legend(ax, handles=handles, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return ax


def errors_over(
    x: Sequence[float], errors: Sequence[float], ax: Axes | None = None, *, xlabel: str
) -> Axes:
    """Signed relative errors against a quantity on a log axis (0 is left out), with their
    running median and a ±10 % strip."""
    ax = axes_or_new(ax)
    _error_axes(ax, xlabel)
    xs, ys = _positive(x, errors)
    ax.scatter(xs, ys, s=14, color=BLUE, alpha=0.6)
    if _repeats(xs):
        ax.plot(*_medians(xs, ys), color=RED, marker="o", markersize=4, label="median")
    _error_ticks(ax, np.unique(xs))
    return ax


def errors_by_group(
    groups: Mapping[str, Sequence[tuple[float, float]]], ax: Axes | None = None, *, xlabel: str
) -> Axes:
    """(x, signed relative error) by group as in `errors_over`, a median for each group; the
    marks of a group are those of `predicted_against_measured`."""
    ax = axes_or_new(ax)
    _error_axes(ax, xlabel)
    levels: list[float] = []
    for (name, pairs), (colour, marker, dash) in zip(groups.items(), MARKS, strict=False):
        xs, ys = _positive([p[0] for p in pairs], [p[1] for p in pairs])
        ax.scatter(xs, ys, s=14, color=colour, marker=marker, alpha=0.6)
        if _repeats(xs):
            ax.plot(*_medians(xs, ys), color=colour, linestyle=dash, marker=marker, markersize=4,
                    label=f"median, {name}")  # fmt: skip
        levels += list(xs)
    _error_ticks(ax, np.unique(levels))
    return ax


def _error_axes(ax: Axes, xlabel: str) -> None:
    ax.axhline(0, color=GREY, linewidth=1)
    ax.axhspan(-10, 10, color=GREY, alpha=0.12, linewidth=0, label="±10 %")
    ax.set(xlabel=xlabel, ylabel="error, %")


def _positive(x: Sequence[float], errors: Sequence[float]) -> tuple[Any, Any]:
    """What a log axis can show, errors in per cent."""
    xs, ys = np.asarray(x, dtype=float), 100 * np.asarray(errors, dtype=float)
    return xs[xs > 0], ys[xs > 0]


def _repeats(xs: Any) -> bool:
    """Whether a median says more than the points do."""
    return len(np.unique(xs)) < len(xs) or len(xs) > MAX_LEVELS


def _medians(xs: Any, ys: Any) -> tuple[list[float], list[float]]:
    """Medians of ys at each value of xs, or, of many values, in equally filled bins."""
    levels = np.unique(xs)
    if len(levels) <= MAX_LEVELS:
        return list(levels), [float(np.median(ys[xs == level])) for level in levels]
    edges = np.unique(np.quantile(xs, np.linspace(0, 1, BINS + 1)))
    bins = np.digitize(xs, edges[1:-1])
    found = [bins == i for i in np.unique(bins)]
    return [float(np.median(xs[f])) for f in found], [float(np.median(ys[f])) for f in found]


def _error_ticks(ax: Axes, levels: Any) -> None:
    if np.all(levels == np.round(levels)) and levels[-1] > 2 * levels[0]:  # batches, K
        ax.set_xscale("log", base=2)
        if levels[-1] <= MAX_TICKED:
            ax.set_xticks(levels)
            ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(WHOLE)
    else:
        ax.set_xscale("log")
        plain_ticks(ax.xaxis, levels[0], levels[-1])
    legend(ax, fontsize=7)
