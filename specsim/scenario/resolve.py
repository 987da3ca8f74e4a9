"""From names and numbers to objects: deployment, acceptance laws, cost source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from specsim import catalogue
from specsim.acceptance.chains import Iid, PerPosition
from specsim.acceptance.conversions import law_from_figure
from specsim.acceptance.law import Law
from specsim.catalogue.specs import AcceptancePreset, RuntimeSpec
from specsim.cost.experts import TYPICAL
from specsim.cost.source import CostSource
from specsim.deployment import Deployment, Draft, PlacedModel, Routing, Tree, make_draft
from specsim.errors import CalibrationError, ScenarioError, UnknownNameError
from specsim.scenario.document import Scenario
from specsim.scenario.sections import AcceptanceKeys, DraftKeys

Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """What a scenario names. `acceptance_source` says what the law rests on, and
    `standard_error` (of α, 0 if unknown) feeds the interval."""

    deployment: Deployment
    law: Law
    acceptance_source: str
    source: CostSource
    class_laws: dict[str, Law]


def resolve(scenario: Scenario) -> Resolved:
    """See `Scenario.resolve`."""
    deployment = resolve_deployment(scenario)
    law, source_text = _whole_law(scenario)
    classes: dict[str, Law] = {}
    for traffic in scenario.workload.classes:
        keys = traffic.acceptance or scenario.acceptance
        if keys.calibration is None and traffic.acceptance is None:
            classes[traffic.name] = law
        else:
            classes[traffic.name] = class_law(keys, scenario.draft, traffic.name)[0]
    return Resolved(
        deployment=deployment, law=law, acceptance_source=source_text,
        source=resolve_cost_source(scenario, deployment), class_laws=classes,
    )  # fmt: skip


def _whole_law(scenario: Scenario) -> tuple[Law, str]:
    """The scenario's own law; where only its classes have one, their mixture."""
    classes = scenario.workload.classes
    if scenario.acceptance.given or not classes or any(c.acceptance is None for c in classes):
        return resolve_acceptance(scenario.acceptance, scenario.draft)
    from specsim.acceptance.correlated import Mixture

    whole = sum(c.weight for c in classes)
    parts = tuple(
        (c.weight / whole, class_law(c.acceptance, scenario.draft, c.name)[0])
        for c in classes
        if c.acceptance is not None
    )
    return Mixture(parts), f"mixture of {len(parts)} traffic classes, as given"


def resolve_deployment(scenario: Scenario) -> Deployment:
    """Target, draft, GPU and runtime by name.

    Raises:
        UnknownNameError, ConfigError: for names and files.
        ScenarioError: for parts that do not go together.
    """
    hardware, engine = scenario.hardware, scenario.engine
    target_spec = named("target.model", catalogue.model, scenario.target.model)
    skew, overlap = scenario.cost.routing.skew, scenario.cost.routing.overlap
    routing = Routing(
        skew=TYPICAL.skew if skew is None else skew,
        overlap=TYPICAL.overlap if overlap is None else overlap,
    )
    try:
        target = PlacedModel(
            spec=target_spec, weights=scenario.target.weights, kv=scenario.target.kv,
            tensor_parallel=hardware.tensor_parallel, routing=routing,
            expert_parallel=hardware.expert_parallel,
        )  # fmt: skip
    except ValueError as error:
        raise ScenarioError(f"hardware: {error}") from None
    return Deployment(
        target=target,
        draft=_resolve_draft(scenario.draft, target),
        gpu=named("hardware.gpu", catalogue.gpu, hardware.gpu),
        runtime=calibrated_runtime(
            scenario, named("engine.runtime", catalogue.runtime, engine.runtime)
        ),
        gpu_memory_utilization=engine.gpu_memory_utilization,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        block_size=engine.block_size,
    )


def named(key: str, look_up: Callable[[str], Found], name: str) -> Found:
    """A row of the catalogue; an unknown name's error says which key has it."""
    try:
        return look_up(name)
    except UnknownNameError as error:
        error.args = (f"{key} = {name!r}: {error}",)
        raise


def _resolve_draft(keys: DraftKeys, target: PlacedModel) -> Draft:
    """See `make_draft`; the scenario's names looked up."""
    model = None if keys.model is None else named("draft.model", catalogue.model, keys.model)
    tree = None if keys.tree is None else Tree(**keys.tree.model_dump())
    try:
        return make_draft(
            target, method=keys.method, model=model, weights=keys.weights, kv=keys.kv,
            tensor_parallel=keys.tensor_parallel, kv_budget=keys.kv_budget, tree=tree,
            exit_layer=keys.exit_layer, own_gpus=keys.placement != "target-gpus",
        )  # fmt: skip
    except ValueError as error:
        raise ScenarioError(f"draft: {error}") from None


def resolve_acceptance(keys: AcceptanceKeys, draft: DraftKeys) -> tuple[Law, str]:
    """The law of one acceptance section, and what it rests on in words.

    Raises:
        ScenarioError: if no source is given, or its value is impossible.
    """
    if not keys.given:
        raise ScenarioError(
            "acceptance: expected one of alpha, conditional, survival, acceptance_length, "
            "draft_acceptance_rate, preset, calibration, trace, mixture, beta, markov, chain"
        )
    kind = keys.given[0]
    try:
        return _law(kind, keys, draft)
    except ValueError as error:
        raise ScenarioError(f"acceptance.{kind}: {error}") from None


def class_law(keys: AcceptanceKeys, draft: DraftKeys, name: str) -> tuple[Law, str]:
    """`resolve_acceptance` for a traffic class: of a calibration file the law of the domain
    that bears the class's name, if it has one."""
    if keys.calibration is None:
        return resolve_acceptance(keys, draft)
    return law_of_calibration(keys.calibration, draft, name)


def _law(kind: str, keys: AcceptanceKeys, draft: DraftKeys) -> tuple[Law, str]:
    value: Any = getattr(keys, kind)
    if kind == "preset":
        preset = named("acceptance.preset", catalogue.acceptance_preset, value)
        return _in_tree(law_of_preset(preset), draft), f"preset {preset.name}: {preset.source}"
    if kind == "trace":
        from specsim.acceptance.empirical import load_runs

        return load_runs(value, keys.trace_drafter), f"recorded runs of {value}"
    if kind == "calibration":
        return law_of_calibration(value, draft)
    if kind == "mixture":
        from specsim.acceptance.correlated import Mixture

        parts = tuple((p.weight, resolve_acceptance(p.acceptance, draft)[0]) for p in value)
        return Mixture(parts), f"mixture of {len(parts)} domains, as given"
    if kind == "beta":
        from specsim.acceptance.correlated import BetaRequests

        law: Law = BetaRequests.from_mean(value.mean, value.standard_deviation)
        return law, "Beta-distributed alpha per request, as given"
    if kind == "markov":
        from specsim.acceptance.correlated import Markov

        return Markov(**value.model_dump()), "two-state Markov chain, as given"
    if kind == "chain":
        from specsim.acceptance.hidden import HiddenChain

        return HiddenChain(**value.model_dump()), "hidden chain, as given"
    values = value if isinstance(value, tuple) else (value,)
    law = law_from_figure(
        kind, values, at_num_draft_tokens=keys.at_k, standard_error=keys.standard_error
    )
    suffix = f" measured at K={keys.at_k}" if keys.at_k else ""
    text = f"{kind} = {', '.join(f'{v:g}' for v in values)}{suffix}, as given"
    return (_in_tree(law, draft) if kind == "alpha" else law), text


def _in_tree(law: Law, draft: DraftKeys) -> Law:
    """A chain's α becomes the law of the draft tree's accepted depth. Figures that were
    measured by depth (survival, τ, r) are taken as the tree's own."""
    if draft.tree is None or not isinstance(law, Iid) or law.measured_to is not None:
        return law
    from specsim.acceptance.trees import tree_law

    tree = draft.tree
    return tree_law(law.alpha, steps=tree.steps, topk=tree.topk, nodes=tree.nodes)


def law_of_calibration(path: str, draft: DraftKeys, domain: str = "") -> tuple[Law, str]:
    """The law of a calibration file with its errors and its measured range. Where the file
    has a law for `domain` (a traffic class bears the name), that one.

    Raises:
        CalibrationError: if the file is not valid, or holds no acceptance.
    """
    from specsim.acceptance.calibrated import Calibrated
    from specsim.calibration import load

    calibration = load(path)
    fit = calibration.acceptance
    if fit is None:
        raise CalibrationError(
            f"{path}: holds no acceptance, only costs; fit a log or bench file that has some"
        )
    fit = fit.by_domain.get(domain, fit)
    inner = law_of_keys(*fit.source, draft, where=f"{path}: acceptance")
    measured = calibration.range.num_draft_tokens
    law = Calibrated(
        inner, length_errors=fit.length_errors,
        measured_to=None if measured is None else max(1, int(measured[1])),
        context_range=calibration.range.context,
    )  # fmt: skip
    tokens = "" if fit.num_tokens is None else f", {fit.num_tokens:,} tokens"
    made_of = ", ".join(dict.fromkeys(s.format for s in calibration.sources))
    return law, f"calibration {path} ({fit.law}{tokens}{'; ' + made_of if made_of else ''})"


def law_of_keys(key: str, value: Any, draft: DraftKeys, where: str = "acceptance") -> Law:
    """The law of one key of a calibration's acceptance section.

    Raises:
        CalibrationError: naming the key, and what was expected.
    """
    try:
        keys = AcceptanceKeys.model_validate({key: value})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CalibrationError(f"{where}.{place}: {first['msg']}") from None
    try:
        return _law(key, keys, draft)[0]
    except ValueError as error:
        raise CalibrationError(f"{where}.{key}: {error}") from None


def law_of_preset(preset: AcceptancePreset) -> Law:
    """The law behind a catalogue preset, with its range as the interval."""
    k = preset.at_num_draft_tokens
    middle, low, high = (
        law_from_figure(preset.kind, values, at_num_draft_tokens=k)
        for values in (preset.values, preset.low or preset.values, preset.high or preset.values)
    )
    if isinstance(middle, PerPosition):
        assert isinstance(low, PerPosition)
        assert isinstance(high, PerPosition)
        return PerPosition(middle.conditional, low=low.conditional, high=high.conditional)
    assert isinstance(middle, Iid)
    assert isinstance(low, Iid)
    assert isinstance(high, Iid)
    half = (high.alpha - low.alpha) / 2
    return Iid(
        middle.alpha,
        standard_error=half / 1.96 if half > 0 else None,
        measured_to=preset.max_num_draft_tokens or middle.measured_to,
    )


def resolve_cost_source(scenario: Scenario, deployment: Deployment) -> CostSource:
    """The cost source that `cost.source` names.

    Raises:
        ScenarioError: for an unknown name.
        MissingDataError: if measured kernels are not installed.
    """
    name = scenario.cost.source
    if name == "roofline":
        from specsim.cost.roofline import Roofline

        return Roofline(gpu=deployment.gpu)
    if name == "kernels":
        from specsim.cost.kernels import Kernels

        return Kernels(gpu=deployment.gpu)
    if not _names_file(name):
        raise ScenarioError(
            f"cost.source = {name!r}: expected roofline, kernels or a calibration file"
        )
    from specsim.calibration import load
    from specsim.cost.table import table_of_calibration

    return table_of_calibration(load(name), name)


def _names_file(source: str) -> bool:
    """Whether `cost.source` is a calibration file rather than a kind of source."""
    return Path(source).suffix.lower() in (".yaml", ".yml") or Path(source).is_file()


def calibrated_runtime(scenario: Scenario, runtime: RuntimeSpec) -> RuntimeSpec:
    """The runtime, or what a calibration file measured in its place: forward passes as they
    were timed (padding and launches included) and one host time a step.

    Raises:
        CalibrationError: if the file is not valid.
    """
    if not _names_file(scenario.cost.source):
        return runtime
    from specsim.calibration import load
    from specsim.cost.table import runtime_of_calibration

    return runtime_of_calibration(load(scenario.cost.source), runtime)
