"""The function behind the interactive notebook: every position of its controls answers."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

import specsim as ss
from specsim.analytic.whatif import (
    GPUS,
    MAX_BATCH,
    MAX_CONTEXT,
    RUNTIMES,
    TARGETS,
    WEIGHTS,
    WhatIf,
    draft_options,
    what_if,
)
from specsim.plots import WhatIfFigure


@st.composite
def controls(draw: st.DrawFn) -> dict[str, Any]:
    target = draw(st.sampled_from(TARGETS))
    return {
        "target": target, "draft": draw(st.sampled_from(draft_options(target))),
        "gpu": draw(st.sampled_from(GPUS)), "runtime": draw(st.sampled_from(RUNTIMES)),
        "weights": draw(st.sampled_from(WEIGHTS)), "alpha": draw(st.floats(0, 1)),
        "batch": draw(st.integers(1, MAX_BATCH)), "context": draw(st.integers(1, MAX_CONTEXT)),
    }  # fmt: skip


def check(answer: WhatIf) -> None:
    for row in answer.rows:
        for key, value in row.items():
            assert not isinstance(value, float) or math.isfinite(value), key
    for key, values in answer.curve.items():
        assert np.isfinite(np.asarray(values, dtype=float)).all(), key
    assert answer.rows[0]["speedup"] == pytest.approx(1.0)  # K = 0 is no speculation
    assert answer.best["speedup"] >= 1
    assert all(low <= high for low, high in answer.paying_batches)


@settings(max_examples=150, deadline=None)
@given(controls())
def test_every_position_answers(chosen: dict[str, Any]) -> None:
    check(what_if(**chosen))


@pytest.mark.parametrize("target", TARGETS)
def test_every_combination_of_parts_answers(target: str) -> None:
    """All drafts, GPUs and runtimes, at the ends of every slider in turn."""
    ends = [(0.0, 1, 1), (1.0, MAX_BATCH, MAX_CONTEXT), (0.0, MAX_BATCH, 1), (1.0, 1, MAX_CONTEXT)]
    for i, gpu in enumerate(GPUS):
        for j, draft in enumerate(draft_options(target)):
            for k, runtime in enumerate(RUNTIMES):
                alpha, batch, context = ends[(i + j + k) % len(ends)]
                check(
                    what_if(target=target, draft=draft, gpu=gpu, runtime=runtime, alpha=alpha,
                            batch=batch, context=context, weights=WEIGHTS[(i + j) % 3])
                )  # fmt: skip


def test_it_is_predict() -> None:
    """The same numbers as `specsim.predict`."""
    answer = what_if(target="llama-3.1-70b", draft="llama-3.2-1b", gpu="h100-sxm", alpha=0.8,
                     batch=16, tensor_parallel=4)  # fmt: skip
    same = ss.predict(
        target="llama-3.1-70b", draft="llama-3.2-1b", gpu="h100-sxm", tensor_parallel=4,
        acceptance=ss.acceptance.Iid(0.8), num_draft_tokens=range(13), batch=16,
    )  # fmt: skip
    assert answer.rows == same.rows()
    assert answer.paying_batches == same.break_even["batch"]


def test_the_fewest_gpus_that_fit() -> None:
    def number(weights: str) -> int:
        answer = what_if(
            target="llama-3.1-70b", draft="ngram", gpu="a100-sxm-80gb", weights=weights
        )
        return answer.prediction.deployment.num_gpus

    assert [number(w) for w in ("int4", "fp8", "bf16")] == [1, 2, 2]


def test_what_cannot_be_is_said() -> None:
    cut = what_if(target="qwen3-32b", draft="ngram", gpu="h100-sxm", context=100_000)
    assert any("context cut to the 40,960" in note for note in cut.notes)
    big = what_if(target="deepseek-v3", draft="mtp", gpu="l4-24gb")
    assert any("does not fit" in note for note in big.notes)
    poor = what_if(target="llama-3.1-70b", draft="llama-3.1-8b", gpu="h100-sxm", alpha=0.05)
    assert "do not speculate" in poor.headline


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 1.2}, "alpha=1.2"),
        ({"batch": 0}, "batch"),
        ({"context": 0}, "context=0"),
        ({"draft": "qwen3-0.6b"}, "vocabulary"),
        ({"tensor_parallel": 3}, "tensor_parallel=3"),
    ],
)
def test_bad_values_are_named(change: dict[str, Any], message: str) -> None:
    given_values = {"target": "llama-3.1-70b", "draft": "llama-3.2-1b", "gpu": "h100-sxm"}
    with pytest.raises(ValueError, match=message):
        what_if(**{**given_values, **change})


def picture(png: bytes) -> Any:
    return imread(io.BytesIO(png))[..., :3]


def test_redrawing_leaves_nothing_behind() -> None:
    """A figure that was used before shows the same pixels as a new one."""
    one = what_if(target="llama-3.1-70b", draft="llama-3.2-1b", gpu="h100-sxm", batch=8)
    two = what_if(target="deepseek-v3", draft="mtp", gpu="h200-sxm-141gb", alpha=0.85, batch=300)
    used, new = WhatIfFigure(), WhatIfFigure()
    for answer in (two, one, two):
        used.draw(answer.rows, answer.curve, answer.headline)
        used.png()
    new.draw(two.rows, two.curve, two.headline)
    assert np.abs(picture(used.png()) - picture(new.png())).max() < 0.01


def test_the_picture_is_not_empty_or_clipped() -> None:
    figure = WhatIfFigure()
    for draft, alpha in (("llama-3.2-1b", 0.8), ("llama-3.1-8b", 0.0), ("ngram", 1.0)):
        answer = what_if(target="llama-3.1-70b", draft=draft, gpu="h100-sxm", alpha=alpha)
        figure.draw(answer.rows, answer.curve, answer.headline)
        dark = np.any(picture(figure.png()) < 0.95, axis=-1)
        assert 0.02 < dark.mean() < 0.6
        assert not np.concatenate([dark[0], dark[-1], dark[:, 0], dark[:, -1]]).any()
