"""Which draft and which K for a family of models? Before any draft was run.

    python examples/k_and_draft.py [TARGET …] [--gpu NAME] [--batch N …]

For each target: every draft that goes with it, the acceptance it rests on (an estimate,
unless you measured one), and the best K with its gain at each batch.
"""

from __future__ import annotations

import argparse

import pandas as pd

import specsim as ss
from specsim.errors import DoesNotFitError
from specsim.planner.service import steps_per_request


def drafts_of(target: str, gpu: str, batches: list[int]) -> pd.DataFrame:
    """One row per draft: its acceptance at K = 4, then K and gain per batch."""
    size = ss.model(target).num_parameters
    degree = next(tp for tp in (1, 2, 4, 8) if size * 2 < 0.75 * tp * ss.gpu(gpu).memory_bytes)
    scenario = ss.Scenario.from_dict({
        "target": {"model": target}, "hardware": {"gpu": gpu, "tensor_parallel": degree},
        "workload": {"arrivals": {"process": "closed", "concurrency": max(batches)}},
    })  # fmt: skip
    plan = ss.plan(scenario, simulate=False)
    plain = plan.facts.overall_off
    rows = {}
    for candidate in plan.found.candidates:
        same = candidate.deployment.target == plain.deployment.target
        if candidate.option is None or not same or candidate.label in rows:
            continue
        steps = steps_per_request(plan.problem, list(candidate.parts))
        work = steps[:, None] * candidate.model.step_s
        ks = candidate.model.draft_tokens
        tau = candidate.parts[0].tau[min(4, len(ks) - 1)]
        row = {"draft": candidate.label, "tokens/step at K=4": round(float(tau), 2)}
        for batch in batches:
            at = int(abs(candidate.model.batch - batch).argmin())
            off = (plan.problem.mean_output - 1) * plain.model.step_s[0, at]
            best = int(work[1:, at].argmin()) + 1
            row[f"batch {batch}"] = f"K={ks[best]} {off / work[best, at]:.2f}x"
        rows[candidate.label] = row
    return pd.DataFrame(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", default=["qwen3-8b", "qwen3-32b", "qwen3-30b-a3b"])
    parser.add_argument("--gpu", default="h100-sxm")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16, 64])
    options = parser.parse_args()
    for target in options.targets:
        print(f"\n{target} on {options.gpu}")
        try:
            print(drafts_of(target, options.gpu, options.batch).to_string(index=False))
        except DoesNotFitError as problem:
            print(f"  {problem}")


if __name__ == "__main__":
    main()
