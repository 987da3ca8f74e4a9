"""docs/cost.md says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from specsim.catalogue import loader
from specsim.cost.kernels import tables
from specsim.cost.operations import Work
from specsim.cost.roofline import Roofline
from validation import full_steps, silicon
from validation.cost_page import (
    BATCH,
    CONTEXT,
    K,
    example_table,
    gpu_constants_table,
    replaced,
    routing_table,
)
from validation.rows import bounds, statistic

PAGE = (Path(__file__).parent.parent / "docs" / "cost.md").read_text()


def test_the_worked_example_is_current() -> None:
    """Run `python -m validation.cost_page` after a change of constants."""
    assert example_table() in PAGE
    assert gpu_constants_table() in PAGE
    assert routing_table() in PAGE


def test_the_products_worked_by_hand_on_the_page_are_those_of_the_code() -> None:
    times = {
        t.operation.name: t
        for t in Roofline(gpu=loader.gpu("h100")).explain(
            full_steps.vllm_deployment("eagle").target, Work.uniform(BATCH, K + 1, CONTEXT)
        )
    }
    by_hand = re.search(r"seconds = 2\.526 \+ .* = ([0-9.]+) µs", PAGE)
    assert by_hand is not None
    assert float(times["qkv_proj"].seconds) / 32 * 1e6 == pytest.approx(float(by_hand[1]), abs=0.01)
    fixed = re.search(r"log2\(1 \+ 1005/256\) +(?:\S+ +)*?= ([0-9.]+) µs", PAGE)
    assert fixed is not None
    attention = times["attention (full)"]
    assert float(attention.fixed_s) / 32 * 1e6 == pytest.approx(float(fixed[1]), abs=0.01)


def test_full_steps_keep_their_bounds_but_for_the_explained_misses() -> None:
    """Which rows miss is stated on the page; any other miss is news."""
    missed = {row.name for row in full_steps.rows() if row.passed is False}
    assert missed <= {
        "MagicDec Llama2-7B-32K a100: T_V/T_AR worst row",
        "MagicDec Llama3.1-8B a100: T_V/T_AR worst row",
    }


def test_bounds_are_those_that_were_set() -> None:
    assert bounds("silicon")["gemm_median"] == {
        "h100-sxm-80gb": 0.06, "h200-sxm-141gb": 0.06, "l40s-48gb": 0.06,
        "a100-sxm-80gb": 0.08, "b200-sxm-180gb": 0.08,
    }  # fmt: skip
    assert bounds("silicon")["left_out_worst"] == 0.18
    assert bounds("full_steps")["vllm_fit_median"] == 0.10
    assert bounds("full_steps")["magicdec_ratio"] == 0.04


def test_markers_must_be_there() -> None:
    text = "a\n<!-- x -->\nold\n<!-- end x -->\nb"
    assert replaced(text, "x", "new\n") == "a\n<!-- x -->\nnew\n<!-- end x -->\nb"
    with pytest.raises(ValueError, match="no markers for 'y'"):
        replaced(text, "y", "")


def test_without_tables_nothing_is_run_and_nothing_passes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tables, "installed", lambda: False)
    assert silicon.rows() == []
    assert silicon.main([]) == 0
    assert "not run" in capsys.readouterr().err


def test_a_missed_bound_is_exit_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = statistic("planted", 0.2, bound=0.1)
    monkeypatch.setattr(full_steps, "rows", lambda: [bad])
    assert bad.passed is False
    assert full_steps.main([]) == 1
