"""What a forward pass is asked to do: tokens, keys and query–key pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
ArrayLike = npt.ArrayLike


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a forward pass is asked to do, summed over its sequences; arrays broadcast.

    tokens:    new tokens that go through the weight matrices;
    sequences: sequences in the batch;
    logit_rows: rows through the output head;
    kv_tokens: keys read by attention: Σ (context + new tokens) over sequences;
    pairs:     query–key pairs: Σ over new tokens of the keys each one attends to.
    """

    tokens: Any
    sequences: Any
    logit_rows: Any
    kv_tokens: Any
    pairs: Any

    @staticmethod
    def uniform(batch: ArrayLike, new_tokens: ArrayLike, context: ArrayLike) -> Work:
        """B sequences, n new tokens each after L cached ones (decode: n = 1; verify:
        n = K + 1), logits for every new token.

        Raises:
            ValueError: if batch < 1, new_tokens < 1 or context < 0 anywhere.
        """
        b, n, c = (np.asarray(x, dtype=float) for x in (batch, new_tokens, context))
        for name, value, least in (("batch", b, 1), ("new_tokens", n, 1), ("context", c, 0)):
            if not np.all(value >= least):  # also catches NaN
                raise ValueError(f"{name}={np.min(value)} < {least}")
        return Work(
            tokens=b * n, sequences=b, logit_rows=b * n,
            kv_tokens=b * (c + n), pairs=b * n * (c + (n + 1) / 2),
        )  # fmt: skip

    @staticmethod
    def prefill(batch: ArrayLike, prompt_tokens: ArrayLike, cached: ArrayLike = 0) -> Work:
        """Prompts (or chunks of them) of which only the last token needs logits."""
        work = Work.uniform(batch, prompt_tokens, cached)
        return Work(
            tokens=work.tokens, sequences=work.sequences, logit_rows=work.sequences,
            kv_tokens=work.kv_tokens, pairs=work.pairs,
        )  # fmt: skip

    def __add__(self, other: Work) -> Work:
        """Both in one pass (chunked prefill beside decoding)."""
        return Work(
            tokens=self.tokens + other.tokens,
            sequences=self.sequences + other.sequences,
            logit_rows=self.logit_rows + other.logit_rows,
            kv_tokens=self.kv_tokens + other.kv_tokens,
            pairs=self.pairs + other.pairs,
        )
