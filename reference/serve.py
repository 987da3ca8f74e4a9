"""Serving: continuous batching of requests that arrive by a trace, in real time.

Each iteration admits what has arrived while a slot is free (first come, first served),
then steps all rows at once: rows that read their prompt ride in the same forward pass as
rows that decode. The real counterpart of the simulator, with the same records.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reference.decode import Decoder
from reference.prompts import Prompt
from reference.request import Request
from reference.sampling import SeededRandomness
from reference.stopping import StopRule
from reference.tokenizer import Tokenizer
from specsim.errors import RecordError
from specsim.records import RequestRecord

#: Arrivals this close ahead have arrived: a sleep may end a rounding error too early.
CLOCK_RESOLUTION_S = 1e-9


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A request to come: its prompt as token ids, and how much it may generate."""

    name: str
    arrival_s: float
    prompt: tuple[int, ...]
    output_tokens: int
    traffic_class: str = ""
    exact_length: bool = False  # generate exactly output_tokens, whatever the model says


@dataclass
class Served:
    """What a request has received so far."""

    arrival: Arrival
    request: Request
    chunk_times_s: list[float] = field(default_factory=list)
    chunk_tokens: list[int] = field(default_factory=list)

    def record(self) -> RequestRecord:
        """The request in the shared schema."""
        return RequestRecord(
            request=self.arrival.name,
            arrival_s=self.arrival.arrival_s,
            prompt_tokens=len(self.arrival.prompt),
            output_tokens=sum(self.chunk_tokens),
            chunk_times_s=tuple(self.chunk_times_s),
            chunk_tokens=tuple(self.chunk_tokens),
            traffic_class=self.arrival.traffic_class,
        )


def serve(
    decoder: Decoder,
    arrivals: Sequence[Arrival],
    *,
    eos: frozenset[int] = frozenset(),
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[RequestRecord]:
    """Serve arrivals (any order) to the end; a record as each request completes.

    Times are seconds since the call. `clock` and `sleep` can be replaced for tests.
    """
    waiting = sorted(arrivals, key=lambda a: a.arrival_s)[::-1]
    start, live, served = clock(), {}, 0
    while waiting or decoder.rows:
        now = clock() - start
        if not decoder.rows and waiting[-1].arrival_s > now + CLOCK_RESOLUTION_S:
            sleep(waiting[-1].arrival_s - now)
            continue
        while waiting and len(decoder.rows) < decoder.max_rows:
            if waiting[-1].arrival_s > now + CLOCK_RESOLUTION_S:
                break
            arrival = waiting.pop()
            request = _request(arrival, served, eos, seed)
            decoder.admit(request)
            live[request] = Served(arrival, request)
            served += 1
        steps = decoder.step()
        delivered = clock() - start
        for step in steps:
            if step.emitted:
                live[step.request].chunk_times_s.append(delivered)
                live[step.request].chunk_tokens.append(len(step.emitted))
            if step.request.finished:
                yield live.pop(step.request).record()


def _request(arrival: Arrival, stream: int, eos: frozenset[int], seed: int) -> Request:
    stop = StopRule() if arrival.exact_length else StopRule(eos)
    randomness = SeededRandomness(seed, stream)
    return Request(arrival.name, arrival.prompt, arrival.output_tokens, randomness, stop)


def poisson_arrivals(
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer,
    *,
    rate_per_s: float,
    num_requests: int,
    output_tokens: int,
    seed: int,
) -> list[Arrival]:
    """Requests of the prompt sets at exponential distances.

    Raises:
        ValueError: for a rate or a number that is not positive.
    """
    if not 0 < rate_per_s < float("inf") or num_requests < 1 or output_tokens < 1:
        raise ValueError(
            f"rate={rate_per_s}, num_requests={num_requests}, output_tokens={output_tokens}: "
            "all must be positive"
        )
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    times = generator.exponential(1 / rate_per_s, size=num_requests).cumsum()
    return [
        Arrival(
            name=f"{i:05d}-{prompts[i % len(prompts)].id}",
            arrival_s=float(t),
            prompt=tuple(tokenizer.chat(prompts[i % len(prompts)].text)),
            output_tokens=output_tokens,
            traffic_class=prompts[i % len(prompts)].domain,
        )
        for i, t in enumerate(times)
    ]


def read_trace(path: str | Path, tokenizer: Tokenizer, vocab_size: int) -> list[Arrival]:
    """Arrivals from CSV or JSON Lines with arrival_s, output_tokens, and prompt or
    prompt_tokens (a number: the prompt is then synthetic and the output length exact).

    Raises:
        RecordError: naming file, line and key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"cannot read {path}: {error}") from None
    rows: Iterator[tuple[int, Any]]
    if path.suffix == ".csv":
        rows = _csv(text, path)
    else:  # not splitlines: U+2028 and its like may stand inside a JSON string
        lines = enumerate(text.split("\n"), 1)
        rows = ((n, _json(line, path, n)) for n, line in lines if line.strip())
    arrivals = [_arrival(row, f"{path}, line {n}", n, tokenizer, vocab_size) for n, row in rows]
    if not arrivals:
        raise RecordError(f"{path}: no requests")
    return arrivals


def _csv(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise RecordError(f"{path}, line {reader.line_num}: {error}") from None


def _json(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}, line {number}: not JSON ({error})") from None


def _arrival(row: Any, where: str, number: int, tokenizer: Tokenizer, vocab: int) -> Arrival:
    try:
        arrival_s, output = float(row["arrival_s"]), int(row["output_tokens"])
        text = row.get("prompt")
        length = 0 if text else int(row["prompt_tokens"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RecordError(
            f"{where}: expected arrival_s, output_tokens, and prompt or prompt_tokens ({error!r})"
        ) from None
    if not 0 <= arrival_s < float("inf") or output < 1 or (not text and length < 1):
        raise RecordError(f"{where}: arrival_s={arrival_s}, output_tokens={output} out of range")
    synthetic = np.random.default_rng(number).integers(vocab, size=length).tolist()
    return Arrival(
        name=str(row.get("request") or f"request-{number}"),
        arrival_s=arrival_s,
        prompt=tuple(tokenizer.chat(text) if text else synthetic),
        output_tokens=output,
        traffic_class=str(row.get("traffic_class") or ""),
        exact_length=not text,
    )


def summarise(records: Sequence[RequestRecord], asked: int) -> dict[str, Any]:
    """Throughput and latency of what was served; times in seconds, undefined ones None."""
    done = [r for r in records if r.chunk_times_s]
    tokens = sum(r.output_tokens for r in done)
    duration = max((r.chunk_times_s[-1] for r in done), default=0.0)
    tpot = [
        (r.chunk_times_s[-1] - r.chunk_times_s[0]) / (r.output_tokens - r.chunk_tokens[0])
        for r in done
        if r.output_tokens > r.chunk_tokens[0]
    ]
    return {
        "requests": asked,
        "completed": len(done),
        "duration_s": duration,
        "output_tokens": tokens,
        "throughput_tokens_per_s": tokens / duration if duration else None,
        "ttft_s": percentiles([r.chunk_times_s[0] - r.arrival_s for r in done]),
        "tpot_s": percentiles(tpot),
        "e2e_s": percentiles([r.chunk_times_s[-1] - r.arrival_s for r in done]),
        "tokens_per_chunk": tokens / sum(len(r.chunk_tokens) for r in done) if done else None,
    }


def percentiles(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, median, 90th and 99th percentile."""
    if not values:
        return None
    p50, p90, p99 = (float(x) for x in np.percentile(values, (50, 90, 99)))
    return {"mean": float(np.mean(values)), "p50": p50, "p90": p90, "p99": p99}
