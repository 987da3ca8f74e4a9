"""Everything a run needs, as plain objects: what `simulate` makes of a scenario."""

from __future__ import annotations

import math
from dataclasses import dataclass

from specsim.acceptance.law import Law
from specsim.cost.source import CostSource
from specsim.deployment import Deployment
from specsim.simulator.speculation import Policy
from specsim.workload.arrivals import ArrivalProcess
from specsim.workload.requests import Requests


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What an engine may hold and do in a step.

    max_tokens: new tokens of one pass; num_blocks: KV blocks of `block_size` tokens;
    watermark: share of them kept from new requests; prefix_tokens: tokens of one named
    prefix unit (0: prefix caching off); overlapped: draft beside verification.
    """

    max_num_seqs: int = 256
    max_tokens: int = 8192
    num_blocks: int = 1_000_000
    block_size: int = 16
    chunked_prefill: bool = True
    watermark: float = 0.01
    prefix_tokens: int = 0
    overlapped: bool = False

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_tokens", "num_blocks", "block_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} < 1")
        if self.prefix_tokens % self.block_size:
            raise ValueError(
                f"prefix units of {self.prefix_tokens} tokens are not whole blocks of "
                f"{self.block_size}"
            )

    @property
    def prefix_blocks(self) -> int:
        """KV blocks of one prefix unit."""
        return self.prefix_tokens // self.block_size


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Replica `replica` stops at `stop_s` and is back at `restart_s`. Its requests start
    over elsewhere (`recompute`) or are reported failed."""

    replica: int
    stop_s: float
    restart_s: float
    recompute: bool = True

    def __post_init__(self) -> None:
        if self.replica < 0 or not 0 <= self.stop_s < self.restart_s:
            raise ValueError(f"fault {self}: expected 0 <= stop_s < restart_s")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One run. `laws` are those of the traffic classes, in the order of
    `requests.class_names`. `proposed[K]` is the mean number of tokens that a step asked for
    K really drafts, where the drafter does not always propose (n-gram look-up); only
    those are verified. With `prefill_replicas` prompts are computed on replicas of their
    own, and each GPU sends its part of their KV cache on at `kv_link_bytes_per_s`."""

    deployment: Deployment
    source: CostSource
    laws: tuple[Law, ...]
    requests: Requests
    arrivals: ArrivalProcess
    limits: Limits
    policy: Policy
    replicas: int = 1
    router: str = "round-robin"
    seed: int = 0
    faults: tuple[Fault, ...] = ()
    proposed: tuple[float, ...] | None = None
    prefill_replicas: int = 0
    kv_link_bytes_per_s: float = math.inf
