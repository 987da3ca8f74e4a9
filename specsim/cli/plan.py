"""Choose the draft, K, policy, batch limit and GPUs for a service, and say why.

SCENARIO is a YAML file (docs/scenario.md); its draft and acceptance are taken as measured,
other drafts get estimates that are marked. Without a file a built-in scenario runs: a 70B
chat service with code, factual and creative traffic.

Example: specsim plan examples/chat-70b.yaml --gpu h100-sxm,a100-sxm-80gb --gpus 8
--html plan.html
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specsim.cli.output import print_json, print_table, warn
from specsim.errors import CalibrationError, DoesNotFitError, ScenarioError
from specsim.scenario.document import Scenario
from specsim.units import human_seconds

if TYPE_CHECKING:
    from specsim.planner.decision import Plan


def command(
    scenario: Annotated[Path | None, typer.Argument(help="A scenario file (YAML).")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any scenario key: key=value.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="GPU types to choose from, comma-separated.")
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(help="At most so many GPUs, or any; left out, all of the scenario's."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="At most so many USD per hour, instead of --gpus.")
    ] = None,
    draft: Annotated[
        str | None, typer.Option(help="Only these drafts, comma-separated: names or methods.")
    ] = None,
    attained: Annotated[
        float, typer.Option(help="Share of every class's requests that must meet the SLO.")
    ] = 0.9,
    simulate: Annotated[
        bool, typer.Option("--simulate/--no-simulate", help="Replay the best plans.")
    ] = True,
    requests: Annotated[int, typer.Option(min=50, help="Requests of one simulated run.")] = 800,
    html: Annotated[Path | None, typer.Option(help="Write the whole report to FILE.html.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a figure to FILE.png or FILE.svg.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the chosen scenario to FILE.yaml.")
    ] = None,
    probe: Annotated[
        str | None, typer.Option(help="vllm: the few benchmarks that would settle the plan.")
    ] = None,
    measured: Annotated[
        Path | None, typer.Option(help="Such benchmarks, as read by `specsim fit`.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """See the module's docstring, which is this command's help."""
    from specsim.planner.decision import plan
    from specsim.planner.problem import BUILT_IN

    described = Scenario.from_dict(BUILT_IN) if scenario is None else Scenario.load(scenario)
    described = described.with_set(set_ or [])
    check_outputs(html, plot, save, probe)
    steps = None if measured is None else measured_steps(measured)
    most = max_gpus(gpus)
    if budget is not None and not 0 < budget < float("inf"):
        raise ScenarioError(f"--budget {budget:g}: expected USD per hour, finite and > 0")
    try:
        decided = plan(
            described, gpus=_listed("--gpu", gpu), max_gpus=most, budget_usd_per_h=budget,
            drafts=_listed("--draft", draft), attained=attained, simulate=simulate,
            num_requests=requests, progress=_progress if sys.stderr.isatty() else None,
        )  # fmt: skip
    except DoesNotFitError as problem:
        _does_not_fit(str(problem), as_json)
        return
    finally:
        if sys.stderr.isatty():
            _progress("")
    result = decided.to_dict()
    points = None
    if probe is not None:
        from specsim.planner.probe import probe_points

        points = probe_points(decided)
        result["probe"] = points.to_dict()
    after = None
    if steps is not None:
        from specsim.planner.probe import settled

        after = settled(decided, steps)
        result["measured"] = after.to_dict()
    write_outputs(decided, html, plot, save)
    if as_json:
        print_json(result)
    else:
        print_plan(decided)
        if points is not None:
            print_probe(points)
        if after is not None:
            print_settled(after)
    for caveat in decided.warnings:
        warn(caveat.code, caveat.message)


def max_gpus(text: str | None) -> int | None:
    """`--gpus N` or `any`; None leaves it to the budget or to the scenario.

    Raises:
        ScenarioError: for anything else.
    """
    if text is None:
        return None
    if text == "any":
        return 1_000_000
    if not text.isdigit() or int(text) < 1:
        raise ScenarioError(f"--gpus {text!r}: expected a number of GPUs, at least 1, or any")
    return int(text)


def _listed(option: str, text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise ScenarioError(f"{option} {text!r}: expected at least one name")
    return names


def check_outputs(
    html: Path | None, plot: Path | None, save: Path | None, probe: str | None
) -> None:
    """Refuse names that cannot be written before anything is computed.

    Raises:
        ScenarioError: naming option and value.
    """
    for option, path, suffixes in (
        ("--html", html, (".html", ".htm")), ("--plot", plot, (".png", ".svg", ".pdf")),
        ("--save", save, (".yaml", ".yml")),
    ):  # fmt: skip
        if path is None:
            continue
        if path.suffix.lower() not in suffixes:
            raise ScenarioError(f"{option} {str(path)!r}: expected a name in {', '.join(suffixes)}")
        if not path.parent.is_dir():
            raise ScenarioError(f"{option} {str(path)!r}: no such directory")
        if path.is_dir():
            raise ScenarioError(f"{option} {str(path)!r}: is a directory, expected a file")
    if probe is not None and probe != "vllm":
        raise ScenarioError(f"--probe {probe!r}: expected vllm (it has synthetic acceptance)")


def write_outputs(decided: Plan, html: Path | None, plot: Path | None, save: Path | None) -> None:
    """Report, figure and scenario.

    Raises:
        ScenarioError: if one cannot be written.
    """
    if html is not None:
        decided.to_html(html)
    try:
        if plot is not None:
            from specsim.plots import save as save_figure

            save_figure(decided.plot().figure, plot)
        if save is not None:
            save.write_text(decided.best.to_yaml(), encoding="utf-8")
    except OSError as problem:
        raise ScenarioError(f"cannot write: {problem.strerror or problem}") from None


def print_plan(decided: Plan) -> None:
    """The short form: what to run, the rivals, the ten answers."""
    best, chosen = decided.best, decided.chosen
    hardware = best.hardware
    drafter = chosen.candidate.label if chosen.candidate.speculates else "no speculation"
    print(f"Run {best.target.model} ({best.target.weights}) on {hardware.replicas} x "
          f"{hardware.tensor_parallel} {hardware.gpu} with {drafter}, "
          f"policy {best.speculation.policy}, max_num_seqs {best.engine.max_num_seqs}")  # fmt: skip
    if chosen.candidate.speculates:
        rows = ", ".join(f"batch {a}-{b}: K={k}" for a, b, k in decided.schedule)
        print(f"Schedule: {rows}")
    if decided.probability_better_than_off is not None:
        print(f"Odds that speculation beats none: {decided.probability_better_than_off:.0%}")
    print(f"\nRanked by {decided.objective}:")
    header = ["plan", "K", "GPUs", "objective", "95 % interval", "loses", "TPOT", "acceptance"]
    rows_ = []
    for r in decided.ranked:
        c = r.candidate
        known = "-" if c.option is None else ("given" if c.option.measured else "estimate")
        rows_.append([
            f"{c.label}, {c.policy.kind}" if c.speculates else "no speculation",
            str(c.largest_k), f"{c.replicas}x{c.num_gpus}", f"{r.objective:.3g}",
            f"{r.low:.3g}-{r.high:.3g}", f"{max(r.regret, 0):.0%}",
            human_seconds(r.demand_tpot_s), known,
        ])  # fmt: skip
    print_table(header, rows_)
    print()
    for number, answer in enumerate(decided.answers, start=1):
        print(f"{number:2}. {answer.question}")
        print(f"    {answer.answer}")
        print(f"    because: {answer.reason}")


def print_probe(points: Any) -> None:
    """The benchmark points as commands."""
    print(f"\nMeasure {len(points.points)} points; vLLM's synthetic acceptance stands in for a "
          "trained draft:")  # fmt: skip
    for line in points.commands():
        print(f"  {line}")


def print_settled(after: Any) -> None:
    """What the measurements make of the plan."""
    from specsim.planner.probe import MAX_BATCH

    rows = ", ".join(f"batch {a}-{b}: K={k}" for a, b, k in after.schedule)
    print(f"\nAfter {after.num_points} measured points: {rows}")
    print(f"  K = {after.num_draft_tokens} at the demanded load; regret {after.regret:.1%} "
          f"({after.regret_low:.1%} to {after.regret_high:.1%})")  # fmt: skip
    edge = f"{after.crossover_low} to {after.crossover_high}"
    print(f"  pays up to batch {after.crossover} ({edge}; looked at up to {MAX_BATCH})")


def measured_steps(path: Path) -> tuple[Any, ...]:
    """The observed steps of a calibration file.

    Raises:
        CalibrationError: if it cannot be read or has none.
    """
    from specsim import calibration

    cost = calibration.load(path).cost
    if cost is None or not cost.steps:
        raise CalibrationError(f"{path}: no measured steps (cost.steps)")
    return cost.steps


def _does_not_fit(message: str, as_json: bool) -> None:
    """An unfavourable answer is an answer."""
    from specsim.planner.answers import QUESTIONS

    answers = [
        {"question": q, "answer": message if i == 4 else "Nothing to answer: the target does "
         "not fit.", "value": None, "low": None, "high": None, "unit": "", "reason": message}
        for i, q in enumerate(QUESTIONS)
    ]  # fmt: skip
    if as_json:
        print_json({
            "best": None, "alternatives": [], "baseline": None, "answers": answers,
            "schedule": [], "probability_better_than_off": None, "sensitivity": [],
            "warnings": [{"code": "does-not-fit", "message": message}],
        })  # fmt: skip
    else:
        print(f"No plan: {message}")
    warn("does-not-fit", message)


def _progress(line: str) -> None:
    """Replaces the line of the terminal that says what is being done; "" removes it."""
    sys.stderr.write(f"\r{line[:78]:<78}\r")
    sys.stderr.flush()
