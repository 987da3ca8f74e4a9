"""How many configurations the closed form evaluates a second, and how fast predict starts.

Rates are of one core (BLAS threads pinned by the caller are irrelevant: only elementwise
numpy runs). The start-up figure is a ratio of two commands run in turn.

    python benchmarks/closed_form.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import numpy as np

import specsim as ss
from specsim.acceptance import Iid
from specsim.analytic import evaluate
from specsim.cost.roofline import Roofline
from specsim.deployment import Deployment, PlacedModel, make_draft

REPEATS = 7


def grid_rate() -> float:
    """Configurations per second over K × batch × context × α."""
    target = PlacedModel(spec=ss.model("llama-3.1-70b"), tensor_parallel=4)
    gpu = ss.gpu("h100-sxm")
    deployment = Deployment(
        target=target, draft=make_draft(target, model=ss.model("llama-3.1-8b")), gpu=gpu,
        runtime=ss.runtime("vllm"),
    )  # fmt: skip
    source = Roofline(gpu=gpu)
    batches, contexts = np.arange(1, 129), np.linspace(64, 8192, 64).astype(int)
    alphas, ks = np.linspace(0.3, 0.95, 10), range(1, 9)
    rates = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        grid = evaluate(deployment, source, Iid(float(alphas[0])), ks, batches, contexts)
        checksum = grid.speedup.sum()
        for alpha in alphas[1:]:  # costs do not depend on acceptance
            checksum += grid.with_law(Iid(float(alpha))).speedup.sum()
        seconds = time.perf_counter() - start
        assert np.isfinite(checksum)
        rates.append(len(ks) * len(batches) * len(contexts) * len(alphas) / seconds)
    return statistics.median(rates)


def startup_ratio() -> tuple[float, float]:
    """Seconds of `specsim predict --json`, and its ratio to `python -c "import numpy"`."""
    predict = [
        sys.executable, "-c", "from specsim.cli import main; main()", "predict", "--target",
        "llama-3.1-70b", "--draft", "llama-3.1-8b", "--gpu", "h100-sxm", "--tp", "4",
        "--acceptance", "code", "--k", "1:12", "--json",
    ]  # fmt: skip
    bare = [sys.executable, "-c", "import numpy"]
    ratios, seconds = [], []
    for _ in range(2 * REPEATS):
        took = []
        for command in (predict, bare):
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            took.append(time.perf_counter() - start)
        ratios.append(took[0] / took[1])
        seconds.append(took[0])
    return statistics.median(seconds), statistics.median(ratios)


if __name__ == "__main__":
    print(f"closed form: {grid_rate():,.0f} configurations/s on one core (goal 500,000)")
    total, ratio = startup_ratio()
    print(f"specsim predict --json: {total:.2f} s, {ratio:.1f}x a bare import of numpy (goal 4)")
