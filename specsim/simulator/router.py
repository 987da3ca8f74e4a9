"""Which replica gets the next request: plain functions of the replicas' state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol


class Replica(Protocol):
    """What a router sees of a replica."""

    index: int
    alive: bool

    def outstanding_tokens(self) -> int:
        """Prompt and output tokens of all requests that wait or run."""
        ...

    def num_waiting(self) -> int:
        """Requests that wait."""
        ...

    def num_outstanding(self) -> int:
        """Requests that wait or run."""
        ...

    def matched_units(self, prefix: tuple[int, ...]) -> int:
        """Leading units of a prefix in its cache."""
        ...


#: Outstanding requests count as uneven when the most are more than the fewest by this many
#: and this many times. (SGLang's cache-aware router has two such thresholds.)
UNEVEN_BY, UNEVEN_TIMES = 8, 1.5

Router = Callable[[Sequence[Replica], int, tuple[int, ...]], int]


def round_robin(replicas: Sequence[Replica], number: int, prefix: tuple[int, ...]) -> int:
    """In turn, by the request's number."""
    return replicas[number % len(replicas)].index


def least_loaded(replicas: Sequence[Replica], number: int, prefix: tuple[int, ...]) -> int:
    """Fewest outstanding tokens; the first on a tie."""
    return min(replicas, key=lambda r: (r.outstanding_tokens(), r.index)).index


def shortest_queue(replicas: Sequence[Replica], number: int, prefix: tuple[int, ...]) -> int:
    """Fewest waiting requests, then fewest outstanding ones; the first on a tie."""
    return min(replicas, key=lambda r: (r.num_waiting(), r.num_outstanding(), r.index)).index


def prefix_aware(replicas: Sequence[Replica], number: int, prefix: tuple[int, ...]) -> int:
    """The longest cached prefix, among equals the least loaded; the least loaded of all
    while outstanding requests are uneven (a prefix that everybody shares would otherwise
    send everybody to the replica that saw it first)."""
    outstanding = [replica.num_outstanding() for replica in replicas]
    most, fewest = max(outstanding), min(outstanding)
    if most - fewest > UNEVEN_BY and most > UNEVEN_TIMES * fewest:
        return least_loaded(replicas, number, prefix)
    return min(
        replicas, key=lambda r: (-r.matched_units(prefix), r.outstanding_tokens(), r.index)
    ).index


ROUTERS: dict[str, Router] = {
    "round-robin": round_robin,
    "least-loaded": least_loaded,
    "shortest-queue": shortest_queue,
    "prefix-aware": prefix_aware,
}
