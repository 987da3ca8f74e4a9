"""The closed form without any model: cost ratios c and v in place of a deployment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from specsim.acceptance.law import Law
from specsim.analytic.breakeven import break_even_alpha
from specsim.analytic.caveats import acceptance_caveats


def predict_from_ratios(
    law: Law, acceptance_source: str, num_draft_tokens: Sequence[int], cost_ratio: float,
    verify_ratio: float = 1.0, passes_per_round: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The keys of `predict --json` (`inputs` left out), times in target forward passes.

    `passes_per_round` fixes the draft passes of a round (1 for parallel methods, 0 for
    n-gram); None means one a drafted token. What needs a deployment is None.

    Raises:
        ValueError: for K < 0, or no K at all.
    """
    ks = list(num_draft_tokens)
    if not ks:
        raise ValueError("num_draft_tokens is empty")
    rows: list[dict[str, Any]] = []
    for k in ks:
        passes = k if passes_per_round is None else min(k, passes_per_round)
        tau = law.acceptance_length(k)
        draft_s = passes * cost_ratio
        verify_s = verify_ratio if k else 1.0
        bounds = law.survival_interval(k)
        low, high = (tau, tau) if bounds is None else (1 + float(b.sum()) for b in bounds)
        step = draft_s + verify_s
        rows.append(
            {
                "num_draft_tokens": k,
                "acceptance_length": tau,
                "draft_s": draft_s,
                "verify_s": verify_s,
                "overhead_s": 0.0,
                "step_s": step,
                "tokens_per_s": tau / step,
                "speedup": tau / step,  # Leviathan et al. 2023, Theorem 3.8, with v
                "speedup_low": low / step,
                "speedup_high": high / step,
                "verify_bound": None,
            }
        )
    best = max(rows, key=lambda row: float(row["speedup"]))
    pays = best["speedup"] > 1
    step_s = np.array([row["step_s"] for row in rows])
    return {
        "baseline": {"step_s": 1.0, "tokens_per_s": 1.0, "bound": None, "components": {}},
        "rows": rows,
        "best": {
            "num_draft_tokens": best["num_draft_tokens"] if pays else 0,
            "speedup": best["speedup"] if pays else 1.0,
        },
        "break_even": {
            "alpha": break_even_alpha(ks, step_s, 1.0), "batch": None, "context": None,
        },
        "memory": None,
        "sources": {
            "cost": f"cost ratio {cost_ratio:g}, verify ratio {verify_ratio:g}, as given; "
            "times are in target forward passes",
            "acceptance": acceptance_source,
        },
        "warnings": [
            {"code": c.code, "message": c.message}
            for c in acceptance_caveats(law, ks, acceptance_source)
        ],
    }  # fmt: skip


def passes_of_method(method: str) -> int | None:
    """Draft passes of a round where no model is named: None is one per drafted token."""
    return {"ngram": 0, "block": 1}.get(method)
