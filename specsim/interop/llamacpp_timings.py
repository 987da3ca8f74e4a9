"""`timings` of llama-server's responses (JSON, JSON Lines or a saved stream): tokens predicted,
drafted and accepted.

One response is one window. K is not told: it follows from the drafted tokens and the steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from specsim.errors import RecordError
from specsim.interop.common import Imported, Notes, StepTimes, TallyByK
from specsim.interop.llamacpp_log import without_positions
from specsim.interop.reading import Progress, number
from specsim.interop.vllm_requests import responses

FORMAT = "llamacpp-timings"


def bearing(value: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Every `timings` object inside `value`."""
    if isinstance(value, Mapping):
        timings = value.get("timings")
        if isinstance(timings, Mapping) and "predicted_n" in timings:
            yield timings
            return
        value = list(value.values())
    if isinstance(value, list) and depth < 6:
        for item in value:
            if isinstance(item, (Mapping, list)):
                yield from bearing(item, depth + 1)


def read(path: Path, progress: Progress | None = None) -> Imported:
    """Read responses.

    Raises:
        RecordError: for impossible figures, or where no response carries timings.
    """
    tallies, times, notes = TallyByK(), StepTimes(), Notes()
    seen = 0
    for where, response in responses(path, progress):
        for timings in bearing(response):
            seen += 1
            _add(timings, where, tallies, times, notes)
    if not seen:
        raise RecordError(f"{path}: no key timings.predicted_n; expected responses of llama-server")
    if not tallies:
        notes.add("no-speculation", f"{path}: {seen} timings without drafted tokens")
    return Imported(
        file=str(path), format=FORMAT, tallies=tuple(tallies.values()), steps=times.result(),
        notes=notes.result(),
    )  # fmt: skip


def _add(
    timings: Mapping[str, Any], where: str, tallies: TallyByK, times: StepTimes, notes: Notes
) -> None:
    tokens = number(timings["predicted_n"], where, "timings.predicted_n")
    seconds = number(timings.get("predicted_ms", 0.0), where, "timings.predicted_ms") * 1e-3
    prompt = number(timings.get("prompt_n", 0), where, "timings.prompt_n")
    prompt += number(timings.get("cache_n", 0), where, "timings.cache_n")
    drafted = number(timings.get("draft_n", 0), where, "timings.draft_n")
    accepted = number(timings.get("draft_n_accepted", 0), where, "timings.draft_n_accepted")
    if accepted > drafted:
        raise RecordError(
            f"{where}: timings.draft_n_accepted = {accepted:g} of draft_n = {drafted:g}: expected "
            "no more accepted than drafted"
        )
    k, steps = 0, tokens - 1  # the first token comes from the prefill
    if drafted:
        k, steps = without_positions(tallies, accepted, drafted, where, notes, tokens - 1, None)
    if steps > 0 and (k or not drafted):
        times.add(k, None, seconds / steps, steps, prompt + tokens / 2)
