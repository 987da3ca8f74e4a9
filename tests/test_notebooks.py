"""Notebooks run, are in step with their scripts, and only import and plot."""

from __future__ import annotations

import ast
import base64
import io
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import numpy as np
import pytest
from matplotlib.image import imread
from nbmake.nb_run import NotebookRun

FOLDER = Path(__file__).parents[1] / "notebooks"
sys.path.insert(0, str(FOLDER))
from execute import TIMEOUT_S, plain  # noqa: E402

SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))


#: What a notebook prints where recorded data that cannot be shipped is not there.
NOT_THERE = ("Synthetic", "no data")


def read(path: Path) -> Any:
    return nbformat.read(path.with_suffix(".ipynb"), as_version=4)


def printed(notebook: Any) -> str:
    """All text that the cells put out."""
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    return "".join(
        o.get("text", "")
        + o.get("data", {}).get("text/html", o.get("data", {}).get("text/plain", ""))
        for o in outputs
    )


def images(notebook: Any) -> list[np.ndarray[Any, Any]]:
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            png = output.get("data", {}).get("image/png")
            if png:
                found.append(imread(io.BytesIO(base64.b64decode(png)))[..., :3])
    return found


def test_all_are_there() -> None:
    assert [path.stem[:2] for path in SCRIPTS] == [f"{i:02}" for i in range(1, 8)]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_pairs_are_in_step(path: Path) -> None:
    script, notebook = jupytext.read(path), read(path)
    assert [(c.cell_type, c.source) for c in script.cells] == [
        (c.cell_type, c.source) for c in notebook.cells
    ], f"run `make notebooks`: {path.stem}.ipynb is not what {path.name} says"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_outputs_are_kept(path: Path) -> None:
    """Committed with outputs, without errors, and every figure shows something whole."""
    notebook = read(path)
    for cell in notebook.cells:
        assert all(o.output_type != "error" for o in cell.get("outputs", []))
        assert all(o.get("name") != "stderr" for o in cell.get("outputs", []))
    found = images(notebook)
    assert found
    for image in found:
        dark = np.any(image < 0.95, axis=-1)
        assert 0.01 < dark.mean() < 0.7
        border = np.concatenate([dark[0], dark[-1], dark[:, 0], dark[:, -1]])
        assert not border.any(), "something is cut off at the edge"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_it_opens_with_a_question_and_ends_with_what_to_do(path: Path) -> None:
    notebook = read(path)
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    assert first.splitlines()[0].endswith("?")
    assert last.startswith("## What to do")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_they_import_and_plot_only(path: Path) -> None:
    """Classes and models belong into specsim; a notebook has a few small helpers at most."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    assert all((f.end_lineno or 0) - f.lineno <= 12 for f in functions)
    roots = {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert "matplotlib" not in roots


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_it_runs(path: Path) -> None:
    """Every cell, from nothing, by nbmake; what comes out is what is kept."""
    found = NotebookRun(path.with_suffix(".ipynb"), TIMEOUT_S).execute()
    assert found.error is None, found.error.trace
    kept, now = read(path), plain(found.nb)
    assert len(images(now)) == len(images(kept))
    if any(word in printed(kept) + printed(now) for word in NOT_THERE):
        return  # other numbers
    assert printed(now) == printed(kept), f"`make refresh`: {path.stem}"
    for image, before in zip(images(now), images(kept), strict=True):
        assert image.shape == before.shape, f"`make refresh`: {path.stem}"
        assert np.any(np.abs(image - before) > 0.1, axis=-1).mean() < 1e-3
