"""From timed forward passes and steps to a cost table, constants and host time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from specsim.calibration import ForwardTimeRow, HostTime, LinearConstants
from specsim.interop.common import StepTimes
from specsim.records import ForwardRecord, StepRecord

#: Interquartile range over standard deviation of a normal distribution.
IQR = 1.349
#: Fewer timed points do not determine three constants and their errors.
MIN_POINTS = 5


def rows_of_records(records: Iterable[ForwardRecord]) -> tuple[ForwardTimeRow, ...]:
    """One row per model, batch, new tokens and context; repeated points are averaged. The
    standard error is that of a mean over the repeats."""
    groups: dict[tuple[str, int, int, int], list[ForwardRecord]] = {}
    for r in records:
        groups.setdefault((r.model, r.batch, r.new_tokens, r.context), []).append(r)
    rows = []
    for (model, batch, new_tokens, context), found in groups.items():
        weights = np.array([max(r.repeats, 1) for r in found], dtype=float)
        seconds = float(np.average([r.seconds for r in found], weights=weights))
        spread = float(np.average([r.spread for r in found], weights=weights)) / IQR
        rows.append(
            ForwardTimeRow(
                model=model,
                batch=batch,
                new_tokens=new_tokens,
                context=context,
                seconds=seconds,
                standard_error=spread / float(np.sqrt(weights.sum())),
            )
        )
    return tuple(rows)


def constants_of_rows(rows: Sequence[ForwardTimeRow]) -> dict[str, LinearConstants]:
    """T = fixed + token·B·n + kv_token·B·(L + n) per model: least relative squares with all
    constants ≥ 0. Models with fewer than MIN_POINTS points are left out."""
    from scipy.optimize import nnls

    result = {}
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        if len(own) < MIN_POINTS:
            continue
        b, n, c, seconds = (
            np.array([getattr(r, name) for r in own], dtype=float)
            for name in ("batch", "new_tokens", "context", "seconds")
        )
        design = np.stack([np.ones_like(b), b * n, b * (c + n)], axis=1) / seconds[:, None]
        size = np.linalg.norm(design, axis=0)
        solution, residual = nnls(design / size, np.ones(len(own)))
        free = solution > 0
        errors = np.zeros(3)
        if free.any() and len(own) > free.sum():
            scaled = (design / size)[:, free]
            variance = residual**2 / (len(own) - free.sum())
            covariance = np.linalg.pinv(scaled.T @ scaled) * variance
            errors[free] = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        values, errors = solution / size, errors / size
        names = ("fixed_s", "token_s", "kv_token_s")
        result[model] = LinearConstants(
            **dict(zip(names, (float(v) for v in values), strict=True)),
            standard_errors=dict(zip(names, (float(e) for e in errors), strict=True)),
        )
    return result


def host_time(records: Sequence[StepRecord]) -> HostTime | None:
    """Mean time of a step that is neither drafting nor verifying, and its error over
    requests (clustered, since a request's steps share its conditions)."""
    sums: dict[str, list[float]] = {}
    for r in records:
        if r.num_draft_tokens > 0:
            # a step of a batch leaves one record per sequence
            total = sums.setdefault(r.request, [0.0, 0.0])
            total[0] += (r.host_s + r.sample_s) / r.batch
            total[1] += 1 / r.batch
    if not sums:
        return None
    table = np.array(list(sums.values()))
    mean = float(table[:, 0].sum() / table[:, 1].sum())
    error = None
    if len(table) > 1:
        residual = table[:, 0] - mean * table[:, 1]
        count = len(table)
        error = float(np.sqrt(count / (count - 1) * np.sum(residual**2)) / table[:, 1].sum())
    return HostTime(step_s=mean, standard_error=error)


def step_times(records: Sequence[StepRecord]) -> StepTimes:
    """Whole steps by K and batch."""
    times = StepTimes()
    for r in records:
        seconds = r.draft_s + r.verify_s + r.sample_s + r.host_s
        times.add(r.num_draft_tokens, float(r.batch), seconds, 1 / r.batch, float(r.context))
    return times
