"""SGLang's `bench_serving`: a JSON object a line (--output-file), or what it prints; and the
JSON of `bench_one_batch_server`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from specsim.errors import RecordError
from specsim.interop.chunks import from_latency
from specsim.interop.common import MAX_POSITIONS, Imported, MeanLength, Notes, StepTimes
from specsim.interop.reading import Progress, may_be_json, number, read_lines, section
from specsim.interop.vllm_bench import printed_blocks
from specsim.interop.vllm_requests import responses

FORMAT = "sglang-bench"
PRINTED = {
    "Successful requests": "completed",
    "Total input tokens": "total_input_tokens",
    "Total generated tokens": "total_output_tokens",
    "Concurrency": "concurrency",
    "Accept length": "accept_length",
    "Mean TPOT (ms)": "mean_tpot_ms",
    "Mean ITL (ms)": "mean_itl_ms",
    "Output token throughput (tok/s)": "output_throughput",
}
_KEYS = tuple(PRINTED.values())


def read(path: Path, progress: Progress | None = None) -> Imported:
    """Read one result file.

    Raises:
        RecordError: for impossible figures, or a file without any.
    """
    notes, times = Notes(), StepTimes()
    lengths: list[MeanLength] = []
    contexts: list[float] = []
    results = 0
    for where, found in _blocks(path, progress):
        block = _of_one_batch(found, where)
        value = {k: number(block[k], where, k) for k in _KEYS if block.get(k) not in (None, "None")}
        if "mean_itl_ms" not in value and "accept_length" not in value:
            notes.add("incomplete-lines", f"{where} holds no result; left out")
            continue
        results += 1
        k: int | None = None
        length = value.get("accept_length")
        if length is not None:
            number(length, where, "accept_length", low=1.0, high=MAX_POSITIONS + 1)
            lengths.append(MeanLength(acceptance_length=length, num_draft_tokens=None))
            notes.add(
                "no-token-count",
                f"{where}: accept_length is the server's mean since it started; K is not in the "
                "file (say --k)",
            )
        elif (ratio := _ratio(value)) is not None:
            # another engine's server, whose acceptance this client does not ask for
            k = from_latency(ratio, where, lengths, notes)
        else:
            k = 0
            notes.add("no-speculation", f"{where}: no accept_length; step time without speculation")
        if value.get("mean_itl_ms", 0) > 0:
            requests = value.get("completed") or 0.0
            context = None
            if requests and "total_input_tokens" in value:
                half = value.get("total_output_tokens", 0.0) / 2
                context = (value["total_input_tokens"] + half) / requests
                contexts.append(context)
            per_step = value["mean_itl_ms"] * 1e-3
            if length is not None and not _per_chunk(value, length):
                per_step *= length
            concurrency = value.get("concurrency")
            times.add(k, concurrency, per_step, max(requests, 1.0), context, counted=False)
    if not results:
        raise RecordError(f"{path}: no result of SGLang's bench_serving")
    return Imported(
        file=str(path), format=FORMAT, lengths=tuple(lengths), steps=times.result(),
        context=(min(contexts), max(contexts)) if contexts else None, notes=notes.result(),
    )  # fmt: skip


def _of_one_batch(block: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The keys of `bench_one_batch_server` (one batch, all requests at once) as bench_serving's;
    other results as they are. An acc_length below 1 says that nothing was speculated."""
    if "batch_size" not in block or "acc_length" not in block:
        return block
    batch, prompt, output, rate = (
        number(block.get(key), where, key)
        for key in ("batch_size", "input_len", "output_len", "output_throughput")
    )
    length = block["acc_length"]
    if length is not None:
        length = number(length, where, "acc_length", low=-1.0)
    per_token_ms = 1e3 * batch / rate if rate > 0 else 0.0
    return {
        "completed": batch, "concurrency": batch, "total_input_tokens": batch * prompt,
        "total_output_tokens": batch * output, "mean_tpot_ms": per_token_ms,
        "mean_itl_ms": per_token_ms, "accept_length": length if length and length >= 1 else None,
    }  # fmt: skip


def _ratio(value: Mapping[str, float]) -> float | None:
    """ITL over TPOT; None where either is missing."""
    itl, tpot = value.get("mean_itl_ms"), value.get("mean_tpot_ms")
    return itl / tpot if itl and tpot else None


def _per_chunk(value: Mapping[str, float], length: float) -> bool:
    """Whether ITL is the gap between chunks (one a step), as on the OpenAI endpoint: then it
    is as many times TPOT as a step emits tokens. On SGLang's own endpoint a chunk's gap is
    divided by its tokens, and ITL is about TPOT."""
    ratio = _ratio(value)
    return ratio is not None and ratio > (1 + length) / 2


def _blocks(path: Path, progress: Progress | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    first = next((line for _, line in read_lines(path) if line), "")
    if may_be_json(first):
        for where, value in responses(path, progress):
            yield where, section(value, where, "result")
    else:
        yield from printed_blocks(path, progress, PRINTED)
