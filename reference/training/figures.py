"""The figures of docs/drafts.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from reference.prompts import DOMAINS
from reference.training import page
from reference.training.statistics import Z95, learning_curve
from specsim import plots
from specsim.plots.comparisons import MARKS
from specsim.plots.style import GREY, legend, plain_ticks

#: Factors that keep the domains of one draft apart on the axis of sizes.
DODGE = (0.965, 0.988, 1.012, 1.035)


def draw(drafts: dict[str, Any], folder: Path) -> list[Path]:
    """Write drafts-cost.png and drafts-tokens.png; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _cost(drafts, folder / "drafts-cost.png"),
        _tokens(drafts, folder / "drafts-tokens.png"),
    ]


def _cost(drafts: dict[str, Any], path: Path) -> Path:
    """α against draft size, and against what a drafted token costs."""
    figure, (left, right) = plots.side_by_side(2)
    places: dict[str, dict[str, list[tuple[float, float]]]] = {"left": {}, "right": {}}
    for domain, (colour, marker, dash), factor in zip(DOMAINS, MARKS, DODGE, strict=False):
        style = {"color": colour, "marker": marker, "markersize": 5, "elinewidth": 1,
                 "linestyle": "none"}  # fmt: skip
        line: list[tuple[float, float]] = []
        for name, d in drafts.items():
            value, error = page.first(d, domain, "1", "one_minus_tv")
            size = d["trained_parameters"] / 1e6
            left.errorbar(factor * size, value, Z95 * error, **style)
            places["left"].setdefault(name, []).append((size, value + Z95 * error))
            if d["kind"] != "eagle":
                line.append((factor * size, value))
            cost = d["decoding"].get("bfloat16/0/4", {}).get(domain)
            if cost is not None:
                middle, low, high = cost["cost_ratio"]
                right.errorbar(
                    middle, value, Z95 * error, [[middle - low], [high - middle]], **style
                )
                places["right"].setdefault(name, []).append((middle, value + Z95 * error))
        left.plot(*zip(*sorted(line), strict=True), color=colour, linewidth=1, linestyle=dash)
        left.plot([], [], color=colour, marker=marker, markersize=5, linestyle=dash, label=domain)
    left.set(xscale="log", xlabel="trained parameters, millions",
             ylabel="α = 1 − TV, first drafted token, T = 1")  # fmt: skip
    right.set(xlabel="c: time of a drafted token\nover that of a plain step, bfloat16")
    sizes = [d["trained_parameters"] / 1e6 for d in drafts.values()]
    left.set_xlim(0.85 * min(sizes), 1.25 * max(sizes))
    plain_ticks(left.xaxis, min(sizes), max(sizes))
    for ax, named in ((left, places["left"]), (right, places["right"])):
        _name(ax, named)
    low, high = left.get_ylim()
    for ax in (left, right):
        ax.set_ylim(low, high + 0.02)
    legend(left, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), columnspacing=1.0)
    plots.save(figure, path)
    return path


def _name(ax: Axes, named: dict[str, list[tuple[float, float]]]) -> None:
    """The name of each draft above the highest of its points."""
    for name, points in named.items():
        x, y = np.mean([p[0] for p in points]), max(p[1] for p in points)
        ax.annotate(name, (float(x), y), xytext=(0, 4), textcoords="offset points", ha="center",
                    fontsize=8)  # fmt: skip


def _tokens(drafts: dict[str, Any], path: Path) -> Path:
    """Held-out overlap at checkpoints, the fitted power law, and its interval."""
    figure, (ax,) = plots.side_by_side(1, width=7.0, height=4.0)
    at = np.geomspace(2e4, 1e7, 60).tolist()
    for (name, d), (colour, marker, dash) in zip(drafts.items(), MARKS, strict=False):
        tokens, overlaps = page.curve_points(d)
        n, middle, low, high = zip(*learning_curve(tokens, overlaps, at), strict=True)
        ax.plot([h[0] for h in d["history"]], [h[2] for h in d["history"]], marker, markersize=5,
                color=colour)  # fmt: skip
        ax.plot(n, middle, color=colour, linestyle=dash)
        ax.plot([], [], color=colour, linestyle=dash, marker=marker, markersize=5, label=name)
        if d["kind"] == "eagle":
            ax.fill_between(n, low, high, color=colour, alpha=0.12, linewidth=0,
                            label=f"95 % interval, {name}")  # fmt: skip
    ax.axhline(page.AIM, color=GREY, linestyle="--", linewidth=1)
    ax.annotate("aim for code and factual questions", (8e3, page.AIM), va="bottom", fontsize=8,
                color=GREY)  # fmt: skip
    ax.set(xscale="log", ylim=(0, 0.6), xlabel="training tokens seen (repeats counted)",
           ylabel="1 − TV, held out, all domains, T = 1")  # fmt: skip
    legend(ax, loc="lower right", title="points measured, lines fitted", title_fontsize=8)
    plots.save(figure, path)
    return path
