"""Which speculation policy wins at which load, on the 70B chat service.

    python examples/policy_table.py                     # prints the table of docs/engine.md
    python examples/policy_table.py --write docs/engine.md

All cells share their arrivals, lengths and accepted runs (common random numbers), so that
differences between policies are not differences of luck.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import specsim as ss

SCENARIO = Path(__file__).with_name("chat-70b.yaml")
RATES = (1.0, 2.0, 4.0, 8.0, 10.0, 12.0, 16.0)
POLICIES: dict[str, list[str]] = {
    "off": ["speculation.policy=off"],
    "K = 4": ["speculation.policy=fixed"],
    "schedule": ["speculation.policy=batch-schedule",
                 "speculation.schedule=[[1, 16, 4], [17, 64, 2], [65, 256, 0]]"],
    "goodput": ["speculation.policy=goodput"],
    "per-request": ["speculation.policy=per-request"],
    "adaptive": ["speculation.policy=adaptive"],
}  # fmt: skip
REQUESTS = 2000
BEGIN, END = "<!-- policy table: begin -->", "<!-- policy table: end -->"


def cell(rate: float, policy: str, requests: int = REQUESTS) -> tuple[float, float, float]:
    """Mean end-to-end seconds, mean TPOT in ms, requests per second within the objective."""
    scenario = ss.Scenario.load(SCENARIO).with_set(
        [f"workload.arrivals.rate_per_s={rate}", f"workload.num_requests={requests}",
         *POLICIES[policy]]
    )  # fmt: skip
    service = ss.simulate(scenario).summary().service
    assert service.e2e_s.mean is not None
    assert service.tpot_s.mean is not None
    return service.e2e_s.mean, 1e3 * service.tpot_s.mean, service.goodput_requests_per_s


def table(requests: int = REQUESTS) -> str:
    """Markdown: TPOT in ms and goodput; the lowest mean end-to-end time of a row is bold."""
    lines = ["| requests/s | " + " | ".join(POLICIES) + " |", "|---:|" + "---:|" * len(POLICIES)]
    for rate in RATES:
        cells = {name: cell(rate, name, requests) for name in POLICIES}
        best = min(cells, key=lambda name: cells[name][0])
        texts = []
        for name, (_, tpot_ms, goodput) in cells.items():
            text = f"{tpot_ms:.1f} ms, {goodput:.2f}/s"
            texts.append(f"**{text}**" if name == best else text)
        lines.append(f"| {rate:g} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table, or put it between its marks in a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    options = parser.parse_args()
    text = table(options.requests)
    if options.write is None:
        print(text, end="")
        return
    before, _, rest = options.write.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    options.write.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
