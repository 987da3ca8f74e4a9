"""From a row of gpus.toml, runtimes.toml or acceptance.toml to its dataclass, checked.

GB, TFLOP/s and µs appear in the files, where a reader compares them with datasheets; here
they become SI.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, cast

from specsim.catalogue.specs import AcceptancePreset, Estimate, GpuSpec, RuntimeSpec
from specsim.errors import ConfigError
from specsim.units import DTYPE_BYTES, GB, GIB, TFLOPS, US

Row = Mapping[str, Any]

_GPU_KEYS = {
    "aliases": list,
    "vendor": str,
    "architecture": str,
    "memory_gb": (int, float),
    "bandwidth_gb_per_s": (int, float),
    "tflops": dict,
    "link": str,
    "link_gb_per_s": (int, float),
    "power_w": (int, float),
    "price_usd_per_h": list,
    "price_source": str,
    "source": str,
    "confidence": str,
    "notes": str,
}
_GPU_OPTIONAL = {"aliases", "power_w", "price_usd_per_h", "price_source", "notes"}

#: What constants.toml may set, with the largest sensible value.
_GPU_CONSTANTS = {
    "bandwidth_share": 1.0,
    "wide_share": 1.0,
    "compute_share": 1.0,
    "ridge_exponent": 20.0,
    "fixed_s": 1e-3,
    "loop_s": 1e-6,
    "loop_depth": 1e6,
    "loop_growth": 10.0,
    "narrow_compute_share": 1.0,
    "quantise_s": 1e-3,
    "quantise_element_s": 1e-9,
    "attention_share": 1.0,
    "attention_fixed_s": 1e-3,
    "attention_tile_s": 1e-6,
    "attention_depth_s": 1e-3,
    "attention_exponent": 20.0,
    "attention_narrow_share": 1.0,
    "attention_narrow_fixed_s": 1e-3,
    "attention_compute_share": 1.0,
    "expert_share": 1.0,
    "expert_compute_share": 1.0,
    "expert_fixed_s": 1e-3,
    "small_s": 1e-3,
    "link_share": 1.0,
    "link_latency_s": 1e-3,
    "link_hop_s": 1e-3,
    "link_ramp_bytes": 1e9,
    "warm_weights_bytes": 1e9,
    "warm_weights_saving": 1.0,
    "warm_kv_bytes": 1e9,
    "warm_kv_saving": 1.0,
}

_RUNTIME_CONSTANTS = (
    "step",
    "layer",
    "sequence",
    "token",
    "prompt_token",
    "draft_step",
    "draft_pass",
    "draft_layer",
    "ngram",
)
_RUNTIME_KEYS = {
    "aliases": list,
    "engine": str,
    "version": str,
    "graph_sizes": list,
    "max_graph_tokens": int,
    "overlaps_scheduling": bool,
    "gpu_memory_utilization": (int, float),
    "measured_on": list,
    "source": str,
    **{f"{name}_us": list for name in _RUNTIME_CONSTANTS},
    **{f"{name}_source": str for name in _RUNTIME_CONSTANTS},
}
_RUNTIME_REQUIRED = {"engine", "version", "source"}

_ACCEPTANCE_KEYS = {
    "aliases": list,
    "kind": str,
    "values": list,
    "low": list,
    "high": list,
    "at_num_draft_tokens": int,
    "max_num_draft_tokens": int,
    "domain": str,
    "method": str,
    "definition": str,
    "source": str,
}
_ACCEPTANCE_REQUIRED = {"kind", "values", "low", "high", "definition", "source"}
_ACCEPTANCE_KINDS = (
    "alpha",
    "conditional",
    "survival",
    "acceptance_length",
    "draft_acceptance_rate",
)


def check_row(where: str, row: Row, known: Mapping[str, Any], required: set[str]) -> None:
    """Refuse unknown keys, wrong types and missing keys.

    Raises:
        ConfigError: naming the row and the key.
    """
    for key, value in row.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}; known: {', '.join(known)}")
        is_flag = isinstance(value, bool) and known[key] is not bool  # a bool is an int, too
        if is_flag or not isinstance(value, known[key]):
            raise ConfigError(f"{where}: {key} = {value!r}: wrong type")
    missing = sorted(key for key in required if row.get(key) in (None, "", [], {}))
    if missing:
        raise ConfigError(f"{where}: {missing[0]} is missing")


def _are_numbers(values: Iterable[object]) -> bool:
    return all(isinstance(x, int | float) and not isinstance(x, bool) for x in values)


def gpu_from_row(name: str, row: Row, constants: Row) -> GpuSpec:
    """A GPU from its datasheet row and its fitted constants (which may be empty).

    Raises:
        ConfigError: if a key is unknown, missing or out of range.
    """
    where = f"gpus.toml: {name}"
    check_row(where, row, _GPU_KEYS, set(_GPU_KEYS) - _GPU_OPTIONAL)
    peak = {dtype: float(value) * TFLOPS for dtype, value in row["tflops"].items()}
    if "bf16" not in peak or not set(peak) <= set(DTYPE_BYTES):
        raise ConfigError(f"{where}: tflops = {row['tflops']}: expected bf16 and known dtypes")
    for key in ("memory_gb", "bandwidth_gb_per_s", "link_gb_per_s"):
        if row[key] <= 0:
            raise ConfigError(f"{where}: {key} = {row[key]}: expected more than 0")
    price = row.get("price_usd_per_h")
    if price is not None and not (len(price) == 2 and 0 < price[0] <= price[1]):
        raise ConfigError(f"{where}: price_usd_per_h = {price}: expected [low, high]")
    return GpuSpec(
        name=name,
        vendor=row["vendor"],
        architecture=row["architecture"],
        # memory chips come in powers of two: what datasheets call 80 GB the driver reports
        # as 79.6 GiB (81,559 MiB on an H100), half a percent below 80 GiB
        memory_bytes=row["memory_gb"] * GIB,
        bandwidth_bytes_per_s=row["bandwidth_gb_per_s"] * GB,
        peak_flops=peak,
        link=row["link"],
        link_bytes_per_s=row["link_gb_per_s"] * GB,
        power_w=row.get("power_w"),
        price_usd_per_h=(float(price[0]), float(price[1])) if price else None,
        source=row["source"],
        confidence=row["confidence"],
        notes=row.get("notes", ""),
        **_constants(f"constants.toml: {name}", constants),
    )


def _constants(where: str, constants: Row) -> dict[str, Any]:
    """Fitted efficiencies, checked: shares are ≤ 1, times a plausible fraction of a second."""
    checked: dict[str, Any] = {}
    for key, value in constants.items():
        if key == "constants_source":
            if not isinstance(value, str):
                raise ConfigError(f"{where}: {key} = {value!r}: expected a string")
            checked[key] = value
            continue
        if key not in _GPU_CONSTANTS:
            known = ", ".join((*_GPU_CONSTANTS, "constants_source"))
            raise ConfigError(f"{where}: unknown key {key!r}; known: {known}")
        high = _GPU_CONSTANTS[key]
        number = _are_numbers([value])
        low_ok = number and (value > 0 if key.endswith(("_share", "_exponent")) else value >= 0)
        if not (number and low_ok and value <= high):
            raise ConfigError(f"{where}: {key} = {value!r}: expected a number up to {high}")
        checked[key] = float(value)
    return checked


def runtime_from_row(name: str, row: Row) -> RuntimeSpec:
    """A runtime; each constant is `<name>_us = [value, low, high]` with its own source.

    Raises:
        ConfigError: if a key is unknown, missing or out of range.
    """
    where = f"runtimes.toml: {name}"
    check_row(where, row, _RUNTIME_KEYS, _RUNTIME_REQUIRED)
    sizes = row.get("graph_sizes", [])
    whole = all(isinstance(size, int) and size >= 1 for size in sizes)
    if not whole or list(sizes) != sorted(set(sizes)):
        raise ConfigError(f"{where}: graph_sizes: expected increasing positive integers")
    utilization = row.get("gpu_memory_utilization", 0.9)
    if not 0 < utilization <= 1:
        raise ConfigError(
            f"{where}: gpu_memory_utilization = {utilization}: expected more than 0, at most 1"
        )
    estimates: dict[str, Any] = {
        f"{key}_s": _estimate(where, row, key) for key in _RUNTIME_CONSTANTS
    }
    return RuntimeSpec(
        name=name,
        version=row["version"],
        engine=row["engine"],
        graph_sizes=tuple(sizes),
        max_graph_tokens=row.get("max_graph_tokens", max(sizes, default=0)),
        overlaps_scheduling=row.get("overlaps_scheduling", False),
        gpu_memory_utilization=float(utilization),
        measured_on=tuple(row.get("measured_on", ())),
        source=row["source"],
        **estimates,
    )


def _estimate(where: str, row: Row, name: str) -> Estimate:
    key = f"{name}_us"
    triple = row.get(key)
    if triple is None:
        raise ConfigError(f"{where}: {key} is missing")
    if not _are_numbers(triple) or len(triple) != 3 or not 0 <= triple[1] <= triple[0] <= triple[2]:
        raise ConfigError(f"{where}: {key} = {triple}: expected [value, low, high] in µs")
    source = row.get(f"{name}_source", row["source"])
    value, low, high = (float(x) * US for x in triple)
    return Estimate(value=value, low=low, high=high, source=source)


def acceptance_from_row(name: str, row: Row) -> AcceptancePreset:
    """An acceptance preset; its `definition` says which of the four "rates" it is.

    Raises:
        ConfigError: if a key is unknown, missing or out of range.
    """
    where = f"acceptance.toml: {name}"
    check_row(where, row, _ACCEPTANCE_KEYS, _ACCEPTANCE_REQUIRED)
    kind = row["kind"]
    if kind not in _ACCEPTANCE_KINDS:
        raise ConfigError(f"{where}: kind = {kind!r}: expected {', '.join(_ACCEPTANCE_KINDS)}")
    for key in ("values", "low", "high"):
        if not _are_numbers(row[key]):
            raise ConfigError(f"{where}: {key} = {row[key]}: expected numbers")
    values, low, high = (tuple(float(x) for x in row[key]) for key in ("values", "low", "high"))
    if not len(values) == len(low) == len(high):
        raise ConfigError(f"{where}: values, low and high differ in length")
    if not all(lo <= value <= hi for lo, value, hi in zip(low, values, high, strict=True)):
        raise ConfigError(f"{where}: expected low ≤ values ≤ high")
    floor, ceiling = (1.0, 1e3) if kind == "acceptance_length" else (0.0, 1.0)
    if min(low) < floor or max(high) > ceiling:
        raise ConfigError(f"{where}: expected {kind} from {floor} to {ceiling}")
    if kind == "survival" and list(values) != sorted(values, reverse=True):
        raise ConfigError(f"{where}: survival must not rise")
    needs_k = kind in ("acceptance_length", "draft_acceptance_rate")
    if needs_k and "at_num_draft_tokens" not in row:
        raise ConfigError(f"{where}: at_num_draft_tokens is missing: {kind} depends on it")
    return AcceptancePreset(
        name=name,
        kind=cast(Literal["alpha"], kind),
        values=values,
        low=low,
        high=high,
        at_num_draft_tokens=row.get("at_num_draft_tokens"),
        max_num_draft_tokens=row.get("max_num_draft_tokens"),
        domain=row.get("domain", ""),
        method=row.get("method", ""),
        aliases=tuple(row.get("aliases", ())),
        definition=row["definition"],
        source=row["source"],
    )
