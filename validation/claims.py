"""`python -m validation claims`: the article's ten claims, from the functions of
`specsim audit`."""

from __future__ import annotations

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
