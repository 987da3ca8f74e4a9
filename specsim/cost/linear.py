"""A cost source of three constants: T = a + b·tokens + c·KV tokens.

The form in which engines' forward passes are often published as a fit. It knows no GPU and
no model: whatever is asked, the same line answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from specsim.cost.source import ForwardTime
from specsim.cost.work import Work
from specsim.deployment import PlacedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """`base_s` once a pass, `token_s` per new token, `kv_token_s` per key that attention
    reads. `label` names the fit and its source.

    Raises:
        ValueError: if a constant is negative or not finite, or all are 0.
    """

    base_s: float
    token_s: float = 0.0
    kv_token_s: float = 0.0
    label: str = "linear fit"

    def __post_init__(self) -> None:
        constants = (self.base_s, self.token_s, self.kv_token_s)
        if not all(math.isfinite(c) and c >= 0 for c in constants) or not any(constants):
            raise ValueError(f"base_s, token_s, kv_token_s = {constants}: expected times >= 0")

    @property
    def name(self) -> str:
        """What the prediction rests on."""
        return self.label

    def forward_time(
        self, model: PlacedModel, batch: Any, new_tokens: Any, context: Any
    ) -> ForwardTime:
        """T(B, n, L); shapes broadcast."""
        return self.work_time(model, Work.uniform(batch, new_tokens, context))

    def work_time(self, model: PlacedModel, work: Work) -> ForwardTime:
        """Any mix of prefill and decode. The base counts as latency, tokens as compute,
        keys as memory."""
        compute = self.token_s * np.asarray(work.tokens, dtype=float)
        memory = self.kv_token_s * np.asarray(work.kv_tokens, dtype=float)
        base = np.full(np.broadcast_shapes(compute.shape, memory.shape), self.base_s)
        return ForwardTime(
            seconds=base + compute + memory, memory_s=memory + 0 * base,
            compute_s=compute + 0 * base, latency_s=base,
        )  # fmt: skip


#: vLLM serving Llama-3.1-8B (bf16) on one H100: the simulator of SpecDecode-Bench
#: (arXiv 2601.11580, its repository's fit). Linear in KV tokens at nearly the peak
#: bandwidth: not for more than about 64k KV tokens. Host time (1.207 ms a step) is apart.
VLLM_LLAMA_8B_H100 = Linear(
    base_s=5.886e-3, token_s=0.0210e-3, kv_token_s=3.93e-8,
    label="published fit of vLLM, Llama-3.1-8B, H100 (arXiv 2601.11580)",
)  # fmt: skip
