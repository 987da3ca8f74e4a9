"""Entry point: commands by name, errors as one line and an exit status."""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
from collections.abc import Callable, Collection
from typing import Any

# pydantic scans all installed packages for plugins when it starts; nobody uses them here
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

import typer
from typer.core import TyperGroup

from specsim import __version__
from specsim.cli.output import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_USAGE, error
from specsim.errors import SpecsimError

#: Command → the line that `specsim --help` prints for it. The command `x` is the function
#: `command` of `specsim.cli.x`.
COMMANDS = {
    "predict": "What speculation does for one deployment, over K: the closed form.",
    "plan": "Choose the draft, K, policy, batch limit and GPUs for a service; the report.",
    "simulate": "A service with queues, batches and tails: discrete-event simulation.",
    "sweep": "A grid of scenarios, in parallel, resumable.",
    "fit": "Logs, metrics, bench files or records become a calibration file.",
    "export": "A scenario becomes the flags or configuration of an engine.",
    "catalogue": "Models, GPUs, runtimes and acceptance figures that are known, with sources.",
    "audit": "The claims of the article that specsim began with, checked.",
}


def sections() -> Collection[str]:
    """The first words of scenario keys."""
    from specsim.scenario.document import Scenario

    return Scenario.model_fields


def _naming_its_file(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command, whose errors about keys of its scenario begin with the scenario's file:
    what is wrong with a name or a combination shows only once the file is read."""

    @functools.wraps(command)
    def named(**options: Any) -> Any:
        try:
            return command(**options)
        except SpecsimError as problem:
            file, message = options.get("scenario"), str(problem)
            if file is not None and re.split(r"\W", message, maxsplit=1)[0] in sections():
                problem.args = (f"{file}: {message}",)
            raise

    return named


class _LazyGroup(TyperGroup):
    """Imports a command's module when the command is run, not when another one is."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"specsim.cli.{cmd_name}")
        single = typer.Typer(
            rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False
        )
        single.command(name=cmd_name, help=module.__doc__)(_naming_its_file(module.command))
        return typer.main.get_command(single)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


app = typer.Typer(
    name="specsim",
    cls=_LazyGroup,
    help="""Predict what speculative decoding does for a language model on a GPU.

Begin with `specsim predict`, which answers for a built-in example: how much faster each number
of draft tokens K makes it. `specsim plan` does the same for a whole service. `specsim COMMAND
--help` has an example of each command.

Example: specsim predict --target llama-3.1-70b --draft llama-3.2-1b --gpu h100-sxm --tp 4
--alpha 0.75 --k 1:8""",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


def _print_version(value: bool) -> None:
    if value:
        sys.stdout.write(f"specsim {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """What all commands share; the help is that of `app`."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; never shows a traceback for bad input."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    command: Any = typer.main.get_command(app)
    try:
        status = command.main(args=arguments, prog_name="specsim", standalone_mode=False)
    except SpecsimError as problem:
        error(str(problem))
        return EXIT_USAGE
    except (typer.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except typer.TyperException as problem:
        error(problem.format_message())
        return EXIT_USAGE
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; nothing is left to say
        return EXIT_FAILURE
    return status if isinstance(status, int) else 0
