"""From a target's name and its data to a training run, and from a finished run to a card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from reference.draft.card import fingerprint, num_parameters, vocabulary_hash
from reference.training.batches import Columns, Example, unpack
from reference.training.corpus import Corpus, frequent_tokens
from reference.training.generate import Sequences
from reference.training.kinds import Kind, new_trainee
from reference.training.train import Run, TrainSettings
from reference.weights import Loaded, load

_MONITORED = 48  # held-out examples that the progress bar's overlap is of


@dataclass(frozen=True)
class Prepared:
    """A run, and how much of the target's output the draft's vocabulary covers."""

    run: Run
    kind: Kind
    dtype: str
    unique_tokens: int
    prompts: int


def prepare(
    target_name: str,
    kind: Kind,
    settings: TrainSettings,
    dtype: torch.dtype,
    shards: Sequence[Sequences],
    held_out: Corpus,
    vocab: int,
    *,
    folder: Path,
    corpus: Corpus,
    warn: Callable[[str], None],
) -> Prepared:
    """Initialise a draft from the target's float32 weights, and resume its run if there is one."""
    source = load(target_name, dtype=torch.float32, pack=False).model
    config = source.config
    token_ids = frequent_tokens(shards, vocab, config.vocab_size)
    last = (config.num_layers,)
    trainee = new_trainee(kind, source, token_ids, last, dtype, settings.seed)
    stored = corpus.settings.feature_layers
    columns = Columns(tuple(stored.index(i) for i in last), config.hidden_size)
    examples = unpack(shards, columns)
    run = Run(
        trainee, examples, monitored(held_out, columns), token_ids, settings,
        folder / kind.file_stem,
        {"kind": kind.name, "corpus": corpus.key, "shards": len(shards), "vocab": vocab,
         "dtype": str(dtype)},
        warn,
    )  # fmt: skip
    return Prepared(
        run,
        kind,
        str(dtype).removeprefix("torch."),
        sum(shard.num_outputs for shard in shards),
        len(shards) * corpus.settings.rows,
    )


def monitored(held_out: Corpus, columns: Columns) -> list[Example]:
    """Some held-out examples written at temperature 1, of all domains alike."""
    warm = [i for i in range(held_out.num_held_out_shards) if held_out.temperature(i) == 1]
    examples = unpack([held_out.make(i) for i in warm], columns)
    return examples[:: max(1, len(examples) // _MONITORED)]


def card(
    prepared: Prepared, target: Loaded, corpus: Corpus, config: dict[str, Any]
) -> dict[str, Any]:
    """What is known of a draft when its training ends."""
    run = prepared.run
    assert target.tokenizer is not None
    parameters = sum(p.numel() for p in run.trainee.module.parameters() if p.requires_grad)
    return {
        "kind": prepared.kind.name,
        "config": config,
        "draft_vocab_size": len(run.token_ids),
        "trained_parameters": parameters,
        "target": {
            "name": target.name,
            "fingerprint": fingerprint(target.model),
            "vocabulary": vocabulary_hash(target.tokenizer),
            "hidden_size": target.model.config.hidden_size,
            "parameters": num_parameters(target.model.config),
        },
        "data": {
            "corpus": corpus.key,
            "output_tokens": prepared.unique_tokens,
            "prompts": prepared.prompts,
            "temperatures": [1.0, 0.0],
            **asdict(corpus.settings),
        },
        "training": {
            **asdict(run.settings),
            "dtype": prepared.dtype,
            "steps": run.step,
            "tokens_seen": run.tokens,
            "cpu_seconds": round(run.seconds),
        },
        "history": [list(entry) for entry in run.history],
    }
