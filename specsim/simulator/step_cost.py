"""What a step of the engine costs: the same parts as `cost.step`, one step at a time."""

from __future__ import annotations

from dataclasses import dataclass

from specsim.cost.drafting import _tokens_per_pass, num_draft_passes
from specsim.cost.scalar import ScalarPass, scalar_pass
from specsim.cost.source import CostSource
from specsim.cost.step import padded_tokens
from specsim.deployment import Deployment


@dataclass(slots=True)
class Load:
    """New tokens of a pass: `tokens` over `sequences`, `rows` of logits, and what attention
    reads and multiplies (`kv_tokens`, `pairs`, as in `cost.work.Work`)."""

    tokens: int = 0
    sequences: int = 0
    rows: int = 0
    kv_tokens: float = 0.0
    pairs: float = 0.0


class StepCost:
    """Seconds of draft rounds, target passes and host time for one deployment.

    Equals `cost.step.decode_step` for uniform batches and `cost.source.work_time` (padded
    as the runtime pads) for mixed ones; a mixed batch drafts at its mean context.
    """

    def __init__(self, deployment: Deployment, source: CostSource, max_tokens: int) -> None:
        runtime, draft = deployment.runtime, deployment.draft
        self._target: ScalarPass = scalar_pass(source, deployment.target, max_tokens)
        largest = max(runtime.graph_sizes, default=0)
        sizes = padded_tokens(runtime, range(largest + 1)) if largest else ()
        self._padded = [int(size) for size in sizes]
        self._largest_graph = largest
        self._launches = runtime.layer_s.value * deployment.target.spec.num_layers
        self._draft = draft
        self._rounds: dict[int, tuple[int, int, int]] = {}  # K → tokens and number of passes
        self._ngram_s = runtime.ngram_s.value
        model = deployment.target if draft.model is None else draft.model
        self._draft_pass: ScalarPass | None = None
        if draft.method not in ("none", "ngram"):
            self._draft_pass = (
                self._target if model is deployment.target
                else scalar_pass(source, model, max_tokens)
            )  # fmt: skip
        self._draft_launches = runtime.draft_layer_s.value * max(model.spec.num_layers, 1)
        self._draft_pass_s = runtime.draft_pass_s.value
        self.has_draft_prefill = draft.reads_prompts
        self._step_s = runtime.step_s.value
        self._sequence_s = runtime.sequence_s.value
        self._token_s = runtime.token_s.value
        self.prompt_token_s = runtime.prompt_token_s.value
        self._draft_step_s = runtime.draft_step_s.value

    def target_s(
        self, tokens: int, sequences: int, rows: int, kv_tokens: float, pairs: float
    ) -> float:
        """One pass of the target, padded to a graph size, or launched layer by layer."""
        if tokens <= self._largest_graph:
            return self._target(self._padded[tokens], sequences, rows, kv_tokens, pairs)
        seconds = self._target(tokens, sequences, rows, kv_tokens, pairs)
        return seconds if seconds > self._launches else self._launches

    def host_s(self, sequences: int, num_drafted: int) -> float:
        """`cost.step.overhead` with `num_drafted` tokens drafted over the whole batch."""
        seconds = self._step_s + self._sequence_s * sequences
        if num_drafted:
            seconds += self._token_s * num_drafted + self._draft_step_s
        return seconds

    def draft_s(self, num_draft_tokens: int, batch: int, context_sum: float) -> float:
        """One round of K tokens for `batch` sequences of `context_sum` tokens in all."""
        k = num_draft_tokens
        if k == 0 or batch == 0 or self._draft.method == "none":
            return 0.0
        if self._draft_pass is None:
            return self._ngram_s * batch
        shape = self._rounds.get(k)
        if shape is None:
            first, later = _tokens_per_pass(self._draft, k)
            shape = (int(first), int(later), int(num_draft_passes(self._draft, k)))
            self._rounds[k] = shape
        first, later, passes = shape
        seen = self._seen(context_sum / batch)
        seconds = self._one_draft_pass(batch, first, seen)
        if passes > 1:
            middle = self._seen(seen + first + later * (passes - 2) / 2)
            seconds += (passes - 1) * self._one_draft_pass(batch, later, middle)
        return seconds

    def keep_current_s(self, batch: int, context_sum: float) -> float:
        """The one pass that a loaded drafter pays where K = 0 is scheduled: its KV cache
        has to follow the target's (n-gram and early exit have none of their own)."""
        if batch == 0 or not self.has_draft_prefill:
            return 0.0
        return self._one_draft_pass(batch, 1, self._seen(context_sum / batch))

    def draft_prefill_s(self, load: Load) -> float:
        """The drafter's own pass over the prompts of this step."""
        if not self.has_draft_prefill or self._draft_pass is None:
            return 0.0
        return self._draft_pass(
            load.tokens, load.sequences, load.rows, load.kv_tokens, load.pairs
        )  # fmt: skip

    def _seen(self, context: float) -> float:
        budget = self._draft.kv_budget
        return context if budget is None else min(context, budget)

    def _one_draft_pass(self, batch: int, new: int, context: float) -> float:
        assert self._draft_pass is not None
        tokens = batch * new
        seconds = self._draft_pass(
            tokens, batch, tokens, batch * (context + new), tokens * (context + (new + 1) / 2)
        )
        return max(seconds, self._draft_launches) + self._draft_pass_s
