"""The users' threads: all of them are cases, none is decided by hand."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from validation import threads
from validation.rows import bounds
from validation.thread_checks import judge_speed, speedup


@pytest.fixture(scope="module")
def cases() -> list[threads.Case]:
    return threads.cases()


def test_all_66_are_there_each_applicable_or_excluded(cases) -> None:
    assert len(cases) == 66
    assert len({c.id for c in cases}) == len({c.url for c in cases}) == 66
    for case in cases:
        assert case.excluded or case.verdicts, case.id
    assert {c.question for c in cases} == set(range(1, 11))


def test_they_are_the_collected_ones(cases) -> None:
    folder = os.environ.get("SPECSIM_DATA")
    if folder is None or not (Path(folder) / "threads.csv").exists():
        pytest.skip("SPECSIM_DATA is not set: the collected threads are not there")
    with (Path(folder) / "threads.csv").open(newline="", encoding="utf-8") as stream:
        urls = {row["url"] for row in csv.DictReader(stream)}
    assert {c.url for c in cases} == urls


def test_agreement_is_within_its_bound(cases) -> None:
    """Counted here anew: of the applicable threads, at least 85 % agree."""
    limit = bounds("threads")
    applicable = [c for c in cases if c.excluded is None]
    numeric = [c for c in applicable if c.numeric]
    assert len(numeric) >= 14
    wrong = sum(not c.agrees for c in numeric) / len(numeric)
    assert wrong <= limit["numeric"] == 0.15
    rows = threads.rows()
    assert rows[0].error == pytest.approx(wrong)
    assert all(row.passed for row in rows[:2])


def test_a_retired_engine_is_excluded_whatever_the_model_says(cases) -> None:
    """The rule is about the engine: among those it excludes are threads that agree."""
    retired = [c for c in cases if "V0 engine" in (c.excluded or "")]
    assert len(retired) >= 9
    judged = [c.agrees for c in retired if c.verdicts]
    assert True in judged
    assert False in judged


def test_outcomes_come_from_the_model(cases, monkeypatch) -> None:
    """With a model that calls every setup twice as fast, reported losses disagree."""
    monkeypatch.setattr("validation.thread_checks.speedup", lambda *a, **k: 2.0)
    changed = {c.id: c for c in threads.cases()}
    before = {c.id: c for c in cases}
    assert before["transformers-36337"].agrees
    assert not changed["transformers-36337"].agrees


def test_a_reported_sign_is_compared_as_reported() -> None:
    check = {
        "target": "llama-3.1-8b", "method": "eagle", "gpu": "h100-sxm-80gb", "runtime": "vllm",
        "k": 2, "tau": 1.9, "kind": "speed", "expect": "faster",
    }  # fmt: skip
    assert judge_speed(check).agrees
    assert not judge_speed({**check, "expect": "slower"}).agrees
    assert not judge_speed({**check, "tau": 1.0}).agrees
    assert speedup(check, 2, 1.9) == pytest.approx(1.9 * speedup(check, 2, 1.0))


def test_a_thread_without_checks_or_reason_is_an_error(monkeypatch, tmp_path) -> None:
    path = tmp_path / "threads.toml"
    path.write_text('[[thread]]\nid = "x"\nquestion = 1\nurl = "u"\nsays = "s"\n')
    monkeypatch.setattr(threads, "PATH", path)
    threads.threads.cache_clear()
    with pytest.raises(ValueError, match="x: expected checks"):
        threads.threads()
    threads.threads.cache_clear()
