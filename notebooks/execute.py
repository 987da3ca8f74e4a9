"""Execute the notebooks: each percent script becomes its .ipynb with outputs.

    python notebooks/execute.py [NAME …]

What changes from run to run without meaning (times, widget states, ids) is left out, so that
the same code gives the same file.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
TIMEOUT_S = 600  # of a cell; seconds on a quiet machine
KEPT = {"kernelspec", "jupytext"}
TABLE_ID = re.compile(r"T_[0-9a-f]{5}")
ADDRESS = re.compile(r"0x[0-9a-f]+")


def sources() -> list[Path]:
    """The percent scripts, in order."""
    return sorted(FOLDER.glob("[0-9]*.py"))


def execute(path: Path) -> Any:
    """The notebook of a script, executed in this folder.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    notebook = jupytext.read(path)
    client = NotebookClient(
        notebook, timeout=TIMEOUT_S, kernel_name="python3", store_widget_state=False,
        record_timing=False, resources={"metadata": {"path": str(FOLDER)}},
    )  # fmt: skip
    client.execute()
    return plain(notebook)


def plain(notebook: Any) -> Any:
    """Without ids and addresses that change and metadata that nobody needs."""
    notebook.metadata = {k: v for k, v in notebook.metadata.items() if k in KEPT}
    notebook.metadata["language_info"] = {"name": "python"}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not widget(o)]
            for output in cell.outputs:
                steady(output)
    return notebook


def steady(output: Any) -> None:
    """A table's random id, an object's address and the count of executions, replaced."""
    if "execution_count" in output:
        output["execution_count"] = None
    for kind, text in output.get("data", {}).items():
        if kind.startswith("text/"):
            output["data"][kind] = ADDRESS.sub("0x0", TABLE_ID.sub("T_0", text))


def widget(output: Any) -> bool:
    """Controls are drawn by a running kernel only."""
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def main(names: list[str]) -> int:
    """Execute all notebooks, or those whose name starts so."""
    for path in sources():
        if names and not any(path.stem.startswith(name) for name in names):
            continue
        start = time.monotonic()
        notebook = execute(path)
        nbformat.write(notebook, path.with_suffix(".ipynb"))
        print(f"{path.stem}: {time.monotonic() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
