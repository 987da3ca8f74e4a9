"""Reading one field of a model configuration, or saying precisely why it cannot be read.

Every reader checks type and range and raises `ConfigError` with the file, the key, the
value and what was expected, so that the family descriptions next door can stay plain.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from specsim.errors import ConfigError

#: Largest value that a real configuration could hold, by key; others get `LARGEST`. Far
#: above any model that exists: the aim is to refuse nonsense, not the next generation.
LARGEST = 1_000_000
LARGEST_BY_KEY = {
    "vocab_size": 10_000_000,
    "draft_vocab_size": 10_000_000,
    "max_position_embeddings": 1_000_000_000,
    "n_positions": 1_000_000_000,
    "sliding_window": 1_000_000_000,
    "num_hidden_layers": 2_000,
    "num_layers": 2_000,
    "num_decoder_layers": 2_000,
    "n_layer": 2_000,
    "head_dim": 65_536,
}

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60
_short.maxlong, _short.maxlist, _short.maxdict = 24, 4, 4


def show(value: object) -> str:
    """`value` for an error message: its repr, shortened."""
    try:
        return _short.repr(value)
    except ValueError:  # an integer too long to print
        return "a huge number"


class ConfigFields:
    """A configuration object and where it came from, for its error messages."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where
        self.consulted: set[str] = set()

    def get(self, key: str) -> Any:
        """The value as it stands, or None; remembers that the key was consulted."""
        self.consulted.add(key)
        return self.values.get(key)

    def unread(self) -> list[str]:
        """Keys that nothing consulted: misspelt, or of no consequence."""
        return sorted(set(self.values) - self.consulted)

    def fail(self, key: str, expected: str) -> ConfigError:
        """The error for a value that is there but wrong."""
        value = show(self.values.get(key))
        return ConfigError(f"{self.where}: {key} = {value}: expected {expected}")

    def has(self, key: str) -> bool:
        """Whether the key is present and not null."""
        return self.get(key) is not None

    def first(self, *keys: str) -> str:
        """The first of several spellings that is present; the first one if none is."""
        return next((key for key in keys if self.has(key)), keys[0])

    def integer(self, *keys: str, default: int | None = None, low: int = 1) -> int:
        """An integer of at least `low`, under the first of `keys` that is present.

        Raises:
            ConfigError: if it is missing and has no default, not an integer, or absurd.
        """
        key = self.first(*keys)
        value = self.get(key)
        if value is None:
            if default is not None:
                return default
            names = " or ".join(keys)
            raise ConfigError(f"{self.where}: {names} is missing: expected a positive integer")
        high = LARGEST_BY_KEY.get(key, LARGEST)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.fail(key, f"an integer from {low} to {high}")
        return value

    def optional_integer(self, key: str, *, low: int = 1) -> int | None:
        """The same for a field that may be absent or null."""
        return self.integer(key, low=low) if self.has(key) else None

    def boolean(self, key: str, *, default: bool) -> bool:
        """true or false."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(key, "true or false")
        return value

    def text(self, key: str, *, default: str = "") -> str:
        """A string."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.fail(key, "a string")
        return value

    def mapping(self, key: str) -> ConfigFields:
        """A nested object (empty if absent); its errors name the outer key too."""
        value = self.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.fail(key, "an object")
        return ConfigFields(value, f"{self.where}: {key}")

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of integers (empty if absent)."""
        value = self.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or any(
            isinstance(item, bool) or not isinstance(item, int) for item in value
        ):
            raise self.fail(key, "a list of integers")
        return tuple(value)

    def strings(self, key: str, *, length: int | None = None) -> tuple[str, ...]:
        """A list of strings (empty if absent), of a given length if one is given."""
        value = self.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.fail(key, "a list of strings")
        if length is not None and len(value) != length:
            raise self.fail(key, f"{length} entries, one a layer; it has {len(value)}")
        return tuple(value)
