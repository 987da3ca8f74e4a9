"""What no plan can do, and what the planner refuses."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from planner_services import SMALL, changed

from specsim.cli.main import run as command_line
from specsim.errors import DoesNotFitError, ScenarioError
from specsim.planner.decision import plan
from specsim.scenario.document import Scenario


def test_an_impossible_slo_says_which_and_what_would_do() -> None:
    decided = plan(changed(SMALL, "slo.tpot_s=0.0005"), simulate=False)
    warning = next(w for w in decided.warnings if w.code == "slo-not-met")
    assert "tpot_s = 0.0005" in warning.message
    assert "faster GPU" in warning.message
    assert decided.answers[9].value == 0.0


def test_too_few_gpus_say_how_many() -> None:
    decided = plan(changed(SMALL, "workload.arrivals.rate_per_s=200"), simulate=False)
    warning = next(w for w in decided.warnings if w.code == "slo-not-met")
    capacity = decided.facts.capacity_per_s(decided.chosen.candidate)
    assert capacity is not None
    needed = int(np.ceil(200 / capacity))
    assert f"{needed} would" in warning.message


def test_a_target_that_does_not_fit(capsys) -> None:
    scenario = Scenario.from_dict({"target": {"model": "llama-3.1-70b"}})
    with pytest.raises(DoesNotFitError, match=r"2 × h100-sxm-80gb would hold it"):
        plan(scenario, simulate=False)
    assert command_line(["plan", "--set", "hardware.tensor_parallel=1", "--set",
                         "hardware.replicas=1", "--json"]) == 0  # fmt: skip
    result = json.loads(capsys.readouterr().out)
    assert result["best"] is None
    assert result["warnings"][0]["code"] == "does-not-fit"
    assert len(result["answers"]) == 10


def tight(**prompt_tokens: float) -> Scenario:
    """A 70B model on two GPUs of 80 GB: room for some ten thousand tokens."""
    return Scenario.from_dict({
        "target": {"model": "llama-3.1-70b"},
        "hardware": {"gpu": "h100-sxm", "tensor_parallel": 2},
        "acceptance": {"alpha": 0.7},
        "workload": {
            "arrivals": {"process": "poisson", "rate_per_s": 0.5},
            "prompt_tokens": {"distribution": "lognormal", **prompt_tokens},
            "output_tokens": {"distribution": "constant", "value": 100},
        },
    })  # fmt: skip


def test_plans_without_room_for_the_longest_request_are_left_out() -> None:
    """The simulator refuses a request that its KV cache cannot hold; other plans can."""
    decided = plan(tight(mean=1500, cv=2.0), num_requests=250)
    warning = next(w for w in decided.warnings if w.code == "request-too-long")
    assert re.search(r"on 2 x h100-sxm-80gb: request \d+: .* KV cache of", warning.message)
    assert decided.baseline.simulated is not None
    assert all(r.simulated is not None for r in decided.ranked)


def test_no_plan_where_the_longest_request_fits_nowhere() -> None:
    with pytest.raises(DoesNotFitError, match=r"request \d+: .* do not fit the KV cache"):
        plan(tight(mean=1500, cv=4.0), num_requests=250)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_gpus": 0}, "max_gpus"),
        ({"budget_usd_per_h": 0.5}, "below the price of one GPU"),
        # above the lowest offer, 2.69, but plans pay the middle of 2.69 to 12.29
        ({"budget_usd_per_h": 3.0}, "below the price of one GPU, 5.75 USD/h"),
        ({"drafts": []}, "empty"),
        ({"drafts": ["qwen3-0.6b"]}, "qwen3-0.6b"),
        ({"drafts": ["no-such-model"]}, "no-such-model"),
        ({"attained": 1.0}, "attained"),
        ({"gpus": ["tpu-v4"], "budget_usd_per_h": 10.0}, "no price"),
    ],
)
def test_bad_limits_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        plan(Scenario.from_dict(SMALL), simulate=False, **options)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--gpus", "0"],
        ["--gpus", "few"],
        ["--budget", "0.1"],
        ["--draft", ","],
        ["--draft", "opt-125m"],
        ["--gpu", "h1000"],
        ["--html", "report.txt"],
        ["--html", "/no/such/folder/report.html"],
        ["--probe", "sglang"],
        ["--measured", "/no/such/file.yaml"],
        ["--set", "draft.num_draft_tokens=0:0"],
        ["no-such-file.yaml"],
    ],
)
def test_bad_options_exit_2(capsys, arguments: list[str]) -> None:
    assert command_line(["plan", "--no-simulate", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Error: ")
    assert captured.err.count("\n") == 1
