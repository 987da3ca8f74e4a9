"""Results of clients that see only streamed chunks: guidellm, inference-perf, aiperf.

They give latencies. guidellm and inference-perf carry no acceptance; aiperf exports it
where the server reports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specsim.errors import RecordError
from specsim.interop.common import MAX_POSITIONS, Imported, MeanLength, Notes, StepTimes
from specsim.interop.reading import Progress, number, parse_json, read_document, section

GUIDELLM, INFERENCE_PERF, AIPERF = "guidellm", "inference-perf", "aiperf"
#: Seconds per unit that aiperf may name.
UNITS = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "milliseconds": 1e-3, "us": 1e-6,
         "µs": 1e-6, "microseconds": 1e-6, "ns": 1e-9, "nanoseconds": 1e-9}  # fmt: skip


def read_guidellm(path: Path, progress: Progress | None = None) -> Imported:
    """guidellm's report.

    Raises:
        RecordError: where there is no benchmark with latencies.
    """
    notes, times = Notes(), StepTimes()
    document = section(parse_json(read_document(path), str(path)), str(path), "report")
    benchmarks = document.get("benchmarks")
    if not isinstance(benchmarks, list):
        raise RecordError(f"{path}: benchmarks: expected a list of results")
    for i, benchmark in enumerate(benchmarks):
        where = f"{path}, benchmark {i}"
        metrics = section(section(benchmark, where, "benchmark").get("metrics"), where, "metrics")
        itl = _successful(metrics.get("inter_token_latency_ms"), where, "inter_token_latency_ms")
        if itl is None:
            notes.add("incomplete-lines", f"{where} has no inter-token latency; left out")
            continue
        concurrency = _successful(metrics.get("request_concurrency"), where, "request_concurrency")
        count = itl.get("count")
        known = 1.0 if count is None else max(number(count, where, "count"), 1.0)
        times.add(
            None, None if concurrency is None else _mean(concurrency, where) or None,
            _mean(itl, where) * 1e-3, known,
        )  # fmt: skip
    return _latency_only(path, GUIDELLM, times, notes)


def _successful(value: Any, where: str, key: str) -> Mapping[str, Any] | None:
    if not isinstance(value, Mapping):
        return None
    inner = value.get("successful", value)
    return section(inner, where, key) if inner else None


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
    per_token = (whole - first) / (output - 1)
    told = latency.get("time_per_output_token")
    mean = _mean(told, where) if isinstance(told, Mapping) else 0.0
    if 0.4 < mean / per_token < 0.6:
        notes.add(
            "halved-tpot",
            f"{where}: time_per_output_token = {mean:.6f} s is half of the {per_token:.6f} s that "
            "request latency, time to first token and output length give; the latter counts",
        )
    rate = good.get("throughput")
    batch = None
    if isinstance(rate, Mapping) and rate.get("requests_per_sec") is not None:
        # Little's law over the decoding phase
        batch = number(rate["requests_per_sec"], where, "requests_per_sec") * (whole - first)
    times.add(None, max(1.0, round(batch, 2)) if batch else None, per_token, count * (output - 1),
              prompt + output / 2)  # fmt: skip
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
    times.add(None, None, _mean(tpot, where), count)
    return _latency_only(path, INFERENCE_PERF, times, notes)


def read_aiperf(path: Path, progress: Progress | None = None) -> Imported:
    """aiperf's profile export; each metric's own unit counts, unknown metrics are skipped.

    Raises:
        RecordError: where nothing can be used.
    """
    notes, times = Notes(), StepTimes()
    document = section(parse_json(read_document(path), str(path)), str(path), "export")
    found = {key: _metric(document, key, str(path)) for key in document}
    length = next((v for k, v in found.items() if v is not None and "accept" in k and
                   "len" in k), None)  # fmt: skip
    itl = found.get("inter_token_latency") or found.get("inter_chunk_latency")
    chunk = found.get("inter_chunk_latency")
    lengths: tuple[MeanLength, ...] = ()
    if length is not None:
        number(length, str(path), "acceptance length", low=1.0, high=MAX_POSITIONS + 1)
        lengths = (MeanLength(acceptance_length=length, num_draft_tokens=None),)
        notes.add("unknown-k", f"{path}: K is not in the file (say --k)")
    step_s = chunk if chunk is not None else None if itl is None else itl * (length or 1.0)
    if step_s is not None:
        concurrency = found.get("effective_concurrency")
        times.add(0 if length is None and chunk is None else None, concurrency or None, step_s)
    if not any(v is not None for v in found.values()):
        raise RecordError(f"{path}: no metric with unit and avg; expected aiperf's profile export")
    if length is None:
        return _latency_only(path, AIPERF, times, notes, required=False)
    return Imported(
        file=str(path), format=AIPERF, lengths=lengths, steps=times.result(), notes=notes.result()
    )


def _metric(document: Mapping[str, Any], key: str, path: str) -> float | None:
    """Mean of one metric in SI units; None where the value is no metric."""
    value = document[key]
    if not isinstance(value, Mapping) or "avg" not in value or "unit" not in value:
        return None
    if value["avg"] is None:
        return None
    mean = number(value["avg"], path, f"{key}.avg")
    unit = str(value["unit"]).lower()
    if key.endswith("latency") or key.startswith("time_to") or unit in UNITS:
        if unit not in UNITS:
            raise RecordError(f"{path}: {key}.unit = {unit!r}: expected one of {', '.join(UNITS)}")
        return mean * UNITS[unit]
    return mean


def _latency_only(
    path: Path, name: str, times: StepTimes, notes: Notes, *, required: bool = True
) -> Imported:
    rows = times.result()
    if required and not rows:
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
