"""One forward pass at a time, in a microsecond: a cost source for event loops.

`work_time` is made for arrays; a simulator asks for one pass after the other. Everything
that depends on the number of tokens alone is tabulated once through `work_time`'s own
code, and attention is written out in floats, its coefficients probed from `operations`.
The result equals `work_time` to rounding: it is compared when it is made, and a source
that it does not know (or no longer knows) is asked pass by pass instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from specsim.cost.linear import Linear
from specsim.cost.operations import Operation, operations
from specsim.cost.roofline import KEY_TILE, Roofline
from specsim.cost.source import CostSource, OperationTime
from specsim.cost.work import Work
from specsim.deployment import PlacedModel

#: Seconds of a pass of (tokens, sequences, logit rows, KV tokens, query–key pairs).
ScalarPass = Callable[[int, int, int, float, float], float]

#: Relative difference at which the fast path counts as wrong.
TOLERANCE = 1e-9


def scalar_pass(source: CostSource, model: PlacedModel, max_tokens: int) -> ScalarPass:
    """`source.work_time(model, Work(…)).seconds` as a function of five numbers, for up to
    `max_tokens` new tokens (more are answered, slowly)."""
    asked = direct(source, model)
    if isinstance(source, Linear):
        base, token, key = source.base_s, source.token_s, source.kv_token_s
        return lambda tokens, sequences, rows, kv, pairs: base + token * tokens + key * kv
    if isinstance(source, Roofline) and not source.warm:
        fast = _roofline(source, model, max_tokens, asked)
        if _agrees(fast, asked, max_tokens, TOLERANCE):
            return fast
    if type(source).__name__ == "Kernels" and not getattr(source, "warm", True):
        from specsim.cost import scalar_kernels
        from specsim.cost.kernels.source import Kernels

        assert isinstance(source, Kernels)
        fast = scalar_kernels.kernels_pass(source, model, max_tokens)
        if _agrees(fast, asked, max_tokens, scalar_kernels.TOLERANCE):
            return fast
    return asked


def direct(source: CostSource, model: PlacedModel) -> ScalarPass:
    def seconds(tokens: int, sequences: int, rows: int, kv: float, pairs: float) -> float:
        return float(source.work_time(model, work_of(tokens, sequences, rows, kv, pairs)).seconds)

    return seconds


def work_of(tokens: Any, sequences: Any, rows: Any, kv: Any, pairs: Any) -> Work:
    tokens, sequences, rows = (np.asarray(x, dtype=float) for x in (tokens, sequences, rows))
    return Work(
        tokens=tokens, sequences=sequences, logit_rows=rows,
        kv_tokens=np.asarray(kv, dtype=float), pairs=np.asarray(pairs, dtype=float),
    )  # fmt: skip


def _agrees(fast: ScalarPass, asked: ScalarPass, max_tokens: int, tolerance: float) -> bool:
    """Compare on a few passes: decoding, verifying, prefilling, short and long contexts."""
    for sequences, new, context in ((1, 1, 10), (3, 5, 900), (8, 1, 40_000), (1, 64, 0)):
        tokens = min(sequences * new, max_tokens)
        kv = sequences * (context + new)
        case = (tokens, sequences, sequences, float(kv), float(kv) * new)
        if not math.isclose(fast(*case), asked(*case), rel_tol=tolerance):
            return False
    return True


def _roofline(
    source: Roofline, model: PlacedModel, max_tokens: int, asked: ScalarPass
) -> ScalarPass:
    by_tokens, by_rows, experts = tables(source, model, max_tokens)
    groups = [attention(source, group) for group in attention_groups(source, model)]
    expert_times: dict[tuple[int, int], float] = {}

    if len(groups) == 1 and not experts:  # most models; saves a third of the time
        only = groups[0]

        def plain(tokens: int, sequences: int, rows: int, kv: float, pairs: float) -> float:
            if tokens > max_tokens or rows > max_tokens:
                return asked(tokens, sequences, rows, kv, pairs)
            return by_tokens[tokens] + by_rows[rows] + only(tokens, sequences, kv, pairs)

        return plain

    def seconds(tokens: int, sequences: int, rows: int, kv: float, pairs: float) -> float:
        if tokens > max_tokens or rows > max_tokens:
            return asked(tokens, sequences, rows, kv, pairs)
        total = by_tokens[tokens] + by_rows[rows]
        for group in groups:
            total += group(tokens, sequences, kv, pairs)
        if experts:
            key = (tokens, sequences)
            time = expert_times.get(key)
            if time is None:
                time = expert_times[key] = expert_seconds(source, model, tokens, sequences)
            total += time
        return total

    return seconds


def tables(
    source: Any, model: PlacedModel, max_tokens: int
) -> tuple[list[float], list[float], bool]:
    """Seconds of the operations whose time follows the new tokens (attention and experts
    left out), of those that follow the logit rows, and whether there are experts.
    Index 0 is unused."""
    count = np.arange(1, max_tokens + 1)
    by_tokens, by_rows = np.zeros(max_tokens), np.zeros(max_tokens)
    has_experts = False
    for of_tokens, of_rows in zip(
        source.explain(model, work_of(count, 1, 1, 1, 1)),
        source.explain(model, work_of(1, 1, count, 1, 1)),
        strict=True,
    ):
        kind = of_tokens.operation.kind
        if kind == "experts":
            has_experts = True
        elif kind != "attention" and np.ptp(np.asarray(of_rows.seconds)) > 0:
            by_rows = by_rows + of_rows.seconds
        elif kind != "attention":
            by_tokens = by_tokens + of_tokens.seconds
    return [0.0, *by_tokens.tolist()], [0.0, *by_rows.tolist()], has_experts


def expert_seconds(source: Any, model: PlacedModel, tokens: int, sequences: int) -> float:
    found = operations(model, work_of(tokens, sequences, 1, 1, 1))
    return sum(float(source.operation_time(op).seconds) for op in found if op.kind == "experts")


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionGroup:
    """One attention operation as a function of the work; seconds per unit, `count` times."""

    count: int
    key_s: float  # reading the cache
    sequence_s: float  # reading a recurrent state
    token_s: float  # reading queries, writing results
    tile_sequence_s: float
    tile_token_s: float  # where the queries of a sequence need more than one tile
    pair_s: float  # products
    product_token_s: float
    fixed_s: float
    walk_s: float
    depth_per_key: float
    limit: float  # keys that one query may attend to


def attention_groups(source: Roofline, model: PlacedModel) -> list[AttentionGroup]:
    """Coefficients of every attention operation, from differences of its times."""
    gpu = source.gpu

    def probe(tokens: float, kv: float, pairs: float) -> list[tuple[Operation, OperationTime]]:
        found = operations(model, work_of(tokens, 1, 1, kv, pairs))
        return [(op, source.operation_time(op)) for op in found if op.kind == "attention"]

    # one sequence; none of the first four can reach a window
    probes = [probe(1, 1, 1), probe(1, 0, 1), probe(1, 1, 0), probe(1, 0, 0)]
    probes += [probe(1, 1e18, 1), probe(1e12, 1, 1), probe(1e-12, 1, 1)]
    groups = []
    for one, keyless, pairless, empty, endless, wide, narrow in zip(*probes, strict=True):
        op, count = one[0], one[0].count
        share = gpu.attention_share if op.dtype == "bf16" else gpu.attention_narrow_share
        byte_s = 1 / (gpu.bandwidth_bytes_per_s * share)
        tile_s = gpu.attention_tile_s * (0.5 + op.k / 256)
        key_bytes = float(op.kv_bytes - keyless[0].kv_bytes)
        kept = float(endless[0].kv_bytes - keyless[0].kv_bytes) / key_bytes if key_bytes else 1e18
        depth = float(op.depth)
        fixed = float(keyless[1].fixed_s) / count
        groups.append(
            AttentionGroup(
                count=count,
                key_s=key_bytes * byte_s,
                sequence_s=float(keyless[0].kv_bytes) * byte_s,
                token_s=float(op.activation_bytes) * byte_s,
                tile_sequence_s=float(narrow[0].tiles) * tile_s,
                tile_token_s=float(wide[0].tiles) / 1e12 * tile_s if depth else 0.0,
                pair_s=float(keyless[1].compute_s - empty[1].compute_s) / count,
                product_token_s=float(pairless[1].compute_s) / count,
                fixed_s=fixed,
                walk_s=gpu.attention_depth_s if depth else 0.0,
                depth_per_key=depth / KEY_TILE,
                limit=round(kept) if kept < 1e17 else math.inf,
            )
        )
    return groups


def attention(source: Roofline, group: AttentionGroup) -> Callable[[int, int, float, float], float]:
    """`roofline._attention` in floats."""
    key_s, sequence_s, token_s = group.key_s, group.sequence_s, group.token_s
    tile_sequence_s, tile_token_s = group.tile_sequence_s, group.tile_token_s
    pair_s, product_token_s = group.pair_s, group.product_token_s
    fixed, walk, depth = group.fixed_s, group.walk_s, group.depth_per_key
    p, inverse_p = source.gpu.attention_exponent, 1 / source.gpu.attention_exponent
    q, inverse_q = source.gpu.ridge_exponent, 1 / source.gpu.ridge_exponent
    limit, count, log2 = group.limit, group.count, math.log2

    def seconds(tokens: int, sequences: int, kv: float, pairs: float) -> float:
        if limit != math.inf:
            kv = min(kv, sequences * (limit - 1) + tokens)
            pairs = min(pairs, tokens * limit)
        read = kv * key_s + tokens * token_s + sequences * sequence_s
        tiles = max(sequences * tile_sequence_s, tokens * tile_token_s)
        if tiles > read:
            memory = tiles * (1 + (read / tiles) ** p) ** inverse_p
        else:
            memory = read * (1 + (tiles / read) ** p) ** inverse_p
        compute = pairs * pair_s + tokens * product_token_s
        if compute > memory:
            busy = compute * (1 + (memory / compute) ** q) ** inverse_q
        else:
            busy = memory * (1 + (compute / memory) ** q) ** inverse_q
        return float(count * (busy + fixed + walk * log2(1 + depth * kv / sequences)))

    return seconds
