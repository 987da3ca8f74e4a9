"""Services that the planner's tests decide about."""

from __future__ import annotations

from typing import Any

from specsim.planner.problem import BUILT_IN
from specsim.scenario.document import Scenario

A100 = {**BUILT_IN, "hardware": {"gpu": "a100-sxm-80gb", "tensor_parallel": 4, "replicas": 3}}
MOE = {
    "target": {"model": "qwen3-30b-a3b"},
    "hardware": {"gpu": "h100-sxm"},
    "workload": {"arrivals": {"process": "poisson", "rate_per_s": 4.0}},
    "slo": {"ttft_s": 0.5, "tpot_s": 0.02},
}
LONG = {
    "target": {"model": "llama-3.1-8b"},
    "draft": {"method": "draft-model", "model": "llama-3.2-1b"},
    "hardware": {"gpu": "h100-sxm", "replicas": 2},
    "acceptance": {"alpha": 0.75},
    "workload": {
        "arrivals": {"process": "poisson", "rate_per_s": 0.1},
        "prompt_tokens": {"distribution": "lognormal", "mean": 50000, "cv": 0.4},
        "output_tokens": {"distribution": "lognormal", "mean": 700, "cv": 0.5},
    },
    "slo": {"ttft_s": 20.0, "tpot_s": 0.03},
}
SERVICES = {"70B on H100": BUILT_IN, "70B on A100": A100, "MoE": MOE, "long context": LONG}
SMALL = {
    "target": {"model": "llama-3.1-8b"},
    "draft": {"method": "draft-model", "model": "llama-3.2-1b"},
    "hardware": {"gpu": "h100-sxm"},
    "acceptance": {"alpha": 0.75},
    "workload": {"arrivals": {"process": "poisson", "rate_per_s": 6.0}},
    "slo": {"ttft_s": 1.0, "tpot_s": 0.015},
}


def changed(data: dict[str, Any], *assignments: str) -> Scenario:
    return Scenario.from_dict(data).with_set(assignments)
