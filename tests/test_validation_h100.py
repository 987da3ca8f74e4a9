"""How the measurements of a service on an H100 are read, on made-up stages."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from specsim.cost.linear import VLLM_LLAMA_8B_H100 as FIT
from specsim.metrics import tpot, ttft
from specsim.simulator.cluster import Cluster
from specsim.simulator.setup import Setup
from specsim.workload.requests import Requests
from validation import serving_h100
from validation.serving_h100 import OUTPUT_TOKENS, Stage, fitted_runtime, of_source, serve

LIMITS = {"fit_tpot_worst": 0.08, "fit_tpot_median": 0.04, "fit_ttft": 0.25, "fit_throughput": 0.05}
#: Seconds between the server's time to first token and the client's, in the made-up data.
OUTSIDE_S = 0.02


def test_a_stage_is_read_as_it_was_run() -> None:
    """64 tokens of 10 ms after a first one at 30 ms; the server's own clock says 12 ms."""
    client = {
        "load_summary": {"requested_rate": 30.0, "achieved_rate": 31.0},
        "successes": {
            "count": 60, "prompt_len": {"mean": 204.1}, "output_len": {"mean": 61.7},
            "latency": {"request_latency": {"mean": 0.03 + 0.63},
                        "time_to_first_token": {"mean": 0.03}},
            "throughput": {"requests_per_sec": 29.5},
        },
    }  # fmt: skip
    server = {"successes": {"time_to_first_token": {"mean": 0.012}}}
    stage = serving_h100.stage_of(1, client, server)
    assert stage.tpot_s == pytest.approx(0.01)  # not 0.63 / 60.7: that counts text, not tokens
    assert (stage.prompt, stage.client_ttft_s, stage.server_ttft_s) == (204, 0.03, 0.012)
    assert serving_h100.stage_of(0, client, server).server_ttft_s is None


def made_up(number: int, rate: float, count: int, *, slower: float = 1.0) -> Stage:
    """A stage as the simulator itself serves it, `slower` times, at other seeds."""
    shape = Stage(
        number=number, count=count, prompt=204, requested_per_s=rate, achieved_per_s=rate,
        served_per_s=rate, tpot_s=1.0, client_ttft_s=1.0, server_ttft_s=None,
    )  # fmt: skip
    runs = [serve(shape, FIT, fitted_runtime(), seed) for seed in range(100, 105)]
    first = slower * float(np.mean([ttft(run).mean() for run in runs]))
    served = [count / (run.last_s.max() - run.arrival_s.min()) for run in runs]
    return dataclasses.replace(
        shape, tpot_s=slower * float(np.mean([tpot(run).mean() for run in runs])),
        client_ttft_s=first + OUTSIDE_S, served_per_s=float(np.mean(served)) / slower,
        server_ttft_s=first if number in serving_h100.SERVER_KNOWS else None,
    )  # fmt: skip


LOADS = ((0, 1.0, 60), (1, 30.0, 400), (2, 60.0, 700), (3, 80.0, 900), (4, 130.0, 1500),
         (5, 150.0, 1500), (6, 180.0, 1500))  # fmt: skip


@pytest.mark.parametrize("slower", [1.0, 1.4])
def test_right_predictions_pass_and_wrong_ones_do_not(slower: float) -> None:
    stages = [made_up(*load, slower=slower) for load in LOADS]
    rows = of_source("fit", stages, FIT, fitted_runtime(), LIMITS, "fit")
    bounded = [row for row in rows if row.passed is not None]
    # 7 TPOT, 3 throughputs, 3 TTFT at the server and 3 at the client, 1 median
    assert len(bounded) == len(rows) == 17
    assert not any("stage 1 " in r.name and "client" in r.name for r in rows)
    for row in bounded:
        at_client = "client" in row.name  # most of it is the 20 ms outside
        assert row.passed is (slower == 1.0) or at_client, row.name


def test_arrivals_are_random_and_fill_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Requests] = []

    class Caught(Cluster):
        def __init__(self, setup: Setup) -> None:
            seen.append(setup.requests)
            super().__init__(setup)

    monkeypatch.setattr(serving_h100, "Cluster", Caught)
    stage = Stage(number=1, count=600, prompt=204, requested_per_s=10.0, achieved_per_s=10.0,
                  served_per_s=10.0, tpot_s=1.0, client_ttft_s=1.0, server_ttft_s=1.0)  # fmt: skip
    serve(stage, FIT, fitted_runtime(), 0)
    gaps = np.diff(seen[0].arrival_s)
    assert seen[0].arrival_s[-1] == pytest.approx(60.0)
    # exponential gaps: as wide as long; the error of a standard deviation of 599 is 4 to 5 %
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.15)
    assert set(seen[0].output_tokens.tolist()) == {OUTPUT_TOKENS}


def test_absent_data_is_not_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECSIM_DATA", raising=False)
    (row,) = serving_h100.rows()
    assert row.passed is None
    assert "not run" in row.provenance
