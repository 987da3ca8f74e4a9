"""Served-request records from real runs: per-request arrays of `vllm bench serve`
(--save-detailed) and inference-perf's per-request report.

`specsim.metrics` treats them like simulated ones; `write_trace` gives the arrivals and
lengths that `workload: {arrivals: {process: trace, file: …}}` replays.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specsim.errors import RecordError
from specsim.interop.reading import number, parse_json, read_document, section
from specsim.records import Header, RequestRecord, write_records

VLLM, INFERENCE_PERF = "vllm-bench", "inference-perf"


def served_requests(path: str | Path) -> tuple[Header, list[RequestRecord]]:
    """The requests of one result file, in order of arrival; times from the first arrival.

    Raises:
        RecordError: naming file, request, key, value and what was expected.
    """
    path = Path(path)
    document = parse_json(read_document(path), str(path))
    if isinstance(document, list):
        name, requests = INFERENCE_PERF, list(_inference_perf(document, str(path)))
        settings: dict[str, Any] = {}
    else:
        result = section(document, str(path), "result")
        if not set(_ARRAYS) & set(result):
            raise RecordError(
                f"{path}: nothing by request; expected a result of `vllm bench serve "
                "--save-result --save-detailed`, or inference-perf's per-request report"
            )
        name, requests = VLLM, list(_vllm(result, str(path)))
        settings = {k: result[k] for k in ("model_id", "request_rate", "num_prompts", "date")
                    if isinstance(result.get(k), (str, int, float))}  # fmt: skip
    if not requests:
        raise RecordError(f"{path}: no request that was served")
    requests.sort(key=lambda r: r[0])
    start = requests[0][0]
    records = [_record(i, start, *request) for i, request in enumerate(requests)]
    settings |= {"source": path.name, "format": name}
    return Header(schema=RequestRecord.SCHEMA, settings=settings), records


def _record(
    index: int, start: float, arrival: float, prompt: int, output: int,
    times: Sequence[float], failed: bool, chunks: tuple[int, ...] | None = None,
) -> RequestRecord:  # fmt: skip
    tokens = spread_tokens(output, len(times)) if chunks is None else chunks
    return RequestRecord(
        request=str(index), arrival_s=arrival - start, prompt_tokens=prompt, output_tokens=output,
        chunk_times_s=tuple(t - start for t in times), chunk_tokens=tokens, failed=failed,
    )  # fmt: skip


def spread_tokens(output_tokens: int, chunks: int) -> tuple[int, ...]:
    """Tokens per chunk when only their sum is known: one in the first chunk (the prefill's),
    the others as even as whole numbers can be."""
    if chunks == 0:
        return ()
    if chunks == 1:
        return (output_tokens,)
    first = min(1, output_tokens)
    edges = np.round(np.linspace(0, output_tokens - first, chunks)).astype(int)
    return (first, *(int(x) for x in np.diff(edges)))


#: What `vllm bench serve --save-detailed` lists, one entry a request.
_ARRAYS = ("input_lens", "output_lens", "ttfts", "itls", "start_times")
#: Start, prompt, output, times of chunks, whether it failed, tokens of chunks if told.
Parsed = tuple[float, int, int, list[float], bool, tuple[int, ...] | None]


def _vllm(result: Mapping[str, Any], where: str) -> Iterator[Parsed]:
    columns = {}
    for name in _ARRAYS:
        value = result.get(name)
        if not isinstance(value, list):
            raise RecordError(
                f"{where}: {name}: expected a list with one entry a request; run `vllm bench "
                "serve` with --save-result --save-detailed"
            )
        columns[name] = value
    errors = result.get("errors") or [""] * len(columns["ttfts"])
    lengths = {name: len(value) for name, value in columns.items()}
    if len(set(lengths.values())) > 1 or len(errors) != lengths["ttfts"]:
        raise RecordError(f"{where}: lists of different lengths: {lengths}")
    for i in range(lengths["ttfts"]):
        place = f"{where}, request {i}"
        start = number(columns["start_times"][i], place, "start_times", high=1e12)
        prompt = int(number(columns["input_lens"][i], place, "input_lens"))
        output = int(number(columns["output_lens"][i], place, "output_lens"))
        gaps = columns["itls"][i]
        if not isinstance(gaps, list):
            raise RecordError(f"{place}: itls: expected a list of seconds")
        if errors[i] or output == 0:
            yield start, prompt, output, [], True, None
            continue
        steps = [number(columns["ttfts"][i], place, "ttfts", high=1e6)]
        steps += [number(gap, place, "itls", high=1e6) for gap in gaps]
        yield start, prompt, output, _merged(list(start + np.cumsum(steps)), output), False, None


def _inference_perf(requests: Sequence[Any], where: str) -> Iterator[Parsed]:
    for i, item in enumerate(requests):
        place = f"{where}, request {i}"
        request = section(item, place, "request")
        start = number(request.get("start_time"), place, "start_time", high=1e12)
        end = number(request.get("end_time"), place, "end_time", low=start, high=1e12)
        info = section(request.get("info"), place, "info")
        asked, got = info.get("request_metrics"), info.get("response_metrics")
        if isinstance(asked, Mapping) and isinstance(got, Mapping):  # since 0.5
            text = asked.get("text")
            prompt_value = text.get("input_tokens") if isinstance(text, Mapping) else None
        else:
            prompt_value, got = info.get("input_tokens"), info
        prompt = int(number(prompt_value, place, "input_tokens"))
        output = int(number(got.get("output_tokens", 0), place, "output_tokens"))
        times = got.get("output_token_times") or []
        if not isinstance(times, list):
            raise RecordError(f"{place}: output_token_times: expected a list of times")
        if request.get("error") or output == 0:
            yield start, prompt, output, [], True, None
            continue
        stamps = [number(t, place, "output_token_times", low=start, high=1e12) for t in times]
        if stamps != sorted(stamps):
            raise RecordError(f"{place}: output_token_times: expected rising times")
        # Releases of 2026 may stamp every token with the time of its chunk.
        chunks, counts = np.unique(stamps, return_counts=True)
        told = tuple(int(n) for n in counts) if len(stamps) == output else None
        times = _merged([float(t) for t in chunks] or [end], output)
        yield start, prompt, output, times, False, told


def _merged(times: list[float], output_tokens: int) -> list[float]:
    """At most one chunk a token. Releases of 2025 stamp every chunk twice within
    microseconds: the stamps after the longest gaps are kept."""
    if len(times) <= output_tokens:
        return [float(t) for t in times]
    gaps = np.diff(times)
    longest = np.sort(np.argsort(gaps, kind="stable")[len(gaps) - (output_tokens - 1) :])
    return [float(times[0]), *(float(times[i + 1]) for i in longest)]


def write_requests(path: str | Path, target: str | Path) -> int:
    """Convert a result file to a record file; the number of requests."""
    header, records = served_requests(path)
    write_records(target, header, records)
    return len(records)


def write_trace(records: Iterable[RequestRecord], target: str | Path) -> int:
    """Arrivals and lengths as CSV (arrival_s, prompt_tokens, output_tokens); the number of
    requests written. Failed ones are left out."""
    count = 0
    with Path(target).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["arrival_s", "prompt_tokens", "output_tokens"])
        for record in records:
            if not record.failed:
                writer.writerow([record.arrival_s, record.prompt_tokens, record.output_tokens])
                count += 1
    return count
