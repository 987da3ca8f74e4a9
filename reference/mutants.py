"""Mutation testing: each known mistake, applied to a copy, must make a named test fail.

    python -m reference.mutants            all of them; writes docs/mutants.md
    python -m reference.mutants M03 M18    some of them; writes nothing

A mutant that survives, or whose text no longer occurs exactly once, is exit status 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_name("mutants.toml")
TABLE = ROOT / "docs" / "mutants.md"
_COPIED = ("reference", "specsim", "tests/conftest.py", "tests/pretend_gpu.py", "pyproject.toml")


@dataclass(frozen=True)
class Mutant:
    """One edit: `old` (which occurs once in `file`) becomes `new`."""

    id: str
    title: str
    file: str
    old: str
    new: str
    effect: str
    killers: tuple[str, ...]

    def tests(self) -> list[str]:
        """`verify::test_x` → `tests/test_reference_verify.py::test_x`."""
        return [f"tests/test_reference_{k.replace('::', '.py::', 1)}" for k in self.killers]


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant; `by` are the tests that failed."""

    mutant: Mutant
    killed: bool
    by: tuple[str, ...]
    note: str = ""


def load_mutants() -> list[Mutant]:
    """All mutants, in order; ids are M01, M02, … without a gap."""
    values = tomllib.loads(LIST.read_text(encoding="utf-8"))["mutant"]
    mutants = [Mutant(**{**v, "killers": tuple(v["killers"])}) for v in values]
    for number, mutant in enumerate(mutants, start=1):
        if mutant.id != f"M{number:02d}":
            raise ValueError(f"mutant {mutant.id} stands where M{number:02d} belongs")
    return mutants


def copy_tree(target: Path) -> None:
    """What the tests need, without the rest of the project."""
    for name in _COPIED:
        source, copy = ROOT / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    for test in (ROOT / "tests").glob("test_reference_*.py"):
        shutil.copy(test, target / "tests" / test.name)


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[int, str]:
    """pytest's exit status and output, with the copy's modules."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=line"]
    try:
        done = subprocess.run(
            [*command, *tests], cwd=tree, env=environment, capture_output=True, text=True,
            timeout=600, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return 1, "FAILED timeout - the mutant does not end"
    return done.returncode, done.stdout + done.stderr


def try_mutant(mutant: Mutant) -> Verdict:
    """Apply a mutant to a fresh copy and run its killers, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        copy_tree(tree)
        file = tree / mutant.file
        text = file.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            return Verdict(mutant, False, (), f"its text occurs {text.count(mutant.old)} times")
        file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        by = []
        for killer, test in zip(mutant.killers, mutant.tests(), strict=True):
            status, output = run_tests(tree, [test])
            if status == 1:
                by.append(killer)
            elif status != 0:  # not a failing test but a test that is not there
                last = (output.strip().splitlines() or ["no output"])[-1]
                return Verdict(mutant, False, (), f"pytest exit {status}: {last}")
        return Verdict(mutant, bool(by), tuple(by))


def baseline(mutants: Sequence[Mutant]) -> bool:
    """Whether every killer passes on the unchanged code."""
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        tests = sorted({test for mutant in mutants for test in mutant.tests()})
        status, output = run_tests(Path(folder), tests)
        if status != 0:
            print(output[-3000:], file=sys.stderr)
        return status == 0


def table(verdicts: Sequence[Verdict]) -> str:
    """docs/mutants.md."""
    killed = sum(v.killed for v in verdicts)
    lines = [
        "# Mutants of the decoder",
        "",
        "Written by `python -m reference.mutants`. Each row is a mistake, made on purpose in a "
        "copy of the code (`reference/mutants.toml` has the edits), and the tests that failed "
        "on it. *lossy*: what is emitted changes; *waste*: it does not, but work is wasted or "
        "counted wrongly; *gpu*: it fails, or emits or times wrongly, on a GPU alone. Tests are "
        "in `tests/test_reference_<file>.py`.",
        "",
        f"**{killed} of {len(verdicts)} killed.**",
        "",
        "| | mistake | file | effect | killed by |",
        "|---|---|---|---|---|",
    ]
    for v in verdicts:
        by = ", ".join(f"`{name}`" for name in v.by) or f"**survived** {v.note}"
        title = v.mutant.title.replace("|", "\\|")
        where = v.mutant.file.removeprefix("reference/")
        lines.append(f"| {v.mutant.id} | {title} | {where} | {v.mutant.effect} | {by} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when every mutant asked for is killed."""
    parser = argparse.ArgumentParser(prog="python -m reference.mutants", description=__doc__)
    parser.add_argument("ids", nargs="*", help="mutants to try (default: all)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    mutants = load_mutants()
    unknown = set(options.ids) - {m.id for m in mutants}
    if unknown:
        print(f"Error: no mutant {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    chosen = [m for m in mutants if not options.ids or m.id in options.ids]
    if not baseline(chosen):
        print("Error: a killer fails on the unchanged code", file=sys.stderr)
        return 1
    with ThreadPoolExecutor(options.workers) as pool:
        verdicts = []
        for verdict in pool.map(try_mutant, chosen):
            verdicts.append(verdict)
            fate = f"killed by {', '.join(verdict.by)}" if verdict.killed else "SURVIVED"
            print(f"{verdict.mutant.id} {verdict.mutant.title}: {fate} {verdict.note}", flush=True)
    if not options.ids:
        TABLE.write_text(table(verdicts), encoding="utf-8")
    return 0 if all(v.killed for v in verdicts) else 1


if __name__ == "__main__":
    raise SystemExit(main())
