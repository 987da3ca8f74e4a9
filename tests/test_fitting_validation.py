"""The acceptance comparison: absent data is not a pass, and its splits measure coverage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from specsim.acceptance.chains import Iid
from specsim.acceptance.correlated import BetaRequests
from validation import acceptance


def test_absent_data_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in (None, str(tmp_path)):
        if folder is None:
            monkeypatch.delenv("SPECSIM_DATA", raising=False)
        else:
            monkeypatch.setenv("SPECSIM_DATA", folder)
        (row,) = acceptance.rows()
        assert row.passed is None
        assert row.error is None
        assert "not run" in row.provenance


def test_splits_cover_and_are_no_wider_than_needed() -> None:
    rng = np.random.default_rng(5)
    law = BetaRequests(4.0, 2.0)
    requests = [law.sample_runs(rng, 150) for _ in range(200)]
    misses, reach, plain = acceptance.split_errors(requests, 4)
    assert np.mean(misses > reach) <= 0.10
    assert np.mean(misses > plain) > 0.2
    # the 95th percentile of 100 misses has a relative standard error of
    # sqrt(0.05 · 0.95 / 100) / (2 φ(1.96)) / 1.96 = 0.095
    assert np.median(reach) / np.quantile(misses, 0.95) == pytest.approx(1.0, abs=4 * 0.095)


def test_simulated_requests_have_the_laws_length() -> None:
    (found,) = acceptance.simulated_lengths(Iid(0.7), [200] * 20, [4])
    assert found.shape == (20 * acceptance.REPEATS,)
    # tokens per step of a 200-token request, its last step cut short
    assert 1 / np.mean(1 / found) == pytest.approx(Iid(0.7).acceptance_length(4), rel=0.02)
