"""What a run gives back: summary, per-request table, records, plot."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from specsim.metrics import Objective, Served, ServiceMetrics, e2e, service_metrics, tpot, ttft
from specsim.records import RequestRecord
from specsim.simulator import accounting
from specsim.simulator.cluster import Cluster
from specsim.simulator.replica import Replica
from specsim.simulator.request import Segment

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The numbers of `simulate --json`; docs/metrics.md defines each."""

    service: ServiceMetrics
    acceptance_length: float | None
    acceptance_histogram: tuple[int, ...]
    num_steps: int
    mean_batch: float | None
    preemptions: int
    utilisation: dict[str, float]
    bound: dict[str, float]
    kv_occupancy: float | None
    prefix_hit_rate: float | None
    wasted: dict[str, float]
    cost_usd_per_million_tokens: tuple[float, float] | None
    energy_j_per_token: float | None
    seed: int
    interrupted: bool
    sources: dict[str, str]
    warnings: tuple[dict[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the names of the interface."""
        s = self.service
        result: dict[str, Any] = {
            name: getattr(s, name)
            for name in (
                "requests", "completed", "failed", "warmup_requests", "duration_s",
                "output_tokens", "throughput_tokens_per_s", "throughput_requests_per_s",
                "goodput_requests_per_s", "goodput_by_class",
            )
        }  # fmt: skip
        for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
            result[name] = getattr(s, name).to_dict()
        result |= {
            "acceptance_length": self.acceptance_length,
            "acceptance_histogram": list(self.acceptance_histogram),
            "num_steps": self.num_steps, "mean_batch": self.mean_batch,
            "preemptions": self.preemptions, "utilisation": self.utilisation,
            "bound": self.bound, "kv_occupancy": self.kv_occupancy,
            "prefix_hit_rate": self.prefix_hit_rate, "wasted": self.wasted,
            "cost_usd_per_million_tokens": self.cost_usd_per_million_tokens,
            "energy_j_per_token": self.energy_j_per_token, "seed": self.seed,
            "sources": self.sources, "warnings": [dict(w) for w in self.warnings],
        }  # fmt: skip
        if self.interrupted:
            result["interrupted"] = True
        return result


@dataclass(frozen=True, kw_only=True)
class Result:
    """One simulated run. `objectives` are per traffic class."""

    cluster: Cluster
    objectives: tuple[Objective, ...]
    sources: dict[str, str]
    warnings: tuple[dict[str, str], ...] = ()

    @cached_property
    def served(self) -> Served:
        """The requests as columns for `metrics`."""
        return served_columns(
            self.cluster, worst_gaps=any(o.itl_s is not None for o in self.objectives)
        )

    def whole(self) -> Result:
        """This result, for callers who want all of a run or nothing.

        Raises:
            KeyboardInterrupt: if Ctrl-C ended the run early. The simulator itself catches it
                to keep what is finished; half a run must not pass for a point of a study.
        """
        if self.cluster.interrupted:
            raise KeyboardInterrupt
        return self

    def summary(self) -> Summary:
        """Latencies, rates, shares and waste of the whole run."""
        return self._summary

    @cached_property
    def _summary(self) -> Summary:
        setup = self.cluster.setup
        steady = setup.arrivals.process != "trace" and not setup.faults
        service = service_metrics(self.served, self.objectives, cut_warmup=steady)
        return Summary(
            service=service, seed=setup.seed, interrupted=self.cluster.interrupted,
            sources=self.sources,
            warnings=(*self.warnings, *accounting.warnings(self.cluster, service)),
            **accounting.totals(self.cluster, service),
        )  # fmt: skip

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row per request."""
        import pandas as pd

        served, ledger = self.served, self.cluster.ledger
        names = np.asarray(served.class_names, dtype=object)
        return pd.DataFrame(
            {
                "request": np.arange(len(served.arrival_s)),
                "traffic_class": names[served.traffic_class],
                "replica": ledger.replica,
                "arrival_s": served.arrival_s,
                "first_token_s": served.first_s,
                "finish_s": served.last_s,
                "prompt_tokens": served.prompt_tokens,
                "output_tokens": served.output_tokens,
                "ttft_s": ttft(served),
                "tpot_s": tpot(served),
                "e2e_s": e2e(served),
                "preemptions": ledger.preemptions,
                "failed": served.failed,
            }
        )

    @property
    def records(self) -> list[RequestRecord]:
        """One record per completed or failed request, with the time of every chunk."""
        return records(self.cluster)

    def to_parquet(self, path: str | Path) -> None:
        """Write `requests` as Parquet."""
        self.requests.to_parquet(path, index=False)

    @property
    def latencies(self) -> dict[str, Array]:
        """Kind of latency → seconds of each request, as figures take them."""
        served = self.served
        return {
            "time to first token": ttft(served),
            "time per output token": tpot(served),
            "end to end": e2e(served),
        }

    def plot(self, ax: Any = None) -> Any:
        """Share of requests served within a time; matplotlib axes."""
        from specsim.plots import simulation_latency

        return simulation_latency(self.latencies, ax=ax)

    def _repr_html_(self) -> str:
        import html

        rows = "".join(
            f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>"
            for k, v in self.summary().to_dict().items()
        )
        return f"<table>{rows}</table>"


def segments_of(cluster: Cluster, request: int) -> list[Segment]:
    """The stays of a finished request in running batches."""
    ledger = cluster.ledger
    if request in ledger.segments:
        return ledger.segments[request]
    steps = int(ledger.num_steps[request])
    plan = None
    if ledger.plans:
        at = int(ledger.plan_at[request])
        plan = bytes(ledger.plans[at : at + steps])
    first = int(ledger.first_step[request])
    return [Segment(int(ledger.replica[request]), first, steps, plan, True)]


def served_columns(cluster: Cluster, *, worst_gaps: bool) -> Served:
    """The ledger as columns; gaps from the steps' durations and their decoding batch."""
    ledger, requests = cluster.ledger, cluster.setup.requests
    ends = [np.frombuffer(r.step_end_s, dtype=float) for r in cluster.replicas]
    # (Ctrl-C may have come before the last step's batch was noted)
    gap_s = [np.diff(end[: len(r.decoding)]) for end, r in zip(ends, cluster.replicas, strict=True)]
    weight = [gap_weights(r) for r in cluster.replicas]
    worst = None
    if worst_gaps:
        worst = np.zeros(len(requests))
        done = np.flatnonzero(np.isfinite(ledger.finish_s) & ~ledger.failed)
        for request in done:
            times = chunk_times(cluster, segments_of(cluster, int(request)), ends)
            worst[request] = np.diff(times).max(initial=0.0)
    between = [
        [ends[after.replica][after.first_step] - ends[before.replica][before.last_step]]
        for parts in ledger.segments.values()
        for before, after in pairwise(part for part in parts if part.num_chunks)
    ]
    gaps = np.concatenate([np.zeros(0), *gap_s, *between])
    return Served(
        arrival_s=np.where(np.isnan(ledger.arrival_s), requests.arrival_s, ledger.arrival_s),
        first_s=ledger.first_s, last_s=np.where(ledger.failed, np.nan, ledger.finish_s),
        prompt_tokens=requests.prompt_tokens, output_tokens=requests.output_tokens,
        traffic_class=requests.traffic_class, class_names=requests.class_names,
        failed=ledger.failed, gap_s=gaps,
        gap_weight=np.concatenate([np.zeros(0), *weight, np.ones(len(between))]),
        worst_gap_s=worst,
    )  # fmt: skip


def gap_weights(replica: Replica) -> Array:
    """Sequences whose chunk of a step follows one of the step before; shape (steps − 1,)."""
    weight = np.frombuffer(replica.decoding, dtype=np.int32).astype(float)
    for step, entered in replica.entered.items():
        if step < len(weight):
            weight[step] -= entered
    return weight[1:]


def chunk_times(cluster: Cluster, segments: list[Segment], ends: list[Array]) -> Array:
    """When each chunk of a request was delivered, in seconds."""
    return np.concatenate(
        [ends[s.replica][s.first_step : s.first_step + s.num_chunks] for s in segments]
    )


def records(cluster: Cluster) -> list[RequestRecord]:
    """See `Result.records`."""
    ledger, requests = cluster.ledger, cluster.setup.requests
    ends = [np.frombuffer(r.step_end_s, dtype=float) for r in cluster.replicas]
    result = []
    for request in np.flatnonzero(np.isfinite(ledger.finish_s) | ledger.failed).tolist():
        common: dict[str, Any] = {
            "request": str(request), "arrival_s": float(ledger.arrival_s[request]),
            "prompt_tokens": int(requests.prompt_tokens[request]),
            "output_tokens": int(requests.output_tokens[request]),
            "traffic_class": requests.class_names[requests.traffic_class[request]],
            "num_preemptions": int(ledger.preemptions[request]),
        }  # fmt: skip
        if ledger.failed[request]:
            result.append(RequestRecord(**common, chunk_times_s=(), chunk_tokens=(), failed=True))
            continue
        segments = segments_of(cluster, request)
        tokens = [n for segment in segments for n in segment.chunk_tokens]
        tokens[-1] -= sum(tokens) - common["output_tokens"]  # the last step is cut
        times = chunk_times(cluster, segments, ends)
        result.append(
            RequestRecord(**common, chunk_times_s=tuple(times.tolist()), chunk_tokens=tuple(tokens))
        )
    return result
