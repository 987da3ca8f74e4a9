"""One way to serve the traffic, and the scenario that describes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from specsim.cost.memory import memory
from specsim.cost.source import CostSource
from specsim.deployment import Deployment
from specsim.planner.drafts import DraftOption
from specsim.planner.problem import Problem
from specsim.planner.service import Component, Curve, Point, Policy
from specsim.planner.step_model import StepModel
from specsim.scenario.document import Scenario

#: Slots above the mean batch that a recommended batch limit leaves, in √batch.
LIMIT_HEADROOM = 3.0
#: Batch limits are multiples of this: engines capture graphs in such steps.
LIMIT_STEP = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A draft (None: no speculation) with a policy on a deployment, and how it serves.

    `capacity` is None if no load meets the SLO; `demand` is a replica's share of the
    demanded load; `slots` is how many sequences it can hold.
    """

    option: DraftOption | None
    deployment: Deployment
    source: CostSource
    replicas: int
    draft_tensor_parallel: int | None
    policy: Policy
    slots: int
    model: StepModel
    parts: tuple[Component, ...]
    curve: Curve
    capacity: Point | None
    demand: Point
    objective: float

    @property
    def label(self) -> str:
        """The draft, or "none"."""
        return "none" if self.option is None else self.option.label

    @property
    def num_gpus(self) -> int:
        """GPUs of one replica."""
        return self.deployment.num_gpus

    @property
    def total_gpus(self) -> int:
        """GPUs of all replicas."""
        return self.replicas * self.num_gpus

    @property
    def speculates(self) -> bool:
        """Whether it drafts at any batch."""
        return self.option is not None and bool(np.any(self.policy.rows > 0))

    @property
    def largest_k(self) -> int:
        """The largest K that its policy runs."""
        return max(int(self.model.draft_tokens[row]) for row in np.unique(self.policy.rows))

    @property
    def batch_limit(self) -> int:
        """`max_num_seqs` to set: the batch at capacity (at the demand, if there is no
        capacity) with headroom, a multiple of 8, within what fits."""
        batch = max(self.demand.batch, self.capacity.batch if self.capacity else 0.0)
        wanted = batch + LIMIT_HEADROOM * math.sqrt(batch)
        rounded = math.ceil(wanted / LIMIT_STEP) * LIMIT_STEP
        most = self.slots // LIMIT_STEP * LIMIT_STEP
        return max(min(rounded, most), min(self.slots, LIMIT_STEP), 1)

    def k_at(self, batch: float) -> int:
        """K that the policy runs at a batch."""
        index = int(np.clip(np.searchsorted(self.curve.batch, batch), 0, len(self.curve.batch) - 1))
        return int(self.model.draft_tokens[self.policy.rows[index]])

    def schedule(self) -> list[list[int]]:
        """Rows [batch_lo, batch_hi, K] from 1 to the batch limit."""
        return schedule_rows(self.model, self.policy, self.batch_limit)


def schedule_rows(model: StepModel, policy: Policy, limit: int) -> list[list[int]]:
    """A policy as contiguous rows; a grid point's K holds from its batch to the next."""
    rows: list[list[int]] = []
    for at, batch in enumerate(model.batch):
        low = int(batch)
        if low > limit:
            break
        k = int(model.draft_tokens[policy.rows[at]])
        if rows and rows[-1][2] == k:
            continue
        if rows:
            rows[-1][1] = low - 1
        rows.append([low, limit, k])
    rows[-1][1] = limit
    return rows


def slots_of(deployment: Deployment, num_draft_tokens: int, context: float, limit: int) -> int:
    """Sequences that a replica can hold at mean length `context` with a batch limit."""
    room = memory(deployment, num_draft_tokens, math.ceil(context))
    return min(limit, room.max_concurrency)


def scenario_of(problem: Problem, found: Candidate) -> Scenario:
    """The scenario that runs a candidate: what `plan.best` is and what the simulator gets."""
    data = problem.scenario.to_dict()
    hardware = data["hardware"]
    hardware |= {
        "gpu": found.deployment.gpu.name, "replicas": found.replicas,
        "tensor_parallel": found.deployment.target.tensor_parallel,
    }  # fmt: skip
    data["engine"]["max_num_seqs"] = found.batch_limit
    data["point"] = {
        "batch": max(1, round(found.demand.batch)), "context": round(problem.context),
    }  # fmt: skip
    if not found.speculates or found.option is None:
        data["draft"] = {"method": "none"}
        data["speculation"] = {"policy": "off"}
        return Scenario.from_dict(data, "plan")
    draft: dict[str, Any] = dict(found.option.keys)
    if found.draft_tensor_parallel is not None and found.option.has_model:
        draft["tensor_parallel"] = found.draft_tensor_parallel
    tree = draft.get("tree")
    draft["num_draft_tokens"] = tree["nodes"] if tree else found.largest_k
    data["draft"] = draft
    speculation = {**data["speculation"], "policy": found.policy.kind}
    speculation.pop("schedule", None)
    if found.policy.kind == "batch-schedule":
        speculation["schedule"] = found.schedule()
    if found.policy.kind == "adaptive":
        speculation["candidate_steps"] = sorted({k for _, _, k in found.schedule() if k} | {1})
    data["speculation"] = speculation
    _set_acceptance(data, found.option)
    return Scenario.from_dict(data, "plan")


def _set_acceptance(data: dict[str, Any], option: DraftOption) -> None:
    classes = data["workload"].get("classes") or []
    for traffic in classes:
        traffic["acceptance"] = dict(option.acceptance[traffic["name"]])
    if not classes:
        data["acceptance"] = dict(option.acceptance[""])
    elif not any(v is not None for v in data["acceptance"].values()):
        data["acceptance"] = dict(option.acceptance[classes[0]["name"]])
