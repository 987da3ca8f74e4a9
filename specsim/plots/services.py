"""Figures of services: latencies, load, and what a plan is sensitive to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specsim.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    STYLE,
    axes_or_new,
    legend,
    plain_ticks,
)  # fmt: skip


def simulation_latency(latencies: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Share of requests served within a time, for each kind of latency (seconds)."""
    ax = axes_or_new(ax)
    ends: list[float] = []
    for (label, values), colour, dash in zip(
        latencies.items(), (BLUE, ORANGE, GREEN, PURPLE), ("-", "--", ":", "-."), strict=False
    ):
        finite = np.sort(np.asarray(values, dtype=float))
        finite = finite[np.isfinite(finite) & (finite > 0)]
        if len(finite):
            ends += [finite[0], finite[-1]]
            share = np.arange(1, len(finite) + 1) / len(finite)
            ax.step(finite, share, where="post", label=label, color=colour, linestyle=dash)
    ax.set(xscale="log", xlabel="latency, seconds", ylabel="share of requests served within it",
           ylim=(0, 1.02))  # fmt: skip
    if ends:
        plain_ticks(ax.xaxis, min(ends), max(ends))
    # above the axes: the curves of a distribution fill them
    ax.set_title("Latencies", pad=24)
    legend(ax, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), columnspacing=1.0)
    return ax


def simulation_shares(utilisation: Mapping[str, float], ax: Axes | None = None) -> Axes:
    """Where a replica's time goes, as one bar of shares that sum to 1."""
    ax = axes_or_new(ax)
    left = 0.0
    colours = (ORANGE, BLUE, GREEN, GREY, "#DDDDDD")
    for (label, share), colour in zip(utilisation.items(), colours, strict=True):
        ax.barh([0], [share], left=[left], height=0.4, color=colour, edgecolor="white",
                label=f"{label} {share:.0%}")  # fmt: skip
        if share >= 0.07:  # neighbours are alike in grey print
            ink = "white" if colour in (BLUE, GREEN, GREY) else "black"
            ax.text(left + share / 2, 0, label, ha="center", va="center", fontsize=8, color=ink)
        left += share
    ax.set(xlabel="share of a replica's time", xlim=(0, 1), ylim=(-0.3, 0.3), yticks=[])
    ax.set_title("Where the time goes", pad=24)
    legend(ax, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0), columnspacing=0.8,
           handlelength=1.0)  # fmt: skip
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


def plan_curves(
    curves: Sequence[Mapping[str, Any]], limits: Mapping[str, Any], ax: Axes | None = None
) -> Axes:
    """Time per output token against load, per GPU, for rival plans; the tightest limit and
    the demand as lines. `curves` and `limits` as from `Plan.curves()` and `Plan.limits()`."""
    ax = axes_or_new(ax)
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
            "demand", (limits["rate_per_s_per_gpu"], 0.98), xycoords=("data", "axes fraction"),
            color=GREY, fontsize=8, rotation=90, va="top", ha="right",
        )  # fmt: skip
    top = 2.2 * 1e3 * limits["tpot_s"] if limits["tpot_s"] is not None else None
    ax.set(xlabel="requests/s per GPU", ylabel="time per output token, ms", ylim=(0, top))
    ax.set_title("Load and latency", pad=38)
    legend(ax, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return ax


def tornado_bars(bars: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Speed over no speculation at both ends of each input; `bars` have `parameter`, `low`
    and `high`."""
    ax = axes_or_new(ax)
    ordered = list(reversed(bars))
    for i, bar in enumerate(ordered):
        ax.barh(i, bar["high"] - bar["low"], left=bar["low"], height=0.6, color=ORANGE)
    ax.axvline(1.0, color=RED, linestyle="--", linewidth=1)
    ax.annotate("no gain", (1.0, 0.02), xycoords=("data", "axes fraction"), color=RED, fontsize=8,
                rotation=90, va="bottom", ha="right")  # fmt: skip
    ax.set_yticks(range(len(ordered)), [bar["parameter"] for bar in ordered])
    ax.set(xlabel="speed over no speculation (ratio)", title="What the answer is sensitive to")
    return ax
