"""Rows of the measured kernel tables as operations that the roofline can time.

One `Operation` whose fields are arrays holds a whole table, so that the roofline, its fit
and its validation evaluate the same formulas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from specsim.cost.operations import ACTIVATION_BYTES, QUERY_TILE, Operation
from specsim.units import dtype_bytes

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[np.float64]

#: DeepSeek-V3's latent cache, which all tables of latent attention have.
LATENT_RANK, LATENT_ROPE = 512, 64


def _columns(table: pd.DataFrame, *names: str) -> tuple[Array, ...]:
    return tuple(table[name].to_numpy(dtype=float) for name in names)


def gemm_operation(table: pd.DataFrame, dtype: str) -> Operation:
    """Dense products: columns m, n, k. Narrow products read quantised activations."""
    m, n, k = _columns(table, "m", "n", "k")
    return Operation(
        name="gemm", kind="gemm", count=1, dtype=dtype, flops=2 * m * n * k,
        weight_bytes=n * k * dtype_bytes(dtype), activation_bytes=m * (n + k) * ACTIVATION_BYTES,
        m=m, n=n, k=k,
    )  # fmt: skip


def attention_operation(table: pd.DataFrame, kv: str = "bf16") -> Operation:
    """One new query per sequence; columns batch, context, heads, kv_heads, head_dim."""
    batch, context, heads, kv_heads, head_dim = _columns(
        table, "batch", "context", "heads", "kv_heads", "head_dim"
    )
    window = table["window"].to_numpy(dtype=float)
    keys = np.where(window > 0, np.minimum(context, window), context)
    return _attention(batch, batch, keys, batch * keys, heads, kv_heads, head_dim, kv)


def context_operation(table: pd.DataFrame) -> Operation:
    """Causal attention over whole prompts."""
    batch, context, heads, kv_heads, head_dim = _columns(
        table, "batch", "context", "heads", "kv_heads", "head_dim"
    )
    tokens, pairs = batch * context, batch * context * (context + 1) / 2
    return _attention(batch, tokens, context, pairs, heads, kv_heads, head_dim, "bf16")


def latent_operation(table: pd.DataFrame, kv: str = "bf16") -> Operation:
    """One new query per sequence over a latent cache: every head on the same vector."""
    batch, context, heads = _columns(table, "batch", "context", "heads")
    return Operation(
        name="attention (latent)", kind="attention", count=1, dtype=kv,
        flops=2 * heads * (2 * LATENT_RANK + LATENT_ROPE) * batch * context,
        kv_bytes=batch * context * (LATENT_RANK + LATENT_ROPE) * dtype_bytes(kv),
        activation_bytes=2 * batch * heads * LATENT_RANK * ACTIVATION_BYTES,
        m=batch, n=heads, k=LATENT_RANK, tiles=batch * np.maximum(1.0, heads / QUERY_TILE),
        depth=context, batch=batch,
    )  # fmt: skip


def _attention(
    batch: Array, tokens: Array, keys: Array, pairs: Array, heads: Array, kv_heads: Array,
    head_dim: Array, kv: str,
) -> Operation:  # fmt: skip
    rows = np.maximum(1.0, tokens / batch * heads / kv_heads / QUERY_TILE)
    return Operation(
        name="attention", kind="attention", count=1, dtype=kv,
        flops=4 * heads * head_dim * pairs,
        kv_bytes=2 * batch * keys * kv_heads * head_dim * dtype_bytes(kv),
        activation_bytes=2 * tokens * heads * head_dim * ACTIVATION_BYTES,
        m=tokens, n=heads, k=head_dim, tiles=batch * kv_heads * rows, depth=keys, batch=batch,
        kv_heads=kv_heads,
    )  # fmt: skip


def expert_operation(table: pd.DataFrame, dtype: str, visited: Any) -> Operation:
    """All experts of a layer; `visited` distinct experts per row of the table."""
    tokens, hidden, inter, top_k = _columns(table, "tokens", "hidden", "inter", "top_k")
    parameters = 3 * hidden * inter
    rows = tokens * top_k
    return Operation(
        name="experts", kind="experts", count=1, dtype=dtype, flops=2 * rows * parameters,
        weight_bytes=visited * parameters * dtype_bytes(dtype),
        activation_bytes=rows * (2 * hidden + 3 * inter) * ACTIVATION_BYTES,
        m=rows, n=3 * inter, k=hidden, experts=table["experts"].to_numpy(), top_k=top_k,
    )  # fmt: skip


def all_reduce_operation(table: pd.DataFrame) -> Operation:
    """All-reduce; columns gpus, message_bytes."""
    gpus, message = _columns(table, "gpus", "message_bytes")
    return Operation(
        name="all-reduce", kind="allreduce", count=1, dtype="bf16", activation_bytes=message,
        group=gpus,
    )  # fmt: skip


def evenly_visited(table: pd.DataFrame) -> Array:
    """Distinct experts when tokens are spread as evenly as they can be ("balanced")."""
    tokens, top_k, experts = _columns(table, "tokens", "top_k", "experts")
    return np.minimum(experts, tokens * top_k)


def held_out(table: pd.DataFrame, *columns: str) -> npt.NDArray[np.bool_]:
    """Half of the shapes, chosen by a hash of `columns` (never row by row: rows of one
    shape are alike). Constants are fitted on the other half."""
    mixed = np.zeros(len(table), dtype=np.int64)
    for column, prime in zip(columns, (7919, 104729, 1299709), strict=False):
        mixed += table[column].to_numpy(dtype=np.int64) * prime
    return np.asarray((mixed % 97) % 2 == 1)
