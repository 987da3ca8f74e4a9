"""How much longer a measured kernel takes than the roofline says, between the shapes that
were measured.

A table has some shapes and no others. What is interpolated is not the time but its ratio
to the warm roofline at the same shape: the roofline carries the time from one shape to
another (bytes, FLOPs, fixed time), the ratio varies slowly. On a shape of the table the
measured time comes back exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[np.float64]

#: Shapes that are averaged where the exact one was not measured.
NEIGHBOURS = 4
#: A shape whose logarithmic distance is below this is the same shape.
SAME = 1e-6


@dataclass(frozen=True, slots=True)
class Grid:
    """log ratio on a grid of logarithms; beyond the grid its edge holds.

    `rows` and `columns` are increasing log2 coordinates (columns may be a single 0 where
    there is only one variable), `values` has their shape.
    """

    rows: Array
    columns: Array
    values: Array

    def at(self, row: Any, column: Any) -> Array:
        """Bilinear interpolation; broadcasts."""
        i, u = _locate(self.rows, row)
        if len(self.columns) == 1:
            low, high = self.values[i, 0], self.values[np.minimum(i + 1, len(self.rows) - 1), 0]
            return np.asarray(low * (1 - u) + high * u)
        j, v = _locate(self.columns, column)
        i, j, u, v = np.broadcast_arrays(i, j, u, v)
        i1 = np.minimum(i + 1, len(self.rows) - 1)
        top = self.values[i, j] * (1 - v) + self.values[i, j + 1] * v
        bottom = self.values[i1, j] * (1 - v) + self.values[i1, j + 1] * v
        return np.asarray(top * (1 - u) + bottom * u)


def _locate(grid: Array, value: Any) -> tuple[Any, Any]:
    """Index of the cell that holds log2(value), and the place in it (0…1, clipped)."""
    logarithm = np.log2(np.maximum(value, 1e-9))
    index = np.clip(np.searchsorted(grid, logarithm, side="right") - 1, 0, max(len(grid) - 2, 0))
    if len(grid) == 1:
        return index, np.zeros_like(logarithm)
    width = grid[index + 1] - grid[index]
    return index, np.clip((logarithm - grid[index]) / width, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Ratios:
    """Ratios of all measured shapes of one operation.

    `shapes` has one row of log2 coordinates per measured shape, `grids` its ratio over the
    running variables, `labels` how to call it.
    """

    shapes: Array
    grids: tuple[Grid, ...]
    labels: tuple[str, ...]

    def at(self, shape: Sequence[float], row: Any, column: Any = 1.0) -> tuple[Array, str]:
        """Ratio at a shape and at values of the running variables, and where it is from:
        the shape itself, or the nearest ones weighted by inverse distance."""
        wanted = np.log2(np.maximum(np.asarray(shape, dtype=float), 1e-9))
        distance = np.sqrt(np.sum((self.shapes - wanted) ** 2, axis=1))
        nearest = np.argsort(distance, kind="stable")[:NEIGHBOURS]
        if distance[nearest[0]] < SAME:
            return np.exp(self.grids[nearest[0]].at(row, column)), self.labels[nearest[0]]
        weight = 1 / distance[nearest] ** 2
        weight /= weight.sum()
        mean = sum(
            w * self.grids[index].at(row, column) for w, index in zip(weight, nearest, strict=True)
        )
        return np.exp(np.asarray(mean)), f"scaled from {self.labels[nearest[0]]} and its like"

    def without(self, shape: Sequence[float]) -> Ratios:
        """The same without one shape: what it would be if that had not been measured."""
        keep = np.max(np.abs(self.shapes - np.log2(np.asarray(shape, dtype=float))), axis=1) > SAME
        chosen = np.flatnonzero(keep)
        return Ratios(
            self.shapes[keep],
            tuple(self.grids[i] for i in chosen),
            tuple(self.labels[i] for i in chosen),
        )


def build(
    table: pd.DataFrame, log_ratio: Array, shape: Sequence[str], row: str, column: str | None = None
) -> Ratios:
    """Group a table by `shape` and lay the ratios out over `row` (and `column`).

    Holes of a grid (large batch times long context was not measured) take the value of
    the nearest smaller column, then of the nearest smaller row.
    """
    frame = table.assign(_ratio=log_ratio)
    shapes, grids, labels = [], [], []
    for key, group in frame.groupby(list(shape), sort=True):
        if column is None:
            mean = group.groupby(row)["_ratio"].mean()
            columns, values = np.zeros(1), mean.to_numpy()[:, None]
            rows = np.log2(mean.index.to_numpy(dtype=float))
        else:
            pivot = group.pivot_table(index=row, columns=column, values="_ratio", aggfunc="mean")
            pivot = pivot.ffill(axis=1).bfill(axis=1).ffill().bfill()
            rows = np.log2(pivot.index.to_numpy(dtype=float))
            columns, values = np.log2(pivot.columns.to_numpy(dtype=float)), pivot.to_numpy()
        shapes.append(np.log2(np.asarray(key, dtype=float)))
        grids.append(Grid(rows, columns, values))
        labels.append("×".join(f"{size:.0f}" for size in np.atleast_1d(2 ** shapes[-1])))
    return Ratios(np.asarray(shapes), tuple(grids), tuple(labels))
