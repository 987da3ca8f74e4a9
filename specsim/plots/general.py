"""Lines and bars of any series: labelled at their ends, coloured by what binds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from specsim.plots.style import (
    BLUE,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    PURPLE,
    RED,
    WHOLE,
    axes_or_new,
    legend,
)  # fmt: skip


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
    ax = axes_or_new(ax)
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
    ax = axes_or_new(ax)
    colours = {"memory": BLUE, "compute": ORANGE, "latency": LIGHT}
    seen: set[str] = set()
    for height, rows in enumerate(reversed(list(bars.values()))):
        left = 0.0
        for row in rows:
            bound, share = str(row["bound"]), float(row["share"])
            ax.barh(
                height, share, 0.62, left=left, color=colours[bound], edgecolor="white",
                hatch="////" if bound == "latency" else None,
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
    legend(ax, ncols=3, loc="upper center")
    return ax


def roofline_chart(found: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Passes under the roofline of their GPU; `found` as from `analytic.series`."""
    ax = axes_or_new(ax)
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
    legend(ax, loc="lower right")
    return ax
