"""Trained drafts on disk: a safetensors file with what was trained, and a card beside it.

What belongs to the target is not stored: embedding and output rows are taken from it. So
a draft is of use with one target only, and its card says which.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reference.cache import Batch
from reference.draft.card import fingerprint, vocabulary_hash
from reference.draft.eagle import EagleConfig, EagleDrafter, EagleHead
from reference.draft.neural import DraftModelDrafter
from reference.model import Layer, Linear, Model, RMSNorm
from reference.weights import Loaded
from specsim.errors import ConfigError, MissingDataError

SHIPPED = Path(__file__).parents[1] / "drafts"
FORMAT = 1


def shipped() -> list[str]:
    """Names of the drafts that come with the project."""
    return sorted(path.stem for path in SHIPPED.glob("*.safetensors"))


def shipped_path(name: str) -> Path:
    """The file of a shipped draft."""
    return SHIPPED / f"{name}.safetensors"


class ReducedDrafter(DraftModelDrafter):
    """A draft model whose output rows cover only some of the target's tokens (FR-Spec)."""

    def __init__(self, model: Model, token_ids: Tensor, *, distinct: bool = False) -> None:
        super().__init__(model, distinct=distinct)
        self.token_ids = token_ids  # (R,) the target's ids of the draft's tokens

    def forward(self, batch: Batch, select: Tensor, parents: list[list[int]] | None) -> Tensor:
        reduced = super().forward(batch, select, parents)  # (selected, R)
        full = (len(reduced), self.model.config.vocab_size)
        logits: Tensor = reduced.new_full(full, -torch.inf)
        logits[:, self.token_ids] = reduced
        return logits


def write_draft(path: Path, tensors: dict[str, Tensor], card: dict[str, Any]) -> dict[str, Any]:
    """Write weights (bfloat16) and card, weights first; the card with the weights' hash."""
    from safetensors.torch import save

    stored = {
        name: t.detach().to(torch.bfloat16 if t.is_floating_point() else torch.int32).contiguous()
        for name, t in tensors.items()
    }
    content = save(stored, {"format": str(FORMAT)})
    card = {"format": FORMAT, **card, "sha256": hashlib.sha256(content).hexdigest()}
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, content)
    write_card(path, card)
    return card


def write_card(path: Path, card: dict[str, Any]) -> None:
    """Write the card of a draft's file."""
    text = json.dumps(card, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    _replace(path.with_suffix(".json"), text.encode())


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_suffix(f"{path.suffix}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def read_card(path: Path) -> dict[str, Any]:
    """The card of a draft's file.

    Raises:
        MissingDataError, ConfigError: naming the file at fault.
    """
    file = path.with_suffix(".json")
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingDataError(f"{file} is missing: a trained draft needs its card") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: not a card ({error})") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ConfigError(f"{file}: not a card of format {FORMAT}")
    return card


def is_trained(path: Path) -> bool:
    """Whether a file has a card beside it."""
    return path.with_suffix(".json").is_file()


def check_card(card: dict[str, Any], target: Loaded, where: str) -> None:
    """Refuse a draft that was trained for another target or vocabulary.

    Raises:
        ConfigError: saying what differs.
    """
    theirs = card["target"]
    if target.tokenizer is not None and vocabulary_hash(target.tokenizer) != theirs["vocabulary"]:
        raise ConfigError(
            f"vocabulary mismatch: {where} was trained for {theirs['name']}, whose tokens are not "
            f"those of {target.name}"
        )
    if fingerprint(target.model) != theirs["fingerprint"]:
        raise ConfigError(
            f"{where} was trained for {theirs['name']} (weights {theirs['fingerprint']}), "
            f"not for {target.name} (weights {fingerprint(target.model)})"
        )


def load_trained(
    path: Path, target: Loaded, *, distinct: bool = False, pack: bool = True
) -> EagleDrafter | ReducedDrafter:
    """A drafter from a trained draft's file, for the target that it was trained for.

    Args:
        distinct: siblings in a tree are drawn without replacement.
        pack: repack matrices for fast decoding on a CPU.

    Raises:
        MissingDataError, ConfigError: a file that is missing, truncated or not the card's,
            or a draft of another target.
    """
    card = read_card(path)
    try:
        check_card(card, target, str(path))
        tensors = _read(path, card)
        if card["kind"] == "eagle":
            head = _head(card, tensors, target.model)
            _finish(head, pack)
            return EagleDrafter(head, distinct=distinct)
        model, token_ids = _model(tensors, target.model)
        _finish(model, pack)
        return ReducedDrafter(model, token_ids, distinct=distinct)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{path}: not a draft that its card describes ({error})") from None


def _read(path: Path, card: dict[str, Any]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = path.read_bytes()
    except OSError as error:
        raise MissingDataError(f"cannot read {path}: {error}") from None
    if hashlib.sha256(content).hexdigest() != card["sha256"]:
        raise ConfigError(f"{path}: truncated, or not the file that its card describes")
    try:
        return load(content)
    except SafetensorError as error:
        raise ConfigError(f"{path}: not a safetensors file ({error})") from None


def _output_rows(target: Model, token_ids: Tensor) -> nn.Parameter:
    if not target.config.tied_embeddings:
        raise ConfigError("trained drafts need a target with tied embeddings")
    return nn.Parameter(target.embedding.detach()[token_ids], requires_grad=False)


def _head(card: dict[str, Any], tensors: dict[str, Tensor], target: Model) -> EagleHead:
    values = card["config"]
    config = replace(EagleConfig(**values), feature_layers=tuple(values["feature_layers"]))
    token_ids = tensors["token_ids"].long()
    head = EagleHead(config, token_ids).to(dtype=target.dtype, device=target.device)
    head.head.weight = _output_rows(target, head.token_ids)
    head.load_state_dict({**tensors, "head.weight": head.head.weight})
    head.set_rope()
    return head


def _model(tensors: dict[str, Tensor], target: Model) -> tuple[Model, Tensor]:
    token_ids = tensors["token_ids"].long().to(target.device)
    count = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("layers."))
    config = replace(target.config, num_layers=count)
    with torch.device("meta"):
        model = Model(config)
    model.embedding = target.embedding
    for i in range(count):
        model.layers[i] = Layer(config)
    model.norm = RMSNorm(config.hidden_size, config.norm_eps)
    stored = {name: t for name, t in tensors.items() if name != "token_ids"}
    missing, unexpected = model.load_state_dict(stored, strict=False)
    if unexpected or {name for name in missing if name not in ("embedding", "head.weight")}:
        raise ValueError(f"unexpected tensors {unexpected}, missing {missing}")
    model.layers.to(dtype=target.dtype, device=target.device)
    model.norm.to(dtype=target.dtype, device=target.device)
    model.head.weight = _output_rows(target, token_ids)
    model.rope = target.rope
    return model, token_ids


def _finish(module: nn.Module, pack: bool) -> None:
    for part in module.modules():
        if pack and isinstance(part, Linear):
            part.pack()
    module.requires_grad_(False).eval()


def describe(head_or_model: EagleHead | Model) -> dict[str, Any]:
    """A card's `config`: an EAGLE head's shapes, or how many layers a model has."""
    if isinstance(head_or_model, EagleHead):
        return asdict(head_or_model.config)
    return {"num_layers": head_or_model.config.num_layers}


def trained_tensors(head_or_model: EagleHead | Model, token_ids: Tensor) -> dict[str, Tensor]:
    """What a file stores: everything but the target's embedding and output rows."""
    shared = ("embedding", "head.weight")
    state = {k: t for k, t in head_or_model.state_dict().items() if k not in shared}
    return {**state, "token_ids": token_ids}
