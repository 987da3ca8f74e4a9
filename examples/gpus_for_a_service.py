"""How many GPUs does a service need, of which type, with and without speculation?

    python examples/gpus_for_a_service.py [SCENARIO] [--gpu NAME …] [--quick]

The article's chat service is planned on each type of GPU with as many GPUs as it takes;
the table compares requests per GPU within the SLO, GPUs, and what a million tokens cost.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pandas as pd

import specsim as ss

HERE = Path(__file__).parent


def compare(scenario: ss.Scenario, gpus: list[str], *, simulate: bool) -> pd.DataFrame:
    """One row per GPU type: the plan beside the best plan without speculation."""
    rows = []
    for name in gpus:
        plan = ss.plan(scenario, gpus=[name], max_gpus=64, simulate=simulate)
        row = {"gpu": name, "draft": plan.chosen.candidate.label}
        for label, ranked in (("plan", plan.chosen), ("off", plan.baseline)):
            capacity, candidate = ranked.capacity_per_s, ranked.candidate
            if not capacity:
                continue
            replicas = math.ceil(plan.problem.rate_per_s / capacity)
            row[f"{label}: requests/s per GPU"] = capacity / candidate.num_gpus
            row[f"{label}: GPUs"] = replicas * candidate.num_gpus
        row["odds"] = plan.probability_better_than_off
        row["price"] = plan.answers[9].answer
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenario", nargs="?", default=HERE / "chat-70b-a100.yaml", type=Path)
    parser.add_argument("--gpu", nargs="+", default=["a100-sxm-80gb", "h100-sxm", "h200"])
    parser.add_argument("--quick", action="store_true", help="the closed form alone")
    options = parser.parse_args()
    table = compare(ss.Scenario.load(options.scenario), options.gpu, simulate=not options.quick)
    print(table.drop(columns="price").to_string(index=False, float_format=lambda x: f"{x:.2f}"))
    for row in table.itertuples():
        print(f"{row.gpu}: {row.price}")


if __name__ == "__main__":
    main()
