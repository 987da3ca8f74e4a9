"""What users of a service feel: latencies, throughput and goodput of served requests.

The simulator, `reference serve` and foreign engines' results come here as the same
columns (`Served`), so that a number means the same everywhere. docs/metrics.md defines
every one by symbols over timestamps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from specsim.records import RequestRecord

Array = npt.NDArray[np.float64]

#: Batches of consecutive requests behind a confidence interval (Schmeiser 1982: 10 to 30),
#: and Student's t at 97.5 % for one degree of freedom less.
NUM_BATCHES, T_975 = 20, 2.093
#: Fewer requests than this give no confidence interval, and nothing is cut as warm-up.
FEWEST_FOR_INTERVAL, FEWEST_FOR_WARMUP = 200, 1000


@dataclass(frozen=True, kw_only=True)
class Served:
    """Requests as columns of shape (requests,), times in seconds on one clock.

    `last_s` is NaN for a request that was not completed. Gaps between the chunks of a
    request are given by value and weight (how often the gap occurred), since all requests
    of a batch share the steps' durations; `worst_gap_s` is each request's longest gap,
    where it was computed.
    """

    arrival_s: Array
    first_s: Array
    last_s: Array
    prompt_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]
    traffic_class: npt.NDArray[np.int16]
    class_names: tuple[str, ...]
    failed: npt.NDArray[np.bool_]
    gap_s: Array
    gap_weight: Array
    worst_gap_s: Array | None = None

    @property
    def completed(self) -> npt.NDArray[np.bool_]:
        """Which requests were served to their end; shape (requests,)."""
        return np.isfinite(self.last_s) & ~self.failed

    @staticmethod
    def from_records(records: Sequence[RequestRecord]) -> Served:
        """Columns of recorded requests (the simulator's, an engine's)."""
        names = tuple(dict.fromkeys(record.traffic_class for record in records)) or ("",)
        index = {name: i for i, name in enumerate(names)}
        gaps = [np.diff(record.chunk_times_s) for record in records]
        joined = np.concatenate([np.zeros(0), *gaps])
        done = [bool(r.chunk_times_s) and not r.failed for r in records]
        return Served(
            arrival_s=np.array([r.arrival_s for r in records], dtype=float),
            first_s=np.array([r.chunk_times_s[0] if ok else np.nan
                              for r, ok in zip(records, done, strict=True)], dtype=float),
            last_s=np.array([r.chunk_times_s[-1] if ok else np.nan
                             for r, ok in zip(records, done, strict=True)], dtype=float),
            prompt_tokens=np.array([r.prompt_tokens for r in records], dtype=np.int64),
            output_tokens=np.array([r.output_tokens for r in records], dtype=np.int64),
            traffic_class=np.array([index[r.traffic_class] for r in records], dtype=np.int16),
            class_names=names, failed=np.array([r.failed for r in records], dtype=bool),
            gap_s=joined, gap_weight=np.ones(len(joined)),
            worst_gap_s=np.array([g.max(initial=0.0) for g in gaps], dtype=float),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A service-level objective: every limit that is given must hold for a request.

    `itl_s` bounds the longest gap between two chunks of the request."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_s: float | None = None
    e2e_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Mean, quantiles and the 95 % interval of the mean; None where undefined."""

    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    ci95: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """As printed by `simulate --json`."""
        interval = None if self.ci95 is None else list(self.ci95)
        return {
            "mean": self.mean, "p50": self.p50, "p90": self.p90, "p99": self.p99, "ci95": interval,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ServiceMetrics:
    """Latencies of completed requests after the warm-up; rates over the whole run."""

    requests: int
    completed: int
    failed: int
    warmup_requests: int
    duration_s: float
    output_tokens: int
    throughput_tokens_per_s: float
    throughput_requests_per_s: float
    goodput_requests_per_s: float
    goodput_by_class: dict[str, float]
    ttft_s: Distribution
    tpot_s: Distribution
    itl_s: Distribution
    e2e_s: Distribution


def ttft(served: Served) -> Array:
    """Time to first token of each request; shape (requests,), NaN if not completed."""
    return np.where(served.completed, served.first_s - served.arrival_s, np.nan)


def tpot(served: Served) -> Array:
    """Time per output token after the first: (last − first)/(tokens − 1); NaN for answers
    of one token."""
    steps = np.maximum(served.output_tokens - 1, 1)
    value = (served.last_s - served.first_s) / steps
    return np.where(served.completed & (served.output_tokens > 1), value, np.nan)


def e2e(served: Served) -> Array:
    """End to end: last token minus arrival."""
    return np.where(served.completed, served.last_s - served.arrival_s, np.nan)


def meets(served: Served, objectives: Sequence[Objective]) -> npt.NDArray[np.bool_]:
    """Which completed requests meet the objective of their class; shape (requests,).

    Raises:
        ValueError: if a gap is bounded but the requests' longest gaps were not computed.
    """
    good = served.completed.copy()
    measured = {"ttft_s": ttft(served), "tpot_s": tpot(served), "e2e_s": e2e(served)}
    for index, objective in enumerate(objectives):
        mine = served.traffic_class == index
        for name, values in measured.items():
            limit = getattr(objective, name)
            if limit is not None:  # an undefined TPOT (one token) breaks no objective
                good &= ~(mine & (values > limit))
        if objective.itl_s is not None:
            if served.worst_gap_s is None:
                raise ValueError("itl_s is bounded, but the longest gaps were not computed")
            good &= ~(mine & (served.worst_gap_s > objective.itl_s))
    return good


def service_metrics(
    served: Served, objectives: Sequence[Objective] = (), *, cut_warmup: bool = False
) -> ServiceMetrics:
    """Everything above in one. `objectives` are per class, in the order of `class_names`."""
    completed = served.completed
    start = float(np.nanmin(served.arrival_s, initial=np.inf))
    end = float(np.nanmax(served.last_s, initial=-np.inf))
    duration = max(0.0, end - start) if math.isfinite(end) and math.isfinite(start) else 0.0
    tokens = int(served.output_tokens[completed].sum())
    good = meets(served, objectives)
    rate = 1 / duration if duration > 0 else 0.0
    order = np.argsort(np.where(completed, served.arrival_s, np.inf), kind="stable")
    order = order[: int(completed.sum())]
    warmup = warmup_length(e2e(served)[order]) if cut_warmup else 0
    kept = order[warmup:]
    by_class = {
        name: float(np.count_nonzero(good & (served.traffic_class == index))) * rate
        for index, name in enumerate(served.class_names)
    }
    return ServiceMetrics(
        requests=len(served.arrival_s), completed=int(completed.sum()),
        failed=int(served.failed.sum()), warmup_requests=warmup, duration_s=duration,
        output_tokens=tokens, throughput_tokens_per_s=tokens * rate,
        throughput_requests_per_s=float(completed.sum()) * rate,
        goodput_requests_per_s=float(good.sum()) * rate, goodput_by_class=by_class,
        ttft_s=distribution(ttft(served)[kept]), tpot_s=distribution(tpot(served)[kept]),
        itl_s=weighted_distribution(served.gap_s, served.gap_weight),
        e2e_s=distribution(e2e(served)[kept]),
    )  # fmt: skip


def distribution(values: Array) -> Distribution:
    """Of values in the order of arrival; undefined ones are left out."""
    values = values[np.isfinite(values)]
    if not len(values):
        return Distribution(mean=None, p50=None, p90=None, p99=None, ci95=None)
    p50, p90, p99 = (float(q) for q in np.quantile(values, (0.5, 0.9, 0.99)))
    return Distribution(
        mean=float(values.mean()), p50=p50, p90=p90, p99=p99, ci95=batch_means_interval(values)
    )


def batch_means_interval(values: Array) -> tuple[float, float] | None:
    """95 % interval of the mean of correlated values: means of `NUM_BATCHES` batches of
    consecutive values are nearly independent. None for fewer than
    `FEWEST_FOR_INTERVAL` values."""
    if len(values) < FEWEST_FOR_INTERVAL:
        return None
    means = np.array([batch.mean() for batch in np.array_split(values, NUM_BATCHES)])
    reach = T_975 * float(means.std(ddof=1)) / math.sqrt(NUM_BATCHES)
    centre = float(values.mean())
    return centre - reach, centre + reach


def mean_interval(
    values: Sequence[float],
) -> tuple[float | None, float | None, tuple[float, float] | None]:
    """Mean of independent values, its standard error, and its 95 % interval (Student's t).

    None where there are too few: no value, or fewer than two for the error."""
    found = np.asarray(values, dtype=float)
    if not len(found):
        return None, None, None
    mean = float(found.mean())
    if len(found) < 2:
        return mean, None, None
    from scipy.special import stdtrit

    error = float(found.std(ddof=1)) / math.sqrt(len(found))
    reach = float(stdtrit(len(found) - 1, 0.975)) * error
    return mean, error, (mean - reach, mean + reach)


def weighted_distribution(values: Array, weights: Array) -> Distribution:
    """`distribution` of values that occur `weights` times each (whole numbers)."""
    kept = weights > 0
    values, weights = values[kept], weights[kept]
    if not len(values):
        return Distribution(mean=None, p50=None, p90=None, p99=None, ci95=None)
    p50, p90, p99 = (weighted_quantile(values, weights, q) for q in (0.5, 0.9, 0.99))
    mean = float(np.average(values, weights=weights))
    interval = None
    if len(values) >= FEWEST_FOR_INTERVAL:
        batches = zip(
            np.array_split(values, NUM_BATCHES), np.array_split(weights, NUM_BATCHES), strict=True
        )
        means = np.array([np.average(v, weights=w) for v, w in batches])
        reach = T_975 * float(means.std(ddof=1)) / math.sqrt(NUM_BATCHES)
        interval = (mean - reach, mean + reach)
    return Distribution(mean=mean, p50=p50, p90=p90, p99=p99, ci95=interval)


def weighted_quantile(values: Array, weights: Array, q: float) -> float:
    """`np.quantile(np.repeat(values, weights), q)` without the repeats."""
    order = np.argsort(values, kind="stable")
    ends = np.cumsum(weights[order])
    place = q * (ends[-1] - 1)
    low, high = math.floor(place), math.ceil(place)
    below, above = (
        float(values[order[np.searchsorted(ends, index, side="right")]]) for index in (low, high)
    )
    return float(below + (above - below) * (place - low))


def warmup_length(values: Array) -> int:
    """How many first values belong to the warm-up, by MSER-5 (White 1997).

    The cut d minimises the squared standard error of the mean of what is left, over means
    of five values; at most half is cut, nothing below `FEWEST_FOR_WARMUP` values.
    """
    if len(values) < FEWEST_FOR_WARMUP:
        return 0
    groups = len(values) // 5
    means = values[: groups * 5].reshape(groups, 5).mean(axis=1)
    reverse = means[::-1]
    count = np.arange(1, groups + 1)
    mean = np.cumsum(reverse) / count
    squares = np.maximum(np.cumsum(reverse**2) / count - mean**2, 0.0)
    error = (squares / count)[::-1]  # error[d]: after cutting d groups
    return 5 * int(np.argmin(error[: groups // 2 + 1]))


def little(served: Served) -> tuple[float, float]:
    """(mean number in the system, arrival rate × mean time in it) over the whole run.

    The first is the time integral of arrivals minus departures, swept in order of time;
    Little's law says that they are equal when everything has left.
    """
    done = served.completed
    arrivals, departures = np.sort(served.arrival_s[done]), np.sort(served.last_s[done])
    start, end = float(arrivals[0]), float(departures[-1])
    times = np.concatenate((arrivals, departures))
    change = np.concatenate((np.ones(len(arrivals)), -np.ones(len(departures))))
    order = np.argsort(times, kind="stable")
    inside = np.cumsum(change[order])[:-1]
    integral = float(np.sum(inside * np.diff(times[order])))
    duration = end - start
    rate = len(arrivals) / duration
    return integral / duration, rate * float(np.mean(e2e(served)[done]))
