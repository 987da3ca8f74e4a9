"""Makes a draft that goes with its target, and refuses one that does not."""

from __future__ import annotations

import dataclasses

from specsim.catalogue import head_for
from specsim.catalogue.specs import LayerGroup, ModelSpec
from specsim.deployment.parts import METHODS, Draft, PlacedModel, Tree

#: Rows of the reduced draft vocabulary of EAGLE-3 heads (Li et al. 2025; SpecForge
#: configurations of Llama-3.1 and Qwen3 heads).
EAGLE3_DRAFT_VOCAB = 32_000


#: Heads work on the target's features; they are no draft models.
HEAD_METHODS = ("eagle", "eagle3", "medusa", "mtp")

#: Padded vocabularies differ by a few rows within a family (Qwen2.5: 151,936 and 152,064).
VOCABULARY_TOLERANCE = 0.02


def make_draft(
    target: PlacedModel, *, method: str | None = None, model: ModelSpec | None = None,
    weights: str | None = None, kv: str | None = None, tensor_parallel: int | None = None,
    kv_budget: int | None = None, tree: Tree | None = None, exit_layer: int | None = None,
    own_gpus: bool = False,
) -> Draft:  # fmt: skip
    """A draft for `target`. Without `method`, `model` implies it: a head's own method, a
    draft model, or no speculation.

    A head without `model` is derived from the target's dimensions. Weights are bf16 unless
    told otherwise (heads and small drafts of quantised targets are published so); the
    parallel degree is the target's where it divides the draft's heads, as in engines.

    Raises:
        ValueError: for parts that do not go together.
    """
    if method is None:
        method = "none" if model is None else (_method_of(model) or "draft-model")
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; expected {', '.join(METHODS)}")
    if method == "none":
        if model is not None:
            raise ValueError(f"method 'none' with draft model {model.name!r}")
        return Draft(method="none")
    spec = _draft_spec(target.spec, method, model, exit_layer)
    placed = None
    if spec is not None:
        own = weights or (target.weights if method == "early-exit" else "bf16")
        degree = tensor_parallel or _default_degree(spec, target.tensor_parallel)
        placed = PlacedModel(
            spec=spec, weights=own, kv=kv or target.kv, tensor_parallel=degree,
            routing=target.routing,
        )  # fmt: skip
    return Draft(
        method=method, model=placed, kv_budget=kv_budget, tree=tree,  # type: ignore[arg-type]
        exit_layer=exit_layer, own_gpus=own_gpus,
    )  # fmt: skip


def _method_of(spec: ModelSpec) -> str | None:
    """The method a head is for; block drafters (DFlash, DSpark) fill a block in one pass."""
    if spec.head_of is None or spec.head_of in HEAD_METHODS:
        return spec.head_of
    return "block"


def _default_degree(spec: ModelSpec, target_degree: int) -> int:
    heads = [g.attention.num_heads or g.attention.linear_value_heads for g in spec.layers]
    return target_degree if all(h % target_degree == 0 for h in heads) else 1


def _draft_spec(
    target: ModelSpec, method: str, model: ModelSpec | None, exit_layer: int | None
) -> ModelSpec | None:
    if method in ("ngram", "sparse-kv"):
        if model is not None and method == "ngram":
            raise ValueError(f"method 'ngram' takes no draft model, but {model.name!r} is given")
        return model
    if method == "early-exit":
        if exit_layer is None:
            raise ValueError("method 'early-exit' needs exit_layer")
        return truncated(target, exit_layer)
    if model is None:
        if method in ("draft-model", "block"):
            raise ValueError(f"method {method!r} needs a draft model")
        if method == "medusa":
            return medusa_head(target)
        vocabulary = min(EAGLE3_DRAFT_VOCAB, target.vocab_size) if method == "eagle3" else None
        return head_for(target, method, draft_vocab_size=vocabulary)
    actual = _method_of(model)
    if method == "draft-model" and actual is not None:
        raise ValueError(f"{model.name!r} is a head of method {actual!r}, not a draft model")
    if method in HEAD_METHODS and actual != method:
        kind = f"a head of method {actual!r}" if actual else "a draft model"
        raise ValueError(f"{model.name!r} is {kind}, not a head of method {method!r}")
    if method == "draft-model":
        _check_vocabulary(model, target)
    return model


def _check_vocabulary(draft: ModelSpec, target: ModelSpec) -> None:
    """Verification compares two distributions over one vocabulary."""
    larger = max(draft.vocab_size, target.vocab_size)
    same_family = bool(draft.family) and draft.family == target.family
    near = abs(draft.vocab_size - target.vocab_size) <= VOCABULARY_TOLERANCE * larger
    if not (same_family or near):
        raise ValueError(
            f"vocabulary of {draft.name} ({draft.vocab_size} tokens) does not match that of "
            f"{target.name} ({target.vocab_size}); a draft needs the target's tokenizer"
        )


def truncated(spec: ModelSpec, num_layers: int) -> ModelSpec:
    """The first `num_layers` layers of a model with its own head (early exit).

    Raises:
        ValueError: if the model has no such layer.
    """
    if not 1 <= num_layers < spec.num_layers:
        raise ValueError(f"exit layer {num_layers} outside 1..{spec.num_layers - 1} of {spec.name}")
    groups: list[LayerGroup] = []
    left = num_layers
    for group in spec.layers:
        take = min(left, group.count)
        if take:
            groups.append(dataclasses.replace(group, count=take))
        left -= take
    return dataclasses.replace(
        spec, name=f"{spec.name}[:{num_layers}]", layers=tuple(groups), extra_parameters=0
    )


def medusa_head(target: ModelSpec) -> ModelSpec:
    """One Medusa head: a residual h×h block and an output head of its own (Cai et al.
    2024, §3.1). K heads read K of these; they all work on the same feature."""
    return dataclasses.replace(
        target, name=f"{target.name}-medusa", layers=(), head_of="medusa", feature_inputs=1,
        mtp_layers=0, shares_embedding=True, shares_head=False, tie_word_embeddings=False,
        extra_parameters=0, learned_positions=0, per_layer_embedding=0, encoder_parameters=0,
        source=f"one Medusa head for {target.name}",
    )  # fmt: skip
