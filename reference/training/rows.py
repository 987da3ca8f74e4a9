"""The results as rows: α and cost of every draft, domain and temperature."""

from __future__ import annotations

import csv
import io
from typing import Any

from reference.prompts import DOMAINS

COLUMNS = (
    "group", "target_parameters", "draft_parameters", "alpha", "standard_error", "provenance",
    "source", "draft", "domain", "temperature", "measure", "cost_ratio", "tau", "tau_error",
)  # fmt: skip
#: What α is at each temperature: nothing is drawn at 0, so there it is agreement.
MEASURES = {"1": "one_minus_tv", "0": "greedy_agreement"}


def to_csv(drafts: dict[str, Any]) -> str:
    """One row a draft, domain and temperature, all measured by us.

    The first seven columns are those of the planner's draft sizes. α is that of the first
    drafted token on held-out text; a draft's parameters are what a pass reads: its layers
    and its output rows. cost_ratio and τ are from decoding in bfloat16 with K = 4.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for name, draft in drafts.items():
        for domain in DOMAINS:
            for temperature, measure in MEASURES.items():
                writer.writerow(_row(name, draft, domain, temperature, measure))
    return stream.getvalue()


def _row(
    name: str, draft: dict[str, Any], domain: str, temperature: str, measure: str
) -> dict[str, Any]:
    target = draft["target"]
    alpha, error = draft["overlap"][domain][temperature][measure][0]
    decoded = draft["decoding"][f"bfloat16/{temperature}/4"][domain]
    return {
        "group": f"{target['name']} {domain} T={temperature}",
        "target_parameters": target["parameters"],
        "draft_parameters": draft["trained_parameters"]
        + draft["draft_vocab_size"] * target["hidden_size"],
        "alpha": alpha,
        "standard_error": error,
        "provenance": "measured by us",
        "source": "docs/drafts.md",
        "draft": name,
        "domain": domain,
        "temperature": temperature,
        "measure": measure,
        "cost_ratio": decoded["cost_ratio"][0],
        "tau": decoded["tau"][0],
        "tau_error": decoded["tau"][1],
    }
