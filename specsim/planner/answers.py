"""The ten answers of a plan, each with its number, its interval and its reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from specsim.planner.candidate import Candidate
from specsim.planner.problem import Problem
from specsim.planner.search import Found
from specsim.planner.service import steps_per_request
from specsim.planner.simulated import Simulated
from specsim.planner.uncertainty import Bar

Array = npt.NDArray[np.float64]

#: The ten, in the order in which people ask.
QUESTIONS = (
    "Does speculation help here at all?",
    "Which K, and what does every other K lose?",
    "At which batch or request rate does it pay?",
    "Which graph capture size and token budget?",
    "Does it fit, and what concurrency does the draft cost?",
    "What does long context do?",
    "Where does the draft run, and with which parallel degree?",
    "What happens to the time to first token?",
    "Which acceptance does this rest on, and what to measure first?",
    "How many requests per GPU, how many GPUs, at what price?",
)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer: `value` in `unit` with its 95 % interval (None where it has none)."""

    question: str
    answer: str
    value: float | None
    low: float | None
    high: float | None
    unit: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """As in `plan --json`."""
        return {
            "question": self.question, "answer": self.answer, "value": self.value,
            "low": self.low, "high": self.high, "unit": self.unit, "reason": self.reason,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the answers are read from. `best` is the chosen plan, `spec` the best one that
    speculates (None if none does), `off` no speculation on the same GPUs as `spec`,
    `overall_off` the best without speculation anywhere."""

    problem: Problem
    found: Found
    best: Candidate
    spec: Candidate | None
    off: Candidate
    overall_off: Candidate
    replays: dict[int, Simulated]
    objective: dict[int, float]
    sampled: dict[int, Array]
    bars: tuple[Bar, ...]
    probability: float | None
    cache: dict[str, Any] = field(default_factory=dict)

    @property
    def subject(self) -> Candidate:
        """The plan that questions about speculation are asked of."""
        return self.spec or self.best

    @cached_property
    def work(self) -> Array:
        """Decoding time of a mean request per sequence's share, (K, batch): what the best
        K minimises."""
        found = self.subject
        steps = steps_per_request(self.problem, list(found.parts))
        return np.asarray(steps[:, None] * found.model.step_s)

    def tpot_s(self, found: Candidate) -> float:
        """Time per output token at the demand; simulated where it was."""
        replay = self.replays.get(id(found))
        return replay.demand.tpot_s if replay else found.demand.tpot_s

    def ttft_s(self, found: Candidate) -> float:
        """Time to first token at the demand; simulated where it was."""
        replay = self.replays.get(id(found))
        return replay.demand.ttft_s if replay else found.demand.ttft_s

    def capacity_per_s(self, found: Candidate) -> float | None:
        """Requests/s of one replica within the SLO; simulated where it was."""
        replay = self.replays.get(id(found))
        if replay is not None and replay.capacity_per_s is not None:
            return replay.capacity_per_s
        return found.capacity.rate_per_s if found.capacity else None


def all_answers(facts: Facts) -> Iterator[Answer]:
    """The ten, in the order in which people ask."""
    from specsim.planner import answers_cost, answers_fit, answers_speed

    yield answers_speed.does_it_help(facts)
    yield answers_speed.which_k(facts)
    yield answers_speed.where_it_pays(facts)
    yield answers_fit.graphs_and_tokens(facts)
    yield answers_fit.does_it_fit(facts)
    yield answers_speed.long_context(facts)
    yield answers_fit.where_the_draft_runs(facts)
    yield answers_fit.first_token(facts)
    yield answers_cost.what_it_rests_on(facts)
    yield answers_cost.what_it_costs(facts)
