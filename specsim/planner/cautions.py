"""What would mislead a reader of a plan."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from specsim.analytic.caveats import (
    Caveat,
    acceptance_caveats,
    placement_caveats,
    range_caveats,
)
from specsim.planner.answers import Facts
from specsim.planner.answers_cost import unmet

#: Host share of a plain step beyond which a target is too small to speculate with a model.
FLOOR_SHARE = 0.4


def cautions(facts: Facts) -> Iterator[Caveat]:
    """Every warning, the graver ones first."""
    yield from _demand(facts)
    yield from _too_small(facts)
    yield from _floor(facts)
    spec = facts.spec
    if spec is None or spec.option is None:
        return
    if facts.best is not spec:
        yield Caveat(
            code="do-not-speculate",
            message=f"the best speculative plan, {spec.label}, beats no speculation with "
            f"probability {facts.probability or 0:.0%} only",
        )
        return
    if not spec.option.measured:
        yield Caveat(
            code="estimated-acceptance",
            message=f"nobody has measured {spec.label} on this traffic; its acceptance is an "
            f"{spec.option.source}",
        )
    if spec.option.keys["method"] in ("eagle", "eagle3") and "model" not in spec.option.keys:
        yield Caveat(
            code="no-known-head",
            message=f"the catalogue knows no {spec.option.keys['method']} head of "
            f"{spec.deployment.target.spec.name}; its cost is that of one of the usual shape. "
            "Name a checkpoint in draft.model, train one, or narrow the drafts (--draft)",
        )
    if spec.deployment.target.spec.is_moe:
        yield Caveat(
            code="experts",
            message="measured gains on mixtures of experts at small batch have fallen short of "
            "the model by a quarter (Qwen3-30B-A3B with EAGLE-3 in SGLang lost where the model "
            "gains); the interval allows for it, a probe settles it",
        )
    runtime = spec.deployment.runtime
    if spec.policy.kind == "batch-schedule":
        if runtime.engine not in ("vllm", "ideal"):
            yield Caveat(
                code="schedule-not-offered",
                message=f"{runtime.name} has no schedule by batch size; its own adaptive K comes "
                "nearest",
            )
        if any(k == 0 for _, _, k in spec.schedule()):
            yield Caveat(
                code="draft-upkeep",
                message="where the schedule says K = 0 the draft still keeps its cache current "
                "and its memory: that is not the same as speculation off",
            )
        yield Caveat(
            code="graph-switch",
            message="changing K changes the CUDA graph; leave a gap (hysteresis) at the "
            "schedule's edges if the batch lingers there",
        )
    # the plan's own context: a mean request
    yield from placement_caveats(spec.deployment, round(facts.problem.context))
    for traffic in facts.problem.classes:
        law = spec.option.laws[traffic.name]
        label = f"{traffic.name}: " if traffic.name else ""
        found = [
            *acceptance_caveats(law, [spec.largest_k], spec.option.source),
            *range_caveats(spec.source, law, max(spec.demand.batch, 1.0), facts.problem.context),
        ]
        for caveat in found:
            yield Caveat(code=caveat.code, message=f"{label}{caveat.message}")


def _demand(facts: Facts) -> Iterator[Caveat]:
    problem, best = facts.problem, facts.best
    capacity = facts.capacity_per_s(best)
    if problem.has_slo and not capacity:
        yield Caveat(code="slo-not-met", message=unmet(facts))
        return
    if problem.rate_per_s is None or not problem.has_slo or capacity is None:
        return
    carried = capacity * best.replicas
    if carried < problem.rate_per_s:
        needed = int(np.ceil(problem.rate_per_s / capacity - 1e-9)) * best.num_gpus
        yield Caveat(
            code="slo-not-met",
            message=f"{best.total_gpus} × {best.deployment.gpu.name} carry {carried:.3g} of "
            f"{problem.rate_per_s:g} requests/s within the SLO; {needed} would, or a rate of at "
            f"most {carried:.3g}",
        )


def _too_small(facts: Facts) -> Iterator[Caveat]:
    left_out = facts.found.too_small
    if left_out:
        yield Caveat(
            code="request-too-long",
            message="left out, since the KV cache cannot hold the longest request: "
            + "; ".join(left_out),
        )


def _floor(facts: Facts) -> Iterator[Caveat]:
    off = facts.off
    step, host = float(off.model.step_s[0, 0]), float(off.model.overhead_s[0, 0])
    if host > FLOOR_SHARE * step:
        yield Caveat(
            code="target-at-floor",
            message=f"{host / step:.0%} of a plain step is the engine's own time: the target is "
            "too small to speculate with a separate model",
        )
