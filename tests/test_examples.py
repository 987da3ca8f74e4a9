"""The answers derived by hand in examples/expected, against the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specsim.cli.main import run

FOLDER = Path(__file__).parents[1] / "examples" / "expected"
CASES = sorted(FOLDER.glob("*.json"))


def value_at(result: Any, path: str) -> Any:
    """`rows.0.speedup` → result["rows"][0]["speedup"]."""
    for part in path.split("."):
        result = result[int(part)] if isinstance(result, list) else result[part]
    return result


def test_there_are_six() -> None:
    assert len(CASES) == 6


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_answer(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = json.loads(path.read_text(encoding="utf-8"))
    assert run([*case["command"], "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    for key, expected in case["expected"].items():
        assert value_at(result, key) == pytest.approx(expected, rel=1e-6), key
