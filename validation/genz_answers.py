"""Asks GenZ; runs in an environment that has `genz-llm`, alone: nothing of specsim is there.

Reads JSON from stdin, {"questions": [{key, model, system, batch, context, tensor_parallel}]},
`system` being GenZ's dictionary of a device; writes {"version", "milliseconds": {key: …}}.
`validation.measure_genz` starts it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import sys
import warnings
from typing import Any


def milliseconds(asked: dict[str, Any]) -> float | None:
    """One decode step, in GenZ's default: perfect efficiency, no host time."""
    from GenZ import decode_moddeling  # type: ignore[import-not-found]

    try:
        found = decode_moddeling(
            model=asked["model"], batch_size=asked["batch"], Bb=1, bits="bf16",
            input_tokens=asked["context"], output_tokens=1, system_name=asked["system"],
            tensor_parallel=asked["tensor_parallel"],
        )  # fmt: skip
    except Exception as problem:
        print(f"{asked['key']}: {type(problem).__name__}: {problem}"[:300], file=sys.stderr)
        return None
    return round(float(found["Latency"]), 4)


def main() -> int:
    """Answer."""
    warnings.simplefilter("ignore")
    questions = json.load(sys.stdin)["questions"]
    with contextlib.redirect_stdout(sys.stderr):  # it prints tables
        answers = {asked["key"]: milliseconds(asked) for asked in questions}
    json.dump(
        {"version": importlib.metadata.version("genz-llm"), "milliseconds": answers}, sys.stdout
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
