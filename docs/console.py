"""Console blocks of the documentation, run again: real output or none.

    python docs/console.py          # rewrites every block of the pages below

A block is fenced as `console`; a line `$ specsim …` is a command, the lines after it are what
it prints on stdout. A command may end in ` | …`, a filter; any other line `$ …` is left as it
is. Commands run in a scratch folder that has `examples` and `tests`, so that they may write
files.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from specsim.cli.main import run

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
BLOCK = re.compile(r"```console\n(.*?)```", flags=re.S)
LINKED = ("examples", "tests")
_printed: dict[str, str] = {}


def pages() -> list[Path]:
    """The pages whose blocks are kept real here."""
    folders = [DOCS / name for name in ("howto", "concepts", "reference")]
    several = [p for f in folders for p in sorted(f.glob("*.md"))]
    return [ROOT / "README.md", DOCS / "tutorial.md", *several]


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder to run a page's commands in, in their order, as in a terminal of 80 columns."""
    folder_before, columns = Path.cwd(), os.environ.get("COLUMNS")
    with tempfile.TemporaryDirectory() as folder:
        for name in LINKED:
            (Path(folder) / name).symlink_to(ROOT / name)
        os.chdir(folder)
        os.environ["COLUMNS"] = "80"
        try:
            yield Path(folder)
        finally:
            os.chdir(folder_before)
            if columns is None:
                del os.environ["COLUMNS"]
            else:
                os.environ["COLUMNS"] = columns


def printed(command: str) -> str:
    """What a `specsim` command prints on stdout.

    The same command on several pages runs once, unless it reads or writes files of its page.

    Raises:
        ValueError: if it fails.
    """
    main, _, pipe = command.partition(" | ")
    words = shlex.split(main)
    before = set(os.listdir())
    own = any(Path(w).exists() and w.split("/")[0] not in LINKED for w in words)
    text = _printed.get(main) if not own else None
    if text is None:
        text = _run(words)
        if not own and set(os.listdir()) == before:
            _printed[main] = text
    if pipe:
        text = subprocess.run(["bash", "-o", "pipefail", "-c", pipe], input=text, check=True,
                              capture_output=True, text=True).stdout  # fmt: skip
    return text.rstrip()


def _run(words: list[str]) -> str:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(words[1:])
    if status != 0:
        raise ValueError(f"{shlex.join(words)}: exit status {status}: {err.getvalue()}")
    return out.getvalue()


def commands(block: str) -> list[tuple[str, str]]:
    """(command, output) of a block."""
    found = []
    for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
        command, _, output = part.partition("\n")
        found.append((command, output.rstrip()))
    return found


def rewritten(text: str) -> str:
    """A page with the output of its commands as it is now."""

    def block(match: re.Match[str]) -> str:
        parts = []
        for command, output in commands(match.group(1)):
            now = printed(command) if command.startswith("specsim ") else output
            parts.append(f"$ {command}\n{now}".rstrip())
        return "```console\n" + "\n".join(parts) + "\n```"

    with scratch_folder():
        return BLOCK.sub(block, text)


if __name__ == "__main__":
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = rewritten(old)
        if new != old:
            page.write_text(new, encoding="utf-8")
            print(f"rewrote {page.relative_to(ROOT)}", file=sys.stderr)
