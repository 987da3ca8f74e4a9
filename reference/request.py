"""A sequence being decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from reference.sampling import Randomness, SeededRandomness
from reference.stopping import StopRule


@dataclass(eq=False)
class Request:
    """One sequence: its prompt, what has been generated, and when it ends."""

    name: str
    prompt: Sequence[int]
    max_new_tokens: int
    randomness: Randomness = field(default_factory=lambda: SeededRandomness(0))
    stop: StopRule = field(default_factory=StopRule)
    tokens: list[int] = field(init=False)
    finished: str = field(init=False, default="")  # "stop" or "length" when it is
    drafted: list[int] = field(init=False, default_factory=list)
    accepted: list[int] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError(f"request {self.name}: the prompt has no tokens")
        if self.max_new_tokens < 1:
            raise ValueError(f"request {self.name}: max_new_tokens={self.max_new_tokens} < 1")
        self.tokens = list(self.prompt)

    @property
    def generated(self) -> list[int]:
        return self.tokens[len(self.prompt) :]

    @property
    def remaining(self) -> int:
        return len(self.prompt) + self.max_new_tokens - len(self.tokens)

    def extend(self, tokens: Sequence[int]) -> int:
        """Append tokens up to the first stop or the maximum length; how many were kept."""
        before = len(self.tokens)
        self.tokens += tokens[: self.remaining]
        cut = self.stop.cut(self.generated, before - len(self.prompt))
        if cut is not None:
            del self.tokens[len(self.prompt) + cut :]
            self.finished = "stop"
        elif self.remaining == 0:
            self.finished = "length"
        return len(self.tokens) - before
