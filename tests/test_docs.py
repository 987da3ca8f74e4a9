"""The pages: real output, links that lead somewhere, figures as drawn, every key explained.

`make refresh` writes anew what these tests compare.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import typer
from matplotlib.image import imread
from pydantic import BaseModel

import specsim.scenario.sections as sections
from specsim import records
from specsim.cli.main import COMMANDS, app
from specsim.planner.answers import QUESTIONS
from specsim.scenario.document import Scenario

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def script(name: str) -> ModuleType:
    """A script of docs/, imported."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


console, figures = script("console"), script("figures")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


# Console blocks


@pytest.mark.parametrize("page", console.pages(), ids=named)
def test_output_is_real(page: Path) -> None:
    """Each command runs again, in the page's order, and prints what the page shows."""
    text = text_of(page)
    with console.scratch_folder():
        for block in console.BLOCK.findall(text):
            for command, shown in console.commands(block):
                if command.startswith("specsim "):
                    assert console.printed(command) == shown, f"`make refresh`: {command}"


def test_pages_with_commands_are_known() -> None:
    """No page shows output that nobody runs again."""
    checked = {*console.pages(), DOCS / "interop.md"}  # the latter: tests/test_interop_docs.py
    for page in PAGES:
        shows = any(
            output and command.startswith("specsim ")
            for block in console.BLOCK.findall(text_of(page))
            for command, output in console.commands(block)
        )
        assert not shows or page in checked, named(page)


def test_a_wrong_output_is_seen() -> None:
    page = "```console\n$ specsim --version\nspecsim 0.0.0\n```"
    assert console.rewritten(page) != page
    assert console.rewritten(console.rewritten(page)) == console.rewritten(page)


def test_a_command_that_fails_is_seen() -> None:
    with pytest.raises(ValueError, match="exit status 2"):
        console.rewritten("```console\n$ specsim predict --alpha 2\n```")


# Links


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as code hosts and MyST make them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.M):
        plain = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(plain.strip().replace(" ", "-"))
    return found


def links(text: str) -> list[str]:
    without_code = re.sub(r"```.*?```", "", text, flags=re.S)
    return re.findall(r"\]\(([^)\s]+)\)", without_code)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(text_of(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{named(page)}: {link}"
        if anchor:
            assert anchor in anchors(text_of(target)), f"{named(page)}: {link}"


def test_every_page_can_be_reached() -> None:
    """From the index, over tables of contents."""
    seen, todo = set(), [DOCS / "index.md"]
    while todo:
        page = todo.pop()
        seen.add(page)
        for block in re.findall(r"```\{toctree\}\n(.*?)```", text_of(page), flags=re.S):
            for entry in (e for e in block.split() if not e.startswith(":")):
                todo += [p for p in page.parent.glob(f"{entry}.md") if p not in seen]
    assert seen == set(DOCS.rglob("*.md"))


# Figures


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {path.name: path for path in figures.write(tmp_path_factory.mktemp("figures"))}


def pixels(path: Path) -> Any:
    return imread(path)[..., :3]


def test_figures_are_those_of_the_code(drawn: dict[str, Path]) -> None:
    for name, path in drawn.items():
        kept, now = pixels(figures.FOLDER / name), pixels(path)
        assert kept.shape == now.shape, f"`make refresh`: {name}"
        differ = np.any(np.abs(kept - now) > 0.1, axis=-1).mean()
        assert differ < 1e-3, f"`make refresh`: {name}"


def test_figures_show_something_whole(drawn: dict[str, Path]) -> None:
    kept = {path.name: path for path in figures.FOLDER.glob("*.png")}
    for name, path in (kept | drawn).items():
        dark = np.any(pixels(path) < 0.95, axis=-1)
        assert 0.01 < dark.mean() < 0.7, name
        border = np.concatenate([dark[0], dark[-1], dark[:, 0], dark[:, -1]])
        assert not border.any(), f"{name}: something is cut off at the edge"


def test_the_gallery_is_that_of_the_code() -> None:
    assert text_of(DOCS / "gallery.md") == figures.gallery()


def test_no_figure_is_left_over(drawn: dict[str, Path]) -> None:
    gallery = {path.name for path in figures.FOLDER.glob("gallery-*.png")}
    assert gallery == {name for name in drawn if name.startswith("gallery-")}


# What must be there


def test_every_question_of_a_plan_has_its_page() -> None:
    pages = sorted((DOCS / "howto").glob("[0-9]*.md"))
    assert len(pages) == len(QUESTIONS) == 10
    for number, page in enumerate(pages, start=1):
        text = text_of(page)
        assert page.name.startswith(f"{number:02}-")
        assert re.search(rf"^ ?{number}\. ", text, flags=re.M), named(page)
        assert text.splitlines()[0].endswith("?"), named(page)
        assert "\nWhat to do:" in text, named(page)


def test_concepts_have_a_figure_and_a_source() -> None:
    pages = [p for p in (DOCS / "concepts").glob("*.md") if p.name != "index.md"]
    assert len(pages) == 4
    for page in pages:
        assert "![" in text_of(page), named(page)
        assert "\nSource: " in text_of(page), named(page)


def test_every_scenario_key_is_explained() -> None:
    page = text_of(DOCS / "scenario.md")
    models = [
        m
        for _, m in inspect.getmembers(sections, inspect.isclass)
        if issubclass(m, BaseModel) and m.__module__ == sections.__name__
    ]
    for model in [*models, Scenario]:
        for name in model.model_fields:
            assert f"`{name}`" in page, f"{model.__name__}.{name}"


def test_every_record_key_is_explained() -> None:
    page = text_of(DOCS / "reference" / "records.md")
    parts = dict(zip(("Header", "StepRecord", "ForwardRecord", "RequestRecord"),
                     page.split("\n## ")[1:5], strict=True))  # fmt: skip
    for name, part in parts.items():
        for field in dataclasses.fields(getattr(records, name)):
            assert f"`{field.name}`" in part, f"{name}.{field.name}"


# Command line


def test_every_help_has_an_example_that_parses() -> None:
    group: Any = typer.main.get_command(app)
    for name in COMMANDS:
        command = group.get_command(None, name)
        text = " ".join((command.help or "").split())
        assert "Example: specsim " in text, name
        for example in text.partition("Example: ")[2].split(" && "):
            words = shlex.split(example)
            used = group.get_command(None, words[1])
            used.make_context(words[1], words[2:])  # raises for an option that is not there
        assert f"## {name}" in text_of(DOCS / "reference" / "cli.md")


@pytest.mark.parametrize(
    ("words", "completed"), [("specsim pre", "predict"), ("specsim predict --ta", "--target")]
)
def test_shell_completion(words: str, completed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from specsim.cli import main; main()"],
        env={**os.environ, "_SPECSIM_COMPLETE": "complete_bash", "COMP_WORDS": words,
             "COMP_CWORD": str(words.count(" "))},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == [completed]


def test_completion_can_be_installed(tmp_path: Path) -> None:
    # typer asks which shell it was called from
    program = f"{sys.executable} -c 'from specsim.cli import main; main()' --install-completion"
    subprocess.run(
        ["bash", "-c", f"{program}; exit $?"],
        env={**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/bash"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    (script_file,) = tmp_path.rglob("specsim.sh")
    assert "complete_bash" in script_file.read_text()


# The site


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(DOCS), str(tmp_path)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "specsim.predict" in (tmp_path / "reference" / "api.html").read_text(encoding="utf-8")
    conf = text_of(DOCS / "conf.py")
    assert "intersphinx" not in conf


def test_the_changelog_keeps_its_form() -> None:
    text = text_of(ROOT / "CHANGELOG.md")
    assert "keepachangelog.com" in text
    assert re.findall(r"^## (.+)$", text, flags=re.M)[0] == "[Unreleased]"
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, flags=re.M)) <= kinds
