"""The same scenario again and again with independent seeds: what a number's error is.

Batch means within one run (`metrics.batch_means_interval`) are an estimate from correlated
requests; means of independent runs are independent, also where a run is short, overloaded
or driven by a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from specsim.metrics import mean_interval
from specsim.scenario.document import Scenario
from specsim.simulator.result import Summary
from specsim.simulator.run import simulate

#: Spawn key of replications (0 to 4 are the purposes of a run's own draws).
REPLICATION = 5
#: Keys of a summary that are not averaged.
NOT_AVERAGED = ("seed", "sources", "warnings", "acceptance_histogram", "interrupted", "ci95")

#: Called with (replications done, replications in all).
Progress = Callable[[int, int], None]
#: Scenario, its limits, and which replication.
Task = tuple[Scenario, int | None, float | None, int]


@dataclass(frozen=True, kw_only=True)
class Replications:
    """Summaries of independent runs, in the order of `seeds`.

    After Ctrl-C those that were finished, and `interrupted`; `asked` is how many were
    wanted.
    """

    summaries: tuple[Summary, ...]
    seeds: tuple[int, ...]
    seed: int
    asked: int
    interrupted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Means over replications under the names of `simulate`, and their errors.

        Every `ci95` is the interval of that mean over replications; `replications` holds
        standard errors and intervals of every number, in the same shape.
        """
        every = [summary.to_dict() for summary in self.summaries]
        means, errors, intervals = (_combined(every, part) for part in range(3))
        for name, of_mean in intervals.items():
            if isinstance(of_mean, dict) and "mean" in of_mean:  # a latency
                means[name]["ci95"] = of_mean["mean"]
        result: dict[str, Any] = {
            **means, "acceptance_histogram": _added(d["acceptance_histogram"] for d in every),
            "seed": self.seed, "sources": every[0]["sources"], "warnings": _warnings(every),
            "replications": {
                "count": len(every), "asked": self.asked, "seeds": list(self.seeds),
                "standard_error": errors, "ci95": intervals,
            },
        }  # fmt: skip
        if self.interrupted:
            result["interrupted"] = True
        return result


def replicate(
    scenario: Scenario, replications: int, *, workers: int = 1, max_requests: int | None = None,
    max_seconds: float | None = None, progress: Progress | None = None,
) -> Replications:  # fmt: skip
    """Simulate a scenario `replications` times, with seeds that follow from its own.

    The seed of replication i depends on the scenario's seed and on i alone, so that two
    policies (or any two settings) meet the same arrivals, lengths and accepted runs in
    their replications i: compare them pair by pair.

    Args:
        workers: processes (joblib); -1 is one per core. The result does not depend on it.
        max_requests, max_seconds: of each replication, as in `simulate`.
        progress: called with (replications done, replications in all).

    Raises:
        ValueError: for fewer than 2 replications.
        KeyboardInterrupt: if Ctrl-C came before any replication was finished.
        See `simulate` for the rest.
    """
    if replications < 2:
        raise ValueError(f"replications={replications} < 2")
    tasks = [(scenario, max_requests, max_seconds, i) for i in range(replications)]
    done: dict[int, Summary] = {}
    interrupted = False
    try:
        for index, summary in _summaries(tasks, workers):
            if summary is None:
                raise KeyboardInterrupt
            done[index] = summary
            if progress is not None:
                progress(len(done), replications)
    except KeyboardInterrupt:
        if not done:
            raise
        interrupted = True
    finished = sorted(done)
    return Replications(
        summaries=tuple(done[i] for i in finished),
        seeds=tuple(seed_of(scenario.seed, i) for i in finished), seed=scenario.seed,
        asked=replications, interrupted=interrupted,
    )  # fmt: skip


def seed_of(seed: int, replication: int) -> int:
    """The seed of a replication, at least 0 and below 2⁶³."""
    sequence = np.random.SeedSequence(seed, spawn_key=(REPLICATION, replication))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def _summaries(tasks: Sequence[Task], workers: int) -> Iterator[tuple[int, Summary | None]]:
    """Replications with their numbers as they are finished, in any order."""
    if workers == 1:
        yield from map(_one, tasks)
        return
    import joblib

    jobs = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")
    yield from jobs(joblib.delayed(_one)(task) for task in tasks)


def _one(task: Task) -> tuple[int, Summary | None]:
    """A worker's job. None where Ctrl-C ended it: a worker that raises it breaks the pool."""
    scenario, max_requests, max_seconds, index = task
    described = scenario.model_copy(update={"seed": seed_of(scenario.seed, index)})
    result = simulate(described, max_requests=max_requests, max_seconds=max_seconds)
    summary = result.summary()
    return index, None if summary.interrupted else replace(summary, seed=described.seed)


def _combined(every: Sequence[Mapping[str, Any]], part: int) -> dict[str, Any]:
    """Mean (part 0), standard error (1) or interval (2) of every number, nested as given."""
    result: dict[str, Any] = {}
    for key, first in every[0].items():
        if key in NOT_AVERAGED:
            continue
        values = [summary.get(key) for summary in every]
        if isinstance(first, dict):
            result[key] = _combined([v or {} for v in values], part)
        elif any(isinstance(value, (list, tuple)) for value in values):
            pairs = zip(*(v for v in values if v is not None), strict=True)
            result[key] = [mean_interval(pair)[part] for pair in pairs]
        else:
            result[key] = mean_interval([v for v in values if v is not None])[part]
    return result


def _added(histograms: Any) -> list[int]:
    """Elementwise sum; all have the length of the largest K."""
    return [int(n) for n in np.sum(np.array(list(histograms)), axis=0)]


def _warnings(every: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Each code once, with how many replications gave it and the first one's message."""
    found: dict[str, list[str]] = {}
    for summary in every:
        for warning in summary["warnings"]:
            found.setdefault(warning["code"], []).append(warning["message"])
    return [
        {"code": code, "message": f"in {len(messages)} of {len(every)} replications: {messages[0]}"}
        for code, messages in found.items()
    ]
