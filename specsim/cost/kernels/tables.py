"""The measured kernel tables of the Python package `aiconfigurator-core` (Apache-2.0).

Parquet files under `systems/data/<system>/<operation>/<engine>/<version>/`, one row per
kernel and shape, latency in milliseconds. The package is found, never imported; pandas
and pyarrow are imported when a table is read.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from specsim.errors import MissingDataError

if TYPE_CHECKING:
    import pandas as pd

PACKAGE = "aiconfigurator_core"
#: GPU of the catalogue → system of the tables.
SYSTEMS: dict[str, str] = {
    "a100-sxm-80gb": "a100_sxm",
    "h100-sxm-80gb": "h100_sxm",
    "h200-sxm-141gb": "h200_sxm",
    "b200-sxm-180gb": "b200_sxm",
    "b300-sxm-288gb": "b300_sxm",
    "gb200-186gb": "gb200",
    "gb300-288gb": "gb300",
    "l40s-48gb": "l40s",
    "rtxpro6000-server-96gb": "rtx_pro_6000_server",
}
#: dtype of specsim → names that the tables use for it (per-tensor scales for fp8).
DTYPES: dict[str, tuple[str, ...]] = {
    "bf16": ("bfloat16",),
    "fp8": ("fp8",),
    "int8": ("sq",),
    "int4": ("int4_wo",),
    "fp4": ("nvfp4",),
}
#: The same for experts. Published fp8 mixtures have block scales, and their rows are whole
#: layers, not launches; the per-tensor rows of Hopper are of a kernel four times slower
#: than its memory, which no engine picks there.
EXPERT_DTYPES = DTYPES | {"fp8": ("fp8_block",), "int8": ()}
ENGINES = ("vllm", "sglang", "trtllm")


def data_root() -> Path:
    """Directory of the tables.

    Raises:
        MissingDataError: if the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingDataError(
            'measured kernel tables are not installed: pip install "specsim-llm[kernels]"'
        )
    return Path(next(iter(spec.submodule_search_locations))) / "systems" / "data"


def installed() -> bool:
    """Whether the tables are there."""
    return importlib.util.find_spec(PACKAGE) is not None


def newest_version(gpu: str, operation: str, file: str, engine: str) -> str | None:
    """The newest engine version that has this table for this GPU; None if there is none."""
    system = SYSTEMS.get(gpu)
    if system is None:
        return None
    found = data_root().glob(f"{system}/{operation}/{engine}/*/{file}.parquet")
    versions = sorted((path.parent.name for path in found), key=_version_key)
    return versions[-1] if versions else None


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


@cache
def read(gpu: str, operation: str, file: str, engine: str, version: str = "") -> pd.DataFrame:
    """One table, with a column `seconds`; the newest version unless one is named.

    Raises:
        MissingDataError: if the package, the GPU or the table is missing.
    """
    import pandas as pd

    chosen = version or newest_version(gpu, operation, file, engine)
    if chosen is None:
        raise MissingDataError(f"no {file} table of {engine} for {gpu!r}")
    path = data_root() / SYSTEMS[gpu] / operation / engine / chosen / f"{file}.parquet"
    if not path.exists():
        raise MissingDataError(f"no {file} table of {engine} {chosen} for {gpu!r}")
    table = pd.read_parquet(path)
    table["seconds"] = table["latency"] * 1e-3
    return table


def gemm(gpu: str, dtype: str, engine: str = "vllm") -> pd.DataFrame:
    """Columns m, n, k, seconds: dense products; repeated measurements by their median.

    Raises:
        MissingDataError: if there is no such table or no such dtype in it.
    """
    table = read(gpu, "gemm", "gemm_perf", engine)
    rows = table[table["gemm_dtype"].isin(DTYPES.get(dtype, ()))]
    if rows.empty:
        raise MissingDataError(f"no {dtype} products of {engine} for {gpu!r}")
    return rows.groupby(["m", "n", "k"])["seconds"].median().reset_index()


def generation_attention(gpu: str, kv: str = "bf16", engine: str = "vllm") -> pd.DataFrame:
    """One query per sequence over a cache. Columns batch, context (keys, the new one
    included), heads, kv_heads, head_dim, window (0: none), seconds."""
    table = read(gpu, "attention", "generation_attention_perf", engine)
    table = table[table["kv_cache_dtype"].isin(DTYPES[kv])]
    if table.empty:
        raise MissingDataError(f"no {kv} generation attention of {engine} for {gpu!r}")
    return _attention_columns(table, context=table["isl"] + table["step"])


def context_attention(gpu: str, engine: str = "vllm") -> pd.DataFrame:
    """Causal attention of whole prompts; the same columns, context = prompt length."""
    table = read(gpu, "attention", "context_attention_perf", engine)
    table = table[table["kv_cache_dtype"].isin(DTYPES["bf16"]) & (table["step"] == 0)]
    return _attention_columns(table, context=table["isl"])


def _attention_columns(table: pd.DataFrame, context: pd.Series) -> pd.DataFrame:
    import pandas as pd

    heads = table["num_heads"]
    return pd.DataFrame(
        {
            "batch": table["batch_size"],
            "context": context,
            "heads": heads,
            # some tables write 0 for "as many as query heads"
            "kv_heads": table["num_key_value_heads"].where(table["num_key_value_heads"] > 0, heads),
            "head_dim": table.get("head_dim", 128),
            "window": table.get("window_size", 0),
            "seconds": table["seconds"],
        }
    )


def latent_attention(gpu: str, kv: str = "bf16", engine: str = "vllm") -> pd.DataFrame:
    """One query per sequence over a latent cache (576 elements a token). Columns batch,
    context, heads (on one GPU), seconds. Where the engine has only whole modules, the
    kernels of another one; column engine says whose."""
    import pandas as pd

    for name in dict.fromkeys((engine, *ENGINES)):
        if newest_version(gpu, "mla", "generation_mla_perf", name) is None:
            continue
        table = read(gpu, "mla", "generation_mla_perf", name)
        table = table[table["kv_cache_dtype"].isin(DTYPES[kv])]
        if len(table):
            return pd.DataFrame(
                {
                    "batch": table["batch_size"],
                    "context": table["isl"] + table["step"],
                    "heads": table["num_heads"],
                    "seconds": table["seconds"],
                    "engine": name,
                }
            )
    raise MissingDataError(f"no {kv} latent attention for {gpu!r}")


def moe(gpu: str, dtype: str = "bf16", engine: str = "vllm") -> pd.DataFrame:
    """Grouped products of all experts of a layer on one GPU. Columns tokens, hidden,
    inter (of one expert, on one GPU), top_k, experts, expert_parallel, distribution,
    seconds."""
    import pandas as pd

    table = read(gpu, "moe", "moe_perf", engine)
    table = table[table["moe_dtype"].isin(EXPERT_DTYPES.get(dtype, ()))]
    if table.empty:
        raise MissingDataError(f"no {dtype} experts of {engine} for {gpu!r}")
    return pd.DataFrame(
        {
            "tokens": table["num_tokens"],
            "hidden": table["hidden_size"],
            "inter": table["inter_size"] / table["moe_tp_size"],
            "top_k": table["topk"],
            "experts": table["num_experts"],
            "expert_parallel": table["moe_ep_size"],
            "distribution": table["distribution"],
            "seconds": table["seconds"],
        }
    )


def all_reduce(gpu: str, engine: str = "vllm") -> pd.DataFrame:
    """All-reduce inside a CUDA graph. Columns gpus, message_bytes, seconds. The tables
    count a message in 16-bit elements."""
    import pandas as pd

    table = read(gpu, "comm", "custom_allreduce_perf", engine)
    graph = table["kernel_source"].astype(str).str.contains("graph")
    rows = table[graph] if graph.any() else table
    return pd.DataFrame(
        {
            "gpus": rows["num_gpus"],
            "message_bytes": rows["message_size"] * 2.0,
            "seconds": rows["seconds"],
        }
    )
