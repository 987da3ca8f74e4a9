"""Measured forward passes as a cost source: a calibration file's table, or its constants.

Between measured points T(B, n, L) is interpolated linearly in batch, new tokens and
context; beyond them the last slope goes on (never falling), and the caller is told.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from specsim.calibration import Calibration, ForwardTimeRow, LinearConstants
from specsim.catalogue.specs import Estimate, RuntimeSpec
from specsim.cost.operations import Array
from specsim.cost.source import ForwardTime, latency
from specsim.cost.work import Work
from specsim.deployment import PlacedModel
from specsim.errors import CalibrationError


@dataclass(frozen=True, eq=False)
class Grid:
    """Seconds over the full grid of batch, new tokens and context; shape (B, N, L)."""

    batch: Array
    new_tokens: Array
    context: Array
    seconds: Array

    def at(self, batch: Any, new_tokens: Any, context: Any) -> Array:
        """T(B, n, L); shapes broadcast."""
        points = np.broadcast_arrays(*(np.asarray(x, float) for x in (batch, new_tokens, context)))
        axes = (self.batch, self.new_tokens, self.context)
        cells = [_cell(axis, x) for axis, x in zip(axes, points, strict=True)]
        result = np.zeros(points[0].shape)
        for corner in np.ndindex(2, 2, 2):
            index: list[Any] = []
            weight = np.ones(points[0].shape)
            for (low, share), side in zip(cells, corner, strict=True):
                size = len(axes[len(index)])
                index.append(np.minimum(low + side, size - 1))
                weight = weight * (share if side else 1 - share)
            result += weight * self.seconds[tuple(index)]
        return np.asarray(np.maximum(result, self.seconds.min()))


def _cell(axis: Array, x: Array) -> tuple[Any, Array]:
    """Index of the cell's lower edge, and how far into it x lies (beyond 1 outside)."""
    if len(axis) == 1:
        return np.zeros(x.shape, dtype=int), np.zeros(x.shape)
    low = np.clip(np.searchsorted(axis, x, side="right") - 1, 0, len(axis) - 2)
    share = (x - axis[low]) / (axis[low + 1] - axis[low])
    return low, np.maximum(share, 0.0)  # below the first point: as at it


def linear_seconds(constants: LinearConstants, batch: Any, new_tokens: Any, context: Any) -> Array:
    """fixed_s + token_s · B·n + kv_token_s · B·(L + n)."""
    b, n, c = (np.asarray(x, dtype=float) for x in (batch, new_tokens, context))
    return np.asarray(
        constants.fixed_s + constants.token_s * b * n + constants.kv_token_s * b * (c + n)
    )


def grid_of_rows(rows: tuple[ForwardTimeRow, ...], constants: LinearConstants | None) -> Grid:
    """Rows of one model as a full grid. Points that were not measured are those of the
    linear fit, scaled like the nearest measured point.

    Raises:
        CalibrationError: if points are missing and there are no constants.
    """
    points = np.array([(r.batch, r.new_tokens, r.context) for r in rows], dtype=float)
    axes = [np.unique(points[:, i]) for i in range(3)]
    seconds = np.full([len(axis) for axis in axes], np.nan)
    for row, point in zip(rows, points, strict=True):
        at = tuple(int(np.searchsorted(axis, x)) for axis, x in zip(axes, point, strict=True))
        seconds[at] = row.seconds
    missing = np.argwhere(np.isnan(seconds))
    if len(missing):
        if constants is None:
            first = [float(axes[i][j]) for i, j in enumerate(missing[0])]
            raise CalibrationError(
                f"cost.forward of {rows[0].model}: no row at batch, new_tokens, context = {first} "
                "and no constants to fill it"
            )
        fitted = linear_seconds(constants, *points.T)
        ratio = np.array([r.seconds for r in rows]) / np.maximum(fitted, 1e-12)
        scale = np.log1p(points)
        for cell in missing:
            point = np.array([axes[i][j] for i, j in enumerate(cell)])
            near = int(np.argmin(np.sum((scale - np.log1p(point)) ** 2, axis=1)))
            seconds[tuple(cell)] = float(linear_seconds(constants, *point)) * ratio[near]
    return Grid(axes[0], axes[1], axes[2], seconds)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A cost source from a calibration file: `rows` of measured passes and `constants`, by
    model name. `allowed` says what the table was measured for."""

    rows: tuple[ForwardTimeRow, ...]
    constants: dict[str, LinearConstants]
    path: str
    batch_range: tuple[float, float] | None = None
    context_range: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """Printed as the prediction's `sources.cost`."""
        return f"calibration {self.path} ({len(self.rows)} measured forward passes)"

    @cached_property
    def grids(self) -> dict[str, Grid]:
        """Model name → its grid."""
        names = dict.fromkeys(row.model for row in self.rows)
        return {
            name: grid_of_rows(
                tuple(r for r in self.rows if r.model == name), self.constants.get(name)
            )
            for name in names
        }

    def forward_time(
        self, model: PlacedModel, batch: Any, new_tokens: Any, context: Any
    ) -> ForwardTime:
        """T(B, n, L): B sequences, n new tokens each, context L; shapes broadcast.

        Raises:
            CalibrationError: if the model was not measured.
        """
        name = model.spec.name
        if name in self.grids:
            return latency(self.grids[name].at(batch, new_tokens, context))
        if name in self.constants:
            return latency(linear_seconds(self.constants[name], batch, new_tokens, context))
        known = ", ".join(dict.fromkeys((*self.grids, *self.constants))) or "none"
        raise CalibrationError(f"{self.path}: no forward passes of {name!r}; measured: {known}")

    def work_time(self, model: PlacedModel, work: Work) -> ForwardTime:
        """Any mix of prefill and decode, as sequences of the mean number of new tokens."""
        sequences = np.asarray(work.sequences, dtype=float)
        new_tokens = np.asarray(work.tokens, dtype=float) / sequences
        context = np.maximum(np.asarray(work.kv_tokens, dtype=float) / sequences - new_tokens, 0.0)
        return self.forward_time(model, sequences, new_tokens, context)

    def outside(self, batch: Any, context: Any) -> list[str]:
        """What of a grid lies outside the measured range, in words."""
        found = []
        for name, asked, known in (
            ("batch", batch, self.batch_range), ("context", context, self.context_range),
        ):  # fmt: skip
            low, high = float(np.min(asked)), float(np.max(asked))
            if known is not None and (low < known[0] or high > known[1]):
                found.append(f"{name} {low:g}..{high:g} outside {known[0]:g}..{known[1]:g}")
        return found


def table_of_calibration(calibration: Calibration, path: str) -> Table:
    """The cost source of a calibration file.

    Raises:
        CalibrationError: if it holds no forward passes.
    """
    cost = calibration.cost
    if cost is None or not (cost.forward or cost.constants):
        steps = "" if cost is None or not cost.steps else (
            " (its whole steps cannot be split into draft, verify and host time)"
        )  # fmt: skip
        raise CalibrationError(
            f"{path}: holds no forward passes{steps}; use it as --calibration, with another "
            "--cost-source"
        )
    return Table(
        rows=cost.forward, constants=cost.constants, path=path,
        batch_range=calibration.range.batch, context_range=calibration.range.context,
    )  # fmt: skip


def runtime_of_calibration(calibration: Calibration, runtime: RuntimeSpec) -> RuntimeSpec:
    """A runtime that adds nothing but the measured host time to measured passes."""
    cost = calibration.cost
    host = cost.host if cost is not None else None
    zero = Estimate(value=0.0, low=0.0, high=0.0, source="measured passes include it")
    step = zero
    if host is not None:
        reach = 1.96 * (host.standard_error or 0.0)
        step = Estimate(
            value=host.step_s, low=max(0.0, host.step_s - reach), high=host.step_s + reach,
            source="calibration file",
        )  # fmt: skip
    changes: dict[str, Any] = {
        f.name: zero
        for f in dataclasses.fields(runtime)
        if isinstance(getattr(runtime, f.name), Estimate)
    }
    changes |= {"step_s": step, "graph_sizes": (), "name": f"{runtime.name}, measured"}
    return dataclasses.replace(runtime, **changes)
