"""What speculative decoding does for one deployment, for every K, from the closed form.

Name a target, a GPU, a draft (or a method) and exactly one acceptance figure; say which of
the figures it is. Without any option a built-in example runs: a 70B model with an 8B draft.

Example: specsim predict --target llama-3.1-70b --draft llama-3.1-8b --gpu h100-sxm --tp 4
--acceptance code --k 1:12
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from specsim.cli.output import print_csv, print_json, print_table, warn
from specsim.errors import ScenarioError
from specsim.scenario.document import Scenario, assign, parse_assignment, read_yaml
from specsim.scenario.sections import ACCEPTANCE_SOURCES
from specsim.units import human_bytes, human_seconds

#: Option → the scenario key it sets. One resolver serves the command line and YAML.
KEYS = {
    "target": "target.model",
    "weights": "target.weights",
    "kv": "target.kv",
    "draft": "draft.model",
    "method": "draft.method",
    "k": "draft.num_draft_tokens",
    "draft_tp": "draft.tensor_parallel",
    "draft_weights": "draft.weights",
    "draft_kv_budget": "draft.kv_budget",
    "exit_layer": "draft.exit_layer",
    "tree": "draft.tree",
    "gpu": "hardware.gpu",
    "tp": "hardware.tensor_parallel",
    "alpha": "acceptance.alpha",
    "conditional": "acceptance.conditional",
    "survival": "acceptance.survival",
    "acceptance_length": "acceptance.acceptance_length",
    "draft_acceptance_rate": "acceptance.draft_acceptance_rate",
    "at_k": "acceptance.at_k",
    "acceptance": "acceptance.preset",
    "calibration": "acceptance.calibration",
    "temperature": "acceptance.temperature",
    "runtime": "engine.runtime",
    "cost_source": "cost.source",
    "cost_ratio": "cost.cost_ratio",
    "verify_ratio": "cost.verify_ratio",
    "batch": "point.batch",
    "context": "point.context",
}

ACCEPTANCE_KEYS = {f"acceptance.{source}" for source in ACCEPTANCE_SOURCES}

#: Options about models and where they run.
OF_MODELS = (
    "target", "weights", "kv", "gpu", "tp", "draft", "draft_tp", "draft_weights",
    "draft_kv_budget", "exit_layer", "runtime", "cost_source", "batch", "context",
)  # fmt: skip

#: The deployment of `specsim predict` without options: it fits, and it is what people ask.
EXAMPLE: dict[str, dict[str, Any]] = {
    "target": {"model": "llama-3.1-70b"},
    "draft": {"model": "llama-3.1-8b", "num_draft_tokens": "1:12"},
    "hardware": {"gpu": "h100-sxm", "tensor_parallel": 4},
    "acceptance": {"preset": "code"},
}


def command(
    target: Annotated[str | None, typer.Option(help="Target model: a name or config.json.")] = None,
    draft: Annotated[str | None, typer.Option(help="Draft model: a name or config.json.")] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="draft-model, eagle, eagle3, medusa, mtp, ngram, early-exit, sparse-kv, block."
        ),
    ] = None,
    gpu: Annotated[str | None, typer.Option(help="GPU, as in `specsim catalogue gpus`.")] = None,
    tp: Annotated[str | None, typer.Option(help="Tensor-parallel GPUs of the target.")] = None,
    weights: Annotated[str | None, typer.Option(help="bf16, fp8, int8 or int4.")] = None,
    kv: Annotated[str | None, typer.Option(help="KV cache: bf16 or fp8.")] = None,
    k: Annotated[str | None, typer.Option(help="Draft tokens: 4, 1:12 or auto.")] = None,
    alpha: Annotated[str | None, typer.Option(help="i.i.d. conditional acceptance.")] = None,
    conditional: Annotated[
        str | None, typer.Option(help="P(token i accepted | token i-1 was): h1,h2,…")
    ] = None,
    survival: Annotated[
        str | None, typer.Option(help="P(at least i accepted): s1,s2,… (what engines print).")
    ] = None,
    acceptance_length: Annotated[
        str | None, typer.Option(help="Tokens per step, bonus included; with --at-k.")
    ] = None,
    draft_acceptance_rate: Annotated[
        str | None, typer.Option(help="Accepted over drafted tokens; with --at-k.")
    ] = None,
    at_k: Annotated[str | None, typer.Option(help="The K such a figure was measured at.")] = None,
    acceptance: Annotated[
        str | None, typer.Option(help="A preset: see `specsim catalogue acceptance`.")
    ] = None,
    calibration: Annotated[str | None, typer.Option(help="File made by `specsim fit`.")] = None,
    temperature: Annotated[str | None, typer.Option(help="Sampling temperature.")] = None,
    batch: Annotated[str | None, typer.Option(help="Sequences decoded together.")] = None,
    context: Annotated[str | None, typer.Option(help="Tokens already in each sequence.")] = None,
    runtime: Annotated[str | None, typer.Option(help="vllm, sglang, trtllm, ideal, …")] = None,
    cost_source: Annotated[
        str | None, typer.Option(help="roofline, kernels or a calibration file.")
    ] = None,
    draft_tp: Annotated[str | None, typer.Option(help="GPUs of the draft.")] = None,
    draft_weights: Annotated[str | None, typer.Option(help="Dtype of the draft.")] = None,
    draft_kv_budget: Annotated[
        str | None, typer.Option(help="Context that the draft attends to, in tokens.")
    ] = None,
    exit_layer: Annotated[
        str | None, typer.Option(help="Layers drafted with (early-exit).")
    ] = None,
    tree: Annotated[str | None, typer.Option(help="steps=S,topk=T,nodes=N")] = None,
    cost_ratio: Annotated[
        str | None, typer.Option(help="Without models: draft pass over target pass.")
    ] = None,
    verify_ratio: Annotated[
        str | None, typer.Option(help="Without models: verify pass over target pass.")
    ] = None,
    scenario: Annotated[
        Path | None, typer.Option(help="Start from a scenario file (YAML).")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any scenario key: key=value.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write figures to FILE.png or FILE.svg.")
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Rows as CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Where a step's time goes, operation by operation.")
    ] = False,
) -> None:
    """See the module's docstring, which is this command's help."""
    given = {name: value for name, value in locals().items() if name in KEYS and value is not None}
    described = build_scenario(given, scenario, set_ or [])
    if csv and as_json:
        raise ScenarioError("--csv and --json: expected one of them")
    if explain and (csv or as_json):
        raise ScenarioError("--explain prints a table: not with --csv or --json")
    result, prediction = answer(described)
    result["warnings"] += ignored(given, described)
    if plot is not None:  # before anything is printed: an error must leave stdout empty
        _plot(plot, "" if prediction is None else _title(described), result, prediction)
    if as_json:
        print_json({"inputs": _inputs(described), **result})
    elif csv:
        print_csv(result["rows"])
    else:
        print_answer(described, result)
    for caveat in result["warnings"]:
        warn(caveat["code"], caveat["message"])
    if explain and prediction is not None and not as_json:
        print_explanation(prediction)


def build_scenario(given: dict[str, str], file: Path | None, assignments: list[str]) -> Scenario:
    """Options, file and `--set` as one validated scenario.

    Raises:
        ScenarioError: naming option or key, value and what was expected.
    """
    data: dict[str, Any] = {} if file is None else read_yaml(file)
    if not given and file is None and not assignments:
        data = {section: dict(keys) for section, keys in EXAMPLE.items()}
    if any(KEYS[name] in ACCEPTANCE_KEYS for name in given):
        data["acceptance"] = {}  # a figure on the command line replaces the file's
    for name, value in given.items():
        section, key = KEYS[name].split(".")
        data.setdefault(section, {})[key] = value  # two figures stay two: an error below
    for text in assignments:
        assign(data, *parse_assignment(text))
    where = "predict" if file is None else str(file)
    scenario = Scenario.from_dict(data, where)
    if scenario.cost.cost_ratio is None and file is None and "target" not in data:
        raise ScenarioError("--target: expected a model, or --cost-ratio without models")
    return scenario


def ignored(given: dict[str, Any], scenario: Scenario) -> list[dict[str, str]]:
    """A warning for options that were typed and change nothing here."""
    useless = {}
    if scenario.draft.effective_method != "early-exit":
        useless["exit_layer"] = "without --method early-exit"
    if scenario.cost.cost_ratio is None:
        useless["verify_ratio"] = "without --cost-ratio"
    else:
        useless |= dict.fromkeys(OF_MODELS, "with --cost-ratio, which is without models")
    return [
        {"code": "ignored-option", "message": f"--{name.replace('_', '-')} has no effect {when}"}
        for name, when in useless.items()
        if name in given
    ]


def _inputs(scenario: Scenario) -> dict[str, Any]:
    """The sections of the scenario that the closed form reads."""
    ratios = scenario.cost.cost_ratio is not None
    kept = ("draft", "acceptance", "cost")
    if not ratios:
        kept = ("target", *kept, "hardware", "engine", "point")  # type: ignore[assignment]
    return {key: value for key, value in scenario.to_dict().items() if key in kept}


def answer(scenario: Scenario) -> tuple[dict[str, Any], Any]:
    """The result's JSON keys (`inputs` left out) and the `Prediction`, None for ratios.

    Raises:
        SpecsimError: for names that are not known and parts that do not fit together.
    """
    from specsim.scenario.resolve import resolve, resolve_acceptance

    ks = scenario.draft_tokens
    if scenario.cost.cost_ratio is not None:
        from specsim.analytic.ratios import passes_of_method, predict_from_ratios

        law, source = resolve_acceptance(scenario.acceptance, scenario.draft)
        passes = passes_of_method(scenario.draft.method or "draft-model")
        ratios = predict_from_ratios(
            law, source, ks, scenario.cost.cost_ratio, scenario.cost.verify_ratio, passes
        )
        return ratios, None
    from specsim.analytic.prediction import predict_deployment

    resolved = resolve(scenario)
    tree = resolved.deployment.draft.tree
    if tree is not None:
        if scenario.draft.num_draft_tokens not in ("auto", tree.nodes):
            raise ScenarioError(
                f"draft.num_draft_tokens = {scenario.draft.num_draft_tokens!r}: a tree drafts "
                f"nodes = {tree.nodes} tokens"
            )
        ks = range(tree.nodes, tree.nodes + 1)
    if resolved.deployment.draft.method == "none" and any(ks):
        raise ScenarioError("draft: expected draft.model or draft.method to speculate with")
    prediction = predict_deployment(
        resolved.deployment, resolved.source, resolved.law, resolved.acceptance_source, ks,
        scenario.point.batch, scenario.point.context,
    )  # fmt: skip
    result = prediction.to_dict()
    if scenario.acceptance.temperature:
        result["warnings"].append({
            "code": "temperature",
            "message": "acceptance is taken as measured at temperature "
            f"{scenario.acceptance.temperature:g}; specsim does not rescale it",
        })  # fmt: skip
    return result, prediction


def print_answer(scenario: Scenario, result: dict[str, Any]) -> None:
    """The table and what to conclude from it, for a person."""
    unit = scenario.cost.cost_ratio is not None
    seconds = (lambda s: f"{s:.3f}") if unit else human_seconds
    if not unit:
        print(_title(scenario))
    base = result["baseline"]
    bound = f", {base['bound']}-bound" if base["bound"] else ""
    print(f"Without speculation: {seconds(base['step_s'])} a step, "
          f"{base['tokens_per_s']:.1f} tokens/s{bound}")  # fmt: skip
    print()
    header = ["K", "tokens/step", "draft", "verify", "overhead", "step", "tokens/s", "speedup",
              "95 % interval", "verify bound"]  # fmt: skip
    best = result["best"]
    rows = []
    for row in result["rows"]:
        mark = " *" if row["num_draft_tokens"] == best["num_draft_tokens"] else ""
        rows.append([
            f"{row['num_draft_tokens']}{mark}", f"{row['acceptance_length']:.2f}",
            seconds(row["draft_s"]), seconds(row["verify_s"]), seconds(row["overhead_s"]),
            seconds(row["step_s"]), f"{row['tokens_per_s']:.1f}", f"{row['speedup']:.2f}x",
            f"{row['speedup_low']:.2f}-{row['speedup_high']:.2f}", row["verify_bound"] or "-",
        ])  # fmt: skip
    print_table(header, rows)
    print()
    print(_conclusion(result))


def _title(scenario: Scenario) -> str:
    hardware, target, draft = scenario.hardware, scenario.target, scenario.draft
    drafter = draft.model or draft.method or "no draft"
    if draft.model and draft.method:
        drafter = f"{draft.method} {draft.model}"
    return (
        f"{target.model} ({target.weights}) with {drafter} on "
        f"{hardware.tensor_parallel} x {hardware.gpu}, {scenario.engine.runtime}; "
        f"batch {scenario.point.batch}, context {scenario.point.context}"
    )


def _conclusion(result: dict[str, Any]) -> str:
    best, limits, memory = result["best"], result["break_even"], result["memory"]
    lines = []
    if best["num_draft_tokens"]:
        lines.append(f"Best: K = {best['num_draft_tokens']}, {best['speedup']:.2f}x")
    else:
        lines.append("Best: no speculation; no K is faster")
    alpha = limits["alpha"]
    text = "no acceptance is enough" if alpha is None else f"alpha above {alpha:.3f}"
    lines.append(f"Pays at: {text}")
    for name in ("batch", "context"):
        if limits[name] is not None:
            ranges = ", ".join(f"{low}-{high}" for low, high in limits[name]) or "none"
            lines.append(f"  {name}: {ranges}")
    if memory is not None:
        used, budget = memory["used_bytes_per_gpu"], memory["budget_bytes_per_gpu"]
        lines.append(
            f"Memory: {human_bytes(used)} of {human_bytes(budget)} per GPU before KV cache; "
            f"{memory['max_concurrency']} sequences fit "
            f"({memory['max_concurrency_without_speculation']} without speculation)"
        )
    lines.append(f"Cost: {result['sources']['cost']}")
    lines.append(f"Acceptance: {result['sources']['acceptance']}")
    return "\n".join(lines)


def print_explanation(prediction: Any) -> None:
    """Operations of the target's verify pass at the best K."""
    from specsim.cost.operations import Work

    k = prediction.best["num_draft_tokens"]
    deployment, grid = prediction.deployment, prediction.grid
    work = Work.uniform(grid.batch[0], k + 1, grid.context[0])
    print(f"\nOne verify pass of {k + 1} tokens a sequence, per GPU:")
    times = prediction.source.explain(deployment.target, work)
    beside = _other_source(prediction, work)
    rows = []
    for index, time in enumerate(times):
        op = time.operation
        row = [
            op.name, str(op.count), human_bytes(float(op.count * op.num_bytes)),
            f"{float(op.count * op.flops) / 1e9:.2f}", human_seconds(float(time.seconds)),
            time.bound,
        ]  # fmt: skip
        if beside is not None:
            row.append(human_seconds(float(beside[1][index].seconds)))
        rows.append(row)
    header = ["operation", "count", "bytes", "GFLOP", "time", "bound"]
    print_table(header if beside is None else [*header, beside[0]], rows)


def _other_source(prediction: Any, work: Any) -> tuple[str, Any] | None:
    """The same operations by the other cost source: kernels beside the roofline, and the
    reverse; None where the GPU has no tables or they are not installed."""
    from specsim.cost.kernels import Kernels
    from specsim.cost.roofline import Roofline
    from specsim.errors import MissingDataError

    deployment = prediction.deployment
    if isinstance(prediction.source, Kernels):
        return "roofline", Roofline(gpu=deployment.gpu).explain(deployment.target, work)
    if not isinstance(prediction.source, Roofline):
        return None
    try:
        return "kernels", Kernels(gpu=deployment.gpu).explain(deployment.target, work)
    except MissingDataError:
        return None


def _plot(path: Path, title: str, result: dict[str, Any], prediction: Any) -> None:
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ScenarioError(f"--plot {str(path)!r}: expected a name ending in .png or .svg")
    from specsim.analytic.curves import speedup_over_batch
    from specsim.plots import prediction_figure, save

    curve = None if prediction is None else speedup_over_batch(prediction)
    try:
        save(prediction_figure(result["rows"], curve, title), path)
    except OSError as problem:
        raise ScenarioError(f"--plot {str(path)!r}: {problem.strerror or problem}") from None
