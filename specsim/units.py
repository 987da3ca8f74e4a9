"""The only place where GB, TFLOP/s and ms meet SI units.

Inside specsim every quantity is SI and its name ends in the unit (`_s`, `_bytes`,
`_flops`, `_bytes_per_s`).
"""

from __future__ import annotations

GB = 1e9
GIB = 2.0**30
TFLOPS = 1e12
MS = 1e-3
US = 1e-6

#: Bytes of one element, by dtype name. The 4-bit formats include nothing for scales;
#: `SCALE_BYTES` adds those.
DTYPE_BYTES: dict[str, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": 0.5,
    "fp4": 0.5,
}

#: Bytes of scales (and zero points) per stored weight: int4 in groups of 128 with one
#: fp16 scale (AWQ, GPTQ), fp4 in groups of 16 with one fp8 scale (NVFP4).
SCALE_BYTES: dict[str, float] = {"int4": 2.0 / 128, "fp4": 1.0 / 16}


def dtype_bytes(dtype: str) -> float:
    """Bytes per stored weight or cache element, scales included.

    >>> dtype_bytes("bf16")
    2.0

    Raises:
        ValueError: if `dtype` is not one of `DTYPE_BYTES`.
    """
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype] + SCALE_BYTES.get(dtype, 0.0)


def human_bytes(num_bytes: float) -> str:
    """Decimal units, as GPU vendors print them.

    >>> human_bytes(1.5e9)
    '1.50 GB'
    """
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(num_bytes) >= scale:
            return f"{num_bytes / scale:.2f} {unit}"
    return f"{num_bytes:.0f} B"


def human_seconds(seconds: float) -> str:
    """With the unit that keeps it short.

    >>> human_seconds(0.0123)
    '12.30 ms'
    """
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= scale:
            return f"{seconds / scale:.2f} {unit}"
    return f"{seconds / 1e-9:.1f} ns"
