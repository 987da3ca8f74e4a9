"""The requests of one run as columns, drawn once before anything is served.

Arrivals, classes and lengths have a keyed generator each, so that changing one (or K, the
policy, the number of workers) leaves the others as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specsim.workload.arrivals import ArrivalProcess, arrival_times
from specsim.workload.lengths import LengthLaw, draw_lengths
from specsim.workload.traces import Trace

#: First word of the spawn key of each purpose.
ARRIVALS, CLASSES, PROMPTS, OUTPUTS, ACCEPTANCE = range(5)

#: Hash of the first block of the shared system prompt; traces count from 0 upwards.
_SHARED_PREFIX = -1


@dataclass(frozen=True, kw_only=True)
class TrafficMix:
    """One class of traffic: its share of requests and its lengths (None: the trace's)."""

    name: str
    weight: float = 1.0
    prompt_tokens: LengthLaw | None = None
    output_tokens: LengthLaw | None = None


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Columns of shape (requests,). `arrival_s` is NaN where a closed loop decides.

    `prefixes[i]`: names of the blocks of `prefix_block_tokens` tokens that the prompt
    starts with; None where nothing is shared.
    """

    arrival_s: npt.NDArray[np.float64]
    prompt_tokens: npt.NDArray[np.int64]
    output_tokens: npt.NDArray[np.int64]
    traffic_class: npt.NDArray[np.int16]
    class_names: tuple[str, ...]
    prefixes: tuple[tuple[int, ...], ...] | None = None
    prefix_block_tokens: int = 0

    def __len__(self) -> int:
        return len(self.arrival_s)


def keyed_generator(seed: int, *purpose: int) -> np.random.Generator:
    """The generator of one purpose: the same whatever else was drawn before it."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=purpose)))


def generate(
    *,
    arrivals: ArrivalProcess,
    classes: tuple[TrafficMix, ...],
    num_requests: int,
    seed: int,
    trace: Trace | None = None,
    rate_scale: float = 1.0,
    shared_prefix_tokens: int = 0,
    block_size: int = 16,
) -> Requests:
    """Draw the requests of one run.

    With a trace, arrival times (divided by `rate_scale`) come from it when the process is
    "trace", and lengths wherever a class leaves them out; the run is cut to the trace.

    Raises:
        ValueError: without classes, or if lengths are to come from a trace and there is none.
    """
    if not classes:
        raise ValueError("no class of traffic")
    if not rate_scale > 0:
        raise ValueError(f"rate_scale={rate_scale} is not > 0")
    if trace is not None:
        trace = trace.first(num_requests)
        num_requests = len(trace)
    if arrivals.process == "trace":
        if trace is None:
            raise ValueError("arrival process 'trace' without a trace")
        arrival_s = trace.arrival_s / rate_scale
    else:
        arrival_s = arrival_times(arrivals, keyed_generator(seed, ARRIVALS), num_requests)
        arrival_s = arrival_s / rate_scale
    weights = np.array([c.weight for c in classes])
    edges = np.cumsum(weights / weights.sum())
    drawn = keyed_generator(seed, CLASSES).random(num_requests)
    chosen = np.minimum(np.searchsorted(edges, drawn, side="right"), len(classes) - 1)
    prompt = _lengths(
        [c.prompt_tokens for c in classes], chosen, (seed, PROMPTS),
        None if trace is None else trace.prompt_tokens,
    )  # fmt: skip
    output = _lengths(
        [c.output_tokens for c in classes], chosen, (seed, OUTPUTS),
        None if trace is None else trace.output_tokens,
    )  # fmt: skip
    prefixes, unit = None, 0
    if shared_prefix_tokens and trace is not None and trace.prefixes is not None:
        raise ValueError(
            f"shared_prefix_tokens={shared_prefix_tokens}, but the trace names the prefixes "
            "of its prompts"
        )
    if trace is not None and trace.prefixes is not None:
        prefixes, unit = trace.prefixes, trace.prefix_block_tokens
    elif shared_prefix_tokens:
        blocks = shared_prefix_tokens // block_size
        shared = tuple(_SHARED_PREFIX - i for i in range(blocks))
        prefixes, unit = (shared,) * num_requests, block_size
        prompt = prompt + shared_prefix_tokens
    return Requests(
        arrival_s=arrival_s, prompt_tokens=prompt, output_tokens=output,
        traffic_class=chosen.astype(np.int16), class_names=tuple(c.name for c in classes),
        prefixes=prefixes, prefix_block_tokens=unit,
    )  # fmt: skip


def _lengths(
    laws: list[LengthLaw | None],
    chosen: npt.NDArray[np.intp],
    key: tuple[int, int],
    traced: npt.NDArray[np.int64] | None,
) -> npt.NDArray[np.int64]:
    """Lengths by class. Every class draws for all requests from a generator of its own, so
    that one class's share or law does not shift another's draws."""
    result = np.empty(len(chosen), dtype=np.int64)
    for index, law in enumerate(laws):
        mine = chosen == index
        if law is not None:
            result[mine] = draw_lengths(law, keyed_generator(*key, index), len(chosen))[mine]
        elif traced is not None:
            result[mine] = traced[mine]
        else:
            raise ValueError("lengths from a trace, but the arrivals name no trace file")
    return result
