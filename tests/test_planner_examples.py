"""The capacity-planning scripts and their scenario files run and say something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from specsim.scenario.document import Scenario

FOLDER = Path(__file__).parents[1] / "examples"


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(FOLDER / script), *arguments], capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.name)
def test_scenario_files_are_valid(path: Path) -> None:
    Scenario.load(path)


def test_gpus_for_a_service() -> None:
    printed = run("gpus_for_a_service.py", "--quick", "--gpu", "h100-sxm", "h200")
    assert "plan: GPUs" in printed
    assert "USD per million output tokens" in printed
    assert printed.count("h200") == 2


def test_k_and_draft() -> None:
    printed = run("k_and_draft.py", "qwen3-8b", "--batch", "1", "32")
    assert "qwen3-0.6b" in printed
    assert "K=" in printed


def test_when_to_switch_off(tmp_path: Path) -> None:
    figure = tmp_path / "plan.svg"
    printed = run("when_to_switch_off.py", "--requests", "60", "--plot", str(figure))
    assert "1 requests/s: K = " in printed  # a light load is where speculation pays
    assert figure.stat().st_size > 1000
