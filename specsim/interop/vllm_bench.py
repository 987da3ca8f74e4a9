"""`vllm bench serve`: the JSON of --save-result, and what it prints.

A chunk is streamed once a step, so mean inter-token latency (ITL) is the step time, and
ITL over mean time per output token (TPOT) is the acceptance length.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from specsim.errors import RecordError
from specsim.interop.chunks import LENGTH_GAP, from_latency
from specsim.interop.common import MAX_POSITIONS, Imported, MeanLength, Notes, StepTimes, TallyByK
from specsim.interop.reading import (
    Progress,
    check_survival,
    may_be_json,
    number,
    parse_json,
    read_document,
    read_lines,
    section,
)

FORMAT = "vllm-bench"
#: Printed label → JSON key.
PRINTED = {
    "Successful requests": "completed",
    "Failed requests": "failed",
    "Benchmark duration (s)": "duration",
    "Total input tokens": "total_input_tokens",
    "Total generated tokens": "total_output_tokens",
    "Maximum request concurrency": "max_concurrency",
    "Mean TTFT (ms)": "mean_ttft_ms",
    "Mean TPOT (ms)": "mean_tpot_ms",
    "Mean ITL (ms)": "mean_itl_ms",
    "Output token throughput (tok/s)": "output_throughput",
    "Acceptance rate (%)": "spec_decode_acceptance_rate",
    "Acceptance length": "spec_decode_acceptance_length",
    "Drafts": "spec_decode_num_drafts",
    "Draft tokens": "spec_decode_draft_tokens",
    "Accepted tokens": "spec_decode_accepted_tokens",
}
_LABEL = re.compile(r"^\s*([A-Za-z][^:]*?):\s+(\S+)\s*$")
_POSITION = re.compile(r"^\s*Position (\d+):\s+(\S+)\s*$")
#: These come last in a result.
_LAST = {"positions", "spec_decode_acceptance_rate", "spec_decode_acceptance_length"}
#: What `docker compose logs`, `kubectl logs --timestamps` and terminals put around a line.
_AROUND = re.compile(r"^\s*(?:[\w.-]+\s+\|\s|\[pod/\S+\]\s)?(?:\d{4}-\d\d-\d\dT[\d:.]+\S*\s)?")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
#: A second one of these begins another result.
_STARTS = ("Serving Benchmark Result", "Output token throughput (tok/s)", "Mean TTFT (ms)")


def read(path: Path, progress: Progress | None = None) -> Imported:
    """Read one result file: JSON (one object, a list, or one object a line) or printed text.

    Raises:
        RecordError: for impossible figures, or a file without any.
    """
    reader = _Reader(path)
    for where, block in _blocks(path, progress):
        reader.block(block, where)
    if not reader.results:
        raise RecordError(f"{path}: no result of `vllm bench serve`; expected its JSON or output")
    return reader.finish()


def _blocks(path: Path, progress: Progress | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    first = next((line for _, line in read_lines(path) if line), "")
    if not may_be_json(first):
        yield from printed_blocks(path, progress)
    elif first[0] == "{" and first.endswith("}"):
        for number_, line in read_lines(path, progress):
            if line:
                where = f"{path}, line {number_}"
                yield where, section(parse_json(line, where), where, "result")
    else:
        document = parse_json(read_document(path), str(path))
        for i, item in enumerate(document if isinstance(document, list) else [document]):
            yield f"{path}, result {i}", section(item, f"{path}, result {i}", "result")


def undecorated(line: str) -> str:
    """A printed line without colours and the prefixes of containers."""
    return _AROUND.sub("", _COLOUR.sub("", line))


def printed_blocks(
    path: Path, progress: Progress | None = None, labels: Mapping[str, str] = PRINTED
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Printed results as JSON keys; survival comes in percent as strings."""
    block: dict[str, Any] = {}
    begun: set[str] = set()
    where = str(path)
    for line_number, raw in read_lines(path, progress):
        line = undecorated(raw)
        found = _LABEL.match(line)
        label = found[1] if found else ""
        start = next((s for s in _STARTS if s in line), None)
        again = start in begun or start == _STARTS[0] or not _LAST.isdisjoint(block)
        if start is not None and again:
            if any(key in block for key in labels.values()):
                yield where, block
            block, begun = {}, set()
        if start is not None:
            begun.add(start)
        if (position := _POSITION.match(line)) is not None:
            block.setdefault("positions", {})[int(position[1][:6])] = position[2]
        elif found is not None and label in labels:
            if not block:
                where = f"{path}, line {line_number}"
            block.setdefault(labels[label], found[2])
    if any(key in block for key in labels.values()):
        yield where, block


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path, self.notes = path, Notes()
        self.tallies, self.times = TallyByK(), StepTimes()
        self.lengths: list[MeanLength] = []
        self.contexts: list[float] = []
        self.results = 0

    def block(self, block: Mapping[str, Any], where: str) -> None:
        value = {
            key: number(block[key], where, key)
            for key in PRINTED.values()
            if block.get(key) not in (None, "inf", "None")
        }
        if not any(key in value for key in ("mean_itl_ms", "mean_tpot_ms", "completed",
                                            "spec_decode_num_drafts")):  # fmt: skip
            self.notes.add("incomplete-lines", f"{where} holds no result; left out")
            return
        self.results += 1
        before = len(self.lengths)
        if value.get("completed") == 0:
            raise RecordError(f"{where}: completed = 0: no request succeeded")
        k = self._acceptance(block, value, where)
        itl, tpot = value.get("mean_itl_ms", 0.0), value.get("mean_tpot_ms", 0.0)
        ratio = itl / tpot if itl > 0 and tpot > 0 else None
        if k is None and len(self.lengths) == before:
            if ratio is not None:
                k = from_latency(ratio, where, self.lengths, self.notes)
            else:
                self.notes.add("unknown-k", f"{where}: no counts of drafts, nor ITL and TPOT, to "
                               "tell whether something was speculated")  # fmt: skip
        if itl > 0:
            batch = self._batch(value, ratio)
            tokens = value.get("total_output_tokens")
            steps = value.get("spec_decode_num_drafts") or (tokens / (ratio or 1) if tokens else 0)
            self.times.add(
                k, batch, itl * 1e-3, steps or 1.0, self._context(value), counted=steps > 0
            )

    def _acceptance(
        self, block: Mapping[str, Any], value: Mapping[str, float], where: str
    ) -> int | None:
        """K, or None where no drafts are counted."""
        names = ("num_drafts", "draft_tokens", "accepted_tokens")
        counted = [value.get(f"spec_decode_{name}") for name in names]
        rate = value.get("spec_decode_acceptance_rate")
        if rate is not None:
            number(rate, where, "acceptance rate (%)", high=100.0)
        if all(c is None for c in counted) and "spec_decode_acceptance_length" not in value:
            if rate is not None:
                self.notes.add(
                    "incomplete-lines",
                    f"{where}: an acceptance rate (accepted over drafted) without K or counts "
                    "does not give the acceptance length; left out",
                )
            return None
        drafts, drafted, accepted = counted
        known = _survival(block, where)
        if known and drafts is None and drafted is not None:
            drafts = drafted / len(known)
        if known and drafts is not None:  # what people cut out follows from the rest
            drafted = drafts * len(known) if drafted is None else drafted
            accepted = drafts * sum(known) if accepted is None else accepted
        if drafts is None or drafted is None or accepted is None:
            return self._partial(block, value, where)
        if accepted > drafted:
            raise RecordError(
                f"{where}: {accepted:g} accepted of {drafted:g} draft tokens: expected no more "
                "accepted than drafted"
            )
        if drafts == 0:
            raise RecordError(f"{where}: Drafts = 0: no speculative step was taken")
        survival = known
        # a list cut short has fewer positions than tokens were drafted
        k = max(len(survival), math.ceil(drafted / drafts - 0.01))
        if not 1 <= k <= MAX_POSITIONS:
            raise RecordError(f"{where}: {drafted:g} draft tokens in {drafts:g} drafts: expected K "
                              f"in 1..{MAX_POSITIONS}")  # fmt: skip
        at_least: list[float] | None = [s * drafts for s in survival] if survival else None
        slack = 0.02 * accepted + 0.0002 * k * drafts + 1
        if at_least and (len(at_least) < k or abs(sum(at_least) - accepted) > slack):
            self.notes.add(
                "incomplete-lines",
                f"{where}: rates by position do not add up to the accepted tokens; left out",
            )
            at_least = None
        emitted = None
        if "total_output_tokens" in value and "completed" in value:
            # each request's first token comes from its prefill
            emitted = max(0.0, value["total_output_tokens"] - value["completed"])
        tally = self.tallies.of(k)
        tally.counts_all_steps = False
        tally.add(
            steps=drafts, drafted=drafted, accepted=accepted, at_least=at_least, emitted=emitted
        )
        itl, tpot = value.get("mean_itl_ms", 0.0), value.get("mean_tpot_ms", 0.0)
        length = 1 + accepted / drafts
        if itl > 0 and tpot > 0 and abs(itl / tpot / length - 1) > LENGTH_GAP:
            self.notes.add(
                "length-mismatch",
                f"{where}: ITL/TPOT = {itl / tpot:.2f} but the counters say {length:.2f} tokens "
                "per step; the counters may cover other requests, or drafts that proposed nothing",
            )
        told = value.get("spec_decode_acceptance_length")
        if told is not None and abs(told / length - 1) > LENGTH_GAP:
            self.notes.add(
                "length-mismatch",
                f"{where}: an acceptance length of {told:.2f} but the counters say {length:.2f} "
                "tokens per step; the counters count",
            )
        return k

    def _partial(
        self, block: Mapping[str, Any], value: Mapping[str, float], where: str
    ) -> int | None:
        """Results that people have shortened: the acceptance length alone, with K from the
        positions."""
        length = value.get("spec_decode_acceptance_length")
        if length is None:
            self.notes.add("incomplete-lines", f"{where} lacks counts of drafts; left out")
            return None
        number(length, where, "acceptance length", low=1.0, high=MAX_POSITIONS + 1)
        k = len(_survival(block, where)) or None
        if k is not None and length > k + 1:
            raise RecordError(f"{where}: acceptance length = {length:g}: expected <= {k + 1}")
        self.lengths.append(MeanLength(acceptance_length=length, num_draft_tokens=k))
        self.notes.add(
            "no-token-count",
            f"{where}: an acceptance length without the counts of drafts, draft tokens and "
            "accepted tokens",
        )
        return k

    @staticmethod
    def _batch(value: Mapping[str, float], ratio: float | None) -> float | None:
        """Requests in flight while decoding: throughput × TPOT, at least one."""
        throughput, tpot = value.get("output_throughput"), value.get("mean_tpot_ms")
        if not throughput or not tpot:
            return value.get("max_concurrency")
        batch = throughput * tpot * 1e-3
        limit = value.get("max_concurrency")
        return max(1.0, round(min(batch, limit) if limit else batch, 2))

    def _context(self, value: Mapping[str, float]) -> float | None:
        requests = value.get("completed")
        if not requests or "total_input_tokens" not in value:
            return None
        mean = value["total_input_tokens"] / requests
        mean += value.get("total_output_tokens", 0.0) / requests / 2
        self.contexts.append(mean)
        return mean

    def finish(self) -> Imported:
        context = (min(self.contexts), max(self.contexts)) if self.contexts else None
        return Imported(
            file=str(self.path), format=FORMAT, tallies=tuple(self.tallies.values()),
            lengths=tuple(self.lengths), steps=self.times.result(), context=context,
            notes=self.notes.result(),
        )  # fmt: skip


def _survival(block: Mapping[str, Any], where: str) -> list[float]:
    """Survival by position in [0, 1]; [] where the result has none."""
    rates = block.get("spec_decode_per_position_acceptance_rates")
    if isinstance(rates, list) and rates:
        if len(rates) > MAX_POSITIONS:
            raise RecordError(f"{where}: {len(rates)} positions: expected at most {MAX_POSITIONS}")
        return check_survival(rates, where)
    positions = block.get("positions")
    if not isinstance(positions, dict) or not positions:
        return []
    if sorted(positions) != list(range(len(positions))) or len(positions) > MAX_POSITIONS:
        return []
    values = [number(positions[i], where, f"Position {i} (%)", high=100.0) / 100
              for i in range(len(positions))]  # fmt: skip
    return check_survival(values, where)
