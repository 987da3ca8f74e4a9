"""How long a replica's step takes, where the time goes, and K of the next step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from specsim.simulator.roster import Roster
from specsim.simulator.speculation import Controller, Policy
from specsim.simulator.step_cost import Load, StepCost
from specsim.simulator.timetable import Timetable

#: Passes kept of a replica, to say what binds them.
MAX_SAMPLES = 256

Batch = Timetable | Roster


class StepTimer:
    """Times steps of one batch and adds up seconds by kind.

    `proposed[K]`, where given, is the mean number of tokens that a step asked for K really
    drafts; only those are verified.
    """

    def __init__(
        self, batch: Batch, policy: Policy, cost: StepCost, *, max_tokens: int,
        overlapped: bool = False, proposed: tuple[float, ...] | None = None,
    ) -> None:  # fmt: skip
        self.batch = batch
        self.cost = cost
        self.draft_s = self.verify_s = self.prefill_s = self.host_s = 0.0
        self.overlap_wasted_s = 0.0
        self.drafted = self.prefill_tokens = self.switches = self.steps = 0
        self.samples: list[tuple[int, int, int, float, float]] = []
        self.last = (0.0, 0.0, 0.0)  # draft, pass and host seconds of the last step
        self._policy = policy
        self._loaded = policy.kind != "off"
        self._counts_prompts = policy.kind == "batch-schedule" and policy.count_prefills
        self._overlapped = overlapped
        self._proposed = None if proposed is None else np.array(proposed)
        self._last_k: Any = None
        self._sample_every = 1
        constant = policy.constant
        self._constant = constant
        self._controller = Controller(policy, max_tokens) if constant is None else None

    # --- K ------------------------------------------------------------------------------

    def choose_k(self, num_prompts: Callable[[int], int] | None = None) -> Any:
        """K of the next step. `num_prompts` says how many prompts it has room for beside so
        many decoding tokens: a schedule that counts them asks with the tokens of the K that
        decoding alone would have."""
        if self._controller is None:
            return self._constant
        roster = self.batch
        assert isinstance(roster, Roster)
        if roster.count == 0:
            return 0
        k = self._controller.choose(roster, roster.count, self._step_s)
        if num_prompts is None or not self._counts_prompts:
            return k
        scheduled = roster.count + num_prompts(roster.count * (int(k) + 1))
        return self._controller.choose(roster, scheduled, self._step_s)

    def observe(self, k: Any) -> None:
        """Let a policy learn from the step that was run."""
        if self._controller is not None:
            assert isinstance(self.batch, Roster)
            self._controller.observe(self.batch, k)

    def _step_s(self, k: int) -> float:
        """Seconds of a step of the present batch at K, without prompts."""
        count, context, cost = self.batch.count, self.batch.context_sum, self.cost
        load, drafted = self.decode_load(k)
        target = cost.target_s(load.tokens, count, load.rows, load.kv_tokens, load.pairs)
        draft = cost.draft_s(k, count, context) if k else cost.keep_current_s(count, context)
        return draft + target + cost.host_s(count, drafted)

    # --- time ---------------------------------------------------------------------------

    def decode_load(self, k: Any) -> tuple[Load, int]:
        """New tokens of the decoding sequences (each K drafted ones and the last emitted),
        and how many of them were drafted."""
        count, context = self.batch.count, self.batch.context_sum
        if isinstance(k, int) and self._proposed is None:
            new = k + 1
            tokens = count * new
            pairs = new * context + tokens * (new + 1) / 2
            return Load(tokens, count, tokens, context + tokens, pairs), count * k
        return self._uneven_load(k, count, context)

    def _uneven_load(self, k: Any, count: int, context: int) -> tuple[Load, int]:
        """The same where K differs by sequence, or fewer than K tokens are proposed."""
        if self._proposed is not None:
            k = self._proposed[k]
        if np.ndim(k) == 0:
            tokens = round(count * (1 + float(k)))
            new = tokens / max(count, 1)
            pairs = new * context + tokens * (new + 1) / 2
        else:
            assert isinstance(self.batch, Roster)
            each = k + 1
            tokens = round(float(each.sum()))
            pairs = float(np.sum(each * (self.batch.contexts + (each + 1) / 2)))
        return Load(tokens, count, tokens, context + tokens, pairs), tokens - count

    def seconds(self, k: Any, load: Load, num_drafted: int, prompts: Load | None) -> float:
        """Time of a step: draft round, one pass over decoding and prompt tokens, host."""
        cost, count = self.cost, load.sequences
        if prompts is None:
            target = cost.target_s(load.tokens, count, load.rows, load.kv_tokens, load.pairs)
            host = cost.host_s(count, num_drafted)
            prompts_s = 0.0
            self.verify_s += target
        else:
            tokens = load.tokens + prompts.tokens
            target = cost.target_s(
                tokens, count + prompts.sequences, load.rows + prompts.rows,
                load.kv_tokens + prompts.kv_tokens, load.pairs + prompts.pairs,
            )  # fmt: skip
            host = cost.host_s(count + prompts.sequences, num_drafted)
            prompts_s = cost.draft_prefill_s(prompts) if self._loaded else 0.0
            # a mixed pass is split by tokens; what only prompts take is prefill: the
            # drafter's pass over them, and what the engine adds to each of their tokens
            verify = target * load.tokens / tokens
            self.verify_s += verify
            prompts_s += cost.prompt_token_s * prompts.tokens
            self.prefill_s += target - verify + prompts_s
            self.prefill_tokens += prompts.tokens
        draft = self._draft_seconds(k, count, target) if count and self._loaded else 0.0
        self.draft_s += draft
        self.host_s += host
        self.drafted += num_drafted
        if self.steps % self._sample_every == 0:
            self._sample(load, prompts or Load())
        self.steps += 1
        self.last = (draft, target + prompts_s, host)
        return draft + target + prompts_s + host

    def _draft_seconds(self, k: Any, count: int, target_s: float) -> float:
        """Time that drafting adds to the step. A scheduled K = 0 still keeps the drafter's
        cache current; a graph of another K is switched to at a price."""
        cost, context = self.cost, self.batch.context_sum
        longest = k if isinstance(k, int) else int(k.max(initial=0))
        if longest == 0:
            seconds = cost.keep_current_s(count, context) if self._policy.largest else 0.0
        elif self._overlapped:
            seconds = self._overlapped_seconds(longest, count, target_s)
        else:
            drafting = count if isinstance(k, int) else int(np.count_nonzero(k))
            seconds = cost.draft_s(longest, drafting, context * drafting / count)
        if longest != self._last_k:
            if self._last_k is not None:
                self.switches += 1
                seconds += self._policy.switch_s
            self._last_k = longest
        return seconds

    def _overlapped_seconds(self, k: int, count: int, target_s: float) -> float:
        """PEARL (Liu et al. 2024, arXiv 2408.11850): the next block is drafted while this one
        is verified. It starts with a guess of the token that the target adds to an accepted
        block (one more pass), and is good where block and guess are right. Sequences without
        a good block draft first; then verification and the drafting of all next blocks run
        side by side."""
        assert isinstance(self.batch, Roster)
        context = self.batch.context_sum
        lacking = count - self.batch.num_ready
        before = self.cost.draft_s(k, lacking, context * lacking / count)
        beside = self.cost.draft_s(k + 1, count, context)
        if lacking:  # what was drafted ahead for them during the last verification
            self.overlap_wasted_s += beside * lacking / count
        return before + max(0.0, beside - target_s)

    def _sample(self, load: Load, prompts: Load) -> None:
        """Keep every n-th pass for what binds it; n doubles so that few are kept."""
        self.samples.append(
            (load.tokens + prompts.tokens, load.sequences + prompts.sequences,
             load.rows + prompts.rows, load.kv_tokens + prompts.kv_tokens,
             load.pairs + prompts.pairs)
        )  # fmt: skip
        if len(self.samples) >= MAX_SAMPLES:
            del self.samples[1::2]
            self._sample_every *= 2
