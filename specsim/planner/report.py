"""A plan as one self-contained HTML page: figures as inline SVG, nothing fetched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specsim import __version__
from specsim.errors import ScenarioError
from specsim.units import human_seconds

if TYPE_CHECKING:
    from specsim.planner.decision import Plan

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 62rem;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { text-align: right; padding: 0.3rem 0.6rem; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
tr.chosen { background: #e8f4ec; font-weight: 600; }
.verdict { background: #eef4fa; border-left: 4px solid #0072b2; padding: 0.7rem 1rem; }
.warning { background: #fdf3e4; border-left: 4px solid #e69f00; padding: 0.4rem 1rem;
           margin: 0.4rem 0; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; } .figures svg { max-width: 29rem;
           width: 100%; height: auto; }
dt { font-weight: 600; margin-top: 1rem; } dd { margin: 0.1rem 0 0 0; }
.reason { color: #555; font-size: 0.9rem; } .number { color: #0072b2; }
pre { background: #f5f5f5; padding: 0.8rem; overflow-x: auto; font-size: 0.85rem; }
"""

TEMPLATE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{{ style }}</style></head><body>
<h1>{{ title }}</h1>
{% include "body" %}
<h2>Figures</h2>
<div class="figures">{% for figure in figures %}{{ figure | safe }}{% endfor %}</div>
<h2>The scenario to run</h2><pre>{{ yaml }}</pre>
<p class="reason">Made by specsim {{ version }}. Cost: {{ cost }}. Times are predictions.</p>
</body></html>
"""

BODY = """<p class="verdict">{{ verdict }}</p>
{% for w in warnings %}<p class="warning"><b>{{ w.code }}</b>: {{ w.message }}</p>{% endfor %}
<h2>Plans, by {{ objective }}</h2>
<table><tr><th>plan</th><th>K</th><th>GPUs</th><th>objective</th><th>95 % interval</th>
<th>loses</th><th>time per token</th><th>acceptance</th></tr>
{% for r in rows %}<tr{% if loop.first %} class="chosen"{% endif %}>
{% for cell in r %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
<h2>Ten answers</h2><dl>
{% for a in answers %}<dt>{{ loop.index }}. {{ a.question }}</dt><dd>{{ a.answer }}</dd>
<dd class="number">{{ number(a) }}</dd><dd class="reason">{{ a.reason }}</dd>
{% endfor %}</dl>
"""


def html_report(plan: Plan) -> str:
    """The whole page."""
    found = plan.chosen.candidate
    return str(_environment().get_template("page").render(
        **_content(plan), title=f"Plan for {found.deployment.target.spec.name}", style=STYLE,
        figures=figures(plan), yaml=plan.best.to_yaml(), version=__version__,
        cost=found.source.name,
    ))  # fmt: skip


def html_fragment(plan: Plan) -> str:
    """The same without figures, for a notebook's cell."""
    return str(_environment().get_template("body").render(**_content(plan)))


def _environment() -> Any:
    import jinja2

    loader = jinja2.DictLoader({"page": TEMPLATE, "body": BODY})
    return jinja2.Environment(loader=loader, autoescape=True)


def _content(plan: Plan) -> dict[str, Any]:
    return {
        "verdict": verdict(plan), "warnings": plan.warnings, "objective": plan.objective,
        "rows": [_cells(r) for r in plan.ranked], "answers": plan.answers, "number": _number,
    }  # fmt: skip


def verdict(plan: Plan) -> str:
    """One sentence: what to run."""
    best, chosen = plan.best, plan.chosen.candidate
    hardware = best.hardware
    drafter = "without speculation"
    if chosen.speculates:
        rows = ", ".join(f"K = {k} at batch {a} to {b}" for a, b, k in plan.schedule)
        drafter = f"with {chosen.label}, {best.speculation.policy}: {rows}"
    odds = plan.probability_better_than_off
    tail = "" if odds is None else f" The odds that speculation beats none are {odds:.0%}."
    return (
        f"Run {best.target.model} ({best.target.weights}) on {hardware.replicas} × "
        f"{hardware.tensor_parallel} {hardware.gpu} {drafter}; "
        f"max_num_seqs {best.engine.max_num_seqs}.{tail}"
    )


def _cells(ranked: Any) -> list[str]:
    c = ranked.candidate
    known = "–" if c.option is None else ("given" if c.option.measured else "estimate")
    return [
        f"{c.label}, {c.policy.kind}" if c.speculates else "no speculation", str(c.largest_k),
        f"{c.replicas} × {c.num_gpus} {c.deployment.gpu.name}", f"{ranked.objective:.3g}",
        f"{ranked.low:.3g} to {ranked.high:.3g}", f"{max(ranked.regret, 0):.0%}",
        human_seconds(ranked.demand_tpot_s), known,
    ]  # fmt: skip


def _number(answer: Any) -> str:
    if answer.value is None:
        return ""
    text = f"{answer.value:.4g} {answer.unit}"
    if answer.low is None or answer.high is None or answer.low == answer.high:
        return text
    return f"{text} ({answer.low:.4g} to {answer.high:.4g})"


def figures(plan: Plan) -> list[str]:
    """Inline SVG: load and latency, what each K loses, sensitivity, context."""
    from specsim import plots

    made = [plots.svg(plots.plan_curves(plan.curves(), plan.limits()))]
    facts, spec = plan.facts, plan.facts.spec
    if spec is None:
        return made
    at = int(np.clip(np.searchsorted(spec.model.batch, spec.demand.batch), 0,
                     len(spec.model.batch) - 1))  # fmt: skip
    work = facts.work[1:, at]
    made.append(plots.svg(plots.regret_bars(
        list(spec.model.draft_tokens[1:]), list(1 - work.min() / work))))  # fmt: skip
    bars = [{"parameter": b.parameter, "low": b.low, "high": b.high} for b in plan.sensitivity]
    made.append(plots.svg(plots.tornado_bars(bars)))
    contexts = [{"context": r.context, "speedup": r.speedup,
                 "num_draft_tokens": r.num_draft_tokens}
                for r in facts.cache.get("contexts", ()) if r.fits]  # fmt: skip
    if contexts:
        made.append(plots.svg(plots.context_curve(contexts)))
    return made


def write(text: str, path: Path) -> None:
    """Write the page whole or not at all.

    Raises:
        ScenarioError: if it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as problem:
        raise ScenarioError(f"{path}: {problem.strerror or problem}") from None
    finally:
        partial.unlink(missing_ok=True)
