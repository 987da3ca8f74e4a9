"""The target's own output, cached in shards: safe to interrupt, resumed where it stopped.

A shard holds the outputs to a few dozen prompts at one temperature, training shards at 1
and 0 in turn. Shard i depends only on the settings and i, so a corpus can be extended, and
several processes can share the work. The folder's name is a hash of all that decides the
content: the target's weights, its tokenizer, the prompts, the settings.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from reference.draft.card import fingerprint, vocabulary_hash
from reference.prompts import Prompt
from reference.training.generate import Sequences, generate
from reference.training.prompts import held_out_prompts, training_prompts
from reference.weights import Loaded
from specsim.errors import ConfigError

TEMPERATURES = (1.0, 0.0)  # of shards 0, 1, 2, … in turn
_TENSORS = tuple(field.name for field in fields(Sequences))


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """What decides a corpus, beside the target."""

    seed: int = 0
    new: int = 192  # output tokens a prompt, at most
    rows: int = 64  # prompts a shard
    feature_layers: tuple[int, ...] = (10, 20, 30)
    held_out: bool = False  # the hand-written prompts instead of generated ones


class Corpus:
    """Shards of one target's output under one setting.

    Args:
        folder: where corpora are kept; this one gets a folder of its own in it.
    """

    def __init__(self, target: Loaded, settings: CorpusSettings, folder: Path) -> None:
        if target.tokenizer is None:
            raise ConfigError(f"{target.name} has no tokenizer: it cannot read prompts")
        self.target, self.tokenizer, self.settings = target, target.tokenizer, settings
        described = {
            "target": fingerprint(target.model),
            "vocabulary": vocabulary_hash(target.tokenizer),
            "settings": asdict(settings),
            "prompts": [p.text for p in self._all_prompts(3000)],
        }
        text = json.dumps(described, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = folder / f"{'held-out' if settings.held_out else 'train'}-{self.key}"

    def _all_prompts(self, count: int) -> list[Prompt]:
        if self.settings.held_out:
            return held_out_prompts()
        return training_prompts(count, self.settings.seed)

    def prompts(self, index: int) -> list[Prompt]:
        """The prompts of a shard; held-out prompts come once for each temperature.

        Raises:
            ValueError: past the last shard.
        """
        rows = self.settings.rows
        block = index // len(TEMPERATURES) if self.settings.held_out else index
        chosen = self._all_prompts((block + 1) * rows)[block * rows : (block + 1) * rows]
        if not chosen:
            raise ValueError(f"shard {index} is past the last prompt")
        return chosen

    @property
    def num_held_out_shards(self) -> int:
        """Shards of a held-out corpus: every prompt at every temperature."""
        return len(TEMPERATURES) * -(-len(held_out_prompts()) // self.settings.rows)

    def temperature(self, index: int) -> float:
        """The temperature of a shard."""
        return TEMPERATURES[index % len(TEMPERATURES)]

    def path(self, index: int) -> Path:
        """A shard's file."""
        return self.folder / f"shard-{index:04}.safetensors"

    def load(self, index: int) -> Sequences:
        """A shard that exists.

        Raises:
            ConfigError: when its file is missing, truncated or of another corpus.
        """
        from safetensors import SafetensorError, safe_open

        path = self.path(index)
        try:
            with safe_open(str(path), framework="pt") as file:
                if (file.metadata() or {}).get("key") != self.key:
                    raise ConfigError(f"{path}: belongs to another corpus")
                return Sequences(**{name: file.get_tensor(name) for name in _TENSORS})
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{path}: not a shard ({error}); delete it to make it anew") from None

    def make(self, index: int) -> Sequences:
        """A shard from its file, or else from the target, written for the next time."""
        from safetensors.torch import save_file

        path = self.path(index)
        if path.is_file():
            return self.load(index)
        generator = torch.Generator().manual_seed(hash_seed(self.settings.seed, index))
        made = generate(
            self.target.model,
            [self.tokenizer.chat(p.text) for p in self.prompts(index)],
            temperature=self.temperature(index),
            new=self.settings.new,
            eos=self.tokenizer.eos,
            feature_layers=self.settings.feature_layers,
            generator=generator,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        tensors = {name: getattr(made, name).contiguous() for name in _TENSORS}
        save_file(tensors, str(partial), metadata={"key": self.key, "shard": str(index)})
        os.replace(partial, path)
        return made

    def shards(self, tokens: int) -> Iterator[tuple[int, Sequences]]:
        """Shards in order, made where missing, until they hold `tokens` output tokens."""
        index, total = 0, 0
        while total < tokens:
            shard = self.make(index)
            total += shard.num_outputs
            yield index, shard
            index += 1


def hash_seed(*parts: int) -> int:
    """One 62-bit seed from several numbers."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


def frequent_tokens(shards: Sequence[Sequences], size: int, vocab_size: int) -> torch.Tensor:
    """The `size` tokens that the target wrote most often, ascending (FR-Spec, Zhao et al. 2025).

    Ties, and tokens never written, go to the smaller id: byte-pair ids are ordered by
    the frequency of their merge in the tokenizer's own training text.
    """
    counts = torch.zeros(vocab_size, dtype=torch.long)
    for shard in shards:
        start = 0
        for length, prompt in zip(
            shard.lengths.tolist(), shard.prompt_lengths.tolist(), strict=True
        ):
            output = shard.tokens[start + prompt : start + length].long()
            counts += torch.bincount(output, minlength=vocab_size)
            start += length
    order = torch.sort(counts, descending=True, stable=True).indices
    return order[:size].sort().values
