"""The figures of docs/drafts.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from reference.prompts import DOMAINS
from reference.training import page
from reference.training.statistics import Z95, learning_curve

COLOURS = dict(zip(DOMAINS, ("#0072B2", "#009E73", "#D55E00", "#7F7F7F"), strict=True))
MARKERS = {"eagle": "*"}


def draw(drafts: dict[str, Any], folder: Path) -> list[Path]:
    """Write drafts-cost.png and drafts-tokens.png; their paths."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _cost(drafts, folder / "drafts-cost.png"),
        _tokens(drafts, folder / "drafts-tokens.png"),
    ]


def _cost(drafts: dict[str, Any], path: Path) -> Path:
    """α against draft size, and against what a drafted token costs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for domain in DOMAINS:
        for name, d in drafts.items():
            value, error = page.first(d, domain, "1", "one_minus_tv")
            style = {"color": COLOURS[domain], "marker": MARKERS.get(d["kind"], "o"),
                     "markersize": 10 if d["kind"] == "eagle" else 5, "capsize": 2}  # fmt: skip
            size = d["trained_parameters"] / 1e6
            left.errorbar(size, value, Z95 * error, **style)
            cost = d["decoding"].get("bfloat16/0/4", {}).get(domain)
            if cost is not None:
                middle, low, high = cost["cost_ratio"]
                right.errorbar(
                    middle, value, Z95 * error, [[middle - low], [high - middle]], **style
                )
            if domain == DOMAINS[0]:
                left.annotate(name, (size, value), xytext=(5, 5), textcoords="offset points",
                              fontsize=8)  # fmt: skip
        models = [d for d in drafts.values() if d["kind"] != "eagle"]
        line = sorted(
            (d["trained_parameters"] / 1e6, page.first(d, domain, "1", "one_minus_tv")[0])
            for d in models
        )
        left.plot(*zip(*line, strict=True), color=COLOURS[domain], linewidth=1, label=domain)
    left.set_xlabel("trained parameters, millions")
    left.set_ylabel("α = 1 − TV at the first drafted token, T = 1")
    right.set_xlabel("time of a drafted token / an autoregressive step (bfloat16)")
    left.legend(fontsize=8, title="domain (★ head, ● draft model)", title_fontsize=8)
    for ax in (left, right):
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.25)
    figure.savefig(path, dpi=130)
    return path


def _tokens(drafts: dict[str, Any], path: Path) -> Path:
    """Held-out overlap at checkpoints, the fitted power law, and its interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.8), layout="constrained")
    ax = figure.subplots()
    at = np.geomspace(2e4, 1e7, 60).tolist()
    for i, (name, d) in enumerate(drafts.items()):
        colour = f"C{i}"
        tokens, overlaps = page.curve_points(d)
        n, middle, low, high = zip(*learning_curve(tokens, overlaps, at), strict=True)
        ax.plot([h[0] for h in d["history"]], [h[2] for h in d["history"]], "o", markersize=4,
                color=colour, label=name)  # fmt: skip
        ax.plot(n, middle, color=colour, linewidth=1)
        if d["kind"] == "eagle":
            ax.fill_between(n, low, high, color=colour, alpha=0.12, linewidth=0)
    ax.axhline(page.AIM, color="grey", linestyle="--", linewidth=1)
    ax.annotate("aim for code and factual questions", (2.2e4, page.AIM), va="bottom", fontsize=8,
                color="grey")  # fmt: skip
    ax.set_xscale("log")
    ax.set_ylim(0, 0.75)
    ax.set_xlabel("training tokens seen (repeats counted)")
    ax.set_ylabel("1 − TV, held out, all domains, T = 1")
    ax.legend(fontsize=8)
    ax.grid(alpha=0.25)
    figure.savefig(path, dpi=130)
    return path
