"""`python -m validation.measure_serving --out DIR`: real continuous batching on this machine.

Serves copying and summarising prompts of the reported half at several loads, plainly and
with n-gram drafts, one file of request records a run; a file that is there is kept. Plain
and speculative runs alternate, so that a machine that drifts slows both.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch

from reference import cli
from reference.cache import make_batch
from reference.decode import Decoder
from reference.hardware import device_name
from reference.options import choose_dtype, make_drafter, set_threads
from reference.policy import fixed
from reference.report import warm_up
from reference.serve import Arrival, poisson_arrivals, serve
from reference.weights import Loaded, load
from specsim.records import Header, RequestRecord, write_records
from validation.host_plan import FITTED_K, NGRAM, halves
from validation.measure_host import TARGET, commit, timed_pass

#: Arrivals per second; two cores serve about 1.5 requests a second.
RATES = (0.4, 0.7, 1.0)
METHODS = ("none", NGRAM)
DOMAIN, SLOTS, CAPACITY, OUTPUT_TOKENS, SEED = "copy", 4, 320, 32, 7
#: Seconds before an arrival at which passes are no longer timed.
MARGIN_S = 0.1
#: Passes timed before and after every run: batch, new tokens, logits of the last only.
PROBES = ((1, 1, False), (4, 1, False), (1, 9, False), (1, 128, True))
#: Seconds of arrivals; every run has at least this many requests.
SPAN_S, LEAST = 34.0, 14


def arrivals_of(target: Loaded, rate: float, span_s: float) -> list[Arrival]:
    """The same for every method at a rate."""
    assert target.tokenizer is not None
    return poisson_arrivals(
        halves(DOMAIN)[1], target.tokenizer, rate_per_s=rate,
        num_requests=max(LEAST, round(rate * span_s)), output_tokens=OUTPUT_TOKENS, seed=SEED,
    )  # fmt: skip


class IdleProbe:
    """Waits for an arrival by timing passes instead of sleeping, so that the machine's speed
    is known all along a run; the last stretch is slept, so that no arrival is late."""

    def __init__(self, target: Loaded) -> None:
        self._model, self._cache = target.model, target.model.new_cache(1, CAPACITY)
        self.seconds: list[float] = []

    @torch.inference_mode()
    def __call__(self, wait_s: float) -> None:
        end = time.perf_counter() + wait_s
        while end - time.perf_counter() > MARGIN_S:
            self._cache.lengths[0] = 64
            packed = make_batch([[1]], self._cache)
            begin = time.perf_counter()
            self._model(packed, self._cache)
            self.seconds.append(time.perf_counter() - begin)
        time.sleep(max(0.0, end - time.perf_counter()))


def serve_one(
    target: Loaded, method: str, arrivals: Sequence[Arrival], idle: IdleProbe
) -> list[RequestRecord]:
    """Served requests, times to the microsecond. Prompts are read whole, as they come."""
    assert target.tokenizer is not None
    drafter, _ = make_drafter(method, target)
    decoder = Decoder(
        target.model, drafter, policy=fixed(FITTED_K if method != "none" else 0), rows=SLOTS,
        capacity=CAPACITY,
    )  # fmt: skip
    found: list[RequestRecord] = []
    for record in serve(decoder, arrivals, eos=target.tokenizer.eos, seed=SEED, sleep=idle):
        found.append(rounded(record))
        print(f"\r{method} {len(found)}/{len(arrivals)} ", end="", file=sys.stderr)
    return sorted(found, key=lambda record: record.arrival_s)


def probe(target: Loaded) -> list[float]:
    """Seconds of a few passes: how fast the machine is just now."""
    found = []
    for batch, new, last_only in PROBES:
        record = timed_pass(target, TARGET, batch, new, 64, 5, None, last_only)
        found.append(record.seconds)
    return found


def rounded(record: RequestRecord) -> RequestRecord:
    """Times to the microsecond, to keep files small."""
    return dataclasses.replace(
        record, arrival_s=round(record.arrival_s, 6),
        chunk_times_s=tuple(round(t, 6) for t in record.chunk_times_s),
    )  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m validation.measure_serving", description=__doc__
    )
    found.add_argument("--out", type=Path, default=Path("out/serving"))
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--dtype", default="bfloat16")
    found.add_argument("--span", type=float, default=SPAN_S, help="seconds of arrivals")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure; see the module."""
    options = parser().parse_args(arguments)
    threads, start = set_threads(options.threads), time.monotonic()
    target = load(TARGET, dtype=choose_dtype(options.dtype), device=torch.device("cpu"))
    warm_up(target.model, (1, 128))
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        for rate in RATES:
            for method in METHODS:
                path = options.out / f"{method}-{rate:g}.jsonl"
                if path.exists():
                    continue
                before, idle = probe(target), IdleProbe(target)
                arrivals = arrivals_of(target, rate, options.span)
                records = serve_one(target, method, arrivals, idle)
                probes = [
                    {"batch": batch, "new_tokens": new, "context": 64, "seconds": (x + y) / 2}
                    for (batch, new, _), x, y in zip(PROBES, before, probe(target), strict=True)
                ]
                waiting = {"count": len(idle.seconds), "mean_s": mean(idle.seconds or [0.0])}
                header = Header(
                    schema="request", device=device_name(target.model.device), dtype=options.dtype,
                    threads=threads, seed=SEED, versions={**cli.versions(), "commit": commit()},
                    settings={
                        "target": TARGET, "method": method, "rate": rate, "slots": SLOTS,
                        "num_draft_tokens": FITTED_K if method != "none" else 0,
                        "domain": DOMAIN, "date": datetime.date.today().isoformat(),
                        "probes": probes, "idle_passes": waiting,
                    },
                )  # fmt: skip
                write_records(path, header, records)
    except KeyboardInterrupt:
        return cli.INTERRUPTED
    print(f"\n{time.monotonic() - start:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
