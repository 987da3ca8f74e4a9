"""Recorded accepted runs, replayed in place of a law."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from specsim.acceptance.law import (
    MAX_RUN,
    Array,
    Law,
    Runs,
    check_num_draft_tokens,
    replay,
    t95,
)
from specsim.errors import RecordError


@dataclass(frozen=True, eq=False)
class Empirical(Law):
    """Accepted runs at every output position of recorded requests.

    `requests` is one array of runs (accepted tokens, bonus not counted) per request.
    """

    requests: tuple[Runs, ...]
    source: str = ""

    def __post_init__(self) -> None:
        if not any(len(runs) > 1 for runs in self.requests):
            raise ValueError("no recorded runs of two output tokens or more")
        for runs in self.requests:
            if len(runs) and int(np.min(runs)) < 0:
                raise ValueError(f"accepted run {int(np.min(runs))} < 0")

    @lru_cache(maxsize=128)  # noqa: B019 - bounded, and laws live as long as a run
    def _counts(self, num_draft_tokens: int) -> tuple[Array, Array]:
        """Drafted tokens that were tested and that were accepted, by request and depth in
        the replayed steps; shapes (requests, K).

        A token drafted for a position from the request's last on is not counted, whatever
        became of it: there the recording ends, not the drafter. (Leaving out the step that
        reaches the end would leave out long steps more often than short ones: τ of 64 tokens
        at α = 0.8, K = 8 comes out 3 % too small.)
        """
        depth = np.arange(1, num_draft_tokens + 1)
        tested, won = [], []
        for runs in self.requests:
            steps = replay(runs, num_draft_tokens)
            left = len(runs) - np.concatenate(([0], np.cumsum(steps + 1)))[: len(steps), None]
            known = (depth < left) & (steps[:, None] >= depth - 1)
            tested.append(known.sum(axis=0))
            won.append((known & (steps[:, None] >= depth)).sum(axis=0))
        return np.array(tested, dtype=float), np.array(won, dtype=float)

    def survival(self, num_draft_tokens: int) -> Array:
        """Share of replayed steps in which at least i tokens are accepted: the product of
        the hazards (Kaplan and Meier 1958), 0 from a depth that no request is long enough
        for."""
        check_num_draft_tokens(num_draft_tokens)
        tested, won = (counts.sum(axis=0) for counts in self._counts(num_draft_tokens))
        hazards = np.divide(won, tested, out=np.zeros_like(won), where=tested > 0)
        return np.asarray(np.cumprod(hazards))

    def per_request_acceptance_length(self, num_draft_tokens: int) -> Array:
        """τ of each request: tokens over steps."""
        return np.array(
            [len(r) / len(replay(r, num_draft_tokens)) for r in self.requests if len(r)]
        )

    def survival_interval(self, num_draft_tokens: int) -> tuple[Array, Array] | None:
        """95 % interval clustered by request: the delta method on the log of the product of
        ratios (ratio estimator, Cochran 1977), with Student's t for few requests."""
        tested, won = self._counts(num_draft_tokens)
        n = int(np.sum([len(runs) > 1 for runs in self.requests]))
        if n < 2:
            return None
        s, sums = self.survival(num_draft_tokens), (won.sum(axis=0), tested.sum(axis=0))
        shares = [
            np.divide(x, total, out=np.zeros_like(x), where=total > 0)
            for x, total in zip((won, tested), sums, strict=True)
        ]
        residual = s * np.cumsum(shares[0] - shares[1], axis=1)
        reach = t95(n) * np.sqrt(n / (n - 1) * np.sum(residual**2, axis=0))
        return np.clip(s - reach, 0, 1), np.clip(s + reach, 0, 1)

    def sample_runs(self, rng: np.random.Generator, num_tokens: int) -> Runs:
        """A recorded request, begun at its start and followed by others until the new one
        is long enough."""
        pieces: list[Runs] = []
        filled = 0
        while filled < num_tokens:
            runs = self.requests[int(rng.integers(len(self.requests)))]
            pieces.append(runs)
            filled += len(runs)
        joined = np.concatenate(pieces)[:num_tokens] if pieces else np.zeros(0, dtype=np.int64)
        return np.minimum(joined, MAX_RUN)

    def steps_pmf(self, num_tokens: int, num_draft_tokens: int) -> Array:
        """Over the recorded requests' beginnings; those that are too short are left out.

        Raises:
            ValueError: if no recorded request has `num_tokens` tokens.
        """
        steps = [
            len(replay(runs[:num_tokens], num_draft_tokens))
            for runs in self.requests
            if len(runs) >= num_tokens
        ]
        if not steps:
            raise ValueError(f"no recorded request has {num_tokens} tokens")
        return np.bincount(steps, minlength=num_tokens + 1) / len(steps)


def load_runs(path: str | Path, drafter: str | None = None) -> Empirical:
    """Read recorded runs from JSON Lines.

    A line is `{"accepted_runs": [2, 0, 1, …]}` (ours; bonus token not counted), or
    `{"acc_<drafter>": {"acc_len": [3, 1, 2, …]}}` (SpecDecode-Bench; bonus counted).
    With several drafters in a line, `drafter` names one.

    Raises:
        RecordError: naming file, line and key.
    """
    path = Path(path)
    requests: list[Runs] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    requests.append(_runs_of_line(line, f"{path}, line {number}", drafter))
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not a UTF-8 text file ({error})") from None
    if not any(len(runs) > 1 for runs in requests):
        raise RecordError(f"{path}: no recorded runs of two output tokens or more")
    return Empirical(tuple(requests), source=path.name)


def _runs_of_line(line: str, where: str, drafter: str | None) -> Runs:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise RecordError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise RecordError(f"{where}: expected a JSON object, found {type(row).__name__}")
    if "accepted_runs" in row:
        return _integers(row["accepted_runs"], f"{where}, key 'accepted_runs'", least=0)
    found = sorted(k.removeprefix("acc_") for k in row if k.startswith("acc_"))
    if drafter is None and len(found) == 1:
        drafter = found[0]
    if drafter not in found:
        raise RecordError(
            f"{where}: expected key 'accepted_runs' or one drafter of 'acc_<drafter>'; "
            f"found drafters: {', '.join(found) or 'none'}"
        )
    inner = row[f"acc_{drafter}"]
    lengths = inner.get("acc_len") if isinstance(inner, dict) else None
    where = f"{where}, key 'acc_{drafter}.acc_len'"
    return _integers(lengths, where, least=1) - 1  # acc_len counts the bonus token


def _integers(value: Any, where: str, *, least: int) -> Runs:
    ok = isinstance(value, list) and all(
        isinstance(x, int) and not isinstance(x, bool) and least <= x < 2**31 for x in value
    )
    if not ok:
        raise RecordError(f"{where}: expected a list of integers >= {least}")
    return np.asarray(value, dtype=np.int64)
