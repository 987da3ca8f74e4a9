"""From trained drafts' files to results: one entry a draft, merged into one JSON file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from reference.draft.eagle import EagleDrafter
from reference.draft.trained import load_trained
from reference.hardware import processor_name
from reference.prompts import DOMAINS, load_prompts
from reference.training import evaluate
from reference.training.batches import Columns
from reference.training.corpus import Corpus, CorpusSettings
from reference.training.generate import TeacherHead
from reference.training.trainees import EagleTrainee, LayersTrainee, Trainee
from reference.weights import Loaded
from specsim.errors import ConfigError


def described(path: Path, card: dict[str, Any]) -> dict[str, Any]:
    """What a results file repeats of a card."""
    names = ("kind", "target", "draft_vocab_size", "trained_parameters", "data", "training",
             "history")  # fmt: skip
    return {**{name: card[name] for name in names}, "file_bytes": path.stat().st_size}


def overlaps(
    path: Path, card: dict[str, Any], source: Loaded, writer: Loaded, folder: Path, k: int
) -> dict[str, Any]:
    """Domain → temperature → `evaluate.overlap` of a draft on the held-out corpus.

    Args:
        source: the target in float32, unpacked; writer: in bfloat16, for missing data.
    """
    drafter = load_trained(path, source, pack=False)
    names = ("seed", "new", "rows", "feature_layers")
    settings = {name: card["data"][name] for name in names}
    settings["feature_layers"] = tuple(settings["feature_layers"])
    corpus = Corpus(writer, CorpusSettings(held_out=True, **settings), folder)
    config = source.model.config
    embedding = source.model.embedding.detach()
    trainee: Trainee
    if isinstance(drafter, EagleDrafter):
        token_ids, layers = drafter.head.token_ids, drafter.head.config.feature_layers
        teacher = TeacherHead(source.model, token_ids)
        trainee = EagleTrainee(drafter.head, embedding, teacher)
    else:
        token_ids, layers = drafter.token_ids, (config.num_layers,)
        trainee = LayersTrainee(drafter.model, TeacherHead(source.model, token_ids))
    chosen = tuple(corpus.settings.feature_layers.index(i) for i in layers)
    groups = evaluate.held_out_examples(corpus, Columns(chosen, config.hidden_size))
    result: dict[str, Any] = {}
    for (domain, temperature), pairs in groups.items():
        found = evaluate.overlap(trainee, [e for _, e in pairs], token_ids, k)
        result.setdefault(domain, {})[f"{temperature:g}"] = found
    return result


def decoding(
    paths: dict[str, Path],
    target: Loaded,
    k: int,
    temperature: float,
    prompts: int,
    new: int,
    *,
    tick: Callable[[], None],
) -> dict[str, dict[str, Any]]:
    """Draft → domain → `evaluate.summarise`: real decoding of the first prompts a domain."""
    drafters = {name: load_trained(path, target) for name, path in paths.items()}
    result: dict[str, dict[str, Any]] = {name: {} for name in paths}
    for domain in DOMAINS:
        runs = evaluate.decode_all(
            target, drafters, load_prompts(domain)[:prompts], k, temperature, new=new, tick=tick
        )
        for name in paths:
            result[name][domain] = evaluate.summarise(runs[name], runs["none"], k)
    return result


def circumstances(threads: int) -> dict[str, Any]:
    """What the measurements depend on, beside the drafts."""
    return {
        "threads": threads,
        "processor": processor_name(),
        "torch": torch.__version__.partition("+")[0],
    }


def merge(path: Path, results: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """Put drafts' results into the JSON file, keeping what it has of others; all drafts.

    Raises:
        ConfigError: when the file is not one of ours.
    """
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"drafts": {}}
        drafts = {**known["drafts"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a results file of drafts ({error})") from None
    for name, values in results.items():
        before = drafts.get(name, {})
        decoded = {**before.get("decoding", {}), **values.get("decoding", {})}
        drafts[name] = {**before, **values, "decoding": decoded, "measured": measured}
    text = json.dumps({"drafts": dict(sorted(drafts.items()))}, indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    return drafts
