"""Speculative steps without a queue: nothing but acceptance, ten million at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from specsim.acceptance.chains import Iid, PerPosition
from specsim.acceptance.law import Law

#: Steps drawn at a time; what fits the second-level cache.
CHUNK = 1 << 17


def count_accepted(
    law: Law, num_draft_tokens: int, num_steps: int, seed: int
) -> npt.NDArray[np.int64]:
    """Of `num_steps` independent steps, how many accept 0, 1, … K tokens; shape (K + 1,).

    One 32-bit uniform a step against the K thresholds s_1 ≥ s_2 ≥ …: a step accepts as
    many tokens as there are thresholds above its uniform, which is exact for every law
    whose steps are independent.

    Raises:
        ValueError: for a law with memory, or a number below 0.
    """
    if not isinstance(law, (Iid, PerPosition)):
        raise ValueError(f"{type(law).__name__} is not a law of independent steps")
    if num_steps < 0:
        raise ValueError(f"num_steps={num_steps} < 0")
    survival = law.survival(num_draft_tokens)
    # u < s for u = i / 2^32 is i < ceil(s · 2^32); s = 1 needs the number beyond uint32
    thresholds = np.ceil(survival * 2.0**32).astype(np.uint64)
    bits = np.random.SFC64(np.random.SeedSequence(seed))
    at_least = np.zeros(num_draft_tokens + 1, dtype=np.int64)
    at_least[0] = num_steps
    left = num_steps
    while left > 0:
        size = min(left, CHUNK)
        uniforms = bits.random_raw((size + 1) // 2).view(np.uint32)[:size]
        for i, threshold in enumerate(thresholds, start=1):
            if threshold > np.uint64(0xFFFFFFFF):
                at_least[i] += size
                continue
            at_least[i] += np.count_nonzero(uniforms < np.uint32(threshold))
        left -= size
    return np.asarray(at_least - np.append(at_least[1:], 0), dtype=np.int64)
