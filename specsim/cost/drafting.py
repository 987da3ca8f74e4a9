"""The time of one draft round, for each way of drafting.

A round proposes K tokens for every sequence of the batch. Ordinary draft models and
heads draft one token after the other: K passes. Medusa's heads, block drafters and
n-gram look-up are parallel.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from specsim.cost.operations import Array
from specsim.cost.source import ZERO, CostSource, ForwardTime, latency
from specsim.deployment import Deployment, Draft, PlacedModel


def num_draft_passes(draft: Draft, num_draft_tokens: Any) -> Any:
    """Forward passes of the draft in one round of K = `num_draft_tokens` tokens (an integer
    or an array of them)."""
    k = np.asarray(num_draft_tokens)
    if draft.method in ("none", "ngram"):
        return 0 * k
    if draft.tree is not None:
        return np.where(k > 0, draft.tree.steps, 0)
    return np.minimum(k, 1) if draft.method == "block" else k


def draft_round(
    deployment: Deployment, source: CostSource, num_draft_tokens: Any, batch: Any, context: Any
) -> ForwardTime:
    """Time to draft K tokens for each of `batch` sequences of length `context`.

    Shapes: broadcast of num_draft_tokens, batch and context; 0 where K = 0. Host time of
    the runtime is in `step.overhead`, except where a pass waits for its launches, which
    counts here, and except for a target that drafts for itself: each of its passes costs
    the engine per sequence what a plain step does.
    """
    draft = deployment.draft
    k = np.asarray(num_draft_tokens)
    drafts = np.asarray(k > 0, dtype=float)
    if draft.method == "none" or not drafts.any():
        return ZERO
    if draft.method == "ngram":
        per_sequence = deployment.runtime.ngram_s.value
        return latency(drafts * per_sequence * np.asarray(batch, dtype=float))
    model = draft.model if draft.model is not None else deployment.target
    seen = np.asarray(context, dtype=float)
    if draft.kv_budget is not None:
        seen = np.minimum(seen, draft.kv_budget)
    first_tokens, next_tokens = _tokens_per_pass(draft, k)
    own = latency(
        (draft.model is None) * deployment.runtime.sequence_s.value * np.asarray(batch, dtype=float)
    )
    first: ForwardTime = own + _launched(
        deployment, model, source.forward_time(model, batch, first_tokens, seen)
    )
    later_passes: Array = np.maximum(num_draft_passes(draft, k) - 1, 0)
    if not later_passes.any():
        return first * drafts
    # the context grows by one token a pass; its mean gives the sum exactly, since every
    # cost source is linear in context over so short a stretch
    middle = seen + first_tokens + next_tokens * (np.maximum(later_passes, 1) - 1) / 2
    if draft.kv_budget is not None:
        middle = np.minimum(middle, draft.kv_budget)
    later = own + _launched(
        deployment, model, source.forward_time(model, batch, next_tokens, middle)
    )
    return first * drafts + later * later_passes


def _tokens_per_pass(draft: Draft, k: Any) -> tuple[Any, int]:
    """New tokens per sequence in the first pass and in every later one.

    draft-model: the cache lacks the last accepted token after a full acceptance, so the
    first pass carries two. eagle, eagle3, mtp: the first pass extends the head over all
    positions just verified, padded to K + 1 (vLLM and SGLang alike); in a tree that is
    the accepted path, at most `steps` + 1. block: one pass over the block.
    """
    later = 1 if draft.tree is None else draft.tree.topk
    if draft.method == "draft-model":
        return 2, later
    if draft.method in ("eagle", "eagle3", "mtp"):
        return (k if draft.tree is None else draft.tree.steps) + 1, later
    if draft.method == "block":
        return k + 1, 1
    return 1, later


def _launched(deployment: Deployment, model: PlacedModel, gpu_time: ForwardTime) -> ForwardTime:
    """A pass outside a CUDA graph takes the longer of the GPU's work and its launches."""
    runtime = deployment.runtime
    launches = runtime.draft_layer_s.value * max(model.spec.num_layers, 1)
    waiting: Array = np.maximum(0.0, launches - gpu_time.seconds)
    return gpu_time + latency(waiting + runtime.draft_pass_s.value)
