"""What a client's times of streamed chunks and of tokens tell: a chunk is streamed once a
step, so the one over the other is the acceptance length."""

from __future__ import annotations

from specsim.interop.common import MAX_POSITIONS, MeanLength, Notes
from specsim.interop.reading import number

#: Largest relative gap between a chunk's time over a token's and the counted acceptance
#: length that rounding and the first token of each request explain.
LENGTH_GAP = 0.1
#: Below this many tokens a chunk nothing is speculated: the rest is rounding.
ONE_TOKEN = 1.05


def from_latency(ratio: float, where: str, lengths: list[MeanLength], notes: Notes) -> int | None:
    """What a chunk's time over a token's tells where nothing else does: K = 0 where they are
    equal, or else an acceptance length, which is added, and no K.

    Raises:
        RecordError: for more tokens a chunk than any engine drafts.
    """
    if ratio < ONE_TOKEN:
        notes.add(
            "no-speculation",
            f"{where}: a chunk takes as long as a token; step time without speculation",
        )
        return 0
    number(ratio, where, "a chunk's time over a token's", high=MAX_POSITIONS + 1)
    lengths.append(MeanLength(acceptance_length=ratio, num_draft_tokens=None))
    notes.add(
        "length-from-latency",
        f"{where}: acceptance length {ratio:.2f} is the time of a chunk over the time of a "
        "token; K is not in the file (say --k)",
    )
    return None


def per_token(where: str, notes: Notes) -> None:
    """Says that a file tells the time of a token and not of a step."""
    notes.add(
        "per-token-time",
        f"{where}: the time is per output token, not per step: they are the same only where "
        "nothing is speculated",
    )
