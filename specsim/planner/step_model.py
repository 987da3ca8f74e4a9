"""Step times of one deployment over K and batch, split so that their errors can be moved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from specsim.analytic.breakeven import unpadded
from specsim.cost.drafting import draft_round
from specsim.cost.source import CostSource, ForwardTime
from specsim.cost.step import decode_step
from specsim.cost.work import Work
from specsim.deployment import Deployment

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class StepModel:
    """Seconds of a decoding step at K = `draft_tokens[i]` and `batch[j]`.

    Arrays are (K, batch); `*_memory_s` is the memory-bound part of each pass, which moves
    with the bandwidth. Row 0 is K = 0: without a draft model that is plain decoding, with
    one loaded it also holds the draft's upkeep (engines keep the draft's KV cache current
    when they draft nothing). `prefill_s` is what one prompt adds to the steps it shares,
    (batch, prompts), prompts in the order of `prompts` (tokens).
    """

    draft_tokens: tuple[int, ...]
    batch: Array
    draft_s: Array
    draft_memory_s: Array
    verify_s: Array
    verify_memory_s: Array
    overhead_s: Array
    prompts: Array
    prefill_s: Array
    draft_prefill_s: Array
    prefill_chunk: int

    @property
    def step_s(self) -> Array:
        """The whole step, (K, batch)."""
        return self.draft_s + self.verify_s + self.overhead_s

    def scaled(
        self, *, draft: float = 1.0, verify: float = 1.0, overhead: float = 1.0,
        bandwidth: float = 1.0, stack: float = 1.0,
    ) -> StepModel:  # fmt: skip
        """With every draft pass, verify pass (K ≥ 1), host time or whole speculative step
        (`stack`, K ≥ 1) multiplied, and the memory bandwidth multiplied."""
        slower = 1 / bandwidth - 1
        ratio, whole = (np.ones((len(self.draft_tokens), 1)) for _ in range(2))
        ratio[1:], whole[1:] = verify, stack
        return dataclasses.replace(
            self,
            draft_s=(self.draft_s + slower * self.draft_memory_s) * (draft * whole),
            verify_s=(self.verify_s + slower * self.verify_memory_s) * (ratio * whole),
            overhead_s=self.overhead_s * (overhead * whole),
        )


def batch_grid(limit: int) -> Array:
    """Batches 1..limit, every one up to 16, then about 6 % apart."""
    dense = np.arange(1, min(limit, 16) + 1)
    sparse = np.geomspace(16, max(limit, 16), 56) if limit > 16 else np.zeros(0)
    return np.unique(np.concatenate([dense, np.rint(sparse)])).astype(float)


def step_model(
    deployment: Deployment, source: CostSource, draft_tokens: Sequence[int], batch: Array,
    context: float, prompts: Array, drafted: Array | None = None,
) -> StepModel:  # fmt: skip
    """Evaluate a deployment at K = 0 and every K of `draft_tokens` (ascending, ≥ 1), of which
    `drafted` are really proposed (all, if left out).

    CUDA-graph padding is smoothed out, as in break-even ranges: the batch of a running
    service wanders over the staircase.
    """
    deployment = unpadded(deployment)
    ks = (0, *draft_tokens) if deployment.draft.method != "none" else (0,)
    k = np.asarray(ks)[:, None]
    shape = (len(ks), len(batch))
    verified = (
        None if drafted is None or len(ks) == 1 else np.concatenate(([0.0], drafted))[:, None]
    )
    step = decode_step(deployment, source, k, batch[None, :], context, verified)

    def filled(value: Any) -> Array:
        return np.array(np.broadcast_to(value, shape), dtype=float)

    draft, draft_memory = filled(step.draft.seconds), filled(step.draft.memory_s)
    if deployment.draft.model is not None and deployment.draft.method != "early-exit":
        upkeep = _upkeep(deployment, source, batch, context)
        draft[0], draft_memory[0] = upkeep.seconds, upkeep.memory_s
    return StepModel(
        draft_tokens=ks, batch=batch, draft_s=draft, draft_memory_s=draft_memory,
        verify_s=filled(step.verify.seconds), verify_memory_s=filled(step.verify.memory_s),
        overhead_s=filled(step.overhead_s), prompts=prompts,
        prefill_s=_prefill(deployment, source, batch, context, prompts),
        draft_prefill_s=_draft_prefill(deployment, source, prompts),
        prefill_chunk=deployment.max_num_batched_tokens,
    )  # fmt: skip


def _upkeep(
    deployment: Deployment, source: CostSource, batch: Array, context: float
) -> ForwardTime:
    """One pass of the draft over the batch's new tokens, as when K = 1."""
    draft = dataclasses.replace(deployment.draft, tree=None)
    return draft_round(dataclasses.replace(deployment, draft=draft), source, 1, batch, context)


def _prefill(
    deployment: Deployment, source: CostSource, batch: Array, context: float, prompts: Array
) -> Array:
    """Seconds that a prompt adds to a step of `batch` decoding sequences; (batch, prompts)."""
    decoding = Work.uniform(batch[:, None], 1, context)
    alone = source.work_time(deployment.target, decoding).seconds
    mixed = source.work_time(deployment.target, decoding + Work.prefill(1, prompts[None, :]))
    added = np.maximum(mixed.seconds - alone, 0.0)
    added = added + deployment.runtime.prompt_token_s.value * prompts[None, :]
    return np.asarray(added + _draft_prefill(deployment, source, prompts)[None, :])


def _draft_prefill(deployment: Deployment, source: CostSource, prompts: Array) -> Array:
    """Seconds of the draft's own prefill of each prompt, serial with the target's."""
    draft = deployment.draft
    if draft.model is None or draft.method in ("early-exit", "medusa"):
        return np.zeros(len(prompts))
    return np.asarray(source.work_time(draft.model, Work.prefill(1, prompts)).seconds)
