"""When a sequence ends: end-of-sequence tokens and stop strings, wherever they fall."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StopRule:
    """Stops after the first of `tokens`, or once the text contains one of `strings`.

    The token that ends a sequence belongs to it (and is counted). `decode` turns token
    ids into text and is needed for strings only.
    """

    tokens: frozenset[int] = frozenset()
    strings: tuple[str, ...] = ()
    decode: Callable[[Sequence[int]], str] | None = None

    def __post_init__(self) -> None:
        if self.strings and self.decode is None:
            raise ValueError("stop strings need a decode function")
        if "" in self.strings:
            raise ValueError("an empty stop string would stop at once")

    def cut(self, generated: Sequence[int], start: int) -> int | None:
        """How many generated tokens to keep, looking at those from `start` on; None: all.

        Tokens are looked at one by one, as autoregressive decoding would, so a stop in the
        middle of an accepted block cuts there.
        """
        for i in range(start, len(generated)):
            if generated[i] in self.tokens:
                return i + 1
            if self.strings and self._hit(generated[: i + 1]):
                return i + 1
        return None

    def _hit(self, generated: Sequence[int]) -> bool:
        # A stop string of n characters that ends in the newest token starts at most n
        # tokens before it (every token but the newest has at least one of its bytes).
        window = max(len(s.encode()) for s in self.strings) + 1
        text = self.decode(generated[-window:]) if self.decode else ""
        return any(string in text for string in self.strings)
