"""vLLM's per-request metrics: `metrics.speculative_decoding` of a response (JSON or JSON
Lines), written with --per-request-spec-decode-metrics.

One request is one window, so standard errors are clustered by request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from specsim.errors import RecordError
from specsim.interop.common import MAX_POSITIONS, Imported, Notes, TallyByK
from specsim.interop.reading import Progress, number, parse_json, read_document, read_lines, section

FORMAT = "vllm-requests"


def read(path: Path, progress: Progress | None = None) -> Imported:
    """Read one response, a list of them, or one a line.

    Raises:
        RecordError: for impossible figures, or where no response carries any.
    """
    tallies, notes = TallyByK(), Notes()
    for where, response in responses(path, progress):
        _add(response, where, tallies, notes)
    if not tallies:
        raise RecordError(
            f"{path}: no key metrics.speculative_decoding; was the server started with "
            "--per-request-spec-decode-metrics?"
        )
    return Imported(
        file=str(path), format=FORMAT, tallies=tuple(tallies.values()), notes=notes.result()
    )


def responses(path: Path, progress: Progress | None = None) -> Iterator[tuple[str, Any]]:
    """(place, value) of each JSON value: one a line, one document, or the `data:` lines of a
    saved stream."""
    first = next((line for _, line in read_lines(path) if line), "")
    if first.startswith("{") and first.endswith("}"):
        for line_number, line in read_lines(path, progress):
            if line:
                where = f"{path}, line {line_number}"
                yield where, parse_json(line, where)
        return
    if first.startswith("data:"):
        for line_number, line in read_lines(path, progress):
            if (text := line.removeprefix("data:").strip()).startswith("{") and text != line:
                where = f"{path}, line {line_number}"
                yield where, parse_json(text, where)
        return
    document = parse_json(read_document(path), str(path))
    if isinstance(document, list):
        yield from ((f"{path}, item {i}", item) for i, item in enumerate(document))
    else:
        yield str(path), document


def _add(response: Any, where: str, tallies: TallyByK, notes: Notes) -> None:
    response = section(response, where, "response")
    metrics = response.get("metrics", response)
    if not isinstance(metrics, Mapping) or not metrics.get("speculative_decoding"):
        if response.get("object") == "chat.completion.chunk":
            return  # a stream's last chunk has them
        notes.add("incomplete-lines", f"{where} has no metrics.speculative_decoding; left out")
        return
    spec = section(metrics["speculative_decoding"], where, "metrics.speculative_decoding")
    histogram = spec.get("acceptance_histogram")
    if not isinstance(histogram, list) or not histogram:
        raise RecordError(f"{where}: acceptance_histogram: expected a list of counts")
    counts = [number(c, where, f"acceptance_histogram[{i}]") for i, c in enumerate(histogram)]
    k = int(number(spec.get("num_spec_tokens", len(counts) - 1), where, "num_spec_tokens", low=1,
                   high=MAX_POSITIONS))  # fmt: skip
    if len(counts) > k + 1:
        raise RecordError(f"{where}: {len(counts)} histogram entries: expected K + 1 = {k + 1}")
    counts += [0.0] * (k + 1 - len(counts))
    steps, accepted = sum(counts), sum(i * c for i, c in enumerate(counts))
    if steps == 0:
        return
    drafted = number(spec.get("num_draft_tokens", steps * k), where, "num_draft_tokens")
    told = spec.get("num_accepted_draft_tokens")
    if accepted > drafted or (told is not None and number(told, where, "accepted") != accepted):
        raise RecordError(
            f"{where}: the histogram holds {accepted:g} accepted tokens of {drafted:g} drafted; "
            f"num_accepted_draft_tokens = {told}: expected the same, and no more than drafted"
        )
    tally = tallies.of(k)
    tally.by_request = True
    at_least = [sum(counts[i:]) for i in range(1, k + 1)]
    tally.add(
        steps=steps, drafted=drafted, accepted=accepted, at_least=at_least,
        emitted=accepted + steps,
    )  # fmt: skip
