"""In which batches speculation pays: ranges, K by batch and by context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from specsim.analytic.formulas import paying_ranges
from specsim.cost.memory import memory
from specsim.planner.candidate import Candidate
from specsim.planner.problem import Problem
from specsim.planner.service import Component, proposed, steps_per_request
from specsim.planner.step_model import StepModel, step_model
from specsim.planner.uncertainty import draws, moved, shifted_parts

Array = npt.NDArray[np.float64]

#: Batches that are looked at, whether or not they fit.
MAX_BATCH = 1024
#: Draws behind the interval of a crossover.
NUM_DRAWS = 60


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """`ranges` of batch in which the best K beats no speculation, up to MAX_BATCH; `last`
    is the end of the last one (0 if there is none) with its 95 % interval."""

    ranges: list[list[int]]
    last: int
    low: int
    high: int


@dataclass(frozen=True, kw_only=True)
class AtContext:
    """The best K at one context, at the largest batch up to the demand's that fits."""

    context: int
    batch: int
    num_draft_tokens: int
    speedup: float
    fits: bool


def gain(problem: Problem, spec: StepModel, off: StepModel, parts: list[Component]) -> Array:
    """Decoding speed of the best K ≥ 1 over plain decoding, at each batch; (batch,)."""
    steps = steps_per_request(problem, parts)
    work = steps[1:, None] * spec.step_s[1:]
    return np.asarray(max(problem.mean_output - 1, 1e-9) * off.step_s[0] / work.min(axis=0))


def crossover(problem: Problem, spec: Candidate, off: Candidate) -> Crossover:
    """Ranges over every batch up to MAX_BATCH, their interval from the stated errors."""
    # exact up to 64, then 2 % apart: edges are given to that resolution
    batch = np.unique(np.concatenate(
        [np.arange(1, 65), np.rint(np.geomspace(64, MAX_BATCH, 140))])).astype(float)  # fmt: skip
    tokens = spec.model.draft_tokens[1:]
    one = spec.model.prompts[:1]
    with_draft = step_model(spec.deployment, spec.source, tokens, batch, problem.context, one,
                            _proposed(problem, spec))  # fmt: skip
    without = step_model(off.deployment, off.source, (), batch, problem.context, one)
    pays = gain(problem, with_draft, without, list(spec.parts)) > 1
    lasts = []
    for shift in draws(NUM_DRAWS):
        tried = moved(with_draft, spec, shift)
        base = moved(without, off, shift)
        found = gain(problem, tried, base, shifted_parts(problem, spec, shift.alpha)) > 1
        lasts.append(int(batch[np.flatnonzero(found)[-1]]) if found.any() else 0)
    ranges = paying_ranges(batch, pays)
    return Crossover(
        ranges=ranges, last=ranges[-1][1] if ranges else 0,
        low=int(np.quantile(lasts, 0.025)), high=int(np.quantile(lasts, 0.975)),
    )  # fmt: skip


def _proposed(problem: Problem, spec: Candidate) -> Array | None:
    if spec.option is None:
        return None
    return proposed(problem, spec.deployment.draft, spec.option.laws, spec.model.draft_tokens[1:])


def over_context(
    problem: Problem, spec: Candidate, off: Candidate, contexts: Sequence[int]
) -> list[AtContext]:
    """The best K at each context. Acceptance is taken to stay as it is."""
    found = []
    for context in contexts:
        room = memory(spec.deployment, max(spec.largest_k, 1), context)
        batch = max(1, min(round(spec.demand.batch), room.max_concurrency))
        at = np.array([float(batch)])
        one = spec.model.prompts[:1]
        with_draft = step_model(spec.deployment, spec.source, spec.model.draft_tokens[1:], at,
                                context, one, _proposed(problem, spec))  # fmt: skip
        without = step_model(off.deployment, off.source, (), at, context, one)
        steps = steps_per_request(problem, list(spec.parts))[1:]
        work = steps * with_draft.step_s[1:, 0]
        best = int(np.argmin(work))
        speedup = (problem.mean_output - 1) * float(without.step_s[0, 0]) / float(work[best])
        found.append(AtContext(
            context=context, batch=batch, speedup=speedup, fits=room.fits,
            num_draft_tokens=int(with_draft.draft_tokens[1 + best]) if speedup > 1 else 0,
        ))  # fmt: skip
    return found
