"""Examples in docstrings and the Python blocks of the pages run, and say what they print."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import os
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import specsim

ROOT = Path(__file__).parents[1]
SHOWN = {  # main public functions: each has an example
    "specsim.analytic.api": "predict",
    "specsim.analytic.formulas": "acceptance_length",
    "specsim.analytic.whatif": "what_if",
    "specsim.simulator.run": "simulate",
    "specsim.planner.decision": "plan",
    "specsim.scenario.document": "Scenario",
    "specsim.acceptance.chains": "Iid",
    "specsim.acceptance.conversions": "law_from_figure",
    "specsim.catalogue.loader": "model",
}


def modules_with_examples() -> list[str]:
    names = [m.name for m in pkgutil.walk_packages(specsim.__path__, "specsim.")]
    return [n for n in names if ">>> " in source_of(n).read_text(encoding="utf-8")]


def source_of(name: str) -> Path:
    path = ROOT / Path(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("name", modules_with_examples())
def test_docstrings(name: str) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0, out.getvalue()


@pytest.mark.parametrize(("module", "name"), SHOWN.items())
def test_main_functions_have_one(module: str, name: str) -> None:
    assert ">>> " in (getattr(importlib.import_module(module), name).__doc__ or "")


def python_blocks() -> list[Any]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        pytest.param(block, id=f"{page.relative_to(ROOT)}-{i}")
        for page in pages
        for i, block in enumerate(
            re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)
        )
    ]


@pytest.mark.parametrize("block", python_blocks())
def test_python_of_the_pages_runs(block: str, tmp_path: Path) -> None:
    before = Path.cwd()
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    os.chdir(tmp_path)
    try:
        exec(compile(block, "page", "exec"), {"__name__": "page"})
    finally:
        os.chdir(before)
