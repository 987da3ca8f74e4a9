"""`python -m validation claims`: the article's ten claims, from the functions of
`specsim audit`."""

from __future__ import annotations

from pathlib import Path

from specsim import plots
from specsim.audit import audit_claims
from validation.rows import Row


def rows() -> list[Row]:
    """One row a claim; a verdict is no error, so nothing here has a bound."""
    return [
        Row(
            name=f"claim {claim.number}: {claim.claim}",
            error=None,
            provenance=f"{claim.verdict}: {claim.assumptions}",
        )
        for claim in audit_claims()
    ]


def figures(folder: Path) -> list[Path]:
    """One for each claim that has something to see, as `specsim audit --figures` draws it."""
    paths = []
    for claim in audit_claims():
        if claim.chart is not None:
            paths.append(folder / f"claim-{claim.number:02d}.png")
            plots.save(plots.claim_figure(claim.number, claim.chart), paths[-1])
    return paths
