"""At which load should speculation be switched off?

    python examples/when_to_switch_off.py [SCENARIO] [--out FOLDER] [--requests N] [--plot FILE]

Sweeps the request rate with speculation off and on (two K), simulated with the same
requests, and prints where the lines cross, beside the planner's schedule.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pandas as pd

import specsim as ss

HERE = Path(__file__).parent
RATES = [1.0, 2.0, 4.0, 8.0, 10.0, 12.0, 14.0]


def latencies(scenario: ss.Scenario, folder: Path, requests: int) -> pd.DataFrame:
    """Mean time per output token by rate and K (0: off)."""
    vary = {"draft.num_draft_tokens": [1, 4], "workload.arrivals.rate_per_s": RATES}
    on = ss.sweep(scenario, vary, folder / "on", max_requests=requests).to_frame()
    off = ss.sweep(
        scenario.with_set(["speculation.policy=off"]), {"workload.arrivals.rate_per_s": RATES},
        folder / "off", max_requests=requests,
    ).to_frame()  # fmt: skip
    off["draft.num_draft_tokens"] = 0
    both = pd.concat([off, on])
    return both.pivot(
        index="workload.arrivals.rate_per_s", columns="draft.num_draft_tokens",
        values="tpot_s_mean",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenario", nargs="?", default=HERE / "chat-70b.yaml", type=Path)
    parser.add_argument("--out", type=Path, help="keep the sweep's results")
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--plot", type=Path, help="the planner's curves as a figure")
    options = parser.parse_args()
    scenario = ss.Scenario.load(options.scenario)
    with tempfile.TemporaryDirectory() as temporary:
        table = latencies(scenario, options.out or Path(temporary), options.requests)
    print("time per output token, ms, by requests/s and K (0: no speculation)")
    print((1e3 * table).to_string(float_format=lambda x: f"{x:.1f}"))
    for rate, row in table.iterrows():
        print(f"{rate:g} requests/s: {'off' if row.idxmin() == 0 else f'K = {row.idxmin()}'}")
    plan = ss.plan(scenario, drafts=[scenario.draft.model], simulate=False)
    print(plan.answers[2].answer)
    if options.plot is not None:
        plan.plot().figure.savefig(options.plot)


if __name__ == "__main__":
    main()
