"""specsim: predict what speculative decoding does for a language model on a GPU.

Names are imported on first use (PEP 562), so that `import specsim` and the command line
start without scipy, pandas, matplotlib or simpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from specsim import acceptance as acceptance
    from specsim.analytic import Prediction as Prediction
    from specsim.analytic import predict as predict
    from specsim.catalogue import gpu as gpu
    from specsim.catalogue import model as model
    from specsim.catalogue import runtime as runtime
    from specsim.planner import Plan as Plan
    from specsim.planner import Sweep as Sweep
    from specsim.planner import plan as plan
    from specsim.planner import sweep as sweep
    from specsim.scenario import Scenario as Scenario
    from specsim.simulator.replications import replicate as replicate
    from specsim.simulator.run import simulate as simulate

#: Public name → the module that defines it.
_EXPORTS = {
    "model": "specsim.catalogue",
    "gpu": "specsim.catalogue",
    "runtime": "specsim.catalogue",
    "predict": "specsim.analytic",
    "Prediction": "specsim.analytic",
    "Scenario": "specsim.scenario",
    "plan": "specsim.planner",
    "Plan": "specsim.planner",
    "sweep": "specsim.planner",
    "Sweep": "specsim.planner",
    "replicate": "specsim.simulator.replications",
    "simulate": "specsim.simulator.run",
}
_MODULES = ("acceptance", "deployment", "errors", "plots", "records", "units")

__all__ = [
    "Plan",
    "Prediction",
    "Scenario",
    "Sweep",
    "__version__",
    "acceptance",
    "deployment",
    "errors",
    "gpu",
    "model",
    "plan",
    "plots",
    "predict",
    "records",
    "replicate",
    "runtime",
    "simulate",
    "sweep",
    "units",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"specsim.{name}")
    raise AttributeError(f"module 'specsim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
