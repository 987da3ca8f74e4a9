"""`specsim.replicate` and `simulate --replications`: means over independent runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

import specsim as ss
from specsim.cli.main import run
from specsim.simulator.replications import replicate, seed_of
from specsim.simulator.run import make_setup, simulate

CHAT = Path(__file__).parents[1] / "examples" / "chat-70b.yaml"


def scenario(*changes: str) -> ss.Scenario:
    return ss.Scenario.load(CHAT).with_set(["workload.num_requests=60", *changes])


def alone(described: ss.Scenario, replication: int) -> dict[str, Any]:
    """One replication as a run of its own, with its seed set by hand."""
    seed = seed_of(described.seed, replication)
    return simulate(described.with_set([f"seed={seed}"])).summary().to_dict()


def test_means_errors_and_intervals_are_those_of_separate_runs() -> None:
    described = scenario()
    got = replicate(described, 4).to_dict()
    runs = [alone(described, i) for i in range(4)]
    for name, key in (("ttft_s", "mean"), ("tpot_s", "p99"), ("e2e_s", "p50")):
        values = [r[name][key] for r in runs]
        assert got[name][key] == pytest.approx(np.mean(values), rel=1e-12)
        error = np.std(values, ddof=1) / 2
        assert got["replications"]["standard_error"][name][key] == pytest.approx(error, rel=1e-9)
        interval = stats.t.interval(0.95, 3, np.mean(values), error)
        assert got["replications"]["ci95"][name][key] == pytest.approx(interval, rel=1e-9)
    assert got["ttft_s"]["ci95"] == got["replications"]["ci95"]["ttft_s"]["mean"]
    assert got["throughput_tokens_per_s"] == pytest.approx(
        np.mean([r["throughput_tokens_per_s"] for r in runs]), rel=1e-12
    )
    assert got["acceptance_histogram"] == np.sum(
        [r["acceptance_histogram"] for r in runs], axis=0
    ).tolist()  # fmt: skip
    assert sum(got["utilisation"].values()) == pytest.approx(1, abs=1e-12)
    assert got["seed"] == 0
    assert got["replications"]["seeds"] == [seed_of(0, i) for i in range(4)]
    assert len({r["duration_s"] for r in runs}) == 4


def test_any_number_of_workers_gives_the_same_bytes() -> None:
    texts = [json.dumps(replicate(scenario(), 3, workers=n).to_dict()) for n in (1, 2)]
    assert texts[0] == texts[1]


def test_policies_meet_the_same_requests_replication_by_replication() -> None:
    """Seeds depend on the scenario's seed alone, so pairs share arrivals and lengths."""
    speculative, plain = scenario(), scenario("speculation.policy='off'")
    assert replicate(speculative, 2).seeds == replicate(plain, 2).seeds
    for i in range(2):
        seeded = [s.with_set([f"seed={seed_of(s.seed, i)}"]) for s in (speculative, plain)]
        one, other = (make_setup(s)[0].requests for s in seeded)
        assert one.arrival_s.tolist() == other.arrival_s.tolist()
        assert one.output_tokens.tolist() == other.output_tokens.tolist()
    first, second = (make_setup(scenario(f"seed={seed_of(0, i)}"))[0].requests for i in (0, 1))
    assert first.arrival_s.tolist() != second.arrival_s.tolist()


def test_seeds_are_distinct_and_allowed() -> None:
    seeds = {seed_of(seed, i) for seed in range(50) for i in range(50)}
    assert len(seeds) == 2500
    assert min(seeds) >= 0
    assert max(seeds) < 2**63


def test_ctrl_c_keeps_what_is_finished() -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    got = replicate(scenario(), 5, progress=stop)
    assert got.interrupted
    assert len(got.summaries) == 2
    document = got.to_dict()
    assert document["interrupted"] is True
    assert (document["replications"]["count"], document["replications"]["asked"]) == (2, 5)
    one = dataclasses.replace(got, summaries=got.summaries[:1], seeds=got.seeds[:1]).to_dict()
    assert one["ttft_s"]["mean"] is not None
    assert one["ttft_s"]["ci95"] is None  # one run has no error


def test_ctrl_c_before_the_first_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from specsim.simulator import replications

    def interrupted(task: Any) -> tuple[int, None]:
        return task[3], None

    monkeypatch.setattr(replications, "_one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replicate(scenario(), 2)


def test_warnings_say_in_how_many_replications() -> None:
    got = replicate(scenario("workload.num_requests=400", "workload.arrivals.rate_per_s=60"), 3)
    warning = next(w for w in got.to_dict()["warnings"] if w["code"] == "overloaded")
    assert warning["message"].startswith("in 3 of 3 replications: requests arrive at ")


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = run(["simulate", str(CHAT), "--max-requests", "40", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ask(capsys, "--replications", "3", "--workers", "1", "--json")
    assert status == 0
    document = json.loads(out)
    expected = replicate(ss.Scenario.load(CHAT), 3, max_requests=40).to_dict()
    for key in ("ttft_s", "replications", "goodput_requests_per_s"):
        assert document[key] == json.loads(json.dumps(expected[key]))
    status, out, _ = ask(capsys, "--replications", "3", "--workers", "1")
    assert status == 0
    assert out.startswith("3 of 3 replications, 40 of 40 requests in each\n")
    assert "standard error" in out
    for label in ("time to first token, p99", "requests/s within the objective", "Acceptance:"):
        assert label in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replications", "1"], "greater than or equal to 2"),
        (["--replications", "2", "--plot", "f.png"], "--plot shows one run"),
        (["--replications", "2", "--records", "f.parquet"], "--records shows one run"),
        (["--replications", "2", "--workers", "0"], "--workers 0"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    status, out, err = ask(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("Error: ")
    assert message in err


def test_too_few_in_python() -> None:
    with pytest.raises(ValueError, match="replications=1 < 2"):
        ss.replicate(scenario(), 1)
