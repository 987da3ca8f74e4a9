"""Every figure of specsim, from frames and arrays; the only package that imports matplotlib."""

from specsim.plots.closed_form import (
    context_curve,
    prediction_figure,
    regret_bars,
    speedup_curve,
    speedup_over_batch,
    step_breakdown,
)
from specsim.plots.comparisons import (
    claim_figure,
    errors_by_group,
    errors_over,
    measured_over_k,
    predicted_against_measured,
)
from specsim.plots.general import curves, part_bars, roofline_chart
from specsim.plots.live import WhatIfFigure
from specsim.plots.services import (
    plan_curves,
    simulation_figure,
    simulation_latency,
    simulation_shares,
    tornado_bars,
)
from specsim.plots.style import save, side_by_side, svg

__all__ = [
    "WhatIfFigure",
    "claim_figure",
    "context_curve",
    "curves",
    "errors_by_group",
    "errors_over",
    "measured_over_k",
    "part_bars",
    "plan_curves",
    "predicted_against_measured",
    "prediction_figure",
    "regret_bars",
    "roofline_chart",
    "save",
    "side_by_side",
    "simulation_figure",
    "simulation_latency",
    "simulation_shares",
    "speedup_curve",
    "speedup_over_batch",
    "step_breakdown",
    "svg",
    "tornado_bars",
]
