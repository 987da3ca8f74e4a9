"""`cost.scalar` for measured kernels: the roofline's fast path times measured ratios.

A measured source is the roofline times a ratio per operation. What follows the number of
tokens or rows is tabulated through its own code, exactly. The ratio of attention follows
the sequences and the keys of each; it is tabulated over keys (`NODES_PER_OCTAVE`) when a
number of sequences first occurs, and interpolated: within `TOLERANCE` of the source.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from specsim.cost import scalar
from specsim.cost.kernels.source import PROMPT_QUERIES, Kernels
from specsim.cost.operations import operations
from specsim.deployment import PlacedModel

NODES_PER_OCTAVE = 8
OCTAVES = 21  # up to two million keys a sequence
TOLERANCE = 5e-3

#: Ratio by keys of each sequence, at NODES_PER_OCTAVE · log2(keys).
Ratios = list[float]


def kernels_pass(source: Kernels, model: PlacedModel, max_tokens: int) -> scalar.ScalarPass:
    """`source.work_time(…).seconds` as a function of five numbers; see `scalar_pass`."""
    by_tokens, by_rows, has_experts = scalar.tables(source, model, max_tokens)
    groups = scalar.attention_groups(source.roofline, model)
    plain = [scalar.attention(source.roofline, group) for group in groups]
    ratio = [_ratios_of(source, model, index) for index in range(len(groups))]
    asked = scalar.direct(source, model)
    expert_times: dict[tuple[int, int], float] = {}

    def seconds(tokens: int, sequences: int, rows: int, kv: float, pairs: float) -> float:
        if tokens > max_tokens or rows > max_tokens:
            return asked(tokens, sequences, rows, kv, pairs)
        total = by_tokens[tokens] + by_rows[rows]
        prompt = tokens / sequences > PROMPT_QUERIES
        for index, group in enumerate(groups):
            keys = kv
            if group.limit != math.inf:
                keys = min(kv, sequences * (group.limit - 1) + tokens)
            at = NODES_PER_OCTAVE * math.log2(max(keys / sequences, 1.0))
            below = min(int(at), NODES_PER_OCTAVE * OCTAVES - 1)
            known = ratio[index](sequences, prompt)
            part = known[below] + (known[below + 1] - known[below]) * (at - below)
            total += part * plain[index](tokens, sequences, kv, pairs)
        if has_experts:
            key = (tokens, sequences)
            time = expert_times.get(key)
            if time is None:
                time = expert_times[key] = scalar.expert_seconds(source, model, *key)
            total += time
        return total

    return seconds


def _ratios_of(source: Kernels, model: PlacedModel, index: int) -> Callable[[int, bool], Ratios]:
    """Measured over roofline of one attention operation, by sequences and kind of pass."""
    tables: dict[tuple[int, bool], Ratios] = {}
    keys = 2.0 ** (np.arange(NODES_PER_OCTAVE * OCTAVES + 1) / NODES_PER_OCTAVE)

    def ratios(sequences: int, prompt: bool) -> Ratios:
        found = tables.get((sequences, prompt))
        if found is None:
            new = 2 * PROMPT_QUERIES if prompt else 1
            # the window is applied before: here every key counts
            work = scalar.work_of(sequences * new, sequences, 1, sequences * keys, keys)
            op = [op for op in operations(model, work) if op.kind == "attention"][index]
            measured = np.asarray(source.operation_time(op).seconds)
            roofline = np.asarray(source.roofline.operation_time(op).seconds)
            found = np.broadcast_to(measured / roofline, keys.shape).tolist()
            tables[sequences, prompt] = found
        return found

    return ratios
