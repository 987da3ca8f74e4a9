"""From names on a command line to a target, a drafter, a policy."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from reference.draft.base import Drafter
from reference.draft.eagle import EagleConfig, EagleDrafter, load_head, random_head
from reference.draft.neural import DraftModelDrafter, EarlyExitDrafter
from reference.draft.ngram import NgramDrafter
from reference.draft.trained import is_trained, load_trained, read_card, shipped, shipped_path
from reference.policy import Policy, adaptive, fixed, tree
from reference.weights import PACKAGED, Loaded, load
from specsim.errors import ConfigError, UnknownNameError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
_UNTRAINED_VOCABULARY = 8192


def set_threads(threads: int | None) -> int:
    """Use this many CPU threads (default: the cores there are); how many are in use."""
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads} < 1")
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(threads or available or 1)
    return torch.get_num_threads()


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one.

    Raises:
        ValueError: for a device that torch does not know or does not have, or another kind
            than the two that the decoder is written for.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}; expected auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is not supported; expected auto, cpu or cuda")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available():
            raise ValueError("no CUDA device here; use --device cpu")
        if device.index is not None and device.index >= count:
            raise ValueError(f"device {name!r}: there are {count} CUDA devices, from cuda:0 on")
    return device


def choose_dtype(name: str) -> torch.dtype:
    """float32, bfloat16 or float64 by name."""
    if name not in DTYPES:
        raise UnknownNameError("dtype", name, DTYPES)
    return DTYPES[name]


def make_policy(k: str, branching: str | None = None) -> Policy:
    """`--k 4`, `--k adaptive`, or `--tree 3,2,1`.

    Raises:
        ValueError: naming what was given.
    """
    if branching is not None:
        try:
            widths = [int(part) for part in branching.split(",")]
        except ValueError:
            raise ValueError(f"--tree {branching!r}: expected numbers such as 3,2,1") from None
        return tree(*widths)
    if k == "adaptive":
        return adaptive()
    try:
        number = int(k)
    except ValueError:
        raise ValueError(f"--k {k!r}: expected a number >= 0, or adaptive") from None
    return fixed(number)


def make_drafter(spec: str, target: Loaded, *, distinct: bool = False) -> tuple[Drafter, str]:
    """A drafter by its specification, and a warning ('' if none).

    Raises:
        ConfigError, MissingDataError: a model that cannot be had, or another vocabulary.
        UnknownNameError: neither a method nor a model.
    """
    method, _, argument = spec.partition(":")
    if spec == "none":
        return Drafter(), ""
    if spec == "ngram":
        return NgramDrafter(), ""
    if method == "early-exit":
        if not argument.isdecimal():
            raise ValueError(f"draft {spec!r}: expected early-exit:N with N layers of the target")
        return EarlyExitDrafter(int(argument), distinct=distinct), ""
    if spec == "eagle:random":
        return _random_head(target, distinct)
    if spec in shipped():
        return load_trained(shipped_path(spec), target, distinct=distinct), ""
    file = Path(argument if method == "eagle" else spec)
    if file.suffix == ".safetensors" and is_trained(file):
        return load_trained(file, target, distinct=distinct), ""
    if method == "eagle" and argument:  # a bare head, without a card
        head = load_head(argument, target.model.dtype, target.model.device)
        return EagleDrafter(head, distinct=distinct), ""
    if file.suffix == ".safetensors":
        read_card(file)  # says what is missing
    if spec not in PACKAGED and "/" not in spec and not Path(spec).exists():
        known = ["none", "ngram", "early-exit:N", *shipped(), "eagle:FILE", "eagle:random"]
        raise UnknownNameError("draft", spec, [*known, *PACKAGED])
    model = target.model
    loaded = load(spec, dtype=model.dtype, device=model.device)
    check_vocabulary(loaded, target)
    return DraftModelDrafter(loaded.model, distinct=distinct), ""


def check_vocabulary(draft: Loaded, target: Loaded) -> None:
    """Refuse a draft whose token ids mean something else.

    Raises:
        ConfigError: when the vocabularies differ in size or in any token.
    """
    ours, theirs = draft.model.config.vocab_size, target.model.config.vocab_size
    if ours != theirs:
        raise ConfigError(
            f"vocabulary mismatch: draft {draft.name} has {ours} tokens, "
            f"target {target.name} has {theirs}"
        )
    if draft.tokenizer is None or target.tokenizer is None:
        return
    if not draft.tokenizer.same_vocabulary(target.tokenizer):
        raise ConfigError(
            f"vocabulary mismatch: {draft.name} and {target.name} have {ours} tokens each, "
            "but not the same ones"
        )


def _random_head(target: Loaded, distinct: bool) -> tuple[Drafter, str]:
    model = target.model
    size = min(_UNTRAINED_VOCABULARY, model.config.vocab_size)
    head = random_head(EagleConfig.for_target(model.config, size), 0, model.dtype)
    warning = "this EAGLE head is untrained (random weights): lossless, but it drafts nonsense"
    return EagleDrafter(head.to(model.device), distinct=distinct), warning
