"""Checks of a user's thread that compare a number: a sign, a best K, a crossover, an order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specsim import catalogue
from specsim.acceptance import Iid
from specsim.analytic.breakeven import unpadded
from specsim.analytic.formulas import paying_ranges
from specsim.cost.memory import memory
from specsim.cost.roofline import Roofline
from specsim.cost.step import decode_step, prefill_seconds
from specsim.deployment import Deployment, PlacedModel, Tree, make_draft

#: K whose speeds differ by less than this are equally good in "best K within one".
FLAT = 0.02
MAX_BATCH = 512

Check = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One check: whether the model agrees, and what it says in words."""

    kind: str
    agrees: bool
    says: str
    predicted: float | None = None
    observed: float | None = None


def deployment(check: Check) -> Deployment:
    """The setup of a check, by names."""
    target = PlacedModel(
        spec=catalogue.model(check["target"]), weights=check.get("weights", "bf16"),
        tensor_parallel=check.get("tp", 1),
    )  # fmt: skip
    method, name = check.get("method"), check.get("draft")
    tree = check.get("tree")
    draft = make_draft(
        target, method=method, model=None if name is None or method == "none" else
        catalogue.model(name), tensor_parallel=check.get("draft_tp"),
        weights=check.get("draft_weights"),
        tree=None if tree is None else Tree(steps=tree[0], topk=tree[1], nodes=tree[2]),
    )  # fmt: skip
    return Deployment(
        target=target, draft=draft, gpu=catalogue.gpu(check["gpu"]),
        runtime=catalogue.runtime(check["runtime"]),
    )  # fmt: skip


def tokens(check: Check) -> int:
    """Drafted tokens a step: K, or the nodes of a tree."""
    return int(check["tree"][2] if "tree" in check else check["k"])


def length(check: Check, k: int) -> float:
    """Tokens a step: as reported, or of the assumed α."""
    if "tau" in check:
        return float(check["tau"])
    return Iid(check["alpha"]).acceptance_length(k)


def speedup(check: Check, k: int, tau: float, batch: Any = None) -> Any:
    """Tokens per second with speculation over without."""
    found = deployment(check)
    source, context = Roofline(gpu=found.gpu), check.get("context", 1000)
    b = check.get("batch", 1) if batch is None else batch
    plain = decode_step(found.without_draft(), source, 0, b, context).seconds
    return tau * plain / decode_step(found, source, k, b, context).seconds


def judge_speed(check: Check) -> Verdict:
    k = tokens(check)
    value = float(speedup(check, k, length(check, k)))
    agrees = value < 1 if check["expect"] == "slower" else value > 1
    return Verdict(kind="speed", agrees=agrees, predicted=value, observed=check.get("observed"),
                   says=f"{value:.2f}x at K = {k}, batch {check.get('batch', 1)}")  # fmt: skip


def _below(check: Check) -> Verdict:
    k = tokens(check)
    value = float(speedup(check, k, length(check, k)))
    return Verdict(kind="below", agrees=value < check["limit"], predicted=value,
                   says=f"{value:.2f}x, limit {check['limit']}x")  # fmt: skip


def _best_k(check: Check) -> Verdict:
    """The fastest of the K that were tried; its neighbours count where K differs by one or
    the speed by less than FLAT."""
    ks: Sequence[int] = check["ks"]
    taus = check.get("taus") or [Iid(check["alpha"]).acceptance_length(k) for k in ks]
    values = [float(speedup(check, k, tau)) for k, tau in zip(ks, taus, strict=True)]
    best = ks[int(np.argmax(values))]
    wanted = ks.index(check["best"])
    agrees = abs(best - check["best"]) <= 1 or values[wanted] >= (1 - FLAT) * max(values)
    said = ", ".join(f"K={k} {v:.2f}x" for k, v in zip(ks, values, strict=True))
    return Verdict(kind="best-k", agrees=agrees, says=said, predicted=float(best),
                   observed=float(check["best"]))  # fmt: skip


def _crossover(check: Check) -> Verdict:
    batches = np.arange(1, MAX_BATCH + 1)
    smooth = unpadded(deployment(check))
    source, context = Roofline(gpu=smooth.gpu), check.get("context", 1000)
    plain = decode_step(smooth.without_draft(), source, 0, batches, context).seconds
    step = decode_step(smooth, source, check["k"], batches, context).seconds
    ranges = paying_ranges(batches, check["tau"] * plain / step > 1)
    last = ranges[-1][1] if ranges else 0
    low, high = check["between"]
    return Verdict(kind="crossover", agrees=low <= last <= high, predicted=float(last),
                   says=f"pays at batches {ranges}, reported edge {low} to {high}")  # fmt: skip


def _order(check: Check) -> Verdict:
    values = [QUANTITIES[check["quantity"]]({**check, **check[side]}) for side in ("more", "less")]
    return Verdict(kind="order", agrees=values[0] > values[1],
                   says=f"{check['quantity']} {values[0]:.4g} against {values[1]:.4g}")  # fmt: skip


def _draft_s(check: Check) -> float:
    found = deployment(check)
    step = decode_step(found, Roofline(gpu=found.gpu), check["k"], 1, check.get("context", 1000))
    return float(step.draft.seconds)


def _step_s(check: Check) -> float:
    found = deployment(check)
    step = decode_step(found, Roofline(gpu=found.gpu), check["k"], 1, check.get("context", 1000))
    return float(step.seconds)


def _ttft_s(check: Check) -> float:
    found = deployment(check)
    return float(prefill_seconds(found, Roofline(gpu=found.gpu), check["prompt"]))


def _concurrency(check: Check) -> float:
    found = deployment(check)
    k = 0 if found.draft.method == "none" else check["k"]
    return float(memory(found, k, check.get("context", 1000)).max_concurrency)


QUANTITIES: Mapping[str, Callable[[Check], float]] = {
    "speedup": lambda check: float(speedup(check, check["k"], length(check, check["k"]))),
    "draft_s": _draft_s, "step_s": _step_s, "ttft_s": _ttft_s, "concurrency": _concurrency,
}  # fmt: skip
KINDS: Mapping[str, Callable[[Check], Verdict]] = {
    "speed": judge_speed, "below": _below, "best-k": _best_k, "crossover": _crossover,
    "order": _order,
}  # fmt: skip
