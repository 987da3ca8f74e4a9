"""Speed and memory of the simulator. `python benchmarks/simulator.py [NAME …] [--json]`.

Every case runs in a process of its own, which reports CPU seconds (start-up included or
not, as the column says) and peak memory. The first workload is the one on which Vidur's
bare core (no plots, no speculation) simulates 1,570 requests per CPU-second: Poisson 7/s,
prompt 512, decode 200, chunks of 512, at most 128 sequences.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

VIDUR = {
    "workload.arrivals": {"process": "poisson", "rate_per_s": 7.0},
    "workload.prompt_tokens": {"distribution": "constant", "value": 512},
    "workload.output_tokens": {"distribution": "constant", "value": 200},
    "engine.max_num_seqs": 128, "engine.max_num_batched_tokens": 512,
    "engine.runtime": "vllm", "target.model": "llama-2-7b", "hardware.gpu": "a100-sxm-80gb",
    "speculation.policy": "off", "acceptance.alpha": 0.8,
}  # fmt: skip
SPECULATIVE = {
    **VIDUR, "workload.arrivals": {"process": "poisson", "rate_per_s": 11.5},
    "target.model": "llama-3.1-8b", "draft.model": "llama-3.2-1b", "draft.num_draft_tokens": 4,
    "speculation.policy": "fixed",
}  # fmt: skip

#: Name → (scenario keys, requests, goal: requests per CPU-second or None).
CASES: dict[str, tuple[dict[str, Any], int, float | None]] = {
    "vidur": (VIDUR, 10_000, 15_000),
    "speculative": (SPECULATIVE, 10_000, 20_000),
    "goodput": ({**SPECULATIVE, "speculation.policy": "goodput"}, 10_000, None),
    "per-request": ({**SPECULATIVE, "speculation.policy": "per-request"}, 10_000, None),
    "1e3": (VIDUR, 1_000, None),
    "1e5": (VIDUR, 100_000, None),
    "1e6": (VIDUR, 1_000_000, None),
    "speculative-1e5": (SPECULATIVE, 100_000, None),
    "speculative-1e6": (SPECULATIVE, 1_000_000, None),
    "4-replicas": (
        {**VIDUR, "hardware.replicas": 4, "hardware.router": "least-loaded",
         "workload.arrivals": {"process": "poisson", "rate_per_s": 28.0}}, 40_000, None,
    ),
    "16-replicas": (
        {**VIDUR, "hardware.replicas": 16, "hardware.router": "round-robin",
         "workload.arrivals": {"process": "poisson", "rate_per_s": 112.0}}, 160_000, None,
    ),
}  # fmt: skip
QUICK = ("vidur", "speculative", "goodput", "per-request", "monte-carlo")


def one(name: str) -> dict[str, Any]:
    """Run one case here, and measure this process."""
    if name == "monte-carlo":
        return monte_carlo()
    keys, count, goal = CASES[name]
    started = time.process_time()
    from specsim.scenario import Scenario
    from specsim.scenario.document import assign
    from specsim.simulator.run import simulate

    data: dict[str, Any] = {}
    for key, value in {**keys, "workload.num_requests": count}.items():
        assign(data, key, value)
    scenario = Scenario.from_dict(data)
    before = time.process_time()
    result = simulate(scenario)
    served = time.process_time()
    summary = result.summary()
    done = time.process_time()
    return {
        "name": name, "requests": count, "goal": goal,
        "requests_per_cpu_s": count / (done - before), "import_s": before - started,
        "simulate_s": served - before, "summary_s": done - served, "process_s": done,
        "steps": summary.num_steps, "mean_batch": summary.mean_batch,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip


def monte_carlo() -> dict[str, Any]:
    """Ten million speculative steps without a queue; the best of three."""
    from specsim.acceptance.chains import Iid
    from specsim.simulator.montecarlo import count_accepted

    times = []
    for seed in range(3):
        start = time.perf_counter()
        count_accepted(Iid(0.8), 4, 10_000_000, seed)
        times.append(time.perf_counter() - start)
    return {"name": "monte-carlo", "steps": 10_000_000, "seconds": min(times), "goal_s": 0.1}


def main() -> None:
    """Run the cases, each in its own process, and print a table or JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(QUICK),
                        help=f"{', '.join([*CASES, 'monte-carlo'])}, or all")  # fmt: skip
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = [*CASES, "monte-carlo"] if "all" in options.names else options.names
    if options.here:
        print(json.dumps(one(names[0])))
        return
    for name in names:
        output = subprocess.run(
            [sys.executable, __file__, name, "--here"], capture_output=True, text=True, check=True
        ).stdout
        row = json.loads(output)
        if options.json:
            print(json.dumps(row), flush=True)
        elif name == "monte-carlo":
            print(f"monte-carlo       {row['steps']:.0e} steps in {row['seconds']:.3f} s "
                  f"(goal {row['goal_s']} s)")  # fmt: skip
        else:
            goal = f" (goal {row['goal']:.0f})" if row["goal"] else ""
            print(f"{name:<17} {row['requests_per_cpu_s']:8.0f} requests per CPU-second{goal}, "
                  f"batch {row['mean_batch']:.1f}, {row['steps'] / row['requests']:.2f} steps a "
                  f"request, whole process {row['process_s']:.2f} s, {row['peak_mib']:.0f} MiB",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
