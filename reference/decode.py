"""The decoder: draft, verify, accept, for a batch whose rows accept different numbers.

`Decoder.step` is speculative decoding; with K = 0 it is autoregressive decoding, and a
prompt's chunk rides along in the same forward pass as other rows' drafts. Rows 0..A-1 are
active; when one ends, the last takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reference import verify
from reference.cache import make_batch
from reference.draft.base import Drafter
from reference.draft.tree import Draft
from reference.model import Model
from reference.policy import History, Policy, Shape, clamp, fixed
from reference.request import Request
from reference.sampling import Randomness, Warp
from reference.timing import Stopwatch

#: The accept rules by name; all but "typical" are lossless.
RULES: dict[str, Callable[[Draft, Tensor, Randomness], verify.Verdict]] = {
    "chain": verify.verify_chain,
    "block": verify.verify_block,
    "tree": verify.verify_tree,
    "typical": verify.verify_typical,
}
LOSSY_RULES = frozenset({"typical"})


@dataclass(frozen=True)
class StepResult:
    """What one step did for one row. Times are the step's, shared by its rows."""

    request: Request
    position: int  # output tokens before the step
    context: int  # tokens of the sequence before the step
    batch: int
    num_draft_tokens: int  # asked for: levels of the tree
    num_drafted: int
    num_accepted: int
    emitted: tuple[int, ...]
    fed: int  # tokens of this row in the target's forward pass
    mixed: bool  # some row of the step was reading its prompt
    seconds: dict[str, float]
    overlap: tuple[float, ...] | None


class Decoder:
    """Decodes up to `rows` requests at a time.

    Args:
        policy: what to draft next; `rule` decides what survives (see `RULES`).
        capacity: cache slots a row: prompt, output and one draft must fit.
        prefill_chunk: prompt tokens a row reads in one step (default: all).
        with_overlap: also compute 1 − TV(p, q) at each drafted position (costs time).
    """

    def __init__(
        self,
        target: Model,
        drafter: Drafter | None = None,
        *,
        warp: Warp | None = None,
        policy: Policy | None = None,
        rule: str = "chain",
        rows: int = 1,
        capacity: int = 2048,
        prefill_chunk: int | None = None,
        with_overlap: bool = False,
    ) -> None:
        if rule not in RULES:
            raise ValueError(f"unknown accept rule {rule!r}; expected one of {', '.join(RULES)}")
        if min(rows, capacity, 1 if prefill_chunk is None else prefill_chunk) < 1:
            raise ValueError(
                f"rows={rows}, capacity={capacity}, prefill_chunk={prefill_chunk}: "
                "at least 1 of each is needed"
            )
        self.target, self.warp, self.rule = target, warp or Warp(), rule
        self.drafter = Drafter() if drafter is None else drafter
        self.policy = fixed(0) if policy is None else policy
        self._vocab_size = target.config.vocab_size
        self.max_rows, self.prefill_chunk = rows, prefill_chunk
        self.with_overlap = with_overlap
        limit = self.drafter.max_positions or capacity
        self.cache = target.new_cache(rows, min(capacity, target.config.max_positions, limit))
        self.drafter.bind(target, self.cache, rows, self.cache.capacity)
        self.rows: list[Request] = []

    def admit(self, request: Request) -> None:
        """Give a request the next free row.

        Raises:
            ValueError: when every row is taken, the request is longer than the cache, or its
                prompt holds a token that the target does not have (on a GPU the look-up
                would stop the process instead of raising).
        """
        if len(self.rows) == self.max_rows:
            raise ValueError(f"all {self.max_rows} rows are taken")
        need = len(request.prompt) + request.max_new_tokens
        if need > self.cache.capacity:
            raise ValueError(
                f"request {request.name}: prompt of {len(request.prompt)} and output of "
                f"{request.max_new_tokens} tokens exceed the cache's {self.cache.capacity} slots"
            )
        if not 0 <= min(request.prompt) <= max(request.prompt) < self._vocab_size:
            raise ValueError(
                f"request {request.name}: token ids beyond the target's {self._vocab_size}"
            )
        row = len(self.rows)
        self.cache.lengths[row] = 0
        self.drafter.clear(row)
        self.rows.append(request)

    @torch.inference_mode()
    def step(self) -> list[StepResult]:
        """One draft–verify–accept iteration of every active row; ended rows are dropped."""
        rows, watch = list(self.rows), Stopwatch(self.target.device)

        # Draft: a chain (or tree) of tokens for each row that has read its prompt.
        shapes = [self._shape(b) for b in range(len(rows))]
        drafts = self.drafter.propose(rows, shapes, self.warp)
        watch.lap("draft")

        # Verify: one pass of the target over what each row has not read, then its draft.
        unread = [self._unread(b) for b in range(len(rows))]
        whole = [self._completes(b, len(new)) for b, new in enumerate(unread)]
        logits, features = self._forward(unread, drafts, whole)
        watch.lap("verify")

        # Accept: the nodes that survive, and one token more, from the target's logits.
        verdicts = self._judge(drafts, logits, rows)
        watch.lap("sample")

        emitted = [self._accept(b, verdicts[b], drafts[b]) for b in range(len(rows))]
        self._observe(features, unread, drafts, verdicts)
        watch.lap("host")

        # A prompt that was just read to its end is read by the draft as well.
        ready = [w and len(new) > 1 for w, new in zip(whole, unread, strict=True)]
        if any(ready):
            self.drafter.catch_up(rows, ready)
            watch.lap("draft")
        results = self._results(rows, shapes, drafts, verdicts, logits, unread, emitted, watch)
        self._retire()
        return results

    def run(self, requests: Sequence[Request]) -> Iterator[StepResult]:
        """Step until all requests have ended, admitting them as rows come free."""
        waiting = list(requests)[::-1]
        while waiting or self.rows:
            while waiting and len(self.rows) < self.max_rows:
                self.admit(waiting.pop())
            yield from self.step()

    def _shape(self, b: int) -> Shape:
        """What row b drafts: nothing while reading its prompt, never past its end."""
        row, length = self.rows[b], len(self.rows[b].tokens)
        if self.cache.lengths[b] < length - 1:
            return ()
        shape = self.policy(History(row.drafted, row.accepted))
        # One token comes without drafting, so at most remaining − 1 drafts can be used.
        return clamp(shape, row.remaining - 1, self.cache.capacity - length)

    def _unread(self, b: int) -> list[int]:
        start = self.cache.lengths[b]
        end = None if self.prefill_chunk is None else start + self.prefill_chunk
        return self.rows[b].tokens[start:end]

    def _completes(self, b: int, count: int) -> bool:
        return self.cache.lengths[b] + count == len(self.rows[b].tokens)

    def _forward(
        self, unread: list[list[int]], drafts: list[Draft], whole: list[bool]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Logits (N + 1, V) and features (fed, F) of each row; no logits inside a prompt."""
        tokens = [new + draft.tokens for new, draft in zip(unread, drafts, strict=True)]
        trees = [draft.target_rows() for draft in drafts]
        batch = make_batch(tokens, self.cache, trees=trees if any(trees) else None)
        wanted = [len(d.tokens) + 1 if w else 0 for d, w in zip(drafts, whole, strict=True)]
        select: list[int] = []
        end = 0
        for row, count in zip(tokens, wanted, strict=True):
            end += len(row)
            select += range(end - count, end)
        index = torch.tensor(select, dtype=torch.long, device=self.target.device)
        out = self.target(
            batch, self.cache, select=index, feature_layers=self.drafter.feature_layers
        )
        counts = [len(row) for row in tokens]
        features = () if out.features is None else torch.split(out.features, counts)
        return list(torch.split(out.logits, wanted)), list(features)

    def _judge(
        self, drafts: list[Draft], logits: list[Tensor], rows: list[Request]
    ) -> list[verify.Verdict | None]:
        """The accept rule for each row that has logits."""
        verdicts: list[verify.Verdict | None] = []
        for draft, line, row in zip(drafts, logits, rows, strict=True):
            if len(line) == 0:
                verdicts.append(None)
            elif self.warp.greedy:
                verdicts.append(verify.verify_greedy(draft, line.argmax(dim=-1).tolist()))
            else:
                p = self.warp.probabilities(line)  # (N + 1, V) float64
                rule = self.rule if draft.is_chain else "tree"
                verdicts.append(RULES[rule](draft, p, row.randomness))
        return verdicts

    def _accept(self, b: int, verdict: verify.Verdict | None, draft: Draft) -> list[int]:
        """Append what survived to row b and roll every cache back to a prefix of it."""
        if verdict is None:
            return []
        row, base = self.rows[b], len(self.rows[b].tokens)
        path = verdict.path
        if not draft.is_chain:
            self.cache.keep_path(b, base, path)
        kept = row.extend([*(draft.tokens[i] for i in path), verdict.token])
        self.cache.rollback(b, len(row.tokens) - 1)
        # A tree's nodes lie in the draft's cache in drawing order: only its context stays.
        self.drafter.rollback(b, len(row.tokens) - 1 if draft.is_chain else base)
        row.drafted.append(draft.depth)
        row.accepted.append(min(len(path), kept))
        return row.tokens[base:]

    def _observe(
        self,
        features: list[Tensor],
        unread: list[list[int]],
        drafts: list[Draft],
        verdicts: list[verify.Verdict | None],
    ) -> None:
        """Hand the drafter the features of the tokens that stayed in the target's cache."""
        for b, lines in enumerate(features):
            read, verdict = len(unread[b]), verdicts[b]
            path = verdict.path if verdict else ()
            self.drafter.observe(b, lines[[*range(read), *(read + i for i in path)]])

    def _results(
        self,
        rows: list[Request],
        shapes: list[Shape],
        drafts: list[Draft],
        verdicts: list[verify.Verdict | None],
        logits: list[Tensor],
        unread: list[list[int]],
        emitted: list[list[int]],
        watch: Stopwatch,
    ) -> list[StepResult]:
        seconds = watch.laps()
        mixed = any(len(new) > 1 for new in unread)
        results = []
        for b, row in enumerate(rows):
            verdict, draft, context = verdicts[b], drafts[b], len(row.tokens) - len(emitted[b])
            overlap = None
            if self.with_overlap and draft.tokens and draft.is_chain and not self.warp.greedy:
                overlap = verify.overlap(draft, self.warp.probabilities(logits[b]))
            results.append(
                StepResult(
                    request=row,
                    position=context - len(row.prompt),
                    context=context,
                    batch=len(rows),
                    num_draft_tokens=len(shapes[b]),
                    num_drafted=draft.depth,
                    num_accepted=row.accepted[-1] if verdict else 0,
                    emitted=tuple(emitted[b]),
                    fed=len(unread[b]) + len(draft.tokens),
                    mixed=mixed,
                    seconds=seconds,
                    overlap=overlap,
                )
            )
        return results

    def _retire(self) -> None:
        """Drop ended rows, moving the last active row into the gap."""
        for b in range(len(self.rows) - 1, -1, -1):
            if self.rows[b].finished:
                last = len(self.rows) - 1
                if b != last:
                    self.rows[b] = self.rows[last]
                    self.cache.move_row(last, b)
                    self.drafter.move_row(last, b)
                self.rows.pop()
