"""Clocks: CUDA events on a GPU, the monotonic clock on a CPU."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Splits a stretch of work into named laps.

    On a GPU a lap is an event on the stream, so that taking it does not wait; `laps`
    synchronises once. Work that the host does between two laps while the GPU idles is part
    of the lap, as it is part of the step.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device
        self._names: list[str] = []
        self._marks = [self._now()]

    def _now(self) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        # The stream of this device, which need not be the current one (--device cuda:1).
        event.record(torch.cuda.current_stream(self._device))
        return event

    def lap(self, name: str) -> None:
        """Ends the stretch since the last lap."""
        self._names.append(name)
        self._marks.append(self._now())

    def laps(self) -> dict[str, float]:
        """Seconds by name (laps of one name add up)."""
        if self._cuda:
            torch.cuda.synchronize(self._device)
        result: dict[str, float] = {}
        for name, start, end in zip(self._names, self._marks, self._marks[1:], strict=False):
            result[name] = result.get(name, 0.0) + _between(start, end)
        return result


def _between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(start, float) and isinstance(end, float):
        return max(end - start, 0.0)
    return float(start.elapsed_time(end)) / 1e3  # type: ignore[union-attr, arg-type]


def synchronise(device: torch.device) -> None:
    """Wait for the device; a CPU has nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
