"""Measuring the decoder: units in turn, going on after an interruption, refusing a mixture."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from test_reference_helpers import tiny_config

from reference.model import random_model
from reference.weights import Loaded
from specsim.errors import RecordError
from specsim.records import ForwardRecord, read_all
from validation import host_decode, measure_host, measure_serving
from validation.host_decode import decode_together
from validation.host_plan import grouped, host_units, report_units
from validation.host_traces import load
from validation.measure_host import Measurement, in_parts, measure

VOCABULARY, LAYERS = 40, 26  # early exit after 24 layers


@dataclass(frozen=True)
class Letters:
    """A tokenizer for random weights: one token a letter."""

    eos: frozenset[int] = frozenset()

    def chat(self, text: str) -> list[int]:
        return [ord(c) % VOCABULARY for c in text[:40]]


@pytest.fixture(scope="module")
def target() -> Loaded:
    config = tiny_config(VOCABULARY, num_layers=LAYERS, max_positions=400)
    model = random_model(config, 3, scale=2.0, dtype=torch.float64)
    return Loaded(name="tiny", model=model, tokenizer=Letters())  # type: ignore[arg-type]


def answers(line: dict[str, Any]) -> Any:
    """What does not depend on time."""
    return line["name"], line["requests"], [row[:4] for row in line["steps"]]


def test_a_group_decodes_the_same_prompts_plainly_and_with_every_draft() -> None:
    for group in (*grouped(report_units()), *grouped(host_units())):
        assert len({(u.prompts, u.temperature, u.batch) for u in group}) == 1
        assert sum(u.num_draft_tokens == 0 for u in group) == 1
        assert len(group) >= 3
    assert sum(map(len, grouped(report_units()))) == len(list(report_units()))


def test_units_in_turn_emit_what_they_emit_alone(target: Loaded) -> None:
    group = next(g for g in grouped(report_units()) if g[0].temperature > 0 and len(g) == 6)
    together = decode_together(group, target, 12)
    alone = [decode_together([unit], target, 12)[0] for unit in group]
    assert list(map(answers, together)) == list(map(answers, alone))


def test_no_unit_runs_ahead(target: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """While units are decoded, none has emitted more than one step more than the last one."""
    lead = []
    group = grouped(report_units())[0]
    original = host_decode.Decoding

    running: list[Any] = []

    class Watched(original):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            running.append(self)

        def step(self) -> None:
            super().step()
            left = [d.emitted for d in running if not d.done]
            lead.append(max(left, default=0) - min(left, default=0))

    monkeypatch.setattr(host_decode, "Decoding", Watched)
    decode_together(group, target, 12)
    assert max(lead) <= 9  # one step of K = 8
    assert len(running) == len(group)


def small(folder: Path, target: Loaded, monkeypatch: pytest.MonkeyPatch) -> Measurement:
    """A measurement with answers of four tokens."""
    monkeypatch.setattr(measure_host, "decode_together", lambda u, t: decode_together(u, t, 4))
    return Measurement(folder, target, 1, "float64", quiet=0.0)


def test_an_interrupted_measurement_goes_on(
    target: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of a line: the rest is measured, nothing twice, nothing lost."""
    measure(small(tmp_path / "whole", target, monkeypatch), limit=2)
    whole = [answers(json.loads(x)) for x in lines(tmp_path / "whole")[1:]]
    passes = read_all(tmp_path / "whole" / "forward.jsonl", ForwardRecord)[1]
    assert len({name for name, *_ in whole}) == len(whole) >= 8

    cut = tmp_path / "cut"
    measure(small(cut, target, monkeypatch), only="acceptance", limit=2)
    text = (cut / "runs.jsonl").read_text(encoding="utf-8")
    (cut / "runs.jsonl").write_text(text[:-40], encoding="utf-8")
    small(cut, target, monkeypatch).forward(0, 1)  # one pass of the first round
    measure(small(cut, target, monkeypatch), limit=2)
    assert [answers(json.loads(x)) for x in lines(cut)[1:]] == whole
    found = read_all(cut / "forward.jsonl", ForwardRecord)[1]
    assert sorted(map(key, found)) == sorted(map(key, passes))
    before = (cut / "runs.jsonl").read_bytes()
    measure(small(cut, target, monkeypatch), limit=2)
    assert (cut / "runs.jsonl").read_bytes() == before
    traces = load(cut)
    assert traces is not None
    assert len(traces.units) == len(whole)


def lines(folder: Path) -> list[str]:
    return (folder / "runs.jsonl").read_text(encoding="utf-8").splitlines()


def key(record: ForwardRecord) -> tuple[str, int, int, int]:
    return record.model, record.batch, record.new_tokens, record.context


def test_another_machines_measurement_is_left_alone(
    target: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure(small(tmp_path, target, monkeypatch), only="acceptance", limit=1)
    before = (tmp_path / "runs.jsonl").read_bytes()
    monkeypatch.setattr(measure_host, "device_name", lambda device: "another, 64 cores")
    with pytest.raises(RecordError, match=r"device is .*choose another folder"):
        small(tmp_path, target, monkeypatch)
    assert (tmp_path / "runs.jsonl").read_bytes() == before


def test_a_disturbed_group_is_measured_again_as_a_whole(
    target: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = iter([0.5, 0.9])
    job = small(tmp_path, target, monkeypatch)
    job.quiet = 0.99

    def disturbed(units: Any, target: Loaded) -> list[dict[str, Any]]:
        found = decode_together(units, target, 4)
        return [{**line, "core_share": share} for share in [next(shares)] for line in found]

    monkeypatch.setattr(measure_host, "decode_together", disturbed)
    job.units(grouped(report_units())[:1])
    assert {json.loads(x)["core_share"] for x in lines(tmp_path)[1:]} == {0.9}


@pytest.mark.parametrize("module", [measure_host, measure_serving])
def test_nothing_is_measured_into_the_recorded_files(module: Any) -> None:
    """Without --out, both commands write beside the checkout's data, not into it."""
    out = module.parser().parse_args([]).out.resolve()
    assert Path(module.__file__).parent not in out.parents


def test_parts_hold_every_group_once() -> None:
    groups = grouped(report_units())
    parts = in_parts(groups, 6)
    assert len(parts) == 6
    assert [g for part in parts for g in part] == groups
