"""The command line: `python -m reference decode | measure | serve | train-draft`."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from specsim.errors import SpecsimError

SCHEMA_VERSION = 1
DRAFT_HELP = (
    "none | ngram | early-exit:N | eagle (the trained head that comes with the project) | "
    "layers-1 (the draft model that comes with it) | FILE.safetensors of train-draft | "
    "eagle:HEAD.safetensors | eagle:random | a model's name or path"
)
#: The accept rules of `decode.RULES`, by name: `--help` should not have to import torch.
RULE_NAMES = ("block", "chain", "tree", "typical")
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """argparse with this project's error line."""

    def error(self, message: str) -> NoReturn:
        """One line on stderr, exit 2."""
        print(f"Error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> Parser:
    """All commands; each module adds its own and names the function that runs it."""
    from reference import (
        decode_command,
        evaluate_command,
        measure_command,
        serve_command,
        train_command,
    )

    parser = Parser(
        prog="python -m reference",
        description="A real speculative decoder: run it, measure it, serve with it.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (decode_command, measure_command, serve_command, train_command, evaluate_command):
        module.add_parser(commands)
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options that every command shares."""
    parser.add_argument(
        "--target", default="smollm2-135m", metavar="NAME|PATH",
        help="smollm2-135m, a directory with safetensors, a .gguf file, or owner/model from "
        "the hub (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float64")
    parser.add_argument("--device", default="auto", help="auto (CUDA if there is one), cpu, cuda")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness")


def versions() -> dict[str, str]:
    """Versions of what a measurement depends on."""
    result = {"python": sys.version.split()[0]}
    for name in ("torch", "specsim-llm"):
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            result[name] = "unknown"
    return result


def print_json(values: dict[str, Any]) -> None:
    """One strict JSON object on stdout."""
    header = {"schema_version": SCHEMA_VERSION, "specsim_version": versions()["specsim-llm"]}
    print(json.dumps({**header, **values}, allow_nan=False, ensure_ascii=False))


def warn(message: str) -> None:
    """A warning on stderr."""
    if message:
        print(f"Warning: {message}", file=sys.stderr)


def read_text(path: str) -> str:
    """A prompt file's text.

    Raises:
        ValueError: naming the file, if it is not readable UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status. Input errors are one line and 2, Ctrl-C is 130."""
    try:
        options = build_parser().parse_args(arguments)
        return int(options.run(options))
    except (SpecsimError, ValueError, FileExistsError) as error:
        print(f"Error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        needed = "torch gguf safetensors tokenizers huggingface-hub"
        print(f"Error: {error.name} is not installed: pip install {needed}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader went away (| head): nothing is wrong
        sys.stderr.close()
        return 0
    except OSError as error:  # a folder that is not there, a full disk: the path is named
        print(f"Error: {error}", file=sys.stderr)
        return 2
