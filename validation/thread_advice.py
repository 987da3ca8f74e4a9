"""Checks of a user's thread that test a rule of the planner: warnings, widths, properties."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np

from specsim.acceptance import PerPosition
from specsim.analytic.caveats import acceptance_caveats
from specsim.cost.roofline import Roofline
from specsim.planner import Plan, plan
from specsim.planner.answers_fit import widest_step
from specsim.planner.step_model import step_model
from specsim.scenario import Scenario
from validation.thread_checks import Check, Verdict, deployment


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
    "caveat": _caveat, "width": _width, "property": _property,
}  # fmt: skip
