"""Every outcome of a random program, with its exact probability.

`Enumerator` has the interface of `sampling.Randomness`, but takes one branch of each
choice; `outcomes` reruns the program until all branches are done (depth first). The
program must depend on nothing else that is random.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from typing import TypeVar

from torch import Tensor

from reference.sampling import check_total

Result = TypeVar("Result")
Key = TypeVar("Key", bound=Hashable)


class Enumerator:
    """Follows a script of choices, then takes the first possible branch each time."""

    def __init__(self, script: list[int]) -> None:
        self.script = script
        self.choices: list[tuple[int, list[float]]] = []

    def bernoulli(self, probability: float) -> bool:
        """Branches on True (weight = probability) and False (the rest)."""
        probability = min(max(probability, 0.0), 1.0)
        return self._choose([probability, 1.0 - probability]) == 0

    def categorical(self, weights: Tensor) -> int:
        """Branches on every index of positive weight; raises unless the sum is 1."""
        values = weights.tolist()
        check_total(sum(values))
        if min(values) < 0:
            raise ValueError(f"negative weight {min(values)}")
        return self._choose(values)

    def _choose(self, weights: list[float]) -> int:
        depth = len(self.choices)
        possible = [i for i, weight in enumerate(weights) if weight > 0]
        choice = self.script[depth] if depth < len(self.script) else possible[0]
        self.choices.append((choice, weights))
        return choice

    @property
    def weight(self) -> float:
        """Probability of the branch taken so far."""
        product = 1.0
        for choice, weights in self.choices:
            product *= weights[choice]
        return product

    def next_script(self) -> list[int] | None:
        """The script of the next branch; None when this was the last."""
        for depth in range(len(self.choices) - 1, -1, -1):
            choice, weights = self.choices[depth]
            for other in range(choice + 1, len(weights)):
                if weights[other] > 0:
                    return [c for c, _ in self.choices[:depth]] + [other]
        return None


def outcomes(program: Callable[[Enumerator], Result]) -> Iterator[tuple[float, Result]]:
    """Run `program` once for each branch of its randomness: (probability, result)."""
    script: list[int] | None = []
    while script is not None:
        chooser = Enumerator(script)
        result = program(chooser)
        yield chooser.weight, result
        script = chooser.next_script()


def distribution(program: Callable[[Enumerator], Key]) -> dict[Key, float]:
    """Exact distribution of a program's (hashable) result."""
    total: dict[Key, float] = defaultdict(float)
    for weight, result in outcomes(program):
        total[result] += weight
    return dict(total)


def total_variation(p: dict[Key, float], q: dict[Key, float]) -> float:
    """TV(p, q) = ½ Σ |p − q| over the union of supports."""
    return 0.5 * sum(abs(p.get(key, 0.0) - q.get(key, 0.0)) for key in p.keys() | q.keys())
