"""Recorded accepted runs, replayed in place of a law."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from specsim.acceptance.law import MAX_RUN, Array, Law, Runs, check_num_draft_tokens, replay
from specsim.errors import RecordError


@dataclass(frozen=True, eq=False)
class Empirical(Law):
    """Accepted runs at every output position of recorded requests.

    `requests` is one array of runs (accepted tokens, bonus not counted) per request.
    """

    requests: tuple[Runs, ...]
    source: str = ""

    def __post_init__(self) -> None:
        if not any(len(runs) for runs in self.requests):
            raise ValueError("no recorded runs")
        for runs in self.requests:
            if len(runs) and int(np.min(runs)) < 0:
                raise ValueError(f"accepted run {int(np.min(runs))} < 0")

    @lru_cache(maxsize=128)  # noqa: B019 - bounded, and laws live as long as a run
    def _steps(self, num_draft_tokens: int) -> Runs:
        """Accepted tokens of all steps of all requests; the last step of each request is
        left out, since its end is the recording's, not the drafter's."""
        steps = [replay(runs, num_draft_tokens)[:-1] for runs in self.requests if len(runs)]
        return np.concatenate(steps)

    def survival(self, num_draft_tokens: int) -> Array:
        """Share of replayed steps in which at least i tokens are accepted."""
        check_num_draft_tokens(num_draft_tokens)
        steps = self._steps(num_draft_tokens)
        depth = np.arange(1, num_draft_tokens + 1)
        return np.asarray(np.mean(steps[:, None] >= depth, axis=0), dtype=float)

    def per_request_acceptance_length(self, num_draft_tokens: int) -> Array:
        """τ of each request: tokens over steps."""
        return np.array(
            [len(r) / len(replay(r, num_draft_tokens)) for r in self.requests if len(r)]
        )

    def survival_interval(self, num_draft_tokens: int) -> tuple[Array, Array] | None:
        """±1.96 standard errors clustered by request (ratio estimator, Cochran 1977)."""
        if len(self.requests) < 2:
            return None
        k = num_draft_tokens
        depth = np.arange(1, k + 1)
        kept = [replay(runs, k)[:-1] for runs in self.requests if len(runs)]
        counts = np.array([len(steps) for steps in kept], dtype=float)
        hits = np.array([(steps[:, None] >= depth).sum(axis=0) for steps in kept], dtype=float)
        mean = hits.sum(axis=0) / counts.sum()
        residual = hits - counts[:, None] * mean
        n = len(counts)
        se = np.sqrt(n / (n - 1) * np.sum(residual**2, axis=0)) / counts.sum()
        return np.clip(mean - 1.96 * se, 0, 1), np.clip(mean + 1.96 * se, 0, 1)

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
    if not any(len(runs) for runs in requests):
        raise RecordError(f"{path}: no recorded runs")
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
