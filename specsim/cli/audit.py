"""The ten claims of the article that specsim began with: verdict, assumptions, numbers.

With --figures DIR one figure is drawn for each claim that has something to see.

Example: specsim audit --figures out/claims
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from specsim.cli.output import print_json
from specsim.errors import ScenarioError


def command(
    figures: Annotated[Path | None, typer.Option(help="Folder for the figures (PNG).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """See the module's docstring, which is this command's help."""
    from specsim.audit import audit_claims, to_dict

    claims = audit_claims()
    paths = {} if figures is None else _draw(figures, claims)
    rows = [to_dict(claim, paths.get(claim.number)) for claim in claims]
    if as_json:
        print_json({"claims": rows})
        return
    for row in rows:
        print(f"{row['number']:>2}. {row['verdict'].upper():8}  {row['claim']}")
        print(textwrap.fill(row["assumptions"], 96, initial_indent=" " * 14,
                            subsequent_indent=" " * 14))  # fmt: skip
        for name, value in row["numbers"].items():
            print(f"{'':14}{name} = {_number(value)}")
        if row["figure"]:
            print(f"{'':14}figure: {row['figure']}")
        print()


def _number(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_number(item)}" for key, item in value.items())
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def _draw(folder: Path, claims: list[Any]) -> dict[int, str]:
    from specsim.plots import claim_figure, save

    paths: dict[int, str] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for claim in claims:
            if claim.chart is not None:
                path = folder / f"claim-{claim.number:02d}.png"
                save(claim_figure(claim.number, claim.chart), path)
                paths[claim.number] = str(path)
    except OSError as problem:
        raise ScenarioError(f"--figures {str(folder)!r}: {problem.strerror or problem}") from None
    return paths
