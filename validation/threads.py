"""What users found in 66 public threads against what the model says: a sign, a crossover,
the best K, or an order of two setups.

`data/threads.toml` has the cases; nothing there is a prediction. A thread agrees when all
of its checks do. Threads that the model cannot speak about are excluded with their reason;
those that test a rule of the planner rather than a number ("advice") are counted apart.
Some that are excluded by a rule (a retired engine) are judged all the same, and the rate
with them is printed too.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from validation import thread_advice, thread_checks
from validation.rows import Row, bounds, statistic
from validation.thread_checks import Check, Verdict

PATH = Path(__file__).with_name("data") / "threads.toml"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thread with its verdicts; none if it is excluded."""

    id: str
    url: str
    question: int
    says: str
    assumed: str
    excluded: str | None
    verdicts: tuple[Verdict, ...]

    @property
    def numeric(self) -> bool:
        """Whether a number is compared, not a rule."""
        return any(v.kind in thread_checks.KINDS for v in self.verdicts)

    @property
    def agrees(self) -> bool:
        """All checks agree."""
        return all(v.agrees for v in self.verdicts)


@cache
def threads() -> tuple[dict[str, Any], ...]:
    """The cases as written.

    Raises:
        ValueError: for a thread with neither checks nor a reason for exclusion.
    """
    with PATH.open("rb") as stream:
        found = tomllib.load(stream)["thread"]
    for thread in found:
        if "excluded" not in thread and "checks" not in thread:
            raise ValueError(f"{thread['id']}: expected checks, or excluded with a reason")
    return tuple(found)


def cases() -> list[Case]:
    """Every thread, judged."""
    return [
        Case(
            id=t["id"], url=t["url"], question=t["question"], says=t["says"],
            assumed=t.get("assumed", ""), excluded=t.get("excluded"),
            verdicts=tuple(judge({**t.get("setup", {}), **c}) for c in t.get("checks", ())),
        )
        for t in threads()
    ]  # fmt: skip


def judge(check: Check) -> Verdict:
    """One check, by its kind."""
    kinds = {**thread_checks.KINDS, **thread_advice.KINDS}
    return kinds[check["kind"]](check)


def rows() -> list[Row]:
    """The disagreement of threads with numbers and of threads with advice, each with its
    bound, then one row per thread."""
    found = cases()
    judged = [c for c in found if c.excluded is None]
    numeric = [c for c in judged if c.numeric]
    advice = [c for c in judged if not c.numeric]
    limit = bounds("threads")
    lines = [
        statistic(f"{name} that disagree, of {len(group)} threads",
                  1 - np.mean([c.agrees for c in group]), bound=limit[key], provenance=note)
        for name, key, group, note in (
            ("signs, orders, crossovers and best K", "numeric", numeric, "all checks of a thread"),
            ("rules of the planner", "advice", advice, "warnings, widths, properties of plans"),
        )
    ]  # fmt: skip
    also = [*numeric, *(c for c in found if c.excluded is not None and c.numeric)]
    lines.append(statistic(
        f"the same with excluded threads that could be judged, of {len(also)}",
        1 - np.mean([c.agrees for c in also]),
        provenance="a retired engine judged by the nearest runtime, two nodes by one's links",
    ))  # fmt: skip
    checks = [v for c in numeric for v in c.verdicts]
    lines.append(statistic(f"the same, single checks of {len(checks)}",
                           1 - np.mean([v.agrees for v in checks])))  # fmt: skip
    for case in found:
        verdict = "agrees" if case.agrees else "DISAGREES"
        said = "; ".join(v.says for v in case.verdicts)
        if case.excluded is not None:
            judged_too = f" The model, for all that: {said} ({verdict})." if said else ""
            lines.append(Row(
                name=f"{case.id}: excluded", error=None,
                provenance=f"{case.says}. Excluded: {case.excluded}.{judged_too} ({case.url})",
            ))  # fmt: skip
            continue
        assumed = f" Assumed: {case.assumed}." if case.assumed else ""
        lines.append(Row(
            name=f"{case.id}: {verdict}", error=float(not case.agrees),
            provenance=f"{case.says}. The model: {said}.{assumed} ({case.url})",
        ))  # fmt: skip
    return lines
