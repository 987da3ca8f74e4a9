"""Figures of the gallery, of the concept pages and of README.

    python docs/figures.py          # writes docs/figures/gallery-*.png, predict.png, gallery.md

Each function below makes one figure; the gallery shows its code.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import specsim as ss
from specsim import plots
from specsim.acceptance import BetaRequests, Iid, Markov, alpha_from_acceptance_length
from specsim.analytic import series
from specsim.analytic.curves import speedup_over_batch as batch_curve
from specsim.audit import audit_claims
from specsim.cli.main import run

FOLDER = Path(__file__).resolve().parent / "figures"
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@cache
def prediction() -> Any:
    """The deployment of most figures."""
    return ss.predict(
        target="llama-3.1-70b", draft="llama-3.2-1b", gpu="h100-sxm", tensor_parallel=4,
        acceptance=ss.acceptance.Iid(0.75, standard_error=0.03), num_draft_tokens=range(13),
        batch=8, context=2048,
    )  # fmt: skip


@cache
def plan() -> Any:
    """A plan from the closed form alone."""
    return ss.plan(ss.Scenario.load(EXAMPLES / "chat-70b.yaml"), simulate=False)


def speedup() -> Any:
    """Speedup over K, with its 95 % interval."""
    return plots.speedup_curve(prediction().rows())


def parts_of_a_step() -> Any:
    """Where a step's time goes."""
    return plots.step_breakdown(prediction().rows())


def speedup_over_batch() -> Any:
    """Load and crossover: where a K that is kept begins to lose."""
    return plots.speedup_over_batch(batch_curve(prediction()))


def speedup_by_alpha() -> Any:
    """Acceptance decides the best K."""
    ks = list(range(13))
    lines = {}
    for alpha in (0.9, 0.8, 0.7, 0.6, 0.5):
        found = prediction().grid.with_law(Iid(alpha))
        lines[f"α = {alpha}"] = found.speedup[:, 0, 0]
    return plots.curves(
        ks, lines, reference=1.0, xlabel="draft tokens per step, K",
        ylabel="speedup over plain decoding", title="70B with a 1B draft, 4 × H100, batch 8",
    )  # fmt: skip


def operations() -> Any:
    """One target pass by operation, and what binds each."""
    deployment = prediction().deployment
    _, (ax,) = plots.side_by_side(1, width=9.5, height=3.6)
    return plots.part_bars(
        {
            f"batch {b}, {n} token{'s' * (n > 1)} each":
            series.pass_operations(deployment, n, b, 2048)
            for b, n in [(1, 1), (1, 5), (64, 1), (64, 5)]
        }, ax, title="One pass of llama-3.1-70b on 4 × H100",
    )  # fmt: skip


def roofline() -> Any:
    """Decoding and verifying under the roofline of the GPU."""
    found = series.on_the_roofline(prediction().deployment, [0, 4], [1, 4, 16, 64, 256], 1024)
    return plots.roofline_chart(found)


def verify_growth() -> Any:
    """What verifying more tokens costs, by batch."""
    widths = list(range(1, 14))
    return plots.curves(
        widths, series.pass_growth(prediction().deployment, widths, [1, 4, 16, 64, 256], 1024),
        reference=1.0, xlabel="tokens per sequence in the pass, K + 1",
        ylabel="time, passes over one token", title="The price of verifying",
    )  # fmt: skip


def acceptance_laws() -> Any:
    """Laws that agree at K = 3 and part elsewhere."""
    easy_and_hard = Markov(0.95, 0.05, 12.0, 10.0)
    tau = easy_and_hard.acceptance_length(3)
    laws = {
        "easy and hard stretches": easy_and_hard,
        "requests differ": BetaRequests(*_beta_with(tau)),
        "i.i.d.": Iid(alpha_from_acceptance_length(tau, 3)),
    }
    ks = list(range(1, 13))
    return plots.curves(
        ks, series.accepted_over_k(laws, ks), xlabel="draft tokens per step, K",
        ylabel="accepted tokens per step, τ − 1", title="Measured at K = 3, asked at others",
    )  # fmt: skip


def _beta_with(tau: float, total: float = 2.0) -> tuple[float, float]:
    """A Beta law of τ at K = 3, by bisection on its mean."""
    low, high = 0.01, 0.99
    for _ in range(50):
        mean = (low + high) / 2
        found = BetaRequests(mean * total, (1 - mean) * total).acceptance_length(3)
        low, high = (mean, high) if found < tau else (low, mean)
    return low * total, (1 - low) * total


def claim() -> Any:
    """One claim of the audit."""
    found = next(c for c in audit_claims() if c.number == 9)
    return plots.claim_figure(9, found.chart or {})


def simulation() -> Any:
    """Latencies of a simulated service, and where the time goes."""
    result = ss.simulate(ss.Scenario.load(EXAMPLES / "chat-70b.yaml"), max_requests=2000)
    return plots.simulation_figure(result.latencies, result.summary().utilisation, "chat-70b.yaml")


def load_and_latency() -> Any:
    """Plans over the load, with the SLO and the demand."""
    return plan().plot()


def price_of_a_wrong_k() -> Any:
    """What every K loses."""
    lost = prediction().regret()
    return plots.regret_bars(list(lost), list(lost.values()))


def sensitivity() -> Any:
    """Which input moves the answer most."""
    return plots.tornado_bars(
        [{"parameter": b.parameter, "low": b.low, "high": b.high} for b in plan().sensitivity]
    )


def context() -> Any:
    """Long context: the draft's own cache decides."""
    lengths = [1024, 2048, 4096, 8192, 16384, 32768]
    lines = {}
    for name, budget in (("all of it", None), ("1,024 tokens of it", 1024)):
        lines[f"draft reads {name}"] = [
            ss.predict(
                target="llama-3.1-8b", draft="llama-3.2-1b", gpu="h100-sxm", batch=8,
                acceptance=ss.acceptance.Iid(0.75), num_draft_tokens=range(13), context=length,
                draft_kv_budget=budget,
            ).best["speedup"]
            for length in lengths
        ]  # fmt: skip
    return plots.curves(
        lengths, lines, reference=1.0, log2=True, xlabel="context, tokens",
        ylabel="speedup over plain decoding", title="8B with a 1B draft, H100, batch 8",
    )  # fmt: skip


FIGURES: dict[str, Callable[[], Any]] = {
    f.__name__: f
    for f in (
        speedup, parts_of_a_step, speedup_over_batch, speedup_by_alpha, operations, roofline,
        verify_growth, acceptance_laws, claim, simulation, load_and_latency, price_of_a_wrong_k,
        sensitivity, context,
    )
}  # fmt: skip


#: The figure that README shows, of the command that README shows.
README_FIGURE = (
    "predict --target llama-3.1-70b --draft llama-3.1-8b --gpu h100-sxm --tp 4 "
    "--acceptance code --k 1:12 --plot"
)

INTRODUCTION = """\
# Gallery

Figures of `specsim.plots`, each with the code that drew it. The series come from `specsim`; the
functions of `plots` take rows and arrays, so that figures of your own need no more than this.
Predictions against measurements are in [accuracy](accuracy.md), the figure with controls in the
[notebooks](notebooks.md). The colours (Okabe and Ito) are told apart by the colour-blind, and
lines differ in dashes as well. Where there is an interval, it is the shaded band. `prediction()`
and `plan()` are the deployment and the service of most figures.

```{literalinclude} figures.py
:language: python
:start-at: "@cache"
:end-before: "def speedup()"
```
"""


def write(folder: Path = FOLDER) -> list[Path]:
    """All figures as PNG."""
    paths = []
    for name, make in FIGURES.items():
        made = make()
        paths.append(folder / f"gallery-{name}.png")
        plots.save(getattr(made, "figure", made), paths[-1])
    paths.append(folder / "predict.png")
    with contextlib.redirect_stdout(io.StringIO()):
        status = run([*README_FIGURE.split(), str(paths[-1])])
    if status != 0:
        raise ValueError(f"{README_FIGURE}: exit status {status}")
    return paths


def gallery() -> str:
    """The page `gallery.md`."""
    sections = [
        f"## {(make.__doc__ or '').rstrip('.')}\n\n![{name}](figures/gallery-{name}.png)\n\n"
        f"```{{literalinclude}} figures.py\n:language: python\n:pyobject: {name}\n```\n"
        for name, make in FIGURES.items()
    ]
    return "\n".join([INTRODUCTION, *sections])


if __name__ == "__main__":
    for path in write():
        print(f"wrote {path.name}", file=sys.stderr)
    (FOLDER.parent / "gallery.md").write_text(gallery(), encoding="utf-8")
