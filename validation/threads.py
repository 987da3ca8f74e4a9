"""What users found in 66 public threads against what the model says: a sign, a crossover,
the best K, or an order of two setups.

`data/threads.toml` has the cases; nothing there is a prediction. A thread agrees when all
of its checks do. Threads that the model cannot speak about are excluded with their reason;
those that test a rule of the planner rather than a number ("advice") are counted apart.
Some that are excluded by a rule (a retired engine) are judged all the same, and the rate
with them is printed too.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from specsim import catalogue
from specsim.acceptance import Iid, PerPosition
from specsim.analytic.breakeven import unpadded
from specsim.analytic.caveats import acceptance_caveats
from specsim.analytic.formulas import paying_ranges
from specsim.cost.memory import memory
from specsim.cost.roofline import Roofline
from specsim.cost.step import decode_step, prefill_seconds
from specsim.deployment import Deployment, PlacedModel, Tree, make_draft
from specsim.planner import Plan, plan
from specsim.planner.answers_fit import widest_step
from specsim.planner.step_model import step_model
from specsim.scenario import Scenario
from validation.rows import Row, bounds, statistic

PATH = Path(__file__).with_name("data") / "threads.toml"
#: Kinds of check that compare a number; the others are advice.
NUMERIC = ("speed", "below", "best-k", "crossover", "order")
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


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thread with its verdicts; none if it is excluded."""

    id: str
    url: str
    question: int
    says: str
    assumed: str
    excluded: str | None
    verdicts: tuple[Verdict, ...]

    @property
    def numeric(self) -> bool:
        """Whether a number is compared, not a rule."""
        return any(v.kind in NUMERIC for v in self.verdicts)

    @property
    def agrees(self) -> bool:
        """All checks agree."""
        return all(v.agrees for v in self.verdicts)


@cache
def threads() -> tuple[dict[str, Any], ...]:
    """The cases as written.

    Raises:
        ValueError: for a thread with neither checks nor a reason for exclusion.
    """
    with PATH.open("rb") as stream:
        found = tomllib.load(stream)["thread"]
    for thread in found:
        if "excluded" not in thread and "checks" not in thread:
            raise ValueError(f"{thread['id']}: expected checks, or excluded with a reason")
    return tuple(found)


def cases() -> list[Case]:
    """Every thread, judged."""
    return [
        Case(
            id=t["id"], url=t["url"], question=t["question"], says=t["says"],
            assumed=t.get("assumed", ""), excluded=t.get("excluded"),
            verdicts=tuple(judge({**t.get("setup", {}), **c}) for c in t.get("checks", ())),
        )
        for t in threads()
    ]  # fmt: skip


def judge(check: Check) -> Verdict:
    """One check, by its kind."""
    return KINDS[check["kind"]](check)


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


def _speed(check: Check) -> Verdict:
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


def _caveat(check: Check) -> Verdict:
    law = PerPosition.from_survival(check["survival"])
    codes = [c.code for c in acceptance_caveats(law, range(1, len(check["survival"]) + 1), "")]
    return Verdict(kind="caveat", agrees=check["code"] in codes, says=f"warns of {codes}")


def _width(check: Check) -> Verdict:
    width = widest_step(check["schedule"])
    return Verdict(kind="width", agrees=width == check["tokens"], says=f"{width} tokens",
                   predicted=float(width), observed=float(check["tokens"]))  # fmt: skip


def _property(check: Check) -> Verdict:
    agrees, says = PROPERTIES[check["name"]](check)
    return Verdict(kind="property", agrees=agrees, says=says)


def _upkeep(check: Check) -> tuple[bool, str]:
    """At K = 0 a drafter with a cache costs time."""
    seconds = _zero_draft_s(check)
    return seconds > 0, f"{1e3 * seconds:.2f} ms a step at K = 0"


def _no_upkeep(check: Check) -> tuple[bool, str]:
    seconds = _zero_draft_s(check)
    return seconds == 0, f"{1e3 * seconds:.2f} ms a step at K = 0"


def _zero_draft_s(check: Check) -> float:
    found = deployment(check)
    batch = np.array([float(check.get("batch", 1))])
    model = step_model(found, Roofline(gpu=found.gpu), [1], batch, 1000.0, np.array([100.0]))
    return float(model.draft_s[0, 0])


@cache
def _small_plan(target: str, draft: str, gpu: str, rate_per_s: float) -> Plan:
    return plan(
        Scenario.from_dict({
            "target": {"model": target}, "draft": {"method": "draft-model", "model": draft},
            "hardware": {"gpu": gpu}, "acceptance": {"alpha": 0.7},
            "workload": {"arrivals": {"process": "poisson", "rate_per_s": rate_per_s}},
        }),
        drafts=[draft], simulate=False,
    )  # fmt: skip


def _multiple_of_8(check: Check) -> tuple[bool, str]:
    """Of every candidate of plans at several loads."""
    limits = sorted({
        c.batch_limit
        for rate in (2.0, 7.0, 15.0)
        for c in _small_plan(check["target"], check["draft"], check["gpu"], rate).found.candidates
    })  # fmt: skip
    return all(limit % 8 == 0 for limit in limits), f"limits {limits}"


def _graph_switch(check: Check) -> tuple[bool, str]:
    """A plan whose schedule has several K warns of the switch."""
    found = plan(simulate=False)
    codes = [w.code for w in found.warnings]
    return len(found.schedule) > 1 and "graph-switch" in codes, f"{found.schedule}, {codes}"


PROPERTIES: Mapping[str, Callable[[Check], tuple[bool, str]]] = {
    "upkeep": _upkeep, "no-upkeep": _no_upkeep, "multiple-of-8": _multiple_of_8,
    "graph-switch": _graph_switch,
}  # fmt: skip
KINDS: Mapping[str, Callable[[Check], Verdict]] = {
    "speed": _speed, "below": _below, "best-k": _best_k, "crossover": _crossover,
    "order": _order, "caveat": _caveat, "width": _width, "property": _property,
}  # fmt: skip


def rows() -> list[Row]:
    """The disagreement of threads with numbers and of threads with advice, each with its
    bound, then one row per thread."""
    found = cases()
    judged = [c for c in found if c.excluded is None]
    numeric = [c for c in judged if c.numeric]
    advice = [c for c in judged if not c.numeric]
    limit = bounds("threads")
    lines = [
        statistic(f"{name} that disagree, of {len(group)} threads",
                  1 - np.mean([c.agrees for c in group]), bound=limit[key], provenance=note)
        for name, key, group, note in (
            ("signs, orders, crossovers and best K", "numeric", numeric, "all checks of a thread"),
            ("rules of the planner", "advice", advice, "warnings, widths, properties of plans"),
        )
    ]  # fmt: skip
    also = [*numeric, *(c for c in found if c.excluded is not None and c.numeric)]
    lines.append(statistic(
        f"the same with excluded threads that could be judged, of {len(also)}",
        1 - np.mean([c.agrees for c in also]),
        provenance="a retired engine judged by the nearest runtime, two nodes by one's links",
    ))  # fmt: skip
    checks = [v for c in numeric for v in c.verdicts]
    lines.append(statistic(f"the same, single checks of {len(checks)}",
                           1 - np.mean([v.agrees for v in checks])))  # fmt: skip
    for case in found:
        verdict = "agrees" if case.agrees else "DISAGREES"
        said = "; ".join(v.says for v in case.verdicts)
        if case.excluded is not None:
            judged_too = f" The model, for all that: {said} ({verdict})." if said else ""
            lines.append(Row(
                name=f"{case.id}: excluded", error=None,
                provenance=f"{case.says}. Excluded: {case.excluded}.{judged_too} ({case.url})",
            ))  # fmt: skip
            continue
        assumed = f" Assumed: {case.assumed}." if case.assumed else ""
        lines.append(Row(
            name=f"{case.id}: {verdict}", error=float(not case.agrees),
            provenance=f"{case.says}. The model: {said}.{assumed} ({case.url})",
        ))  # fmt: skip
    return lines
