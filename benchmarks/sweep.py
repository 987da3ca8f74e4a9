"""How well a sweep uses two cores: time with one worker over twice the time with two.

A serial run and a parallel one take turns, so that a machine's other work hits both alike;
the best of each is compared. Where other work keeps the cores busy, wall time says little, so
the same is computed from CPU time: what the driver and half of the workers' work would take.
Exits 1 if both are below 1.7 times.

    python benchmarks/sweep.py
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

from joblib.externals.loky import get_reusable_executor

import specsim as ss

REPEATS, LEAST = 3, 1.7
SERVICE = {
    "target": {"model": "llama-3.1-70b", "weights": "fp8"},
    "draft": {"method": "draft-model", "model": "llama-3.2-1b", "num_draft_tokens": 4},
    "hardware": {"gpu": "h100-sxm", "tensor_parallel": 4},
    "acceptance": {"alpha": 0.75},
    "workload": {"arrivals": {"process": "poisson", "rate_per_s": 4.0}, "num_requests": 1500},
}
POINTS = 64


def seconds(workers: int) -> tuple[float, float]:
    """Wall time of the whole sweep, and its time on as many free cores by CPU time."""
    scenario = ss.Scenario.from_dict(SERVICE)
    with tempfile.TemporaryDirectory() as folder:
        start, before = time.perf_counter(), cpu_seconds()
        ss.sweep(scenario, {"seed": list(range(POINTS))}, Path(folder) / "out", workers=workers)
        wall = time.perf_counter() - start
        get_reusable_executor().shutdown(wait=True)  # so that the workers' time is known
        driver, children = (b - a for a, b in zip(before, cpu_seconds(), strict=True))
        return wall, driver + children / workers


def cpu_seconds() -> tuple[float, float]:
    """CPU time of this process and of its finished children, in seconds."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF,
                                                         resource.RUSAGE_CHILDREN))  # fmt: skip
    return own.ru_utime + own.ru_stime, children.ru_utime + children.ru_stime


def main() -> int:
    seconds(2)  # imports and the pool's first start
    times: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for _ in range(REPEATS):
        for workers in times:
            times[workers].append(seconds(workers))
    ratios = []
    for index, what in enumerate(("wall time", "CPU time, cores to itself")):
        one, two = (min(t[index] for t in times[workers]) for workers in (1, 2))
        ratios.append(one / two)
        print(f"sweep of {POINTS} simulations, {what}: {one:.1f} s with one worker, {two:.1f} s "
              f"with two: {one / two:.2f} times (at least {LEAST} wanted)")  # fmt: skip
    return int(max(ratios) < LEAST)


if __name__ == "__main__":
    sys.exit(main())
