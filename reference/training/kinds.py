"""The kinds of draft that can be trained, and what they start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from reference.draft.eagle import EagleConfig, EagleHead
from reference.model import Layer, Model
from reference.training.generate import TeacherHead
from reference.training.trainees import EagleTrainee, LayersTrainee, Trainee

#: The final norm starts this much smaller than the target's: a draft that knows nothing yet
#: should not be sure of anything (the loss starts at 8 nats instead of 30).
CALM = 0.2


@dataclass(frozen=True)
class Kind:
    """`eagle`, or `layers:N`: a draft model of N layers."""

    name: str

    def __post_init__(self) -> None:
        method, _, count = self.name.partition(":")
        if self.name != "eagle" and not (
            method == "layers" and count.isdecimal() and int(count) > 0
        ):
            raise ValueError(f"draft kind {self.name!r}: expected eagle or layers:N")

    @property
    def num_layers(self) -> int:
        """Transformer layers of the draft."""
        return 1 if self.name == "eagle" else int(self.name.partition(":")[2])

    @property
    def file_stem(self) -> str:
        """How its files are named: eagle, layers-1."""
        return self.name.replace(":", "-")


def spread(count: int, total: int) -> list[int]:
    """Which target layers a draft of `count` layers starts from: the first and last ones.

    Half from the bottom, which turn embeddings into features, half from the top.
    """
    if not 1 <= count <= total:
        raise ValueError(f"a draft of {count} layers for a target of {total}")
    low = (count + 1) // 2
    return [*range(low), *range(total - (count - low), total)]


def new_trainee(
    kind: Kind,
    target: Model,
    token_ids: Tensor,
    feature_layers: Sequence[int],
    dtype: torch.dtype,
    seed: int,
) -> Trainee:
    """An untrained draft of an unpacked target, initialised from the target's own weights."""
    teacher = TeacherHead(target, token_ids)
    rows = target.embedding.detach()[token_ids]
    if kind.name == "eagle":
        head = _eagle(target, token_ids, feature_layers, seed)
        _freeze_head(head.head, rows)
        head.to(dtype).set_rope()
        return EagleTrainee(head, target.embedding.detach(), teacher)
    model = _layers(target, kind.num_layers)
    _freeze_head(model.head, rows)
    model.embedding = nn.Parameter(target.embedding.detach(), requires_grad=False)
    model.to(dtype).set_rope()
    return LayersTrainee(model, teacher)


def _freeze_head(head: nn.Module, rows: Tensor) -> None:
    head.weight = nn.Parameter(rows.clone(), requires_grad=False)


def _copy_layer(target: nn.Module, layer: nn.Module) -> None:
    layer.load_state_dict(target.state_dict())


@torch.no_grad()
def _eagle(target: Model, token_ids: Tensor, feature_layers: Sequence[int], seed: int) -> EagleHead:
    """The target's first layer on a random mix of token and features.

    Of six starts tried on 80,000 tokens this one learned fastest.
    """
    config = EagleConfig.for_target(target.config, len(token_ids), feature_layers)
    head = EagleHead(config, token_ids)
    d = config.hidden_size
    generator = torch.Generator().manual_seed(seed)
    head.fuse.weight.zero_()
    head.fuse.weight[:, -d:] = torch.eye(d)  # the last layer's features
    head.combine.weight.copy_(torch.randn(d, 2 * d, generator=generator) / (2 * d) ** 0.5)
    _copy_layer(target.layers[0], head.layer)
    head.norm.weight.copy_(target.norm.weight * CALM)
    return head


@torch.no_grad()
def _layers(target: Model, count: int) -> Model:
    with torch.device("meta"):
        model = Model(replace(target.config, num_layers=count))
    model.embedding = target.embedding  # also what the head's shape is checked against
    for i, source in enumerate(spread(count, target.config.num_layers)):
        model.layers[i] = Layer(target.config)
        _copy_layer(target.layers[source], model.layers[i])
    model.norm = type(target.norm)(target.config.hidden_size, target.config.norm_eps)
    model.norm.weight.copy_(target.norm.weight * CALM)
    return model
