"""`python -m validation.measure_genz --python ENV/bin/python`: asks GenZ what it knows.

ENV is an environment of its own with `pip install genz-llm`. GenZ gets the data sheets of our
catalogue and estimates decode steps without speculation; writes `data/peers_genz.json`, which
`validation.peers` compares.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import specsim as ss
from specsim.units import GB, TFLOPS
from validation.peers import GENZ_MODELS, GENZ_PATH, Question, plain_steps

TOOL = "genz-llm"


def system(gpu: str) -> dict[str, Any]:
    """A device in GenZ's terms: TFLOP/s, GB, GB/s."""
    spec = ss.gpu(gpu)
    return {
        "Flops": spec.peak_flops["bf16"] / TFLOPS, "Memory_size": spec.memory_bytes / GB,
        "Memory_BW": spec.bandwidth_bytes_per_s / GB, "ICN": spec.link_bytes_per_s / GB,
        "real_values": True,
    }  # fmt: skip


def asked(question: Question) -> dict[str, Any]:
    """A question in GenZ's terms."""
    return {
        "key": question.key, "model": GENZ_MODELS[question.model], "system": system(question.gpu),
        "batch": question.batch, "context": question.context,
        "tensor_parallel": question.tensor_parallel,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Ask; see the module."""
    parser = argparse.ArgumentParser(prog="python -m validation.measure_genz", description=__doc__)
    parser.add_argument("--python", type=Path, required=True, help="interpreter with genz-llm")
    parser.add_argument("--out", type=Path, default=GENZ_PATH)
    options = parser.parse_args(arguments)
    wanted = {step.question.key: step.question for step in plain_steps()}
    questions = [asked(q) for q in wanted.values() if q.model in GENZ_MODELS]
    script = Path(__file__).with_name("genz_answers.py")
    done = subprocess.run(
        [options.python, script], input=json.dumps({"questions": questions}), text=True,
        stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    document = {
        "schema_version": 1, "tool": TOOL, "version": found["version"],
        "command": "python -m validation.measure_genz --python ENV/bin/python",
        "date": datetime.date.today().isoformat(), "milliseconds": found["milliseconds"],
    }  # fmt: skip
    options.out.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print(f"{len(questions)} steps", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
