"""One request while it is being served."""

from __future__ import annotations


class Request:
    """Mutable state of a request; what is finished goes to the ledger's columns.

    emitted:  output tokens delivered so far;
    prefilled: tokens of this admission whose KV is computed (cached prefix included), of
        `to_prefill` = prompt + emitted (a preempted request recomputes what it had said);
    context:  tokens in the KV cache while it decodes;
    runs:     accepted run from each output position (bytes), None without speculation;
    plan:     tokens of each decoding step of this admission, the last not cut at the end;
    blocks:   KV blocks it holds; `shared` are the cached prefix blocks it refers to.
    """

    __slots__ = (
        "arrival_s", "blocks", "context", "drafts", "emitted", "failed", "first_s", "first_step",
        "id", "joined_step", "num_steps", "order", "output_tokens", "plan", "preemptions",
        "prefilled", "prefix", "prompt_tokens", "replica", "runs", "segments", "shared", "slot",
        "to_prefill", "traffic_class",
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
        self.segments: list[tuple[int, int, int, bytes | None]] | None = None
        self.first_s = -1.0
        self.first_step = self.joined_step = self.num_steps = 0
        self.emitted = self.prefilled = self.context = self.blocks = 0
        self.to_prefill = prompt_tokens
        self.order = self.replica = self.slot = self.preemptions = 0
        self.failed = False

    def __repr__(self) -> str:
        return f"Request({self.id}, {self.emitted}/{self.output_tokens} tokens)"
