"""The training loop: seeded, checkpointed, resumed to the byte."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference.training.batches import Example, epoch_batches
from reference.training.checkpoint import Checkpoints
from reference.training.loss import divergence, judge
from reference.training.optimise import Optimiser
from reference.training.trainees import Trainee


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What decides a training run, beside its data and what it starts from."""

    seed: int = 0
    epochs: int = 4
    batch: int = 8  # examples a step
    learning_rate: float = 1e-3
    warmup: float = 0.05  # share of all steps
    rollout: int = 2  # passes of an EAGLE head on its own states
    decay: float = 0.8  # weight of each further pass

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.rollout) < 1:
            raise ValueError(
                f"epochs={self.epochs}, batch={self.batch}, rollout={self.rollout}: at least 1 each"
            )
        if not (self.learning_rate > 0 and 0 <= self.warmup < 1 and 0 < self.decay <= 1):
            raise ValueError(
                f"learning_rate={self.learning_rate} > 0, 0 <= warmup={self.warmup} < 1 and "
                f"0 < decay={self.decay} <= 1 do not all hold"
            )


@dataclass(frozen=True)
class Progress:
    """The state of a run after a step."""

    step: int
    steps: int
    tokens: int  # output tokens seen, repeats counted
    loss: float
    overlap: float | None  # held out, at the first drafted position


@dataclass
class Run:
    """One training run.

    Args:
        held_out: examples that are never trained on; their overlap is in the history.
        history: (tokens seen, training loss since the last entry, held-out overlap).
    """

    trainee: Trainee
    examples: Sequence[Example]
    held_out: Sequence[Example]
    token_ids: Tensor
    settings: TrainSettings
    folder: Path
    data: dict[str, Any]  # identifies data and initial weights, for the checkpoints
    warn: Callable[[str], None]
    history: list[tuple[int, float, float]] = field(default_factory=list)
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        s = self.settings
        if not self.examples:
            raise ValueError("no example is long enough to train on")
        self.steps = s.epochs * -(-len(self.examples) // s.batch)
        warmup = max(1, round(s.warmup * self.steps))
        self.optimiser = Optimiser(self.trainee.module, s.learning_rate, self.steps, warmup)
        described = {"settings": asdict(s), "examples": len(self.examples), **self.data}
        self.checkpoints = Checkpoints(self.folder, described, self.warn)
        self._losses: list[float] = []
        found = self.checkpoints.load()
        if found is not None:
            self._restore(*found)

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        self.optimiser.restore(tensors)
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.history = [(n, loss, overlap) for n, loss, overlap in state["history"]]
        self._losses = state["losses"]

    def save(self) -> None:
        """Write a checkpoint."""
        state = {
            "step": self.step, "tokens": self.tokens, "seconds": round(self.seconds, 1),
            "history": self.history, "losses": self._losses,
        }  # fmt: skip
        self.checkpoints.save(self.optimiser.tensors(), state)

    def go(
        self,
        report: Callable[[Progress], None],
        *,
        save_every: int = 50,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train until the last step, or until `stop()`; whether the end was reached.

        A checkpoint is left either way. An error leaves the last one as it was.
        """
        marks = evaluation_steps(self.steps)
        while self.step < self.steps and not stop():
            self._one_step()
            if self.step in marks:
                loss = sum(self._losses) / len(self._losses)
                self.history.append((self.tokens, round(loss, 6), self.held_out_overlap()))
                self._losses = []
            if self.step % save_every == 0:
                self.save()
            report(self.progress)
        if self.step % save_every:
            self.save()
        return self.step == self.steps

    @property
    def progress(self) -> Progress:
        """Where the run is."""
        overlap = self.history[-1][2] if self.history else None
        loss = self._losses[-1] if self._losses else self.history[-1][1] if self.history else 0.0
        return Progress(self.step, self.steps, self.tokens, loss, overlap)

    def _one_step(self) -> None:
        start, s = time.process_time(), self.settings
        examples = self._batch(self.step)
        total, loss = torch.zeros(()), 0.0
        for j, scored in enumerate(self.trainee.passes(examples, s.rollout)):
            part = divergence(scored)
            total = total + part * s.decay**j
            loss = float(part.detach()) if j == 0 else loss
        torch.autograd.backward(total)
        self.optimiser.step(self.step)
        self.step += 1
        self.tokens += sum(e.num_outputs for e in examples)
        self._losses.append(round(loss, 6))
        self.seconds += time.process_time() - start

    def _batch(self, step: int) -> list[Example]:
        each = -(-len(self.examples) // self.settings.batch)
        epoch, place = divmod(step, each)
        batches = epoch_batches(self.examples, self.settings.batch, self.settings.seed, epoch)
        return next(b for i, b in enumerate(batches) if i == place)

    @torch.no_grad()
    def held_out_overlap(self) -> float:
        """Mean 1 − TV at the first drafted position of the held-out examples."""
        overlaps = []
        for start in range(0, len(self.held_out), self.settings.batch):
            chosen = self.held_out[start : start + self.settings.batch]
            scored = next(iter(self.trainee.passes(chosen, 1)))
            overlaps.append(judge(scored, self.token_ids).overlap)
        return round(float(torch.cat(overlaps).mean()), 6)


def evaluation_steps(steps: int, count: int = 12) -> set[int]:
    """About `count` steps, a constant factor apart, the last included."""
    return {max(1, round(steps ** (i / count))) for i in range(count // 3, count + 1)}
