"""README shows real output: every `specsim` block that it prints is what the command prints."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from specsim.cli.main import COMMANDS, run
from validation.report import headline

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n\$ (specsim [^\n]+)\n(.*?)```", README, flags=re.S)


def test_there_is_something_to_check() -> None:
    assert BLOCKS


@pytest.mark.parametrize(("command", "printed"), BLOCKS, ids=[b[0][:40] for b in BLOCKS])
def test_output_is_real(
    command: str, printed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert run(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out.strip() == printed.strip()


def test_every_command_is_listed() -> None:
    for name in COMMANDS:
        assert f"`specsim {name}`" in README


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_accuracy_lines_are_those_of_the_report() -> None:
    document = json.loads((ROOT / "docs" / "accuracy.json").read_text(encoding="utf-8"))
    assert "\n".join(headline(document)) in README
