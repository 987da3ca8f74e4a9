"""AdamW on float32 copies of a module's weights, which itself may run in bfloat16."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear up to `peak` over `warmup` steps, then half a cosine down to a hundredth."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


class Optimiser:
    """Gradient clipping and AdamW (Loshchilov & Hutter 2019); no decay of norms."""

    CLIP = 1.0

    def __init__(self, module: nn.Module, peak: float, steps: int, warmup: int) -> None:
        self.peak, self.steps, self.warmup = peak, steps, warmup
        self.parameters = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.masters = {n: p.detach().float().clone() for n, p in self.parameters.items()}
        matrices = [m for m in self.masters.values() if m.dim() > 1]
        vectors = [m for m in self.masters.values() if m.dim() == 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "weight_decay": 0.01},
            {"params": vectors},
        ]
        self.adamw = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, step: int) -> float:
        """One update from the module's gradients, which are cleared; the gradient's norm.

        Raises:
            ValueError: when the gradient is not finite.
        """
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                self.masters[name].grad = parameter.grad.float()
                parameter.grad = None
        norm = float(nn.utils.clip_grad_norm_(self.masters.values(), self.CLIP))
        if not math.isfinite(norm):
            raise ValueError(f"step {step}: the gradient is not finite; lower --learning-rate")
        for group in self.adamw.param_groups:
            group["lr"] = learning_rate(step, self.steps, self.peak, self.warmup)
        self.adamw.step()
        self.adamw.zero_grad()
        self._publish()
        return norm

    def _publish(self) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.masters[name])

    def tensors(self) -> dict[str, Tensor]:
        """Weights and moments, by name."""
        result = {f"weight/{name}": master for name, master in self.masters.items()}
        for name, master in self.masters.items():
            result |= {f"{key}/{name}": value for key, value in self.adamw.state[master].items()}
        return result

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `tensors` gave.

        Raises:
            KeyError: when a weight is missing.
        """
        for name, master in self.masters.items():
            master.copy_(tensors[f"weight/{name}"])
            keys = [key.split("/")[0] for key in tensors if key.endswith(f"/{name}")]
            self.adamw.state[master] = {
                key: tensors[f"{key}/{name}"] for key in keys if key != "weight"
            }
        self._publish()
