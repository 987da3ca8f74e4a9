"""The style of every figure, and how figures are written.

Colours are those of Okabe and Ito (2008), told apart by the colour-blind; lines also
differ in dashes so that a figure survives grey print.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import matplotlib

if "MPLBACKEND" not in os.environ:  # notebooks have chosen; scripts write files
    matplotlib.use("Agg", force=False)

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

BLUE, ORANGE, GREEN, RED, PURPLE, GREY, LIGHT = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#666666", "#BBBBBB",
)  # fmt: skip
#: Ticks of a logarithmic axis as plain numbers.
WHOLE = "{x:g}"
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "svg.fonttype": "none",
    "svg.hashsalt": "specsim",  # the same figure gives the same bytes
    "figure.dpi": 110,
}

if "inline" in os.environ.get("MPLBACKEND", ""):
    # loaded now: what it sets when it is loaded within `rc_context` would be undone
    plt.switch_backend(os.environ["MPLBACKEND"])


def legend(ax: Axes, **more: Any) -> None:
    """A small legend that stays readable where it lies over a line."""
    ax.legend(**{"fontsize": 8, "framealpha": 0.85, "edgecolor": "none", **more})


def plain_ticks(axis: Axis, low: float, high: float) -> None:
    """A logarithmic axis over low to high with few ticks, as plain numbers."""
    decades = high / low
    subs = (1.0, 1.5, 2.0, 3.0, 5.0) if decades < 30 else (1.0, 3.0) if decades < 1000 else (1.0,)
    axis.set_major_locator(LogLocator(base=10, subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(WHOLE)


def axes_or_new(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    with plt.rc_context(STYLE):
        return plt.subplots(figsize=(5.2, 3.6), layout="constrained")[1]


def side_by_side(count: int, width: float = 4.8, height: float = 4.4) -> tuple[Figure, Any]:
    """A figure with `count` axes in a row, in this module's style."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, count, figsize=(width * count, height), layout="constrained", squeeze=False
        )
    return figure, axes[0]


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
