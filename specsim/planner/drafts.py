"""The drafts that go with a target, each with the acceptance it rests on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from specsim import catalogue
from specsim.acceptance.conversions import alpha_from_acceptance_length
from specsim.acceptance.law import Law, hazard_of
from specsim.catalogue.specs import AcceptancePreset, ModelSpec
from specsim.deployment import PlacedModel, make_draft
from specsim.errors import ScenarioError, UnknownNameError
from specsim.planner.draft_size import Z95, size_model, size_ratio
from specsim.planner.problem import DEFAULT_DRAFT_TOKENS, Problem
from specsim.scenario.document import Scenario
from specsim.scenario.resolve import class_law, law_of_preset, named, resolve_acceptance
from specsim.scenario.sections import AcceptanceKeys, DraftKeys

#: K at which a law is reduced to one α, to carry it over to another draft.
REFERENCE_K = 4
#: Size of a draft whose acceptance is given without saying which draft it is.
UNNAMED_DRAFT_RATIO = 10.0
#: Standard error of a given acceptance that comes without one.
GIVEN_ALPHA_ERROR = 0.03
#: Hazards of later MTP positions over the first: survival .84/.60/.39/.27 of Gemma-4
#: (https://github.com/eugr/spark-vllm-docker/issues/343) is h = .84/.71/.65/.69.
MTP_DECAY = (1.0, 0.85, 0.78, 0.78)
#: A draft above this share of the target's active parameters is not worth a row.
LARGEST_DRAFT_SHARE = 0.5
#: Draft trees (steps, topk, nodes) that are tried where the engine verifies trees.
TREES = ((4, 4, 12), (6, 8, 32))
TREE_ENGINES = ("sglang", "trtllm", "ideal")


@dataclass(frozen=True, kw_only=True)
class DraftOption:
    """One way to draft. `keys` is the draft section, `acceptance` the acceptance section
    of each class (by name, "" without classes), `laws` what they resolve to; `measured`
    says whether it is the user's figure (True) or an estimate of ours."""

    label: str
    keys: Mapping[str, Any]
    acceptance: Mapping[str, Mapping[str, Any]]
    laws: Mapping[str, Law]
    measured: bool
    source: str
    max_draft_tokens: int | None = None

    @property
    def has_model(self) -> bool:
        """Whether weights are loaded for it."""
        return self.keys["method"] not in ("none", "ngram", "early-exit", "sparse-kv")


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the scenario says about acceptance: the law of its draft per class, as one α with
    its error, the draft's method, and the size ratio it belongs to (None: a head or n-gram,
    to which sizes do not apply)."""

    laws: Mapping[str, Law]
    method: str
    alphas: Mapping[str, float]
    errors: Mapping[str, float]
    ratio: float | None
    anything: bool
    domains: Mapping[str, str]

    def shift(self, name: str) -> float:
        """How much harder a class is than the average, in log(1 − α)."""
        logs = {key: math.log(max(1 - a, 1e-3)) for key, a in self.alphas.items()}
        return logs[name] - sum(logs.values()) / len(logs) if logs else 0.0


def draft_options(problem: Problem) -> list[DraftOption]:
    """The scenario's own draft first, then heads, n-gram and every smaller model of the
    family, narrowed to `problem.drafts` if that is given.

    Raises:
        ScenarioError: if a wanted draft does not go with the target.
    """
    scenario = problem.scenario
    target = named("target.model", catalogue.model, scenario.target.model)
    given = given_acceptance(problem, target)
    found: dict[str, DraftOption] = {}
    own = _own(problem, given)
    if own is not None:
        found[own.label] = own
    for option in _candidates(problem, target, given):
        if own is None or not _same_draft(own, option):
            found.setdefault(option.label, option)
    if problem.drafts is None:
        return list(found.values())
    return [_wanted(name, found, target) for name in problem.drafts if name != "none"]


def _same_draft(own: DraftOption, other: DraftOption) -> bool:
    """Whether an estimate is of the draft that was measured."""
    return all(own.keys.get(key) == other.keys.get(key) for key in ("method", "model", "tree"))


def _wanted(name: str, found: Mapping[str, DraftOption], target: ModelSpec) -> DraftOption:
    for option in found.values():
        if name in (option.label, option.keys.get("model"), option.keys["method"]):
            return option
    try:
        resolved = catalogue.model(name).name
    except UnknownNameError:
        known = ", ".join(["none", *found])
        raise ScenarioError(f"drafts: {name!r} is no draft for {target.name}; {known}") from None
    for option in found.values():
        if option.keys.get("model") == resolved:
            return option
    raise ScenarioError(
        f"drafts: {resolved!r} does not go with {target.name} (another tokenizer, or too "
        f"large); known: {', '.join(['none', *found])}"
    )


def given_acceptance(problem: Problem, target: ModelSpec) -> Given:
    """Reads the scenario's acceptance sections."""
    scenario = problem.scenario
    ratio: float | None = UNNAMED_DRAFT_RATIO
    keys = scenario.draft
    if keys.model is not None:
        spec = named("draft.model", catalogue.model, keys.model)
        ratio = None if spec.head_of else size_ratio(target, spec)
    elif keys.effective_method not in ("none", "draft-model"):
        ratio = None
    alphas: dict[str, float] = {}
    errors: dict[str, float] = {}
    domains: dict[str, str] = {}
    laws: dict[str, Law] = {}
    for name, section in class_acceptance(scenario).items():
        domains[name] = _domain(name, section)
        if not section.given:
            continue
        laws[name] = class_law(section, scenario.draft, name)[0]
        alphas[name], errors[name] = effective_alpha(laws[name])
    complete = len(alphas) == len(problem.classes)
    return Given(
        laws=laws, method="" if keys.tree else keys.effective_method,
        alphas=alphas if complete else {}, errors=errors, ratio=ratio, anything=complete,
        domains=domains,
    )  # fmt: skip


def class_acceptance(scenario: Scenario) -> dict[str, AcceptanceKeys]:
    """The acceptance section of each class, its own or the scenario's."""
    classes = scenario.workload.classes
    if not classes:
        return {"": scenario.acceptance}
    return {c.name: c.acceptance or scenario.acceptance for c in classes}


def effective_alpha(law: Law) -> tuple[float, float]:
    """α of the i.i.d. law with the same τ at K = 4, and its standard error."""
    tau = min(max(law.acceptance_length(REFERENCE_K), 1.0), REFERENCE_K + 1.0)
    alpha = alpha_from_acceptance_length(tau, REFERENCE_K)
    bounds = law.survival_interval(REFERENCE_K)
    if bounds is None:
        return alpha, GIVEN_ALPHA_ERROR
    low, high = (alpha_from_acceptance_length(1 + float(b.sum()), REFERENCE_K) for b in bounds)
    return alpha, (high - low) / (2 * Z95)


def _domain(name: str, section: AcceptanceKeys) -> str:
    if section.preset is not None:
        return catalogue.acceptance_preset(section.preset).domain
    return name


def _own(problem: Problem, given: Given) -> DraftOption | None:
    """The scenario's draft with the scenario's acceptance, as it stands."""
    scenario = problem.scenario
    keys = scenario.draft
    if keys.effective_method == "none" or not given.anything:
        return None
    sections = class_acceptance(scenario)
    resolved = {n: class_law(s, scenario.draft, n) for n, s in sections.items()}
    kept = keys.model_dump(mode="json", exclude_none=True, exclude={"num_draft_tokens"})
    kept["method"] = keys.effective_method
    if keys.model is not None:
        kept["model"] = catalogue.model(keys.model).name
    tree = keys.tree
    label = str(kept["model"] if keys.model is not None else kept["method"])
    if tree is not None:
        label += f" tree {tree.steps}x{tree.topk}/{tree.nodes}"
    return DraftOption(
        label=label, keys=kept, measured=True,
        acceptance={n: s.model_dump(mode="json", exclude_none=True) for n, s in sections.items()},
        laws={n: law for n, (law, _) in resolved.items()},
        source="; ".join(dict.fromkeys(text for _, text in resolved.values())),
    )  # fmt: skip


def _candidates(problem: Problem, target: ModelSpec, given: Given) -> Iterator[DraftOption]:
    names = [c.name for c in problem.classes]
    copying = "published n-gram acceptance by domain; measure the copy rate of your text"
    yield _option("ngram", {"method": "ngram"}, names, _ngram(given, names), copying)
    head = f"eagle3-{target.name}"
    keys: dict[str, Any] = {"method": "eagle3"}
    if head in catalogue.list_models():
        keys["model"] = head
    figures = {n: _head(given, n, "eagle3") for n in names}
    source = "published EAGLE-3 heads of other targets, moved by how hard each class is"
    yield _option("eagle3", keys, names, figures, source)
    engine = named("engine.runtime", catalogue.runtime, problem.scenario.engine.runtime).engine
    if engine in TREE_ENGINES:
        if given.anything and given.method == "eagle3":  # the same head in a tree
            figures = {n: _alpha(given.alphas[n], given.errors[n]) for n in names}
            source = "the chain's own acceptance, as one alpha, in a tree"
        for steps, topk, nodes in TREES:
            tree = {"steps": steps, "topk": topk, "nodes": nodes}
            yield _option(f"eagle3 tree {steps}x{topk}/{nodes}", {**keys, "tree": tree}, names,
                          figures, source)  # fmt: skip
    if target.mtp_layers:
        yield _option("mtp", {"method": "mtp"}, names, {n: _mtp(given, n) for n in names},
                      "published MTP acceptance at the first position, later ones as seen "
                      "in Gemma-4", limit=8)  # fmt: skip
    for spec in _family(target):
        estimates = {n: _sized(given, n, size_ratio(target, spec)) for n in names}
        yield _option(
            spec.name, {"method": "draft-model", "model": spec.name}, names,
            {n: a for n, (a, _) in estimates.items()}, estimates[names[0]][1],
        )  # fmt: skip


def _family(target: ModelSpec) -> Iterator[ModelSpec]:
    """Smaller models that share the target's tokenizer, one of each shape, largest first."""
    placed = PlacedModel(spec=target)
    shapes: set[tuple[float, int]] = set()
    specs = [catalogue.model(name) for name in catalogue.list_models()]
    for spec in sorted(specs, key=lambda s: -s.num_parameters):
        shape = (float(spec.num_parameters), spec.num_layers)
        small = spec.num_active_parameters <= LARGEST_DRAFT_SHARE * target.num_active_parameters
        if spec.head_of or spec.family != target.family or not small or shape in shapes:
            continue
        if spec.num_parameters >= target.num_parameters:
            continue
        try:
            make_draft(placed, method="draft-model", model=spec)
        except ValueError:
            continue
        shapes.add(shape)
        yield spec


def _option(
    label: str, keys: dict[str, Any], names: list[str], figures: Mapping[str, dict[str, Any]],
    source: str, limit: int | None = None,
) -> DraftOption:  # fmt: skip
    draft = DraftKeys.model_validate(keys)
    laws = {
        n: resolve_acceptance(AcceptanceKeys.model_validate(figures[n]), draft)[0] for n in names
    }
    return DraftOption(
        label=label, keys=keys, acceptance=dict(figures), laws=laws, measured=False,
        source=f"estimate: {source}", max_draft_tokens=limit,
    )  # fmt: skip


def _presets(method: str) -> list[AcceptancePreset]:
    presets = [catalogue.acceptance_preset(n) for n in catalogue.list_acceptance_presets()]
    return [p for p in presets if p.method == method]


def _level(method: str) -> tuple[float, float]:
    """Mean and spread of log(1 − α) over published figures of a method (chat and code)."""
    alphas = [effective_alpha(law_of_preset(p))[0] for p in _presets(method)]
    logs = np.log(1 - np.asarray(alphas))
    return float(logs.mean()), float(logs.std(ddof=1))


def _figure(log_rejected: float, spread: float) -> dict[str, Any]:
    alpha = min(max(1 - math.exp(log_rejected), 0.0), 0.99)
    return _alpha(alpha, (1 - alpha) * spread)


def _alpha(alpha: float, error: float) -> dict[str, Any]:
    return {"alpha": round(alpha, 4), "standard_error": round(min(error, 0.3), 4)}


def _head(given: Given, name: str, method: str) -> dict[str, Any]:
    level, spread = _level(method)
    return _figure(level + given.shift(name), spread)


def _mtp(given: Given, name: str) -> dict[str, Any]:
    first = _presets("mtp")[0].values[0]
    rejected = math.log(1 - first) + given.shift(name)
    alpha = 1 - math.exp(min(rejected, 0.0))
    return {"conditional": [round(alpha * decay, 4) for decay in MTP_DECAY]}


def _ngram(given: Given, names: list[str]) -> dict[str, dict[str, Any]]:
    """n-gram lives on copying: the domain decides, not the model."""
    known = {p.name: effective_alpha(law_of_preset(p))[0] for p in _presets("ngram")}
    plain = [a for n, a in known.items() if "instructcoder" not in n]
    everything = list(known.values())
    result = {}
    for name in names:
        values = everything if "code" in given.domains.get(name, "") else plain
        result[name] = {"alpha": round(float(np.mean(values)), 4), "standard_error": 0.08}
    return result


def _sized(given: Given, name: str, ratio: float) -> tuple[dict[str, Any], str]:
    model = size_model()
    if given.anything and given.ratio is not None:
        anchor, error = given.alphas[name], given.errors[name]
        estimate = model.from_anchor(ratio, given.ratio, anchor, error)
        if given.method == "draft-model":  # a chain: its shape is kept
            law = given.laws[name]
            return _moved(law, anchor, estimate.alpha, estimate.standard_error), estimate.source
    else:
        estimate = model.unanchored(ratio)
    alpha = estimate.alpha
    if given.anything and given.ratio is None:  # a head's figures say which class is harder
        alpha = 1 - min((1 - alpha) * math.exp(given.shift(name)), 1.0)
    return _alpha(alpha, estimate.standard_error), estimate.source


def _moved(law: Law, anchor: float, alpha: float, error: float) -> dict[str, Any]:
    """A law of which every rejection is (1 − alpha)/(1 − anchor) times as likely: the i.i.d.
    law stays one, others keep how their hazards change along the draft."""
    hazards = reference_hazards(law)
    if np.ptp(hazards) < 1e-9:
        return _alpha(alpha, error)
    factor = (1 - alpha) / max(1 - anchor, 1e-3)
    moved = np.clip(1 - factor * (1 - hazards), 0.0, 0.999)
    return {
        "conditional": [round(float(h), 4) for h in moved],
        "standard_error": round(min(error, 0.3), 4),
    }


def reference_hazards(law: Law) -> npt.NDArray[np.float64]:
    """Conditional acceptance by position, up to the K that a law was measured for: position
    i where i tokens are drafted (at least `REFERENCE_K`), since long jumps use up what is
    easy to predict."""
    largest = max(law.measured_to or max(DEFAULT_DRAFT_TOKENS), REFERENCE_K)
    return np.array(
        [hazard_of(law.survival(max(i, REFERENCE_K)))[i - 1] for i in range(1, largest + 1)]
    )
