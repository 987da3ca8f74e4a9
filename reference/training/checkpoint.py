"""Checkpoints of a training run: everything that decides how it goes on.

Two files, `last` and `previous`, each replaced whole. A damaged `last` is reported and
`previous` used; training from there gives what an uninterrupted run would have given.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from specsim.errors import ConfigError


def save_atomically(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file so that it is either there as a whole or not at all."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    save_file({k: t.detach().contiguous() for k, t in tensors.items()}, str(partial), metadata)
    os.replace(partial, path)


class Checkpoints:
    """The two newest states of one run, in a folder of its own.

    Args:
        settings: what the run is; a checkpoint of other settings is refused.
        warn: told of a damaged checkpoint.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], warn: Callable[[str], None]) -> None:
        self.folder, self.warn = folder, warn
        self.settings = json.dumps(settings, sort_keys=True)
        self.last = folder / "last.safetensors"
        self.previous = folder / "previous.safetensors"

    def save(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """The state of now; what was the last becomes the previous."""
        if self.last.is_file():
            os.replace(self.last, self.previous)
        metadata = {"settings": self.settings, "state": json.dumps(state)}
        save_atomically(tensors, self.last, metadata)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest good state, or None for a run that has not begun.

        Raises:
            ConfigError: when there are checkpoints but none can be read, or they are of a run
                with other settings.
        """
        errors = []
        for path in (self.last, self.previous):
            if not path.is_file():
                continue
            try:
                found = self._read(path)
            except ConfigError as error:
                errors.append(str(error))
                continue
            for message in errors:
                self.warn(f"{message}; going on from {path.name}")
            return found
        if errors:
            raise ConfigError(f"{'; '.join(errors)}; delete {self.folder} to start anew")
        return None

    def _read(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                settings, state = metadata["settings"], json.loads(metadata["state"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise ConfigError(f"{path}: truncated or not a checkpoint ({error})") from None
        if settings != self.settings:
            raise ConfigError(
                f"{path}: a checkpoint of other settings ({settings}, not {self.settings})"
            )
        return tensors, state
