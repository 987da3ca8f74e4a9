"""One request while it is being served."""

from __future__ import annotations

from typing import NamedTuple


class Segment(NamedTuple):
    """One stay of a request in a running batch: `num_steps` decoding steps of `replica`.

    With `has_prompt_chunk` step `first_step` completed the prompt and yielded one token,
    and the decoding steps follow it; without, decoding begins with `first_step`. `plan`
    has the tokens of each decoding step, None for one each.
    """

    replica: int
    first_step: int
    num_steps: int
    plan: bytes | None
    has_prompt_chunk: bool

    @property
    def num_chunks(self) -> int:
        """Chunks delivered, one at the end of each step from `first_step` on."""
        return self.num_steps + self.has_prompt_chunk

    @property
    def last_step(self) -> int:
        """The step of the last chunk."""
        return self.first_step + self.num_chunks - 1

    @property
    def chunk_tokens(self) -> list[int]:
        """Tokens of each chunk, the last one not cut at the request's length."""
        return [1] * self.has_prompt_chunk + list(self.plan or b"\x01" * self.num_steps)


class Request:
    """Mutable state of a request; what is finished goes to the ledger's columns.

    emitted:  output tokens delivered so far;
    prefilled: tokens of this admission whose KV is computed (cached prefix included), of
        `to_prefill` = prompt + emitted (a preempted request recomputes what it had said);
    context:  tokens in the KV cache while it decodes;
    runs:     accepted run from each output position (bytes), None without speculation;
    plan:     tokens of each decoding step of this admission, the last not cut at the end;
    segments: earlier stays (before a preemption, or on a replica that prefills), see ledger;
    blocks:   KV blocks it holds; `shared` are the cached prefix blocks it refers to.
    """

    __slots__ = (
        "arrival_s", "blocks", "context", "drafts", "emitted", "failed", "first_s", "first_step",
        "has_prompt_chunk", "id", "joined_step", "num_steps", "order", "output_tokens", "plan",
        "preemptions", "prefilled", "prefix", "prompt_tokens", "replica", "runs", "segments",
        "shared", "slot", "to_prefill", "traffic_class",
    )  # fmt: skip

    def __init__(
        self, id: int, arrival_s: float, prompt_tokens: int, output_tokens: int,
        traffic_class: int, prefix: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        self.id = id
        self.arrival_s = arrival_s
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.traffic_class = traffic_class
        self.prefix = prefix
        self.shared: tuple[int, ...] = ()
        self.runs: bytes | None = None
        self.plan: bytes | None = None
        self.drafts: bytes | None = None  # K of each step, where it varies
        self.segments: list[Segment] | None = None
        self.has_prompt_chunk = True  # the first chunk of this stay is the prompt's token
        self.first_s = -1.0
        self.first_step = self.joined_step = self.num_steps = 0
        self.emitted = self.prefilled = self.context = self.blocks = 0
        self.to_prefill = prompt_tokens
        self.order = self.replica = self.slot = self.preemptions = 0
        self.failed = False

    def __repr__(self) -> str:
        return f"Request({self.id}, {self.emitted}/{self.output_tokens} tokens)"
