"""Sweeps: grids, shards, resuming after a kill, the same bytes however it was run."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from specsim.cli.main import run as command_line
from specsim.errors import ScenarioError
from specsim.planner.grids import make_grid, parse_vary
from specsim.planner.shards import MANIFEST, MERGED, chunks, write_bytes
from specsim.planner.sweeping import sweep
from specsim.scenario.document import Scenario

SERVICE = {
    "target": {"model": "llama-3.1-8b"},
    "draft": {"method": "draft-model", "model": "llama-3.2-1b", "num_draft_tokens": 3},
    "hardware": {"gpu": "h100-sxm"},
    "acceptance": {"alpha": 0.7},
    "workload": {"arrivals": {"process": "poisson", "rate_per_s": 4.0}, "num_requests": 60},
}
PROGRAM = str(Path(sys.executable).with_name("specsim"))
VARY = {"draft.num_draft_tokens": [1, 2, 4], "workload.arrivals.rate_per_s": [2.0, 8]}


@pytest.fixture
def base() -> Scenario:
    return Scenario.from_dict(SERVICE)


@pytest.fixture
def file(tmp_path: Path, base: Scenario) -> Path:
    path = tmp_path / "service.yaml"
    path.write_text(base.to_yaml())
    return path


def shards(folder: Path) -> set[str]:
    return {p.name for p in folder.glob("*.parquet")} - {MERGED}


def test_rows_are_the_simulations_in_grid_order(tmp_path: Path, base: Scenario) -> None:
    """Every row is what `simulate` says of its point; the last key varies fastest."""
    from specsim.simulator.run import simulate

    done = sweep(base, VARY, tmp_path / "out", workers=1)
    frame = done.to_frame()
    assert (done.runs, done.reused, done.failed) == (6, 0, 0)
    assert done._repr_html_().count("<tr") == 7
    points = frame[list(VARY)].values.tolist()
    assert points == [[k, r] for k in (1, 2, 4) for r in (2.0, 8.0)]
    for row in frame.to_dict("records"):
        one = base.with_set([f"{key}={row[key]:g}" for key in VARY])
        summary = simulate(one).summary().to_dict()
        assert row["throughput_tokens_per_s"] == summary["throughput_tokens_per_s"]
        assert row["tpot_s_p90"] == summary["tpot_s"]["p90"]


def test_the_same_bytes_for_any_number_of_workers(tmp_path: Path, base: Scenario) -> None:
    one = sweep(base, VARY, tmp_path / "one", workers=1)
    two = sweep(base, VARY, tmp_path / "two", workers=2)
    assert one.path is not None
    assert two.path is not None
    assert one.path.read_bytes() == two.path.read_bytes()
    assert shards(one.folder) == shards(two.folder)
    for name in shards(one.folder):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes()


def test_the_same_bytes_on_a_dask_cluster(tmp_path: Path, base: Scenario) -> None:
    distributed = pytest.importorskip("distributed")
    alone = sweep(base, VARY, tmp_path / "alone", workers=1)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        shared = sweep(base, VARY, tmp_path / "shared", cluster=cluster.scheduler_address)
    assert alone.path is not None
    assert shared.path is not None
    assert alone.path.read_bytes() == shared.path.read_bytes()


def test_no_scheduler_at_the_address_is_an_error(tmp_path, base, monkeypatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("specsim.planner.sweeping.CLUSTER_TIMEOUT_S", 1)
    with pytest.raises(ScenarioError, match="--cluster"):
        sweep(base, VARY, tmp_path / "out", cluster="tcp://127.0.0.1:9")
    assert shards(tmp_path / "out") == set()


def test_a_killed_sweep_goes_on_where_it_stopped(tmp_path: Path, file: Path) -> None:
    """kill -9 in the middle of a real run: --resume loses nothing and repeats nothing."""
    out = tmp_path / "out"
    arguments = [
        PROGRAM, "sweep", str(file), "--out", str(out), "--workers", "2",
        "--vary", "seed=0:23", "--set", "workload.num_requests=200", "--json",
    ]  # fmt: skip
    process = subprocess.Popen(arguments, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(shards(out)) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {name: (out / name).stat().st_mtime_ns for name in shards(out)}
    assert 4 <= len(kept) < 24
    assert not (out / MERGED).exists()
    done = subprocess.run([*arguments, "--resume"], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert (result["runs"], result["reused"]) == (24 - len(kept), len(kept))
    assert {n: (out / n).stat().st_mtime_ns for n in kept} == kept  # nothing was run again
    whole = sweep(
        Scenario.load(file).with_set(["workload.num_requests=200"]), {"seed": list(range(24))},
        tmp_path / "whole", workers=1,
    )  # fmt: skip
    assert whole.path is not None
    assert (out / MERGED).read_bytes() == whole.path.read_bytes()


def test_a_half_written_shard_is_no_shard(tmp_path: Path, base: Scenario) -> None:
    out = tmp_path / "out"
    first = sweep(base, VARY, out, workers=1)
    name = sorted(shards(out))[0]
    (out / f".{name}.partial").write_bytes(b"half")
    (out / name).unlink()
    again = sweep(base, VARY, out, workers=1, resume=True)
    assert (again.runs, again.reused) == (1, 5)
    assert not list(out.glob(".*.partial"))
    assert again.to_frame().equals(first.to_frame())


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("resume", [False, True])
def test_another_sweeps_folder_is_refused_untouched(
    tmp_path: Path, base: Scenario, resume: bool
) -> None:
    out = tmp_path / "out"
    sweep(base, VARY, out, workers=1)
    before = contents(out)
    for other in ({"draft.num_draft_tokens": [1, 2]}, {**VARY, "seed": [1]}):
        with pytest.raises(ScenarioError, match="another sweep"):
            sweep(base, other, out, workers=1, resume=resume)
    changed = base.with_set(["acceptance.alpha=0.71"])
    with pytest.raises(ScenarioError, match="another sweep"):
        sweep(changed, VARY, out, workers=1, resume=resume)
    assert contents(out) == before


def test_a_foreign_parquet_is_refused(tmp_path: Path, base: Scenario) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.parquet").write_bytes(b"somebody's")
    with pytest.raises(ScenarioError, match=r"results\.parquet"):
        sweep(base, VARY, out, workers=1)
    assert contents(out) == {"results.parquet": b"somebody's"}


def test_a_finished_sweep_is_not_overwritten_without_resume(tmp_path, base) -> None:
    sweep(base, VARY, tmp_path / "out", workers=1)
    with pytest.raises(ScenarioError, match="--resume"):
        sweep(base, VARY, tmp_path / "out", workers=1)
    again = sweep(base, VARY, tmp_path / "out", workers=1, resume=True)
    assert (again.runs, again.reused) == (0, 6)


def test_names_change_with_what_names_resolve_to(base: Scenario, monkeypatch) -> None:
    """A shard is reused only where it would be computed to the same bytes."""
    grid = make_grid(base, VARY)
    names = [c.name for c in chunks(grid, "simulate", {})]
    assert names == [c.name for c in chunks(grid, "simulate", {})]
    assert set(names).isdisjoint(c.name for c in chunks(grid, "predict", {}))
    assert set(names).isdisjoint(c.name for c in chunks(grid, "simulate", {"max_requests": 9}))
    monkeypatch.setattr("specsim.planner.shards.__version__", "9.9")
    assert set(names).isdisjoint(c.name for c in chunks(grid, "simulate", {}))


def test_a_point_that_fails_is_a_row_with_its_reason(tmp_path: Path, base: Scenario) -> None:
    """70B in 16 bits fits no single H100: the sweep goes on and says so."""
    vary = {"target.model": ["llama-3.1-8b", "llama-3.1-70b"]}
    done = sweep(base, vary, tmp_path / "out", workers=1)
    frame = done.to_frame()
    assert done.failed == 1
    assert frame["error"].isna().tolist() == [True, False]
    assert "does not fit" in frame["error"][1]
    assert frame["tpot_s_mean"].isna().tolist() == [False, True]


def test_the_closed_form_is_a_run_too(tmp_path: Path, base: Scenario) -> None:
    from specsim.cli.predict import answer

    done = sweep(base, {"point.batch": [1, 64]}, tmp_path / "out", run="predict", workers=1)
    frame = done.to_frame()
    for batch, speedup in zip(frame["point.batch"], frame["best_speedup"], strict=True):
        result, _ = answer(base.with_set([f"point.batch={batch}"]))
        assert speedup == pytest.approx(result["rows"][0]["speedup"], rel=1e-12)


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["a.b=1:4"], {"a.b": [1, 2, 3, 4]}),
        (["a=0:64:32"], {"a": [0, 32, 64]}),
        (["a=x,y", "b=1.5"], {"a": ["x", "y"], "b": [1.5]}),
        (["a=[[1,4,2],[5,8,0]],[[1,8,1]]"], {"a": [[[1, 4, 2], [5, 8, 0]], [[1, 8, 1]]]}),
        (["a=true,false"], {"a": [True, False]}),
    ],
)
def test_values_of_a_key(texts: list[str], values: dict) -> None:
    assert parse_vary(texts) == values


@pytest.mark.parametrize("text", ["a", "=1", "a=", "a=4:1", "a=1:9:0"])
def test_no_values(text: str) -> None:
    with pytest.raises(ScenarioError, match="--vary"):
        parse_vary([text])


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ([], "nothing varies"),
        (["draft.num_draft_tokenz=1:3"], "num_draft_tokens"),
        (["engine.max_num_seqs=8,many"], "engine.max_num_seqs"),
        (["target.model=1:2"], "target.model"),
        (["seed=1,1"], "twice"),
        (["seed=1", "seed=2"], "twice"),
    ],
)
def test_bad_grids_exit_2_and_write_nothing(
    tmp_path: Path, file: Path, capsys, vary: list[str], message: str
) -> None:
    out = tmp_path / "out"
    arguments = ["sweep", str(file), "--out", str(out)]
    for text in vary:
        arguments += ["--vary", text]
    assert command_line(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not out.exists()


def test_progress_counts_every_point_and_says_how_long(tmp_path: Path, base: Scenario) -> None:
    seen: list[tuple[int, int, float | None]] = []
    sweep(base, VARY, tmp_path / "o", workers=1, progress=lambda *call: seen.append(call))
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert {total for _, total, _ in seen} == {6}
    assert seen[-1][0] == 6
    assert seen[-1][2] == pytest.approx(0.0)
    assert all(left is None or left >= 0 for _, _, left in seen)
    again: list[tuple[int, int, float | None]] = []
    sweep(base, VARY, tmp_path / "o", workers=1, resume=True,
          progress=lambda *call: again.append(call))  # fmt: skip
    assert all(done == 6 for done, _, _ in again)


def test_a_terminal_shows_a_bar_with_the_time_left(file: Path, tmp_path: Path) -> None:
    """On a terminal only: a pipe gets no control characters."""
    main_end, end = pty.openpty()
    arguments = [
        PROGRAM, "sweep", str(file), "--out", str(tmp_path / "o"), "--workers", "1",
        "--vary", "draft.num_draft_tokens=1:4", "--vary", "seed=0:5", "--max-requests", "40",
    ]  # fmt: skip
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=end)
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal is closed at the end
        while part := os.read(main_end, 4096):
            shown += part
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert re.search(rb"\[#+ *\] \d+/24 points, [\d.]+ \w+ left", shown)
    assert shown.endswith(b"\r")  # the bar is gone
    assert b"\r" not in printed


def test_json_of_the_command(tmp_path: Path, file: Path, capsys) -> None:
    arguments = [
        "sweep", str(file), "--out", str(tmp_path / "o"), "--workers", "1", "--json",
        "--vary", "draft.num_draft_tokens=1:2", "--max-requests", "20",
    ]  # fmt: skip
    assert command_line(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["runs"] == 2
    assert Path(result["path"]).name == MERGED
    manifest = json.loads((tmp_path / "o" / MANIFEST).read_text())
    assert manifest["vary"] == {"draft.num_draft_tokens": [1, 2]}


@pytest.mark.parametrize("last", [1, 2, 6], ids=["first shard", "second shard", "last shard"])
def test_ctrl_c_right_after_a_shard_was_written_counts_it(
    tmp_path: Path, base: Scenario, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    written: list[str] = []

    def write(path: Path, content: bytes) -> None:
        write_bytes(path, content)
        written.append(path.name)
        if len(written) == last:
            raise KeyboardInterrupt

    monkeypatch.setattr("specsim.planner.sweeping.write_bytes", write)
    out = tmp_path / "out"
    done = sweep(base, VARY, out, workers=1)
    assert (done.runs, done.reused, done.interrupted, done.path) == (last, 0, True, None)
    assert len(shards(out)) == last
    again = sweep(base, VARY, out, workers=1, resume=True)
    assert (again.runs, again.reused, again.interrupted) == (6 - last, last, False)


def test_ctrl_c_exits_130_and_keeps_what_is_done(tmp_path: Path, file: Path) -> None:
    # Sixty runs of about a second each: the signal cannot come after the last one.
    out = tmp_path / "out"
    process = subprocess.Popen(
        [PROGRAM, "sweep", str(file), "--out", str(out), "--workers", "1",
         "--vary", "seed=0:59", "--set", "workload.num_requests=20000", "--json"],
        stdout=subprocess.PIPE, text=True,
        # a shell's background job, as this test may be, ignores the signal; so would its child
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(shards(out)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    result = json.loads(printed)
    assert process.returncode == 130
    assert result["interrupted"] is True
    assert result["runs"] == len(shards(out)) < 60
    assert result["path"] is None
