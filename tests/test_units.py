"""Units and errors."""

from __future__ import annotations

import pytest

from specsim.errors import UnknownNameError
from specsim.units import dtype_bytes, human_bytes, human_seconds


def test_bytes_of_dtypes() -> None:
    assert dtype_bytes("bf16") == 2
    assert dtype_bytes("int4") == pytest.approx(0.5 + 2 / 128)  # one fp16 scale for 128 weights
    with pytest.raises(ValueError, match="unknown dtype 'fp7'"):
        dtype_bytes("fp7")


@pytest.mark.parametrize(("value", "text"), [(5, "5 B"), (1.5e9, "1.50 GB"), (2e12, "2.00 TB")])
def test_human_bytes(value: float, text: str) -> None:
    assert human_bytes(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(2, "2.00 s"), (0.0123, "12.30 ms"), (4e-6, "4.00 µs"), (0, "0.0 ns")]
)
def test_human_seconds(value: float, text: str) -> None:
    assert human_seconds(value) == text


def test_unknown_names_suggest_the_nearest() -> None:
    error = UnknownNameError("GPU", "h10", ["h100", "a100", "l40s"])
    assert "did you mean" in str(error)
    assert "h100" in str(error)
    far = UnknownNameError("GPU", "zzz", [f"name-{i}" for i in range(100)])
    assert len(str(far)) < 400
