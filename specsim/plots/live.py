"""The figure of the interactive notebook, kept and redrawn."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from specsim.plots.closed_form import speedup_curve, speedup_over_batch, step_breakdown
from specsim.plots.style import STYLE


class WhatIfFigure:
    """The three figures of `prediction_figure`, kept and redrawn: what moving a slider needs.

    Making axes and ticks takes longer than all the curves, so they are made once.
    """

    def __init__(self, dpi: float = 80.0) -> None:
        with plt.rc_context(STYLE):
            self.figure = Figure(figsize=(13.2, 4.0), dpi=dpi)
            self.axes = self.figure.subplots(1, 3)
            self.figure.subplots_adjust(left=0.055, right=0.985, bottom=0.14, top=0.82, wspace=0.24)
            for ax in self.axes:
                # labels at fixed places need no measurement of the ticks beside them
                ax.xaxis.set_label_coords(0.5, -0.11)
                ax.yaxis.set_label_coords(-0.155, 0.5)
                ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
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
