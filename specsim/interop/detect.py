"""Recognises a file by its content, and reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from specsim.errors import RecordError
from specsim.interop import (
    aiperf,
    client_bench,
    llamacpp_log,
    llamacpp_timings,
    sglang_bench,
    sglang_info,
    sglang_log,
    sglang_metrics,
    vllm_bench,
    vllm_log,
    vllm_metrics,
    vllm_requests,
)
from specsim.interop.common import Imported
from specsim.interop.reading import Progress, may_be_json, parse_json, read_document, read_lines

Reader = Callable[[Path, Progress | None], Imported]

READERS: Mapping[str, Reader] = {
    vllm_log.FORMAT: vllm_log.read,
    vllm_metrics.FORMAT: vllm_metrics.read,
    vllm_bench.FORMAT: vllm_bench.read,
    vllm_requests.FORMAT: vllm_requests.read,
    sglang_log.FORMAT: sglang_log.read,
    sglang_metrics.FORMAT: sglang_metrics.read,
    sglang_bench.FORMAT: sglang_bench.read,
    sglang_info.FORMAT: sglang_info.read,
    llamacpp_log.FORMAT: llamacpp_log.read,
    llamacpp_timings.FORMAT: llamacpp_timings.read,
    client_bench.INFERENCE_PERF: client_bench.read_inference_perf,
    client_bench.GUIDELLM: client_bench.read_guidellm,
    aiperf.FORMAT: aiperf.read,
}
#: Our own measurements, which `specsim.fitting` reads: record files and recorded runs.
RECORDS, RUNS = "records", "runs"
FORMATS = (*READERS, RECORDS, RUNS)

#: A line that matches names the format; tried in this order.
_LINES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (vllm_log.FORMAT, re.compile(r"SpecDecoding metrics:|Speculative metrics:|"
                                 r"Avg generation throughput:")),
    (sglang_log.FORMAT, re.compile(r"Decode batch.*#running-req")),
    (llamacpp_log.FORMAT, re.compile(r"draft acceptance(?: rate)?\s*=|eval time\s*=.* ms /")),
    (vllm_metrics.FORMAT, re.compile(r"^(?:vllm:|ray_vllm[:_])\w+(?:\{.*\})?\s+\S")),
    (sglang_metrics.FORMAT, re.compile(r"^sglang:\w+(?:\{.*\})?\s+\S")),
    (sglang_bench.FORMAT, re.compile(r"^\s*Accept length:\s+\S+\s*$|^\s*Concurrency:\s+\S+\s*$")),
    (vllm_bench.FORMAT, re.compile(r"^\s*(?:Acceptance length|Mean TPOT \(ms\)|Mean ITL \(ms\)):"
                                   r"\s+\S+\s*$")),
    (vllm_requests.FORMAT, re.compile(r'^data:.*"speculative_decoding"\s*:\s*\{')),
    (llamacpp_timings.FORMAT, re.compile(r'^data:.*"timings"\s*:\s*\{')),
    (sglang_info.FORMAT, re.compile(r'"(?:spec_verify_ct|avg_spec_accept_length)"\s*:')),
)  # fmt: skip
_OTHER_METRICS = re.compile(r"^# (?:HELP|TYPE) (\S+)")
#: Bench text prints the line that tells vLLM from SGLang late: look on this far.
_BENCH_LINES = 200


def read_file(path: Path, format_name: str = "auto", progress: Progress | None = None) -> Imported:
    """Read one foreign file.

    Raises:
        RecordError: naming file, place, key, value and what was expected.
    """
    name = recognise(path) if format_name == "auto" else format_name
    if name not in READERS:
        raise RecordError(f"{path}: format {name!r}: expected one of {', '.join(READERS)}")
    try:
        return READERS[name](path, progress)
    except RecursionError:
        raise RecordError(f"{path}: nested too deeply for {name}") from None


def recognise(path: Path) -> str:
    """The format of a file, by its content.

    Raises:
        RecordError: if it is none that is known.
    """
    other = bench = keys = broken = ""
    seen = 0
    for line_number, line in read_lines(path):
        if not line:
            continue
        if not seen and may_be_json(line):
            try:
                name, keys = _of_json(path, line)
            except RecordError as error:  # or a log whose first line begins like JSON
                name, broken = None, str(error)
            if name is not None:
                return name
        seen += 1
        plain = vllm_bench.undecorated(line)
        for name, pattern in _LINES:
            if pattern.search(plain):
                if name == vllm_bench.FORMAT:
                    bench = bench or name
                    break
                return name
        if bench and line_number > _BENCH_LINES:
            return bench
        if not other and (found := _OTHER_METRICS.match(line)):
            other = found[1]
    if bench:
        return bench
    if not seen:
        raise RecordError(f"{path}: empty file")
    if other:
        raise RecordError(
            f"{path}: metrics of another server (series such as {other}); expected vllm:… or "
            "sglang:…"
        )
    if keys:
        raise RecordError(
            f"{path}: JSON of no known format (keys: {keys}); say --format, one of "
            f"{', '.join(FORMATS)}"
        )
    if broken:
        raise RecordError(broken)
    raise RecordError(f"{path}: format not recognised; say --format, one of {', '.join(FORMATS)}")


def _of_json(path: Path, first_line: str) -> tuple[str | None, str]:
    """Format of a JSON document or of JSON Lines, and the keys found. A line of a log may be
    JSON too, so keys that are not known settle nothing.

    Raises:
        RecordError: if it is not JSON.
    """
    try:
        value = json.loads(first_line)
    except (ValueError, RecursionError):
        value = parse_json(read_document(path), str(path))
    name = of_value(value)
    keys = ", ".join(str(k) for k in list(value)[:6]) if isinstance(value, dict) else ""
    return name, keys or type(value).__name__


def of_value(value: Any) -> str | None:
    """Format of one parsed JSON value, by its keys."""
    if isinstance(value, list):
        return of_value(value[0]) if value else None
    if not isinstance(value, Mapping):
        return None
    keys = set(value)
    if "schema" in keys and keys & {"version", "device", "dtype"}:
        return RECORDS
    if "accepted_runs" in keys or any(
        k.startswith("acc_") and isinstance(v, list) for k, v in value.items()
    ):
        return RUNS
    if {"acc_length", "batch_size"} <= keys:
        return sglang_bench.FORMAT
    metrics = value.get("metrics", value)
    if isinstance(metrics, Mapping) and "speculative_decoding" in metrics:
        return vllm_requests.FORMAT
    if {"start_time", "end_time", "info"} <= keys:
        return client_bench.INFERENCE_PERF  # one request of the per-request report
    if "successes" in keys and ("load_summary" in keys or "failures" in keys):
        return client_bench.INFERENCE_PERF
    if "benchmarks" in keys:
        return client_bench.GUIDELLM
    if any(aiperf.is_metric(v) for v in value.values()) or {"metadata", "metrics"} <= keys:
        return aiperf.FORMAT
    if any(k.startswith("spec_decode_") for k in keys) or "mean_itl_ms" in keys:
        theirs = {"accept_length", "concurrency", "total_output_tokens_retokenized"}
        return sglang_bench.FORMAT if keys & theirs else vllm_bench.FORMAT
    if any(True for _ in sglang_info.bearing(value)):
        return sglang_info.FORMAT
    if any(True for _ in llamacpp_timings.bearing(value)):
        return llamacpp_timings.FORMAT
    return None
