"""Results of clients that see only streamed chunks: guidellm and inference-perf.

They give latencies and no acceptance, but that guidellm counts the tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specsim.errors import RecordError
from specsim.interop.chunks import from_latency, per_token
from specsim.interop.common import Imported, MeanLength, Notes, StepTimes
from specsim.interop.reading import LARGEST, Progress, number, parse_json, read_document, section

GUIDELLM, INFERENCE_PERF = "guidellm", "inference-perf"


def read_guidellm(path: Path, progress: Progress | None = None) -> Imported:
    """guidellm's report. Its inter-token latency is per output token; times the tokens of a
    chunk (`iter_tokens_per_iteration`) it is the time of a step.

    Raises:
        RecordError: where there is no benchmark with latencies.
    """
    notes, times = Notes(), StepTimes()
    lengths: list[MeanLength] = []
    document = section(parse_json(read_document(path), str(path)), str(path), "report")
    benchmarks = document.get("benchmarks")
    if not isinstance(benchmarks, list):
        raise RecordError(f"{path}: benchmarks: expected a list of results")
    for i, benchmark in enumerate(benchmarks):
        where = f"{path}, benchmark {i}"
        metrics = section(section(benchmark, where, "benchmark").get("metrics"), where, "metrics")
        token_ms, weight = _figures(metrics, "inter_token_latency_ms", where, high=1e9)
        per_chunk, chunks = _figures(metrics, "iter_tokens_per_iteration", where)
        # every request that the server works on shares its steps, those that fail too
        batch, _ = _figures(metrics, "request_concurrency", where, ("total", "successful"))
        if not token_ms:
            notes.add("incomplete-lines", f"{where} has no inter-token latency; left out")
        elif per_chunk:
            k = from_latency(per_chunk, where, lengths, notes)
            seconds = token_ms * per_chunk * 1e-3
            times.add(k, batch, seconds, chunks or weight or 1.0, counted=chunks is not None)
        else:
            per_token(where, notes)
            times.add(None, batch, token_ms * 1e-3, weight or 1.0, counted=False)
    if lengths:
        return Imported(file=str(path), format=GUIDELLM, lengths=tuple(lengths),
                        steps=times.result(), notes=notes.result())  # fmt: skip
    return _latency_only(path, GUIDELLM, times, notes)


def _figures(
    metrics: Mapping[str, Any], key: str, where: str, of: Sequence[str] = ("successful",),
    *, high: float = LARGEST,
) -> tuple[float | None, float | None]:  # fmt: skip
    """Mean and count of one distribution; None where they are missing or 0."""
    value = metrics.get(key)
    if value is None:
        return None, None
    value = section(value, where, key)
    if not {"successful", "total"}.isdisjoint(value):
        value = next((value[name] for name in of if value.get(name)), None)
    if not value:
        return None, None
    value = section(value, where, key)
    mean = number(value.get("mean"), where, f"{key}.mean", high=high)
    count = value.get("count")
    known = None if count is None else number(count, where, f"{key}.count")
    return mean or None, known or None


def _mean(value: Mapping[str, Any], where: str) -> float:
    return number(value.get("mean"), where, "mean")


def read_inference_perf(path: Path, progress: Progress | None = None) -> Imported:
    """inference-perf's lifecycle report (a stage or the summary). Time per output token is
    recomputed as (request latency − time to first token)/(output tokens − 1): releases of
    2025 print half of it.

    Raises:
        RecordError: where there are no successful requests.
    """
    notes, times = Notes(), StepTimes()
    value = parse_json(read_document(path), str(path))
    if isinstance(value, list):
        return _per_request(path)
    document = section(value, str(path), "report")
    good = section(document.get("successes"), str(path), "successes")
    where = f"{path}, successes"
    count = number(good.get("count", 0), where, "count")
    if count == 0:
        raise RecordError(f"{where}: count = 0: no request succeeded")
    latency = good.get("latency")
    if not isinstance(latency, Mapping):
        return _server_report(path, good, where, count)
    whole, first, prompt, output = (
        _mean(section(source.get(key), where, key), f"{where}.{key}")
        for source, key in (
            (latency, "request_latency"), (latency, "time_to_first_token"), (good, "prompt_len"),
            (good, "output_len"),
        )
    )  # fmt: skip
    if output <= 1 or whole <= first:
        raise RecordError(
            f"{where}: request latency {whole:g} s, first token {first:g} s, {output:g} output "
            "tokens: expected a time between tokens"
        )
    token_s = (whole - first) / (output - 1)
    told = latency.get("time_per_output_token")
    mean = _mean(told, where) if isinstance(told, Mapping) else 0.0
    if 0.4 < mean / token_s < 0.6:
        notes.add(
            "halved-tpot",
            f"{where}: time_per_output_token = {mean:.6f} s is half of the {token_s:.6f} s that "
            "request latency, time to first token and output length give; the latter counts",
        )
    rate = good.get("throughput")
    batch = None
    if isinstance(rate, Mapping) and rate.get("requests_per_sec") is not None:
        # Little's law over the decoding phase
        batch = number(rate["requests_per_sec"], where, "requests_per_sec") * (whole - first)
    per_token(where, notes)
    times.add(None, max(1.0, round(batch, 2)) if batch else None, token_s, count * (output - 1),
              prompt + output / 2, counted=False)  # fmt: skip
    return _latency_only(path, INFERENCE_PERF, times, notes)


def _per_request(path: Path) -> Imported:
    """The per-request report: mean time between chunks, one chunk a step."""
    from specsim.interop.served import served_requests

    notes, times = Notes(), StepTimes()
    for record in served_requests(path)[1]:
        stamps = record.chunk_times_s
        if len(stamps) > 1:
            context = record.prompt_tokens + record.output_tokens / 2
            seconds = (stamps[-1] - stamps[0]) / (len(stamps) - 1)
            times.add(None, None, seconds, len(stamps) - 1, context)
    return _latency_only(path, INFERENCE_PERF, times, notes)


def _server_report(path: Path, good: Mapping[str, Any], where: str, count: float) -> Imported:
    """The report made from the server's own metrics: its time per output token is right, its
    lengths are sums over scrapes."""
    notes, times = Notes(), StepTimes()
    tpot = section(good.get("time_per_output_token"), where, "time_per_output_token")
    per_token(where, notes)
    times.add(None, None, _mean(tpot, where), count, counted=False)
    return _latency_only(path, INFERENCE_PERF, times, notes)


def _latency_only(path: Path, name: str, times: StepTimes, notes: Notes) -> Imported:
    rows = times.result()
    if not rows:
        raise RecordError(f"{path}: no usable latency; expected a report of {name}")
    notes.add(
        "latency-only",
        f"{path}: {name} sees streamed chunks only: latencies, no acceptance; feed the server's "
        "metrics or log too",
    )
    contexts = [row.context for row in rows if row.context is not None]
    return Imported(
        file=str(path), format=name, steps=rows, notes=notes.result(),
        context=(min(contexts), max(contexts)) if contexts else None,
    )  # fmt: skip
