"""How well a sweep uses two cores: time with one worker over twice the time with two.

A serial run and a parallel one take turns, so that a machine's other work hits both alike;
the best of each is compared. Exits 1 below 1.7 times.

    python benchmarks/sweep.py
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

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


def seconds(workers: int) -> float:
    """Wall time of the whole sweep, the start of the workers included."""
    scenario = ss.Scenario.from_dict(SERVICE)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        ss.sweep(scenario, {"seed": list(range(POINTS))}, Path(folder) / "out", workers=workers)
        return time.perf_counter() - start


def main() -> int:
    seconds(2)  # imports and the pool's first start
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(REPEATS):
        for workers in times:
            times[workers].append(seconds(workers))
    one, two = min(times[1]), min(times[2])
    print(f"sweep of {POINTS} simulations: {one:.1f} s with one worker, {two:.1f} s with two: "
          f"{one / two:.2f} times (at least {LEAST} wanted)")  # fmt: skip
    return int(one / two < LEAST)


if __name__ == "__main__":
    sys.exit(main())
