"""Where the draft runs, what n-gram look-up proposes, progress and Ctrl-C: numbers worked
out by hand. A pass of the target takes 100 ms and one of the draft 10 ms, whatever is in it."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from simulator_setups import deployment, length, run, setup, timings

import specsim as ss
from specsim.acceptance import Iid
from specsim.cli import simulate as command
from specsim.cli.main import run as run_command
from specsim.cost.linear import Linear
from specsim.cost.source import ForwardTime, latency
from specsim.cost.work import Work
from specsim.deployment import Draft, PlacedModel
from specsim.simulator.cluster import Cluster
from specsim.simulator.run import make_setup
from specsim.simulator.setup import Limits, Setup

CHAT = Path(__file__).parents[1] / "examples" / "chat-70b.yaml"
TARGET_S = 0.1


@dataclasses.dataclass(frozen=True)
class Passes:
    """Seconds by model alone."""

    draft_s: float = 0.01
    name: str = "by hand"

    def forward_time(self, model: PlacedModel, batch: Any, new: Any, context: Any) -> ForwardTime:
        return self.work_time(model, Work.uniform(batch, new, context))

    def work_time(self, model: PlacedModel, work: Work) -> ForwardTime:
        seconds = self.draft_s if "1b" in model.spec.name else TARGET_S
        return latency(seconds + 0.0 * np.asarray(work.tokens))


def one_request(alpha: float, *, overlapped: bool, draft_s: float = 0.01) -> Cluster:
    """21 tokens at K = 4: one from the prompt's pass, twenty from decoding steps."""
    return run(
        setup(
            k=4, count=1, rate=None, law=Iid(alpha), source=Passes(draft_s), prompt=length(8),
            output=length(21), limits=Limits(max_tokens=512, overlapped=overlapped),
        )
    )  # fmt: skip


@pytest.mark.parametrize(
    ("alpha", "draft_s", "overlapped", "steps_s", "wasted_s"),
    [
        # drafting (4 passes) and verifying follow each other: 40 + 100 ms
        (1.0, 0.01, False, [0.14] * 4, 0.0),
        (0.0, 0.01, False, [0.14] * 20, 0.0),
        # the first block has to wait for its draft; the next was drafted meanwhile
        (1.0, 0.01, True, [0.14, 0.1, 0.1, 0.1], 0.05),
        # five passes of 30 ms (the guess, the block) are longer than the verification
        (1.0, 0.03, True, [0.27, 0.15, 0.15, 0.15], 0.15),
        # whatever was drafted ahead is thrown away
        (0.0, 0.01, True, [0.14] * 20, 20 * 0.05),
    ],
)
def test_drafting_beside_verification(
    alpha: float, draft_s: float, overlapped: bool, steps_s: list[float], wasted_s: float
) -> None:
    """Blocks drafted ahead: one a step, each a guess of the token that the target adds and
    four more, of which those after accepted blocks and right guesses are used."""
    replica = one_request(alpha, overlapped=overlapped, draft_s=draft_s).replicas[0]
    ends = np.frombuffer(replica.step_end_s)
    assert ends[0] == pytest.approx(TARGET_S + draft_s)  # both models compute the prompt
    assert np.diff(ends).tolist() == pytest.approx(steps_s)
    assert replica.timer.overlap_wasted_s == pytest.approx(wasted_s)


def placed(placement: str, **changes: str) -> Setup:
    sets = [f"{key}={value}" for key, value in changes.items()]
    described = ss.Scenario.load(CHAT).with_set(
        [f"draft.placement={placement}", "workload.num_requests=60", *sets]
    )
    return make_setup(described)[0]


def test_a_draft_on_its_own_gpu_leaves_the_targets_memory_alone() -> None:
    """Sharing, the cache loses the draft's weights and its keys and values; the second set
    of graphs (0.6 GB) stays with the target."""
    shared, own = placed("target-gpus"), placed("own-gpus")
    draft = shared.deployment.draft.model
    assert draft is not None
    target = shared.deployment.target
    pool = own.limits.num_blocks * 16 * target.kv_bytes_per_token_per_gpu
    each = target.kv_bytes_per_token_per_gpu + draft.kv_bytes_per_token_per_gpu
    expected = (pool - draft.weights_bytes_per_gpu) / each / 16
    assert shared.limits.num_blocks == pytest.approx(expected, abs=1.5)
    assert own.limits.num_blocks > 1.1 * shared.limits.num_blocks
    assert (shared.deployment.num_gpus, own.deployment.num_gpus) == (4, 8)
    # as long as the cache does not fill, nothing else differs
    assert timings(run(shared)) == timings(run(own))


def test_drafting_beside_verification_needs_a_gpu_of_its_own() -> None:
    """Both at full speed at once: the same GPUs cannot. Its memory is as with own GPUs."""
    own, beside = placed("own-gpus"), placed("overlapped")
    assert beside.limits.num_blocks == own.limits.num_blocks
    assert beside.deployment.num_gpus == 8
    assert beside.limits.overlapped
    assert not own.limits.overlapped


@pytest.mark.parametrize(("proposed", "tokens"), [(None, 10), ((0.0, 0.5, 1.0, 1.5, 2.0), 6)])
def test_only_proposed_tokens_are_verified(proposed: tuple[float, ...] | None, tokens: int) -> None:
    """Two sequences at K = 4 and 1 ms a token: 2 · 5 tokens where all are proposed, 2 · 3
    where two are. What is accepted is the law's, either way."""
    look_up = dataclasses.replace(deployment(), draft=Draft(method="ngram"))
    cluster = run(
        setup(
            k=4, count=2, rate=None, concurrency=2, law=Iid(0.0), placed=look_up,
            source=Linear(base_s=0.0, token_s=1e-3), output=length(11), proposed=proposed,
        )
    )  # fmt: skip
    replica = cluster.replicas[0]
    steps = np.diff(np.frombuffer(replica.step_end_s))
    assert steps.tolist() == pytest.approx([tokens * 1e-3] * 10)
    assert replica.timer.drafted == (tokens - 2) * 10


# --- progress and Ctrl-C ------------------------------------------------------------------


def test_progress_line_by_hand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of 1000 requests after 2 s of real and 31 s of simulated time; then again 0.05 s
    later, which is too soon to be drawn."""
    now = [10.0]
    monkeypatch.setattr("specsim.cli.simulate.time.perf_counter", lambda: now[0])
    line = command.ProgressLine()
    now[0] = 12.0
    line(500, 1000, 31.4)
    now[0] = 12.05
    line(512, 1000, 32.0)
    err = capsys.readouterr().err
    assert err == ("\r[##########          ] 500/1000 requests, 31 s simulated, 250 requests/s ")
    line.clear()
    assert capsys.readouterr().err == "\r" + " " * 78 + "\r"


def test_a_run_reports_its_progress() -> None:
    """Every 256 requests: how many are done, of how many, and the simulated time."""
    seen: list[tuple[int, int, float]] = []
    cluster = Cluster(setup(count=1000, rate=50.0, output=length(3)))
    cluster.run(progress=lambda *state: seen.append(state))
    done = [state[0] for state in seen]
    assert done == [1000 - 768, 1000 - 512, 1000 - 256]
    times = [state[2] for state in seen]
    ends = np.sort(cluster.ledger.finish_s)
    assert times == [ends[n - 1] for n in done]
    assert {state[1] for state in seen} == {1000}


def test_ctrl_c_writes_what_is_finished(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It comes when 88 of 600 requests are done: table, timeline and JSON have those."""

    def interrupt(self: Any, done: int, total: int, simulated_s: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command.ProgressLine, "__call__", interrupt)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    table, timeline = tmp_path / "r.parquet", tmp_path / "t.json"
    status = run_command(
        ["simulate", str(CHAT), "--max-requests", "600", "--json", "--records", str(table),
         "--timeline", str(timeline)]
    )  # fmt: skip
    document = json.loads(capsys.readouterr().out)
    assert status == 130
    assert document["interrupted"] is True
    assert document["completed"] == 600 - 512
    assert "incomplete" in {w["code"] for w in document["warnings"]}
    frame = pd.read_parquet(table)
    assert len(frame) == 600
    assert int(frame["finish_s"].notna().sum()) == 88
    assert document["output_tokens"] == frame.loc[frame["finish_s"].notna(), "output_tokens"].sum()
    assert json.loads(timeline.read_text(encoding="utf-8"))["traceEvents"]
