"""Figures: drawn from rows and arrays, not empty, not clipped, the same bytes twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

import specsim as ss
from specsim.acceptance import Iid
from specsim.analytic import series
from specsim.analytic.curves import speedup_over_batch
from specsim.audit import audit_claims
from specsim.plots import (
    claim_figure,
    curves,
    errors_by_group,
    errors_over,
    measured_over_k,
    prediction_figure,
    save,
    speedup_curve,
)


@pytest.fixture(scope="module")
def prediction():
    return ss.predict(
        target="llama-3.1-70b", draft="llama-3.2-1b", gpu="h100-sxm", tensor_parallel=4,
        acceptance=ss.acceptance.Iid(0.75), num_draft_tokens=range(1, 9),
    )  # fmt: skip


def ink(path: Path) -> tuple[float, float]:
    """(share of pixels that are not white, the same in the outermost border)."""
    image = imread(path)[..., :3]
    dark = np.any(image < 0.95, axis=-1)
    border = np.concatenate([dark[0], dark[-1], dark[:, 0], dark[:, -1]])
    return float(dark.mean()), float(border.mean())


def test_prediction_figure(prediction, tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    save(prediction_figure(prediction.rows(), speedup_over_batch(prediction), "title"), path)
    filled, border = ink(path)
    assert 0.03 < filled < 0.6
    assert border == 0  # nothing is cut off at the edge


def test_the_curve_shows_the_rows(prediction) -> None:
    rows = prediction.rows()
    axes = speedup_curve(rows)
    line = axes.get_lines()[0]
    np.testing.assert_allclose(line.get_ydata(), [row["speedup"] for row in rows])
    assert "K" in axes.get_xlabel()


def test_axes_can_be_given(prediction) -> None:
    axes = Figure().subplots()
    assert speedup_curve(prediction.rows(), axes) is axes


def test_svg_is_reproducible(prediction, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.svg", "b.svg")]
    for path in paths:
        save(prediction_figure(prediction.rows(), None), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("claim", [c for c in audit_claims() if c.chart], ids=lambda c: c.number)
def test_claims(claim, tmp_path: Path) -> None:
    path = tmp_path / "c.png"
    save(claim_figure(claim.number, claim.chart), path)
    filled, border = ink(path)
    assert 0.01 < filled < 0.7
    assert border == 0


def test_medians_of_errors_stand_at_different_places() -> None:
    """Many equal values fill several tenths: they still have one median."""
    x = [*range(9), *range(10, 30), *[9] * 50]
    errors = np.linspace(-0.2, 0.2, len(x))
    line = errors_over(x, errors, xlabel="K").get_lines()[-1]
    places = line.get_xdata()
    assert np.all(np.diff(places) > 0)
    assert places[0] > 0
    at_nine = np.median([100 * e for v, e in zip(x, errors, strict=True) if v == 9])
    assert np.isclose(line.get_ydata()[list(places).index(9)], at_nine, atol=3)


def test_each_group_has_its_own_median() -> None:
    ax = errors_by_group(
        {"a": [(1, 0.1), (1, 0.3), (4, 0.0)], "b": [(1, -0.2), (4, -0.4), (4, -0.2)]}, xlabel="K"
    )
    medians = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    np.testing.assert_allclose(medians["median, a"], [20, 0])
    np.testing.assert_allclose(medians["median, b"], [-20, -30])


def test_a_median_of_single_points_is_left_out() -> None:
    ax = errors_over([1, 2, 4], [0.1, 0.0, 0.05], xlabel="K")
    assert "median" not in [line.get_label() for line in ax.get_lines()]


def test_logarithmic_ticks_are_plain_numbers(tmp_path: Path) -> None:
    axes = errors_over([0.0021, 0.0084, 0.013], [0.1, 0.0, 0.05], xlabel="measured, s")
    axes.figure.canvas.draw()
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert {"0.002", "0.005", "0.01"} <= set(labels)


def test_a_claims_levels_are_named() -> None:
    claim = next(c for c in audit_claims() if c.number == 9)
    texts = [t.get_text() for t in claim_figure(9, claim.chart).axes[0].texts]
    assert "claimed: 1.8" in texts


def test_intervals_of_laws_are_bands() -> None:
    ks = [1, 4, 8]
    laws = {"measured": Iid(0.7, standard_error=0.05), "given": Iid(0.7)}
    bands = series.intervals_over_k(laws, ks)
    assert set(bands) == {"measured"}
    low, high = bands["measured"]
    np.testing.assert_allclose(low, [Iid(0.7 - 1.96 * 0.05).mean(k) for k in ks])
    np.testing.assert_allclose(high, [Iid(0.7 + 1.96 * 0.05).mean(k) for k in ks])
    lines = series.accepted_over_k(laws, ks)
    drawn = curves(ks, lines, xlabel="K", ylabel="τ − 1", bands=bands)
    assert len(drawn.collections) == 1


def test_an_empty_figure_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    save(Figure(), path)
    assert ink(path)[0] == 0


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        save(Figure(), tmp_path / "no" / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_measured_points_lie_beside_the_predicted_line() -> None:
    series = {"a": [(4, 1.5, 1.4), (2, 1.3, 1.2), (8, 1.1, 0.9)], "b": [(2, 1.0, 1.1)]}
    ax = measured_over_k(series)
    lines = ax.get_lines()
    assert list(lines[0].get_xdata()) == list(lines[1].get_xdata()) == [2, 4, 8]
    assert list(lines[0].get_ydata()) == [1.3, 1.5, 1.1]
    assert list(lines[1].get_ydata()) == [1.2, 1.4, 0.9]
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    assert lines[1].get_linestyle() == "None"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
