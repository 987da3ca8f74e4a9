"""How fast a slider of the interactive notebook answers: `what_if`, and the picture.

Random positions of all controls; goal 100 ms a call. CPU time of this process, so that a
busy machine does not change it, and wall-clock time beside it.

    python benchmarks/whatif.py
"""

from __future__ import annotations

import random
import time

import numpy as np

from specsim.analytic import whatif
from specsim.plots import WhatIfFigure

CALLS, GOAL_MS = 100, 100


def measure() -> dict[str, np.ndarray]:
    """Milliseconds of each call, by part; columns are CPU and wall-clock time."""
    rng, figure = random.Random(0), WhatIfFigure()
    taken: dict[str, list[tuple[float, float]]] = {"what_if": [], "picture": []}
    for _ in range(CALLS):
        target = rng.choice(whatif.TARGETS)
        controls = {
            "target": target, "draft": rng.choice(whatif.draft_options(target)),
            "gpu": rng.choice(whatif.GPUS), "runtime": rng.choice(whatif.RUNTIMES),
            "weights": rng.choice(whatif.WEIGHTS), "alpha": rng.random(),
            "batch": rng.randint(1, whatif.MAX_BATCH),
            "context": rng.randint(1, whatif.MAX_CONTEXT),
        }  # fmt: skip
        start = (time.process_time(), time.perf_counter())
        answer = whatif.what_if(**controls)
        middle = (time.process_time(), time.perf_counter())
        figure.draw(answer.rows, answer.curve, answer.headline)
        figure.png()
        end = (time.process_time(), time.perf_counter())
        for name, a, b in (("what_if", start, middle), ("picture", middle, end)):
            taken[name].append((1e3 * (b[0] - a[0]), 1e3 * (b[1] - a[1])))
    return {name: np.array(values) for name, values in taken.items()}


if __name__ == "__main__":
    found = measure()
    found["both"] = found["what_if"] + found["picture"]
    for part, values in found.items():
        cpu, wall = (np.quantile(values[:, i], (0.5, 0.9)) for i in (0, 1))
        print(
            f"{part}: CPU {cpu[0]:.0f} ms median, {cpu[1]:.0f} ms at the 90th percentile; "
            f"wall clock {wall[0]:.0f} and {wall[1]:.0f} ms (goal {GOAL_MS})"
        )
