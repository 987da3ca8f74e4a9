"""Warnings where a prediction would mislead: a code and a sentence with its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from specsim.acceptance.law import Law
from specsim.analytic.formulas import break_even_cost_ratio
from specsim.analytic.grid import Grid
from specsim.cost.drafting import num_draft_passes
from specsim.cost.memory import Memory
from specsim.deployment import PARALLEL_METHODS, Deployment

#: A hazard that falls below this after having been above CLIFF_BEFORE is a broken drafter
#: (a window bug, a mask), not a workload (engine issue threads).
CLIFF_AFTER, CLIFF_BEFORE = 0.02, 0.3
#: Acceptance length at which a draft is most likely broken, or was fed random tokens.
SUSPECT_ACCEPTANCE_LENGTH = 1.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Caveat:
    """One warning."""

    code: str
    message: str


def memory_caveats(
    deployment: Deployment, memory: Memory, batch: int, context: int
) -> Iterator[Caveat]:
    """What does not fit."""
    if not memory.fits:
        yield Caveat(
            code="does-not-fit",
            message=f"{deployment.target.spec.name} does not fit on {deployment.num_gpus} × "
            f"{deployment.gpu.name}: {memory.explain()}; use more GPUs or smaller weights",
        )
    elif batch > memory.max_concurrency:
        yield Caveat(
            code="over-capacity",
            message=f"batch {batch} at context {context} needs more KV cache than there is; "
            f"{memory.max_concurrency} sequences fit",
        )


def acceptance_caveats(law: Law, num_draft_tokens: Sequence[int], source: str) -> Iterator[Caveat]:
    """Doubtful acceptance figures."""
    largest = max(num_draft_tokens, default=0)
    if law.measured_to is not None and largest > law.measured_to:
        yield Caveat(
            code="extrapolated-acceptance",
            message=f"acceptance was measured up to K={law.measured_to}; rows up to "
            f"K={largest} extrapolate it",
        )
    if largest and law.acceptance_length(largest) < SUSPECT_ACCEPTANCE_LENGTH:
        yield Caveat(
            code="suspect-acceptance",
            message=f"acceptance length {law.acceptance_length(largest):.2f} at K={largest}: a "
            "broken draft, or measured on random tokens, which no draft can predict",
        )
    if "random" in source.lower():
        yield Caveat(
            code="random-data",
            message="acceptance measured on random data says nothing about real traffic",
        )
    known = law.measured_to or 0
    hazard = law.hazard(known) if known >= 2 else np.zeros(0)
    drops = np.flatnonzero((hazard[1:] < CLIFF_AFTER) & (hazard[:-1] > CLIFF_BEFORE))
    if len(drops):
        position = int(drops[0]) + 2
        yield Caveat(
            code="acceptance-cliff",
            message=f"conditional acceptance falls from {hazard[position - 2]:.2f} to "
            f"{hazard[position - 1]:.2f} at position {position}: that is a bug of the drafter "
            "more often than a property of the text",
        )


def grid_caveats(deployment: Deployment, grid: Grid) -> Iterator[Caveat]:
    """What the numbers at the first batch and context show."""
    speedup = grid.speedup[:, 0, 0]
    drafting = [i for i, k in enumerate(grid.num_draft_tokens) if k >= 1]
    if not drafting:
        return
    best = max(drafting, key=lambda i: float(speedup[i]))
    k = grid.num_draft_tokens[best]
    base = float(np.max(grid.baseline.seconds))
    draft_s, verify_s = (float(grid.part(p)[best, 0, 0]) for p in ("draft", "verify"))
    overhead_s = float(grid.part("overhead")[best, 0, 0])
    batch, context = int(grid.batch[0]), int(grid.context[0])
    if speedup[best] <= 1:
        yield Caveat(
            code="does-not-pay",
            message=f"no K beats plain decoding at batch {batch}, context {context}; the best, "
            f"K={k}, is {float(speedup[best]):.2f}x",
        )
        passes = int(num_draft_passes(deployment.draft, k))
        tau = float(grid.acceptance_length[best])
        if passes and deployment.draft.method not in PARALLEL_METHODS:
            limit = break_even_cost_ratio(tau, passes, verify_ratio=(verify_s + overhead_s) / base)
            yield Caveat(
                code="draft-too-slow",
                message=f"a draft pass costs {draft_s / passes / base:.3f} of a target step; it "
                f"would have to cost under {max(limit, 0):.3f}",
            )
    waiting = float(np.broadcast_to(grid.step.draft.latency_s, grid.shape)[best, 0, 0])
    if draft_s > 0 and waiting > 0.5 * draft_s and deployment.draft.method != "ngram":
        yield Caveat(
            code="latency-bound-draft",
            message=f"{waiting / draft_s:.0%} of the draft's time is launches and small kernels, "
            "not bandwidth: a smaller draft would hardly be faster",
        )
    plain_verify = float(np.max(grid.baseline.verify.seconds))
    if deployment.target.spec.is_moe and verify_s > 1.3 * plain_verify:
        yield Caveat(
            code="moe-verify",
            message=f"verifying {k + 1} tokens takes {verify_s / plain_verify:.2f}x one token's "
            "pass, because they visit more experts; a larger batch may pay again",
        )


def range_caveats(source: object, law: object, batch: object, context: object) -> Iterator[Caveat]:
    """A measured cost source or law asked beyond what was measured."""
    cost, acceptance = getattr(source, "outside", None), getattr(law, "outside", None)
    if callable(cost) and (found := cost(batch, context)):
        yield Caveat(
            code="extrapolated-cost",
            message=f"step times were not measured there: {'; '.join(found)}",
        )
    if callable(acceptance) and (found := acceptance(context)):
        yield Caveat(
            code="extrapolated-context",
            message=f"acceptance was not measured there: {'; '.join(found)}",
        )


def placement_caveats(deployment: Deployment, context: int) -> Iterator[Caveat]:
    """Dtypes and limits that do not do what one might think."""
    target, gpu, draft = deployment.target, deployment.gpu, deployment.draft
    if target.weights in ("fp8", "int8", "fp4") and target.weights not in gpu.peak_flops:
        yield Caveat(
            code="no-unit",
            message=f"{gpu.name} has no {target.weights} units: weights shrink, compute does not",
        )
    model = draft.model
    if model is None:
        return
    if draft.kv_budget is None and not model.spec.head_of and context > model.spec.max_context:
        yield Caveat(
            code="draft-context",
            message=f"context {context} is beyond the draft's {model.spec.max_context}; "
            "its acceptance will collapse there",
        )
    if draft.method == "draft-model" and not model.spec.is_moe:
        ratio = model.spec.num_active_parameters / target.spec.num_active_parameters
        if ratio > 0.3:
            yield Caveat(
                code="large-draft",
                message=f"the draft has {ratio:.0%} of the target's active parameters; "
                "over a twentieth rarely pays",
            )
