"""`python -m validation serving`: real continuous batching on a CPU against the simulator.

Same arrivals and lengths; costs and acceptance come from `validation.measure_host` (passes
timed apart, host time and acceptance of the other half of the prompts). Both sides go
through the same metrics. `validation.measure_serving` measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specsim.acceptance.chains import Iid
from specsim.acceptance.empirical import Empirical
from specsim.acceptance.law import Law
from specsim.cost.source import CostSource, ForwardTime
from specsim.cost.work import Work
from specsim.deployment import PlacedModel
from specsim.metrics import Served, service_metrics
from specsim.records import RequestRecord, read_all
from specsim.simulator.cluster import Cluster
from specsim.simulator.result import records
from specsim.simulator.setup import Limits, Setup
from specsim.simulator.speculation import Policy
from specsim.workload.arrivals import ArrivalProcess
from specsim.workload.requests import Requests
from validation import host_traces
from validation.host_model import HostModel, deployment_of, fit_host
from validation.host_plan import NGRAM
from validation.host_traces import proposing_share
from validation.rows import Row, bounds, comparison, statistic

DATA = Path(__file__).with_name("data") / "serving"
#: Runs of the simulator behind a prediction with speculation: their accepted runs differ.
SEEDS = 16
METRICS = (("TTFT", "ttft_s"), ("TPOT", "tpot_s"), ("ITL", "itl_s"))
#: Fewer passes timed while waiting do not tell the machine's speed.
FEWEST_PASSES = 50
PROMPT_LIMIT = 8192  # tokens of a pass: prompts are never cut


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """A cost source on a machine that is `factor` times slower."""

    source: CostSource
    factor: float

    @property
    def name(self) -> str:
        """As the inner source."""
        return self.source.name

    def forward_time(
        self, model: PlacedModel, batch: Any, new_tokens: Any, context: Any
    ) -> ForwardTime:
        """As the inner source, slower."""
        return self.source.forward_time(model, batch, new_tokens, context) * self.factor

    def work_time(self, model: PlacedModel, work: Work) -> ForwardTime:
        """As the inner source, slower."""
        return self.source.work_time(model, work) * self.factor


@dataclass(frozen=True, kw_only=True)
class Run:
    """One served run: its file's header settings and its requests in order of arrival."""

    method: str
    num_draft_tokens: int
    rate: float
    slots: int
    records: tuple[RequestRecord, ...]
    device: str
    probes: tuple[dict[str, float], ...] = ()  # passes timed before and after the run
    idle_pass_s: float | None = None  # mean plain pass timed while no request was there

    @property
    def label(self) -> str:
        """For a row."""
        drafting = f"{self.method} K={self.num_draft_tokens}" if self.num_draft_tokens else "plain"
        return f"{drafting}, {self.rate:g} requests/s"


def load(folder: Path = DATA) -> list[Run]:
    """Every run in the folder, by load."""
    runs = []
    for path in sorted(folder.glob("*.jsonl")):
        header, found = read_all(path, RequestRecord)
        s = header.settings
        runs.append(
            Run(
                method=s["method"], num_draft_tokens=s["num_draft_tokens"], rate=s["rate"],
                slots=s["slots"], records=tuple(sorted(found, key=lambda r: r.arrival_s)),
                probes=tuple(s.get("probes", ())), idle_pass_s=_idle_pass(s),
                device=f"{header.device}, {header.threads} thread, {header.dtype}, {s['date']}",
            )
        )  # fmt: skip
    return sorted(runs, key=lambda run: (run.rate, run.num_draft_tokens))


def _idle_pass(settings: dict[str, Any]) -> float | None:
    found = settings.get("idle_passes", {"count": 0})
    return float(found["mean_s"]) if found["count"] >= FEWEST_PASSES else None


def rows() -> list[Row]:
    """Every row; none without measurements of serving and of the host's costs."""
    runs, traces = load(), host_traces.load()
    return rows_of(runs, fit_host(traces)) if runs and traces is not None else []


def rows_of(runs: Sequence[Run], model: HostModel) -> list[Row]:
    """The rows of some runs."""
    singles = [row for run in runs for row in compare(run, model)]
    return [*singles, *_summaries(singles, runs)]


def compare(run: Run, model: HostModel) -> Iterator[Row]:
    """Mean latencies and throughput of one run."""
    observed = service_metrics(Served.from_records(run.records))
    seeds = range(SEEDS if run.num_draft_tokens else 1)
    predicted = [service_metrics(Served.from_records(simulated(run, model, s))) for s in seeds]
    note = f"{run.method}; {len(run.records)} requests"
    for name, key in METRICS:
        mean = float(np.mean([getattr(p, key).mean for p in predicted]))
        row = comparison(f"mean {name}: {run.label}", 1e3 * mean,
                         1e3 * getattr(observed, key).mean, "ms", provenance=note)  # fmt: skip
        row.tags.update(load=run.rate, K=run.num_draft_tokens)
        yield row
    mean = float(np.mean([p.throughput_tokens_per_s for p in predicted]))
    row = comparison(f"throughput: {run.label}", mean, observed.throughput_tokens_per_s,
                     "tokens/s", provenance=note)  # fmt: skip
    row.tags.update(load=run.rate, K=run.num_draft_tokens)
    yield row


def simulated(run: Run, model: HostModel, seed: int) -> list[RequestRecord]:
    """The run's arrivals and lengths, served by the simulator."""
    cluster = Cluster(setup_of(run, model, seed))
    cluster.run()
    return records(cluster)


def setup_of(run: Run, model: HostModel, seed: int) -> Setup:
    """The reference server as the simulator's objects: slots, whole prompts, no KV limit."""
    k = run.num_draft_tokens
    host, law, proposed = model.host[NGRAM, 0.0], no_drafts(), None
    if k:
        units = model.traces.of(purpose="acceptance", method=run.method, domain="copy",
                                temperature=0.0)  # fmt: skip
        share = proposing_share(units, k)
        proposed = tuple(share * drafted for drafted in range(k + 1))
        law = law_of(model, run.method)
    deployment = deployment_of(run.method, host)
    requests = Requests(
        arrival_s=np.array([r.arrival_s for r in run.records]),
        prompt_tokens=np.array([r.prompt_tokens for r in run.records], dtype=np.int64),
        output_tokens=np.array([r.output_tokens for r in run.records], dtype=np.int64),
        traffic_class=np.zeros(len(run.records), dtype=np.int16), class_names=("",),
    )  # fmt: skip
    return Setup(
        deployment=deployment if k else deployment.without_draft(),
        source=Scaled(source=model.source, factor=slowdown(run, model)), laws=(law,),
        requests=requests, proposed=proposed,
        arrivals=ArrivalProcess(process="trace"),
        limits=Limits(max_num_seqs=run.slots, max_tokens=PROMPT_LIMIT, num_blocks=10**6),
        policy=Policy(kind="fixed", num_draft_tokens=k) if k else Policy(kind="off"), seed=seed,
    )  # fmt: skip


def slowdown(run: Run, model: HostModel) -> float:
    """How much slower than when its passes were timed the machine was: plain passes timed
    while no request was there, or else passes before and after the run. What was served
    plays no part."""
    target = deployment_of("none", model.host[NGRAM, 0.0]).target

    def ratio(seconds: float, batch: float, new_tokens: float, context: float) -> float:
        apart = model.source.forward_time(target, batch, new_tokens, context).seconds
        return seconds / float(apart)

    if run.idle_pass_s is not None:
        return ratio(run.idle_pass_s, 1, 1, 64)
    if not run.probes:
        return 1.0
    return float(np.mean([ratio(**probe) for probe in run.probes]))


def no_drafts() -> Law:
    """What plain decoding accepts: nothing, since nothing is drafted."""
    return Iid(0.0)


def law_of(model: HostModel, method: str) -> Law:
    """Recorded runs of the other half of the prompts."""
    units = model.traces.of(purpose="acceptance", method=method, domain="copy", temperature=0.0)
    return Empirical(tuple(np.maximum(r.runs, 0) for u in units for r in u.requests if len(r.runs)))


def _summaries(singles: Sequence[Row], runs: Sequence[Run]) -> Iterator[Row]:
    limit = bounds("serving")
    loads = {run.rate for run in runs}
    yield statistic("loads short of the wanted number", max(0.0, 1 - len(loads) / limit["loads"]),
                    bound=0.0, provenance=f"{len(loads)} loads, {len(runs)} runs; measured by us: "
                    f"{runs[0].device}")  # fmt: skip
    for name in (*(f"mean {metric}" for metric, _ in METRICS), "throughput"):
        own = [row for row in singles if row.name.startswith(f"{name}:")]
        errors = [abs(row.error or 0.0) for row in own]
        worst = max(own, key=lambda row: abs(row.error or 0.0))
        yield statistic(f"{name}: median |error|", np.median(errors), bound=limit["median"],
                        provenance=f"{len(own)} runs, the worst {100 * (worst.error or 0):+.0f} % "
                        f"({worst.name.partition(': ')[2]})")  # fmt: skip
    for drafting, wanted in (("plain", False), ("speculative", True)):
        errors = [abs(row.error or 0.0) for row in singles if bool(row.tags["K"]) is wanted]
        if errors:
            yield statistic(f"{drafting} runs: median |error|", np.median(errors))
