"""Figures of the closed form: over K, batch and context; rows as in `predict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from specsim.plots.style import (
    BLUE,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    RED,
    STYLE,
    WHOLE,
    axes_or_new,
    legend,
)  # fmt: skip

PARTS = {"draft_s": ("draft", ORANGE), "verify_s": ("verify", BLUE), "overhead_s": ("host", LIGHT)}


def speedup_curve(rows: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Speedup against K with its 95 % interval as a band; rows as in `predict`."""
    ax = axes_or_new(ax)
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
    legend(ax, loc="lower left")
    return ax


def step_breakdown(
    rows: Sequence[Mapping[str, Any]], ax: Axes | None = None, *, unit: str = "ms"
) -> Axes:
    """A step's time by part, stacked, against K; rows as in `predict`."""
    ax = axes_or_new(ax)
    k = np.array([row["num_draft_tokens"] for row in rows])
    scale = 1e3 if unit == "ms" else 1.0
    bottom = np.zeros(len(k))
    for key, (label, colour) in PARTS.items():
        height = scale * np.array([row[key] for row in rows])
        _bars(ax, k, bottom, bottom + height, color=colour, label=label)
        bottom += height
    ax.set(xlabel="draft tokens per step, K", ylabel=f"time of a step, {unit}",
           ylim=(0, 1.05 * max(bottom)), title="Where a step's time goes")  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(ax, loc="upper left")
    return ax


def _bars(ax: Axes, x: Any, low: Any, high: Any, **style: Any) -> None:
    """Bars as one artist: `Axes.bar` makes one for each, which a slider would feel."""
    left, right = x - 0.375, x + 0.375
    corners = np.stack([[left, low], [left, high], [right, high], [right, low]])
    ax.add_collection(PolyCollection(list(corners.transpose(2, 0, 1)), linewidth=0, **style))
    ax.autoscale_view()


def speedup_over_batch(curve: Mapping[str, Any], ax: Axes | None = None) -> Axes:
    """Speedup against batch: the best K at each batch, and one K kept fixed; the shaded
    part is where speculation loses. `curve` as from `analytic.curves`."""
    ax = axes_or_new(ax)
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
    legend(ax, loc="lower left", bbox_to_anchor=(0, 0.08))
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


def regret_bars(
    draft_tokens: Sequence[int], regret: Sequence[float], ax: Axes | None = None
) -> Axes:
    """The share of the best speed that each K loses."""
    ax = axes_or_new(ax)
    loss = 100 * np.asarray(regret, dtype=float)
    best = int(np.argmin(loss))
    colours = [GREEN if i == best else BLUE for i in range(len(loss))]
    ax.bar(draft_tokens, loss, 0.75, color=colours)
    ax.annotate("best", (draft_tokens[best], loss[best]), ha="center", va="bottom", color=GREEN,
                fontsize=8)  # fmt: skip
    ax.set(xlabel="draft tokens per step, K", ylabel="speed lost, %", title="What each K loses")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def context_curve(rows: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Gain over context, K written at each point; rows have `context`, `speedup` and
    `num_draft_tokens`."""
    ax = axes_or_new(ax)
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
