"""A scenario (or a plan's JSON) becomes the flags or configuration of an engine.

What is printed is the engine's own form: for vLLM the JSON of --speculative-config, for
SGLang and llama.cpp flags, for TensorRT-LLM YAML. --command prints a whole command line with
limits and capture sizes. Conflicts go to stderr.

Example: specsim export scenario.yaml --engine vllm --command
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specsim.cli.output import print_json, warn


def command(
    scenario: Annotated[Path, typer.Argument(help="Scenario file, or the JSON of a plan.")],
    engine: Annotated[str, typer.Option(help="vllm, sglang, trtllm or llamacpp.")],
    synthetic: Annotated[
        bool,
        typer.Option(
            "--synthetic", help="vLLM: accept drafts by chance, to check a prediction on a GPU."
        ),
    ] = False,
    engine_version: Annotated[
        str | None, typer.Option(help="vLLM: 0.32 (default) or 0.10.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any scenario key: key=value.")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--command", help="The whole command line instead.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object with everything.")
    ] = False,
) -> None:
    """See the module's docstring, which is this command's help."""
    from specsim.interop.export import export
    from specsim.interop.serving_plan import load_scenario, serving_plan

    described = load_scenario(scenario)
    if set_:
        described = described.with_set(set_)
    result = export(serving_plan(described), engine, synthetic=synthetic, version=engine_version)
    if as_json:
        print_json({
            "engine": engine, "text": result.text, "config": result.config,
            "command": result.command,
            "warnings": [{"code": n.code, "message": n.message} for n in result.notes],
        })  # fmt: skip
    else:
        print(result.command if whole else result.text)
    for note in result.notes:
        warn(note.code, note.message)
