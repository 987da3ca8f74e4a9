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
    """Steps grouped by request. Steps of K = 0 (plain decoding) are left out.

    A drafter that proposed fewer than K tokens ends its run there, as a rejection would.
    """
    requests: dict[str, list[tuple[int, int, int]]] = {}
    for r in records:
        if r.num_draft_tokens > 0:
            requests.setdefault(r.request, []).append((r.step, r.num_accepted, r.num_draft_tokens))
    result = []
    for steps in requests.values():
        steps.sort()
        table = np.asarray(steps, dtype=np.int64)
        result.append(StepSequence(accepted=table[:, 1], num_draft_tokens=table[:, 2]))
    return result


def sequences_of_runs(requests: Sequence[Runs], num_draft_tokens: int) -> list[StepSequence]:
    """Steps that recorded runs would have taken at K. The last step of a request is left
    out: its end is the recording's, not the drafter's."""
    result = []
    for runs in requests:
        accepted = replay(runs, num_draft_tokens)[:-1]
        if len(accepted):
            result.append(
                StepSequence(
                    accepted=accepted,
                    num_draft_tokens=np.full(len(accepted), num_draft_tokens, dtype=np.int64),
                )
            )
    return result


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
