"""vLLM serving Llama-3-8B on one H100, without speculation, against the simulator.

Data: published results of inference-perf (kubernetes-sigs/inference-perf, Apache-2.0; the
KubeCon NA 2025 demo: vLLM 0.11.0, seven load stages of 60 s, at most 128 sequences, prefix
caching and chunked prefill off), read through SPECSIM_DATA and never shipped. Its
`time_per_output_token` is about half of what its own latencies say; it is computed here
as (request latency − time to first token) / (output tokens − 1).

Two cost sources: the published vLLM fit of the same model and GPU (nothing in it knows
these measurements), and the catalogue's roofline and runtime. The client has at most
44 workers × 10 requests in flight: above capacity it holds requests back.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from specsim import catalogue
from specsim.acceptance.chains import Iid
from specsim.catalogue.specs import Estimate, RuntimeSpec
from specsim.cost.linear import VLLM_LLAMA_8B_H100
from specsim.cost.roofline import Roofline
from specsim.cost.source import CostSource
from specsim.deployment import NO_DRAFT, Deployment, PlacedModel
from specsim.metrics import Served, tpot, ttft
from specsim.simulator.cluster import Cluster
from specsim.simulator.result import served_columns
from specsim.simulator.setup import Limits, Setup
from specsim.simulator.speculation import Policy
from specsim.workload.arrivals import ArrivalProcess
from specsim.workload.lengths import LengthLaw
from specsim.workload.requests import TrafficMix, generate
from validation.full_steps import VLLM_REST_S
from validation.rows import Row, bounds, comparison, statistic

SOURCE = "kubernetes-sigs/inference-perf, KubeCon NA 2025 demo, vLLM 0.11.0, Llama-3-8B, H100"
#: Requests that the load generator's workers can have in flight.
MAX_IN_FLIGHT = 44 * 10
STAGES = range(7)
#: Stages whose offered rate is above capacity.
SATURATED = (4, 5, 6)
#: Stages in which a request shares the GPU with others (the first offers one a second).
LOADED = (1, 2, 3)


def rows() -> list[Row]:
    """Every row; one that says "not run" where the data is absent."""
    stages = load()
    if stages is None:
        why = "not run: SPECSIM_DATA has no serving_h100 (0 of 7 stages)"
        return [Row(name="serving on an H100", error=None, provenance=why)]
    limits = bounds("serving_h100")
    fit = of_source("published fit", stages, VLLM_LLAMA_8B_H100, fitted_runtime(), limits, "fit")
    gpu = catalogue.gpu("h100-sxm")
    roofline = of_source(
        "roofline", stages, Roofline(gpu=gpu), catalogue.runtime("vllm-0.11"), limits, "roofline"
    )
    return fit + roofline


def load() -> list[dict[str, Any]] | None:
    """The seven stages' results; None if they are not there."""
    folder = os.environ.get("SPECSIM_DATA")
    if not folder:
        return None
    where = Path(folder) / "serving_h100" / "vllm" / "results"
    paths = [where / f"stage_{i}_lifecycle_metrics.json" for i in STAGES]
    if not all(path.is_file() for path in paths):
        return None
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def fitted_runtime() -> RuntimeSpec:
    """The published rest of a step, once a step, and nothing else: no padding, no terms."""
    rest = Estimate(value=VLLM_REST_S, low=VLLM_REST_S, high=VLLM_REST_S)
    return dataclasses.replace(catalogue.runtime("ideal"), step_s=rest)


def observed(stage: dict[str, Any]) -> dict[str, float]:
    """Means of one stage, in seconds and per second."""
    found = stage["successes"]
    latency, first = (
        found["latency"][key]["mean"] for key in ("request_latency", "time_to_first_token")
    )
    prompt, output = found["prompt_len"]["mean"], found["output_len"]["mean"]
    return {
        "tpot_s": (latency - first) / (output - 1), "ttft_s": first, "prompt": prompt,
        "output": output, "rate_per_s": stage["load_summary"]["achieved_rate"],
        "requested_per_s": stage["load_summary"]["requested_rate"],
        "tokens_per_s": found["throughput"]["output_tokens_per_sec"],
        "count": float(found["count"]),
    }  # fmt: skip


def serve(stage: int, seen: dict[str, float], source: CostSource, runtime: RuntimeSpec) -> Served:
    """One stage, simulated: constant arrivals, held back while the workers are busy."""
    arrivals = ArrivalProcess(
        process="constant", rate_per_s=seen["requested_per_s"], max_in_flight=MAX_IN_FLIGHT
    )
    mix = TrafficMix(
        name="", prompt_tokens=LengthLaw(distribution="constant", value=round(seen["prompt"])),
        output_tokens=LengthLaw(distribution="constant", value=round(seen["output"])),
    )  # fmt: skip
    drawn = generate(arrivals=arrivals, classes=(mix,), num_requests=int(seen["count"]), seed=stage)
    deployment = Deployment(
        target=PlacedModel(spec=catalogue.model("llama-3-8b")), draft=NO_DRAFT,
        gpu=catalogue.gpu("h100-sxm"), runtime=runtime, max_num_seqs=128,
    )  # fmt: skip
    cluster = Cluster(
        Setup(
            deployment=deployment, source=source, laws=(Iid(0.0),), requests=drawn,
            arrivals=arrivals, policy=Policy(kind="off"),
            # 8192 tokens a step, vLLM's default; the KV cache never filled (its own counter)
            limits=Limits(max_num_seqs=128, max_tokens=8192, num_blocks=25_000,
                          chunked_prefill=False),
        )
    )  # fmt: skip
    cluster.run()
    return served_columns(cluster, worst_gaps=False)


def of_source(
    label: str, stages: list[dict[str, Any]], source: CostSource, runtime: RuntimeSpec,
    limits: dict[str, Any], key: str,
) -> list[Row]:  # fmt: skip
    """TPOT and TTFT of every stage, saturated throughput, and their summaries."""
    found: list[Row] = []
    first_token: dict[int, tuple[float, float]] = {}
    for number, stage in enumerate(stages):
        seen = observed(stage)
        served = serve(number, seen, source, runtime)
        name = f"{label}, stage {number} ({seen['rate_per_s']:.0f}/s)"
        bound = limits.get(f"{key}_tpot_worst")
        found.append(comparison(f"{name}: TPOT", _mean(tpot(served)), seen["tpot_s"], "s",
                                bound=bound, provenance=SOURCE))  # fmt: skip
        if number in SATURATED:
            span = float(np.max(served.last_s) - np.min(served.arrival_s))
            rate = float(served.output_tokens.sum()) / span
            bound = limits.get(f"{key}_throughput")
            found.append(comparison(f"{name}: output tokens/s", rate, seen["tokens_per_s"], "1/s",
                                    bound=bound, provenance=SOURCE))  # fmt: skip
            continue
        first_token[number] = (_mean(ttft(served)), seen["ttft_s"])
        found.append(comparison(f"{name}: TTFT", *first_token[number], "s",
                                bound=limits.get(f"{key}_ttft"), provenance=SOURCE))  # fmt: skip
    errors = [abs(row.error) for row in found if row.error is not None and "TPOT" in row.name]
    found.append(statistic(f"{label}: median |error| of TPOT", np.median(errors),
                           bound=limits[f"{key}_tpot_median"], provenance=SOURCE))  # fmt: skip
    return found + _beyond_the_client(label, first_token)


def _beyond_the_client(label: str, first_token: dict[int, tuple[float, float]]) -> list[Row]:
    """TTFT with what client, network and HTTP server add taken from the stage that offers
    one request a second: reported beside the plain error, not instead of it."""
    extra = first_token[0][1] - first_token[0][0]
    return [
        comparison(f"{label}, stage {n}: TTFT plus stage 0's {1e3 * extra:.0f} ms", p + extra, o,
                   "s", provenance=SOURCE)
        for n, (p, o) in first_token.items() if n in LOADED
    ]  # fmt: skip


def _mean(values: Any) -> float:
    return float(np.nanmean(values))
