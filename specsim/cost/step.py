"""One decoding step of a serving engine: draft round, verify pass, host time.

The GPU's time comes from a cost source, the engine's from its row in
`catalogue/runtimes.toml`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from specsim.catalogue.specs import RuntimeSpec
from specsim.cost.drafting import draft_round
from specsim.cost.operations import Array, Work
from specsim.cost.source import CostSource, ForwardTime, latency
from specsim.deployment import Deployment, PlacedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTime:
    """Where one step's time goes; all fields are seconds and broadcast together."""

    draft: ForwardTime
    verify: ForwardTime
    overhead_s: Array

    @property
    def seconds(self) -> Array:
        """The whole step: the three parts follow each other."""
        return np.asarray(self.draft.seconds + self.verify.seconds + self.overhead_s)


def padded_tokens(runtime: RuntimeSpec, tokens: Any) -> Array:
    """Tokens after padding to the next CUDA graph size; beyond the largest, unpadded.

    Step time is therefore a staircase in batch · (K + 1).
    """
    exact = np.asarray(tokens, dtype=float)
    if not runtime.graph_sizes:
        return exact
    sizes = np.asarray(runtime.graph_sizes, dtype=float)
    index = np.minimum(np.searchsorted(sizes, exact), len(sizes) - 1)
    return np.where(exact <= sizes[-1], sizes[index], exact)


def target_pass(
    deployment: Deployment, source: CostSource, batch: Any, new_tokens: Any, context: Any
) -> ForwardTime:
    """One forward pass of the target as the runtime runs it: padded to a graph size, or
    launched layer by layer when no graph is that large."""
    return _engine_pass(
        deployment, source, deployment.target, Work.uniform(batch, new_tokens, context)
    )


def _engine_pass(
    deployment: Deployment, source: CostSource, model: PlacedModel, work: Work
) -> ForwardTime:
    runtime = deployment.runtime
    padded = dataclasses.replace(work, tokens=padded_tokens(runtime, work.tokens))
    gpu_time = source.work_time(model, padded)
    in_graph = bool(runtime.graph_sizes) & (
        np.asarray(work.tokens) <= max(runtime.graph_sizes, default=0)
    )
    launches = np.where(in_graph, 0.0, runtime.layer_s.value * model.spec.num_layers)
    return gpu_time + latency(np.maximum(0.0, launches - gpu_time.seconds))


def overhead(runtime: RuntimeSpec, num_draft_tokens: Any, batch: Any) -> Array:
    """Host time of one step that no GPU work hides: once a step, per sequence, per
    verified token beyond the first of each sequence, and once a draft round."""
    k, b = np.asarray(num_draft_tokens, dtype=float), np.asarray(batch, dtype=float)
    plain = runtime.step_s.value + runtime.sequence_s.value * b
    drafting = runtime.draft_step_s.value * (k > 0)
    return np.asarray(plain + runtime.token_s.value * b * k + drafting)


def decode_step(
    deployment: Deployment, source: CostSource, num_draft_tokens: Any, batch: Any, context: Any,
    drafted: Any = None,
) -> StepTime:  # fmt: skip
    """One step in which every sequence drafts K = `num_draft_tokens` tokens; K = 0 is
    ordinary decoding without a draft. Shapes: broadcast of K, batch, context and drafted.

    `drafted` is the mean number of tokens that are proposed, where that is fewer than K
    (n-gram look-up without a match): only those are verified.

    Raises:
        ValueError: if K < 0, batch < 1 or context < 0.
    """
    k = np.asarray(num_draft_tokens)
    if np.min(k) < 0:
        raise ValueError(f"num_draft_tokens={np.min(k)} < 0")
    if deployment.draft.method == "none":
        k = 0 * k
    verified = k if drafted is None else np.minimum(drafted, k)
    # Early exit saves nothing here: the last drafted token has not been through the exit
    # layers, so their weights are read again (LayerSkip's forward_remainder does so too).
    return StepTime(
        draft=draft_round(deployment, source, k, batch, context),
        verify=target_pass(deployment, source, batch, verified + 1, context),
        overhead_s=overhead(deployment.runtime, verified, batch),
    )


def prefill_seconds(deployment: Deployment, source: CostSource, prompt_tokens: Any) -> Array:
    """Time to prefill one prompt, the draft's own prefill included (serial, as vLLM and
    SGLang run it): the service part of the time to first token."""
    work = Work.prefill(1, prompt_tokens)
    seconds = source.work_time(deployment.target, work).seconds
    draft = deployment.draft
    if draft.reads_prompts:
        assert draft.model is not None
        seconds = seconds + source.work_time(draft.model, work).seconds
    runtime = deployment.runtime
    extra = runtime.prompt_token_s.value * np.asarray(prompt_tokens, dtype=float)
    return np.asarray(seconds + extra + runtime.step_s.value)
