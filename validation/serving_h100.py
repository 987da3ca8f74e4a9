"""vLLM serving Llama-3-8B on one H100, without speculation, against the simulator.

Data: published results of inference-perf (kubernetes-sigs/inference-perf, Apache-2.0; the
KubeCon NA 2025 demo: vLLM 0.11.0, seven load stages of 60 s, at most 128 sequences, prefix
caching and chunked prefill off), read through SPECSIM_DATA and never shipped. How it has to
be read:

- Arrivals: its "constant" load draws exponential gaps and stretches them to the stage's
  duration (`ConstantLoadTimer`). The client has at most 44 workers × 10 requests in flight:
  above capacity it holds requests back.
- Tokens: every request was asked for 64 tokens and the end of sequence was ignored. The
  reported `output_len` (36 to 68) counts the answer's text tokenised again. That 64 were
  sent is in the data: all requests have the same number of gaps between lines (129: two
  lines a token, and the last), and 63 gaps give the server's own time per output token
  within 0.3 % in stages 3 to 6.
- Time per output token: (request latency − time to first token) / 63. The reported
  `time_per_output_token` divides by 129.
- Time to first token: the server's own, from its Prometheus histogram, in stages 1 to 3. The
  window of stage 0 holds the sweep that came before it. Those of stages 1 and 2 reach into
  the stage after them: the server's time per output token there is 4 % above the client's
  (in stages 3 to 6 they agree), so its time to first token is some per cent too long as
  well. The client's has its own time, the network and HTTP on top, which the simulator
  leaves out (docs/metrics.md); that share is taken from stage 1, as the client's mean less
  the server's, and the client's time is compared in the other stages.

Two cost sources: the published vLLM fit of the same model and GPU, and the catalogue's
roofline and runtime. No constant of either was fitted to these measurements; that the runtime
has a term for prompt tokens at all (`prompt_token_s`, its value from the published fit) was
decided after the roofline had missed here, so its rows are not blind.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
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
#: Tokens of every answer.
OUTPUT_TOKENS = 64
STAGES = range(7)
#: Stages whose offered rate is above capacity.
SATURATED = (4, 5, 6)
#: Stages whose time to first token the server's own histogram tells.
SERVER_KNOWS = (1, 2, 3)
#: The stage from which the client's share of the time to first token is taken.
CLIENT_STAGE = 1
#: Runs of each stage behind a prediction: arrivals are random.
SEEDS = 5


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One measured stage: means in seconds, rates per second, the server's own time to
    first token where its window is that stage's."""

    number: int
    count: int
    prompt: int
    requested_per_s: float
    achieved_per_s: float
    served_per_s: float
    tpot_s: float
    client_ttft_s: float
    server_ttft_s: float | None


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """The same, simulated: means over `SEEDS` runs."""

    tpot_s: float
    ttft_s: float
    served_per_s: float


def rows() -> list[Row]:
    """Every row; one that says "not run" where the data is absent."""
    stages = load()
    if stages is None:
        why = "not run: SPECSIM_DATA has no serving_h100 (0 of 7 stages)"
        return [Row(name="serving on an H100", error=None, provenance=why)]
    limits = bounds("serving_h100")
    roofline = Roofline(gpu=catalogue.gpu("h100-sxm"))
    return [
        *of_source("published fit", stages, VLLM_LLAMA_8B_H100, fitted_runtime(), limits, "fit"),
        *of_source("roofline", stages, roofline, catalogue.runtime("vllm-0.11"), limits,
                   "roofline"),
    ]  # fmt: skip


def load() -> list[Stage] | None:
    """The seven stages; None if they are not there."""
    folder = os.environ.get("SPECSIM_DATA")
    if not folder:
        return None
    where = Path(folder) / "serving_h100" / "vllm" / "results"
    paths = [
        [where / f"stage_{i}_{of}_metrics.json" for of in ("lifecycle", "prometheus")]
        for i in STAGES
    ]
    if not all(path.is_file() for pair in paths for path in pair):
        return None
    return [
        stage_of(i, *(json.loads(path.read_text(encoding="utf-8")) for path in pair))
        for i, pair in enumerate(paths)
    ]


def stage_of(number: int, client: dict[str, Any], server: dict[str, Any]) -> Stage:
    """One stage from the client's and the server's side."""
    found, asked = client["successes"], client["load_summary"]
    latency, first = (
        found["latency"][key]["mean"] for key in ("request_latency", "time_to_first_token")
    )
    server_first = server["successes"]["time_to_first_token"]["mean"]
    return Stage(
        number=number, count=int(found["count"]), prompt=round(found["prompt_len"]["mean"]),
        requested_per_s=asked["requested_rate"], achieved_per_s=asked["achieved_rate"],
        served_per_s=found["throughput"]["requests_per_sec"],
        tpot_s=(latency - first) / (OUTPUT_TOKENS - 1), client_ttft_s=first,
        server_ttft_s=server_first if number in SERVER_KNOWS else None,
    )  # fmt: skip


def fitted_runtime() -> RuntimeSpec:
    """The published rest of a step, once a step, and nothing else: no padding, no terms."""
    rest = Estimate(value=VLLM_REST_S, low=VLLM_REST_S, high=VLLM_REST_S)
    return dataclasses.replace(catalogue.runtime("ideal"), step_s=rest)


def serve(stage: Stage, source: CostSource, runtime: RuntimeSpec, seed: int) -> Served:
    """One stage, simulated: random arrivals over its duration, held back while the client's
    workers are busy."""
    arrivals = ArrivalProcess(
        process="poisson", rate_per_s=stage.requested_per_s, max_in_flight=MAX_IN_FLIGHT
    )
    mix = TrafficMix(
        name="", prompt_tokens=LengthLaw(distribution="constant", value=stage.prompt),
        output_tokens=LengthLaw(distribution="constant", value=OUTPUT_TOKENS),
    )  # fmt: skip
    drawn = generate(arrivals=arrivals, classes=(mix,), num_requests=stage.count, seed=seed)
    duration_s = stage.count / stage.requested_per_s
    stretched = drawn.arrival_s * duration_s / drawn.arrival_s[-1]
    deployment = Deployment(
        target=PlacedModel(spec=catalogue.model("llama-3-8b")), draft=NO_DRAFT,
        gpu=catalogue.gpu("h100-sxm"), runtime=runtime, max_num_seqs=128,
    )  # fmt: skip
    cluster = Cluster(
        Setup(
            deployment=deployment, source=source, laws=(Iid(0.0),),
            requests=dataclasses.replace(drawn, arrival_s=stretched),
            arrivals=arrivals, policy=Policy(kind="off"),
            # 8192 tokens a step, vLLM's default; the KV cache never filled (its own counter)
            limits=Limits(max_num_seqs=128, max_tokens=8192, num_blocks=25_000,
                          chunked_prefill=False),
        )
    )  # fmt: skip
    cluster.run()
    return served_columns(cluster, worst_gaps=False)


def predict(stage: Stage, source: CostSource, runtime: RuntimeSpec) -> Predicted:
    """Means over `SEEDS` runs."""
    runs = [serve(stage, source, runtime, seed) for seed in range(SEEDS)]
    spans = [float(np.max(run.last_s) - np.min(run.arrival_s)) for run in runs]
    return Predicted(
        tpot_s=float(np.mean([np.nanmean(tpot(run)) for run in runs])),
        ttft_s=float(np.mean([np.nanmean(ttft(run)) for run in runs])),
        served_per_s=float(np.mean([stage.count / span for span in spans])),
    )


def of_source(
    label: str, stages: list[Stage], source: CostSource, runtime: RuntimeSpec,
    limits: dict[str, Any], key: str,
) -> list[Row]:  # fmt: skip
    """TPOT and TTFT of every stage, saturated throughput, and the median of TPOT."""
    found: list[Row] = []
    errors = []
    known = stages[CLIENT_STAGE]
    assert known.server_ttft_s is not None
    outside_s = known.client_ttft_s - known.server_ttft_s
    for stage in stages:
        predicted = predict(stage, source, runtime)
        name = f"{label}, stage {stage.number} ({stage.achieved_per_s:.0f}/s)"
        row = comparison(f"{name}: TPOT", predicted.tpot_s, stage.tpot_s, "s",
                         bound=limits.get(f"{key}_tpot_worst"), provenance=SOURCE)  # fmt: skip
        found.append(row)
        errors.append(abs(predicted.tpot_s / stage.tpot_s - 1))
        if stage.number in SATURATED:
            found.append(comparison(
                f"{name}: output tokens/s", predicted.served_per_s * OUTPUT_TOKENS,
                stage.served_per_s * OUTPUT_TOKENS, "1/s",
                bound=limits.get(f"{key}_throughput"), provenance=SOURCE,
            ))  # fmt: skip
        else:
            found += first_token(name, stage, predicted, outside_s, limits.get(f"{key}_ttft"))
    found.append(statistic(f"{label}: median |error| of TPOT", np.median(errors),
                           bound=limits[f"{key}_tpot_median"], provenance=SOURCE))  # fmt: skip
    return found


def first_token(
    name: str, stage: Stage, predicted: Predicted, outside_s: float, bound: float | None
) -> list[Row]:
    """TTFT at the server where it is known, and at the client, `outside_s` later."""
    found = []
    if stage.server_ttft_s is not None:
        found.append(comparison(
            f"{name}: TTFT at the server", predicted.ttft_s, stage.server_ttft_s, "s",
            bound=bound, provenance=f"{SOURCE}; the server's own histogram",
        ))  # fmt: skip
    if stage.number != CLIENT_STAGE:
        found.append(comparison(
            f"{name}: TTFT at the client", predicted.ttft_s + outside_s, stage.client_ttft_s,
            "s", bound=bound, provenance=f"{SOURCE}; {1e3 * outside_s:.1f} ms of client, network "
            f"and HTTP are stage {CLIENT_STAGE}'s",
        ))  # fmt: skip
    return found
