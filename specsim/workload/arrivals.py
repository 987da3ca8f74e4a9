"""When requests arrive, drawn vectorised from one keyed generator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Process = Literal["poisson", "gamma", "constant", "closed", "trace"]


@dataclass(frozen=True, kw_only=True)
class ArrivalProcess:
    """poisson, gamma (coefficient of variation `cv`) and constant arrive at `rate_per_s`;
    closed keeps `concurrency` requests in the system, each followed by the next one
    `think_time_s` after it is done; trace takes its times from a file. A load generator that
    keeps at most `max_in_flight` requests open holds later ones back until one is done."""

    process: Process
    rate_per_s: float | None = None
    cv: float = 1.0
    concurrency: int = 1
    think_time_s: float = 0.0
    max_in_flight: int | None = None

    def __post_init__(self) -> None:
        if self.process in ("poisson", "gamma", "constant"):
            rate = self.rate_per_s
            if rate is None or not (math.isfinite(rate) and rate > 0):
                raise ValueError(f"rate_per_s={rate} is not a rate > 0")
        if not (self.cv > 0 and math.isfinite(self.cv)):
            raise ValueError(f"cv={self.cv} is not > 0")
        if self.concurrency < 1:
            raise ValueError(f"concurrency={self.concurrency} < 1")
        if self.max_in_flight is not None and self.max_in_flight < 1:
            raise ValueError(f"max_in_flight={self.max_in_flight} < 1")
        if self.think_time_s < 0:
            raise ValueError(f"think_time_s={self.think_time_s} < 0")


def arrival_times(law: ArrivalProcess, rng: np.random.Generator, num_requests: int) -> Array:
    """Arrival times in seconds, ascending; shape (num_requests,).

    The first request of poisson and gamma arrives after one interval, of constant at 0.
    A closed loop starts with `concurrency` requests at 0; the later ones follow from the
    service and are NaN here.

    Raises:
        ValueError: for process "trace", whose times are in the trace.
    """
    if law.process == "closed":
        times = np.full(num_requests, np.nan)
        times[: law.concurrency] = 0.0
        return times
    if law.process == "trace" or law.rate_per_s is None:
        raise ValueError("the times of process 'trace' are those of its file")
    mean = 1.0 / law.rate_per_s
    if law.process == "constant":
        return mean * np.arange(num_requests, dtype=float)
    if law.process == "poisson":
        return np.cumsum(rng.exponential(mean, num_requests))
    shape = law.cv**-2  # Gamma(shape, scale): mean shape·scale, cv = shape^−1/2
    return np.cumsum(rng.gamma(shape, mean / shape, num_requests))
