"""README: real output (tests/test_docs.py runs it), all commands, the report's accuracy."""

from __future__ import annotations

import json
import re
from pathlib import Path

from specsim.cli.main import COMMANDS
from validation.report import headline

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n\$ (specsim [^\n]+)\n(.*?)```", README, flags=re.S)


def test_there_is_something_to_check() -> None:
    assert BLOCKS


def test_every_command_is_listed() -> None:
    for name in COMMANDS:
        assert f"`specsim {name}`" in README


def test_accuracy_lines_are_those_of_the_report() -> None:
    document = json.loads((ROOT / "docs" / "accuracy.json").read_text(encoding="utf-8"))
    assert "\n".join(headline(document)) in README
