"""SGLang's JSON: `meta_info` and `sglext` of responses, usage blocks, `/server_info`.

Pieces of JSON (a `meta_info` cut out of a response) are read too: keys are looked for
wherever they stand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from specsim.errors import RecordError
from specsim.interop.common import MAX_POSITIONS, Imported, MeanLength, Notes, TallyByK
from specsim.interop.reading import Progress, number, parse_json, read_document, read_lines
from specsim.interop.sglang_log import RateMeaning, configured_k

FORMAT = "sglang-info"
_SERVER = "avg_spec_accept_length"
_STEPS = "spec_verify_ct"
_SETTINGS = ("speculative_num_steps", "speculative_eagle_topk", "speculative_num_draft_tokens")
_K = "specsim_k"
_PAIR = re.compile(r'"([a-z_]+)"\s*:\s*(-?[\d.eE+-]+|\[[\d\s,.]*\])')


def read(path: Path, progress: Progress | None = None) -> Imported:
    """Read responses or server info.

    Raises:
        RecordError: for impossible figures, or where there are none.
    """
    reader = _Reader(path)
    for where, values in _objects(path, progress):
        reader.add(values, where)
    return reader.finish()


def _objects(path: Path, progress: Progress | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every JSON object of the file that bears SGLang's speculation keys."""
    first = next((line for _, line in read_lines(path) if line), "")
    if first.startswith("{") and first.endswith("}"):
        for line_number, line in read_lines(path, progress):
            if line:
                where = f"{path}, line {line_number}"
                yield from ((where, found) for found in bearing(parse_json(line, where)))
        return
    text = read_document(path)
    if text[0] in "{[":
        value = parse_json(text, str(path))
        yield from ((str(path), found) for found in bearing(value))
        return
    pairs = {key: parse_json(value, f"{path}, key {key}") for key, value in _PAIR.findall(text)}
    if pairs:
        yield str(path), pairs


def bearing(value: Any, known: Any = None, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Objects inside `value` that have `spec_verify_ct` or `avg_spec_accept_length`, with the
    server's K, which `/server_info` has further up (`known`)."""
    if isinstance(value, Mapping):
        steps, topk, verified = (_whole(value.get(key)) for key in _SETTINGS)
        if steps is not None or verified is not None:
            known = configured_k(steps, topk, verified)
        if _STEPS in value or _SERVER in value:
            yield {**value, _K: known}
            return
        value = list(value.values())
    if isinstance(value, list) and depth < 12:
        for item in value:
            if isinstance(item, (Mapping, list)):
                yield from bearing(item, known, depth + 1)


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else None


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path, self.notes = path, Notes()
        self.tallies = TallyByK()
        self.lengths: list[MeanLength] = []
        self.empty = 0
        self.without_k = [0.0, 0.0]  # accepted tokens, steps

    def add(self, values: Mapping[str, Any], where: str) -> None:
        if values.get(_SERVER) is not None and _STEPS not in values:
            length = number(values[_SERVER], where, _SERVER, low=1.0, high=MAX_POSITIONS + 1)
            known = None
            if values.get(_K) is not None:
                known = int(number(values[_K], where, "K", low=1, high=MAX_POSITIONS))
            self.lengths.append(MeanLength(acceptance_length=length, num_draft_tokens=known))
            self.notes.add(
                "no-token-count",
                f"{where}: {_SERVER} is the mean since the server started, over an unknown number "
                "of tokens",
            )
            return
        if values.get(_STEPS) is None:
            return
        steps = number(values[_STEPS], where, _STEPS)
        if steps == 0:
            self.empty += 1
            return
        self._request(values, steps, where)

    def _request(self, values: Mapping[str, Any], steps: float, where: str) -> None:
        names = {
            "accepted": ("spec_num_correct_drafts", "spec_accept_token_num"),
            "drafted": ("spec_num_proposed_drafts", "spec_draft_token_num"),
        }
        counted = {
            what: next(
                (number(values[n], where, n) for n in keys if values.get(n) is not None), None
            )
            for what, keys in names.items()
        }
        rate = values.get("spec_accept_rate")
        if rate is not None:
            rate = number(rate, where, "spec_accept_rate", high=1.0)
        accepted, drafted = counted["accepted"], counted["drafted"]
        length = values.get("spec_accept_length")
        if accepted is None:
            tokens = values.get("completion_tokens")
            if length is None and tokens is not None:  # responses before late 2025
                tokens = number(tokens, where, "completion_tokens", low=1.0)
                length = max(1.0, (tokens - 1) / steps)  # the first comes from the prefill
            if length is None:
                self.notes.add("incomplete-lines", f"{where} lacks accepted drafts; left out")
                return
            accepted = (number(length, where, "spec_accept_length", low=1.0) - 1) * steps
        if drafted is None:
            k = self._k_of(accepted, steps, rate, where) if rate else _whole(values.get(_K))
            if k is None:
                self.without_k[0] += accepted
                self.without_k[1] += steps
                return
            drafted = k * steps
        if accepted > drafted:
            raise RecordError(
                f"{where}: {accepted:g} accepted of {drafted:g} proposed drafts: expected no more "
                "accepted than proposed"
            )
        k = round(drafted / steps)
        if not 1 <= k <= MAX_POSITIONS:
            raise RecordError(
                f"{where}: {drafted:g} proposed drafts in {steps:g} steps: expected K in 1..64"
            )
        tally = self.tallies.of(k)
        tally.by_request = True
        tally.add(
            steps=steps, drafted=drafted, accepted=accepted, emitted=accepted + steps,
            at_least=self._at_least(values, k, steps, accepted, where),
        )  # fmt: skip

    def _k_of(self, accepted: float, steps: float, rate: float, where: str) -> int | None:
        meaning = RateMeaning()
        meaning.add(1 + accepted / steps, rate, rounding=0.0005)
        name, k, _ = meaning.best()
        self.notes.add("accept-rate-meaning", f"{where}: accept rate read in its {name} meaning")
        return k

    def _at_least(
        self, values: Mapping[str, Any], k: int, steps: float, accepted: float, where: str
    ) -> list[float] | None:
        histogram = values.get("spec_correct_drafts_histogram")
        if not isinstance(histogram, list) or len(histogram) > k + 1 or not histogram:
            return None
        counts = [number(c, where, "spec_correct_drafts_histogram") for c in histogram]
        counts += [0.0] * (k + 1 - len(counts))
        if sum(counts) != steps or sum(i * c for i, c in enumerate(counts)) != accepted:
            self.notes.add("incomplete-lines", f"{where}: the histogram does not match the counts")
            return None
        return [sum(counts[i:]) for i in range(1, k + 1)]

    def finish(self) -> Imported:
        accepted, steps = self.without_k
        if steps and not self.tallies:
            length = 1 + accepted / steps
            self.lengths.append(MeanLength(acceptance_length=length, num_draft_tokens=None))
            self.notes.add("unknown-k", f"{self.path}: {steps:.0f} steps without K; say --k")
        if not self.tallies and not self.lengths:
            if self.empty:
                raise RecordError(f"{self.path}: {_STEPS} = 0: no speculative step was taken")
            raise RecordError(
                f"{self.path}: neither {_STEPS} nor {_SERVER}; expected meta_info, usage or server "
                "info of an SGLang server with speculation"
            )
        return Imported(
            file=str(self.path), format=FORMAT, tallies=tuple(self.tallies.values()),
            lengths=tuple(self.lengths), notes=self.notes.result(),
        )  # fmt: skip
