"""docs/interop.md: the outputs of `specsim fit` and `specsim export` are what they print."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

from specsim.cli.main import run

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "interop.md").read_text(encoding="utf-8")


def documented() -> list[tuple[str, str]]:
    """(command, output) of every command in the page's console blocks."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", PAGE, flags=re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output.rstrip()))
    return found


def test_outputs_are_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    (scenario,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.S)
    (tmp_path / "scenario.yaml").write_text(scenario)
    commands = documented()
    assert len(commands) >= 10
    for command, expected in commands:
        words = shlex.split(command)
        assert words[0] == "specsim"
        if words[1] == "predict":  # its numbers are the cost model's, not this page's
            continue
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(words[1:])
        printed = (out.getvalue() + err.getvalue()).rstrip()
        assert printed == expected, command
        assert status == (2 if printed.startswith("Error: ") else 0)
