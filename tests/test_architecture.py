"""The import order of specsim, enforced: imports inside functions count too."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "specsim"

#: A module imports only from modules to its left (and from itself). docs/design.md.
ORDER = [
    "errors", "units", "yaml_text", "plots", "records", "catalogue", "calibration", "acceptance",
    "deployment", "cost", "analytic", "workload", "scenario", "metrics", "simulator", "interop",
    "fitting", "planner", "audit", "cli",
]  # fmt: skip


def python_files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)


def imported_modules(path: Path) -> set[str]:
    """Dotted names that a file imports, relative imports resolved."""
    names: set[str] = set()
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], base]).rstrip(".")
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return names


def part(dotted: str) -> str | None:
    """`specsim.cost.roofline` → `cost`; None outside specsim and for specsim itself."""
    pieces = dotted.split(".")
    return pieces[1] if pieces[0] == "specsim" and len(pieces) > 1 else None


def violations(path: Path, source_part: str) -> list[str]:
    found = []
    for name in imported_modules(path):
        target = part(name)
        if target in ORDER and ORDER.index(target) > ORDER.index(source_part):
            found.append(f"{path.relative_to(ROOT)} ({source_part}) imports {name}")
    return found


def test_every_part_has_a_place_in_the_order() -> None:
    parts = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert parts - {"__init__"} <= set(ORDER)


@pytest.mark.parametrize("path", python_files(PACKAGE), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    source_part = relative.parts[0].removesuffix(".py")
    if source_part == "__init__":
        pytest.skip("the package itself is lazy")
    assert violations(path, source_part) == []


def test_a_wrong_import_is_seen(tmp_path, monkeypatch) -> None:
    """The check itself: a function-level import against the order."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "specsim" / "cost" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text("def f():\n    from specsim.analytic import predict\n    return predict\n")
    assert violations(path, "cost")


@pytest.mark.parametrize("path", python_files(PACKAGE), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_knows_nothing_of_torch_or_the_decoder(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported_modules(path)}
    assert roots.isdisjoint({"torch", "reference", "validation", "transformers"})


def test_only_plots_imports_matplotlib_and_only_cli_prints() -> None:
    for path in python_files(PACKAGE):
        where = str(path.relative_to(PACKAGE))
        if not where.startswith("plots"):
            roots = {name.split(".")[0] for name in imported_modules(path)}
            assert "matplotlib" not in roots, where
        if not where.startswith("cli"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
            names = {c.func.id for c in calls if isinstance(c.func, ast.Name)}
            assert "print" not in names, where


def test_no_module_bears_a_public_functions_name() -> None:
    import specsim

    public = {name for name in specsim.__all__ if callable(getattr(specsim, name))}
    modules = {p.stem for p in PACKAGE.iterdir()}
    assert public & modules == set()


def test_nothing_unpickles_or_evaluates() -> None:
    for folder in ("specsim", "reference", "validation"):
        for path in python_files(ROOT / folder):
            names = {name.split(".")[0] for name in imported_modules(path)}
            assert names.isdisjoint({"pickle", "dill", "marshal", "shelve"}), path
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    assert node.func.id not in ("eval", "exec"), path


HEAVY = ("scipy", "pandas", "matplotlib", "simpy", "torch", "pyarrow", "joblib", "jinja2")


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "--json"],
        ["predict", "--target", "llama-3.1-70b", "--draft", "llama-3.1-8b", "--gpu", "h100-sxm",
         "--tp", "4", "--survival", "0.8,0.6", "--json"],
        ["predict", "--cost-ratio", "0.05", "--alpha", "0.8", "--k", "4", "--json"],
    ],
)  # fmt: skip
def test_predict_starts_light(arguments: list[str]) -> None:
    """No heavy import on the way to an answer."""
    code = (
        "import sys, json, io, contextlib\n"
        "from specsim.cli.main import run\n"
        "out = io.StringIO()\n"
        "with contextlib.redirect_stdout(out):\n"
        f"    status = run({arguments!r})\n"
        "print(json.dumps([status, sorted({m.split('.')[0] for m in sys.modules})]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    status, modules = json.loads(done.stdout)
    assert status == 0
    assert set(modules).isdisjoint(HEAVY)


def test_the_design_page_lists_the_same_order() -> None:
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    start = page.index("errors, units")
    listed = page[start : page.index("\n\n", start)]
    assert [name.strip() for name in listed.replace("\n", " ").split(",")] == ORDER
