"""Step sequences: what recorded decoding steps say, request by request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from specsim.acceptance.law import Runs, replay
from specsim.interop.common import Tally
from specsim.records import StepRecord


@dataclass(frozen=True, kw_only=True)
class StepSequence:
    """The steps of one request in order: accepted tokens and the K that was asked for."""

    accepted: Runs
    num_draft_tokens: Runs


def sequences_of_records(records: Iterable[StepRecord]) -> list[StepSequence]:
    """Steps grouped by request. Steps of K = 0 (plain decoding) are left out, and those that
    the end of the request could have cut.

    A drafter that proposed fewer than K tokens ends its run there, as a rejection would.
    """
    requests: dict[str, list[tuple[int, int, int, int]]] = {}
    lengths: dict[str, int] = {}
    for r in records:
        # a stop inside a run of accepted tokens leaves this one token too long
        lengths[r.request] = max(lengths.get(r.request, 0), r.position + r.num_accepted + 1)
        if r.num_draft_tokens > 0:
            row = (r.step, r.position, r.num_accepted, r.num_draft_tokens)
            requests.setdefault(r.request, []).append(row)
    result = []
    for name, steps in requests.items():
        steps.sort()
        _, position, accepted, limit = np.asarray(steps, dtype=np.int64).T
        result += _whole(position, accepted, limit, lengths[name])
    return result


def sequences_of_runs(requests: Sequence[Runs], num_draft_tokens: int) -> list[StepSequence]:
    """Steps that recorded runs would have taken at K, without those that the end of the
    recording could cut."""
    result = []
    for runs in requests:
        accepted = replay(runs, num_draft_tokens)
        position = np.concatenate(([0], np.cumsum(accepted + 1)))[: len(accepted)]
        limit = np.full(len(accepted), num_draft_tokens, dtype=np.int64)
        result += _whole(position, accepted, limit, len(runs))
    return result


def _whole(position: Runs, accepted: Runs, limit: Runs, length: int) -> list[StepSequence]:
    """The steps of a request of `length` tokens that it had room for, whatever was accepted:
    those that begin K + 1 tokens or more before its end. Where a step begins is settled
    before its outcome is, so this choice is fair (Wald); leaving out the step that reaches
    the end, or counting it as cut, is not: long steps reach it more often."""
    whole = position + limit + 1 <= length
    if not whole.any():
        return []
    return [StepSequence(accepted=accepted[whole], num_draft_tokens=limit[whole])]


def tallies_of(sequences: Sequence[StepSequence]) -> list[Tally]:
    """Counts by K, one window a request."""
    tallies: dict[int, Tally] = {}
    for sequence in sequences:
        for k in np.unique(sequence.num_draft_tokens):
            accepted = sequence.accepted[sequence.num_draft_tokens == k]
            tally = tallies.setdefault(int(k), Tally(int(k)))
            tally.by_request = True
            tally.add(
                steps=len(accepted), drafted=int(k) * len(accepted), accepted=int(accepted.sum()),
                at_least=[int(np.sum(accepted >= i)) for i in range(1, int(k) + 1)],
                emitted=int(accepted.sum()) + len(accepted),
            )  # fmt: skip
    return [tallies[k] for k in sorted(tallies)]
