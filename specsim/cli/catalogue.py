"""What specsim knows: models, gpus, runtimes or acceptance figures, each with its source.

Example: specsim catalogue models llama-3.1-70b
"""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer

from specsim import catalogue
from specsim.cli.output import print_csv, print_json, print_table
from specsim.errors import ScenarioError
from specsim.units import human_bytes


class Part(StrEnum):
    """The four parts of the catalogue."""

    models = "models"
    gpus = "gpus"
    runtimes = "runtimes"
    acceptance = "acceptance"


def command(
    part: Annotated[Part, typer.Argument(help="models, gpus, runtimes or acceptance.")],
    name: Annotated[str | None, typer.Argument(help="One row, in full.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Rows as CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """See the module's docstring, which is this command's help."""
    if csv and as_json:
        raise ScenarioError("--csv and --json: expected one of them")
    names, describe = _PARTS[part]
    rows = [describe(n) for n in ([name] if name is not None else names())]
    if as_json:
        print_json({"part": part.value, "rows": rows})
    elif csv:
        print_csv(rows)
    elif name is not None:
        for key, value in rows[0].items():
            print(f"{key}: {_cell(value)}")
    else:
        keys = [key for key in rows[0] if key not in ("definition", "notes")]
        keys = [key for key in keys if key in _COLUMNS[part]]
        print_table(keys, [[_short(_cell(row[key])) for key in keys] for row in rows])


_COLUMNS = {
    Part.models: ("name", "parameters", "active", "layers", "kv_bytes_per_token", "max_context"),
    Part.gpus: ("name", "memory", "bandwidth_tb_per_s", "bf16_tflops", "link", "constants_source"),
    Part.runtimes: ("name", "engine", "step_us", "sequence_us", "token_us", "largest_graph"),
    Part.acceptance: ("name", "kind", "values", "domain", "method", "measured_at_k"),
}


def _short(text: str, width: int = 44) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(v) for v in value)
    return "-" if value is None else str(value)


def _model(name: str) -> dict[str, Any]:
    spec = catalogue.model(name)
    return {
        "name": spec.name,
        "parameters": human_count(spec.num_parameters),
        "active": human_count(spec.num_active_parameters),
        "num_parameters": spec.num_parameters,
        "num_active_parameters": spec.num_active_parameters,
        "layers": spec.num_layers,
        "hidden_size": spec.hidden_size,
        "vocab_size": spec.vocab_size,
        "kv_bytes_per_token": int(spec.kv_bytes_per_token("bf16")),
        "max_context": spec.max_context,
        "family": spec.family,
        "architecture": spec.architecture,
        "head_of": spec.head_of,
        "source": spec.source,
    }


def _gpu(name: str) -> dict[str, Any]:
    gpu = catalogue.gpu(name)
    return {
        "name": gpu.name,
        "memory": human_bytes(gpu.memory_bytes),
        "memory_bytes": gpu.memory_bytes,
        "bandwidth_tb_per_s": gpu.bandwidth_bytes_per_s / 1e12,
        "bf16_tflops": gpu.peak_flops["bf16"] / 1e12,
        "peak_flops": gpu.peak_flops,
        "link": gpu.link,
        "link_bytes_per_s": gpu.link_bytes_per_s,
        "power_w": gpu.power_w,
        "price_usd_per_h": gpu.price_usd_per_h,
        "bandwidth_share": gpu.bandwidth_share,
        "compute_share": gpu.compute_share,
        "constants_source": gpu.constants_source,
        "confidence": gpu.confidence,
        "source": gpu.source,
    }


def _runtime(name: str) -> dict[str, Any]:
    runtime = catalogue.runtime(name)
    micro = {
        f"{key.removesuffix('_s')}_us": value["value"] * 1e6
        for key, value in asdict(runtime).items()
        if isinstance(value, dict)
    }
    return {
        "name": runtime.name,
        "engine": runtime.engine,
        "version": runtime.version,
        **micro,
        "largest_graph": max(runtime.graph_sizes, default=0),
        "source": runtime.source,
    }


def _acceptance(name: str) -> dict[str, Any]:
    preset = catalogue.acceptance_preset(name)
    return {
        "name": preset.name,
        "kind": preset.kind,
        "values": list(preset.values),
        "low": list(preset.low),
        "high": list(preset.high),
        "measured_at_k": preset.at_num_draft_tokens,
        "domain": preset.domain,
        "method": preset.method,
        "definition": preset.definition,
        "source": preset.source,
    }


def human_count(count: float) -> str:
    """`8.03e9` → `8.03B`."""
    for unit, scale in (("B", 1e9), ("M", 1e6)):
        if count >= scale:
            return f"{count / scale:.4g}{unit}"
    return f"{count:.0f}"


_PARTS: dict[Part, tuple[Any, Any]] = {
    Part.models: (catalogue.list_models, _model),
    Part.gpus: (catalogue.list_gpus, _gpu),
    Part.runtimes: (catalogue.list_runtimes, _runtime),
    Part.acceptance: (catalogue.list_acceptance_presets, _acceptance),
}
