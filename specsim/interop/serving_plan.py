"""What an engine is to be told, resolved from a scenario once for all exporters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from specsim import catalogue
from specsim.catalogue.loader import aliases
from specsim.errors import ScenarioError
from specsim.interop.common import Note
from specsim.scenario.document import Scenario, read_yaml
from specsim.scenario.resolve import named, resolve_acceptance

_HUGGING_FACE = re.compile(r"huggingface\.co/([\w.-]+/[\w.-]+)")


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """One engine's settings: names as the engine loads them, K, schedule and limits.

    `survival` is P(at least i accepted), i = 1..K; None where the scenario has no acceptance.
    `schedule` rows are (lowest batch, highest batch, K).
    """

    target: str
    draft: str | None
    method: str
    num_draft_tokens: int
    tensor_parallel: int
    draft_tensor_parallel: int | None
    replicas: int
    max_num_seqs: int
    max_num_batched_tokens: int
    gpu_memory_utilization: float
    policy: str
    schedule: tuple[tuple[int, int, int], ...]
    candidate_steps: tuple[int, ...]
    tree: tuple[int, int, int] | None  # steps, topk, nodes
    survival: tuple[float, ...] | None
    draft_weights: str | None
    kv_budget: int | None
    target_kv: str
    draft_kv: str | None
    notes: tuple[Note, ...]

    @property
    def speculates(self) -> bool:
        """Whether any step drafts."""
        return self.method != "none" and self.policy != "off" and self.num_draft_tokens > 0


def load_scenario(path: str | Path) -> Scenario:
    """A scenario file, or the `best` scenario of a plan's JSON.

    Raises:
        ScenarioError: if it is neither.
    """
    data = read_yaml(path)
    best = data.get("best")
    if isinstance(best, Mapping):
        inner = best.get("scenario", best)
        if not isinstance(inner, Mapping):
            raise ScenarioError(f"{path}: best: expected the scenario of a plan")
        return Scenario.from_dict(inner, f"{path}: best")
    return Scenario.from_dict(data, str(path))


def serving_plan(scenario: Scenario) -> ServingPlan:
    """Resolve names, K and acceptance.

    Raises:
        SpecsimError: for unknown names; where K is a range and cannot be decided.
    """
    notes: list[Note] = []
    draft, speculation = scenario.draft, scenario.speculation
    method = _method(scenario)
    schedule = tuple(speculation.schedule or ()) if speculation.policy == "batch-schedule" else ()
    k = 0
    if method != "none" and speculation.policy != "off":
        k = max((row[2] for row in schedule), default=0) or _num_draft_tokens(scenario, notes)
    elif draft.model is not None:
        notes.append(Note(code="speculation-off", message="the scenario does not speculate"))
    tree = draft.tree
    survival = None
    if k and scenario.acceptance.given:
        law, _ = resolve_acceptance(scenario.acceptance, draft)
        survival = tuple(float(s) for s in law.survival(k))
    return ServingPlan(
        target=_name(scenario.target.model, "target", notes),
        draft=None if draft.model is None else _name(draft.model, "draft", notes),
        method=method, num_draft_tokens=k,
        tensor_parallel=scenario.hardware.tensor_parallel,
        draft_tensor_parallel=draft.tensor_parallel, replicas=scenario.hardware.replicas,
        max_num_seqs=scenario.engine.max_num_seqs,
        max_num_batched_tokens=scenario.engine.max_num_batched_tokens,
        gpu_memory_utilization=scenario.engine.gpu_memory_utilization,
        policy=speculation.policy, schedule=schedule,
        candidate_steps=speculation.candidate_steps,
        tree=None if tree is None else (tree.steps, tree.topk, tree.nodes), survival=survival,
        draft_weights=draft.weights, kv_budget=draft.kv_budget, target_kv=scenario.target.kv,
        draft_kv=draft.kv, notes=tuple(notes),
    )  # fmt: skip


def _method(scenario: Scenario) -> str:
    """The drafting method; a head that is named as draft model has its own."""
    draft = scenario.draft
    if draft.method is not None or draft.model is None:
        return draft.effective_method
    head = named("draft.model", catalogue.model, draft.model).head_of
    if head is None:
        return "draft-model"
    return head if head in ("eagle", "eagle3", "medusa", "mtp") else "block"


def _num_draft_tokens(scenario: Scenario, notes: list[Note]) -> int:
    """K as given; the closed form's best where it is a range."""
    if scenario.draft.tree is not None:
        return scenario.draft.tree.nodes
    ks = scenario.draft_tokens
    if len(ks) == 1:
        return ks[0]
    from specsim.analytic.prediction import predict_deployment
    from specsim.scenario.resolve import resolve

    resolved = resolve(scenario)
    prediction = predict_deployment(
        resolved.deployment, resolved.source, resolved.law, resolved.acceptance_source, ks,
        scenario.point.batch, scenario.point.context,
    )  # fmt: skip
    best = prediction.best
    notes.append(
        Note(
            code="chosen-k",
            message=f"draft.num_draft_tokens is {scenario.draft.num_draft_tokens}: K = "
            f"{best['num_draft_tokens']} is the closed form's best at batch {scenario.point.batch} "
            f"({best['speedup']:.2f}x)",
        )
    )
    return int(best["num_draft_tokens"])


def _name(name: str, role: str, notes: list[Note]) -> str:
    """The repository that an engine downloads, from the catalogue's source of the model."""
    if Path(name).suffix == ".json" or "/" in name:
        return str(Path(name).parent) if name.endswith("config.json") else name
    spec = named(f"{role}.model", catalogue.model, name)
    found = _HUGGING_FACE.search(spec.source)
    if found is None and (known := [a for a in aliases(spec.name, kind="models") if "/" in a]):
        return known[0]
    if found is None:
        notes.append(
            Note(
                code="unknown-repository",
                message=f"{role}: no repository is known for {name!r}; "
                "put in the path or name that the engine loads",
            )
        )
        return name
    return found[1]
