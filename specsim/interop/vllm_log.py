"""vLLM server logs: the `SpecDecoding metrics:` lines of V1 (several field orders, one with
the speculative depth), the `Speculative metrics:` lines of V0, and the throughput lines.

V1 reports each interval on its own; V0 counts since the start, so its lines are subtracted.
vLLM counts a draft only for requests that drafted something. In 0.9 the mean acceptance
length leaves the bonus token out; 0.8 prints accepted and drafted tokens alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from specsim.errors import RecordError
from specsim.interop.common import MAX_POSITIONS, Imported, Notes, StepTimes, TallyByK
from specsim.interop.reading import Progress, check_survival, number, read_lines

FORMAT = "vllm-log"
V1, V0, THROUGHPUT = "SpecDecoding metrics:", "Speculative metrics:", "Avg generation throughput:"

_NUMBER = r"([^\s,%]+)"
_FIELDS = {
    "length": re.compile(rf"Mean acceptance length: {_NUMBER}"),
    "accepted": re.compile(rf"(?<![\w ])\s?Accepted: {_NUMBER} tokens"),
    "drafted": re.compile(rf"(?<![\w ])\s?Drafted: {_NUMBER} tokens"),
    "accepted_rate": re.compile(rf"Accepted throughput: {_NUMBER} tokens/s"),
    "drafted_rate": re.compile(rf"Drafted throughput: {_NUMBER} tokens/s"),
    "rate": re.compile(rf"[Dd]raft acceptance rate: {_NUMBER}"),
    "depth": re.compile(rf"Current speculative depth: {_NUMBER}"),
    "k": re.compile(rf"Number of speculative tokens: {_NUMBER}"),
    "v0_accepted": re.compile(rf"Number of accepted tokens: {_NUMBER}"),
    "v0_drafted": re.compile(rf"Number of draft tokens: {_NUMBER}"),
    "v0_emitted": re.compile(rf"Number of emitted tokens: {_NUMBER}"),
    "generation": re.compile(rf"Avg generation throughput: {_NUMBER} tokens/s"),
    "prompt": re.compile(rf"Avg prompt throughput: {_NUMBER} tokens/s"),
    "running": re.compile(rf"Running: {_NUMBER} reqs"),
}
_POSITIONS = re.compile(r"Per-position acceptance rate: ([\d.,\s+-]*(?:[eE][+-]?\d+)?[\d.,\s]*)")
#: Colours that a terminal would show.
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_STAMP = re.compile(r"\b(\d\d-\d\d \d\d:\d\d:\d\d)\b")
_ENGINE = re.compile(r"Engine (\d+)")
_PROCESS = re.compile(r"\bpid=(\d+)")
_CONFIGURED_K = re.compile(r"""num_spec(?:ulative)?_tokens['"]?\s*[=:]\s*(\d+)""")
_METHOD = re.compile(r"""['"]?method['"]?\s*[=:]\s*['"]([\w-]+)['"]""")
_V1_FIELDS = ("accepted", "drafted", "length", "accepted_rate", "drafted_rate", "rate", "depth")
#: Methods that propose nothing where they find nothing.
LOOKUP_METHODS = ("ngram", "ngram_gpu", "suffix", "[ngram]")
#: vLLM's default interval between lines, in seconds (VLLM_LOG_STATS_INTERVAL).
LOG_INTERVAL_S = 10.0


@dataclass(slots=True)
class _Window:
    """One V1 interval."""

    k: int
    steps: float
    drafted: float
    accepted: float
    at_least: list[float] | None
    seconds: float | None
    stamp: str | None
    process: str | None


@dataclass(slots=True)
class _Throughput:
    """One throughput line."""

    stamp: str | None
    process: str | None
    generation: float
    running: float
    prompt: float


def read(path: Path, progress: Progress | None = None) -> Imported:
    """Read one log.

    Raises:
        RecordError: for a line whose figures are impossible, or a file without any figure.
    """
    reader = _Reader(path)
    for line_number, line in read_lines(path, progress):
        reader.line(line, f"{path}, line {line_number}")
    return reader.finish()


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path, self.notes = path, Notes()
        self.tallies, self.times = TallyByK(), StepTimes()
        self.pending: _Window | None = None
        self.engine: _Throughput | None = None
        self.engines: set[str] = set()
        self.counters: tuple[float, ...] | None = None
        self.last_text = ""
        self.method: str | None = None
        self.configured_k: int | None = None
        self.throughput_lines = 0
        self.long_interval_s = 0.0

    def line(self, line: str, where: str) -> None:
        if V1 in line:
            self._v1(_COLOUR.sub("", line), where)
        elif V0 in line:
            self._v0(_COLOUR.sub("", line), where)
        elif THROUGHPUT in line:
            self._engine(_COLOUR.sub("", line), where)
        elif "peculative" in line:
            if self.method is None and (found := _METHOD.search(line)):
                self.method = found[1]
            if self.configured_k is None and (found := _CONFIGURED_K.search(line)):
                k = int(found[1][:4])
                self.configured_k = k if 1 <= k <= MAX_POSITIONS else None

    def _v1(self, line: str, where: str) -> None:
        if line == self.last_text:
            self.notes.add("duplicate-lines", f"{where} repeats the line before it; left out")
            return
        self.last_text = line
        window = self._window(line, where)
        if window is None:
            return
        self._flush()
        self.pending = window
        self._pair()  # vLLM prints an engine's throughput just before

    def _window(self, line: str, where: str) -> _Window | None:
        if _field("drafted", line, where) == 0:
            return None  # an idle interval, whose rates are not numbers
        values = {key: _field(key, line, where) for key in _V1_FIELDS}
        accepted, drafted, length = (values[k] for k in ("accepted", "drafted", "length"))
        positions = _POSITIONS.search(line)
        bare = length is None and positions is None and values["rate"] is not None
        if accepted is None or drafted is None or (not bare and (length is None or not positions)):
            self.notes.add("incomplete-lines", f"{where} lacks fields; left out")
            return None
        if accepted > drafted:
            raise RecordError(
                f"{where}: Accepted = {accepted:g} of Drafted = {drafted:g} tokens: expected no "
                "more accepted than drafted"
            )
        rate = values["rate"]
        if rate is not None:
            number(rate, where, "Draft acceptance rate (%)", high=100.0)
        stamp, process = _first(_STAMP, line), _first(_PROCESS, line)
        if length is None or positions is None:
            return self._bare(accepted, drafted, stamp, process, where)
        texts = [t.strip() for t in positions[1].split(",") if t.strip()]
        if not texts or len(texts) > MAX_POSITIONS:
            self.notes.add("incomplete-lines", f"{where} lacks per-position rates; left out")
            return None
        survival = check_survival(texts, where)  # type: ignore[arg-type]
        if values["depth"] is not None:
            survival = survival[: max(1, int(values["depth"]))]
        k = len(survival)
        if length - sum(survival) < 0.5:  # 0.9 leaves the bonus token out
            length += 1
        steps = _num_drafts(accepted, drafted, length, k)
        at_least = [s * steps for s in survival]
        if abs(sum(at_least) - accepted) > 0.0006 * k * steps + 1.5 + 0.02 * accepted:
            self.notes.add(
                "incomplete-lines",
                f"{where}: per-position rates add up to {sum(at_least):.0f} accepted tokens, not "
                f"{accepted:.0f}; left out",
            )
            return None
        seconds = None
        for count, per_s in (
            (drafted, values["drafted_rate"]),
            (accepted, values["accepted_rate"]),
        ):
            if seconds is None and count > 0 and per_s:
                seconds = count / per_s
        return _Window(k, steps, drafted, accepted, at_least, seconds, stamp, process)

    def _bare(
        self, accepted: float, drafted: float, stamp: str | None, process: str | None, where: str
    ) -> _Window | None:
        """A line of 0.8, without the number of drafts: K is the one the server was started
        with."""
        k = self.configured_k
        if k is None:
            self.notes.add(
                "unknown-k",
                f"{where}: neither acceptance length nor rates per position (vLLM 0.8), and no "
                "line with num_spec_tokens before it; left out",
            )
            return None
        steps = drafted / k
        return _Window(k, steps, drafted, accepted, None, None, stamp, process)

    def _v0(self, line: str, where: str) -> None:
        k, accepted, drafted, emitted = (
            _field(key, line, where) for key in ("k", "v0_accepted", "v0_drafted", "v0_emitted")
        )
        if k is None or accepted is None or drafted is None or emitted is None or k < 1:
            self.notes.add("incomplete-lines", f"{where} lacks fields; left out")
            return
        rate = _field("rate", line, where)
        if rate is not None:
            number(rate, where, "Draft acceptance rate", high=1.0)
        if accepted > drafted or emitted > drafted / k * (k + 1) + k + 1:
            raise RecordError(
                f"{where}: {accepted:g} accepted and {emitted:g} emitted of {drafted:g} draft "
                f"tokens at K = {k:g}: expected accepted <= draft and emitted <= (K + 1) per step"
            )
        if k > MAX_POSITIONS:
            raise RecordError(f"{where}: Number of speculative tokens = {k:g}: expected at most 64")
        counters = (k, accepted, drafted, emitted)
        before = self.counters
        self.counters = counters
        if before == counters:
            return  # idle, or the line twice
        if before is None or before[0] != k:
            before = (k, 0.0, 0.0, 0.0)
        elif any(now < then for now, then in zip(counters, before, strict=True)):
            self.notes.add("counter-reset", f"{where}: counters fell; the server was restarted")
            before = (k, 0.0, 0.0, 0.0)
        proposed, out = (counters[i] - before[i] for i in (2, 3))
        # V0's accepted tokens count those after a rejection too; what a step kept is what it
        # emitted less the correction or bonus token
        if proposed > 0:
            steps = proposed / k
            kept = min(max(0.0, out - steps), proposed)
            self.tallies.of(int(k)).add(
                steps=steps, drafted=proposed, accepted=kept, emitted=kept + steps
            )

    def _engine(self, line: str, where: str) -> None:
        self.throughput_lines += 1
        generation, running = _field("generation", line, where), _field("running", line, where)
        if generation is None or running is None:
            self.notes.add("incomplete-lines", f"{where} lacks fields; left out")
            return
        if found := _ENGINE.search(line):
            self.engines.add(found[1])
        self.engine = _Throughput(
            _first(_STAMP, line), _first(_PROCESS, line), generation, running,
            _field("prompt", line, where) or 0.0,
        )  # fmt: skip
        if len(self.engines) < 2:  # with several, the window before may be another's
            self._pair()

    def _pair(self) -> None:
        """Join an interval with the throughput line of the same moment."""
        engine, window = self.engine, self.pending
        if engine is None or window is None or engine.process != window.process:
            return
        if not _same_moment(engine.stamp, window.stamp):
            return
        self.engine = None
        seconds = self._interval(window.seconds)
        emitted = None if seconds is None else engine.generation * seconds
        if seconds and seconds == window.seconds and engine.running >= 1:
            steps = window.steps
            if emitted is not None and emitted - window.accepted > 1.05 * steps:
                steps = emitted - window.accepted  # steps that drafted nothing count as well
            per_request = steps / seconds / engine.running
            if per_request > 0 and engine.prompt <= 0.1 * engine.generation:
                self.times.add(window.k, engine.running, 1 / per_request, steps / engine.running)
        self._flush(emitted)

    def _interval(self, seconds: float | None) -> float | None:
        """Seconds that a throughput line covers. A window that follows idle time reaches back
        over it, while throughput is that of the last interval: a long window counts as such
        only where it recurs, as where VLLM_LOG_STATS_INTERVAL is longer."""
        if seconds is None or seconds <= 1.2 * LOG_INTERVAL_S:
            return seconds
        before, self.long_interval_s = self.long_interval_s, seconds
        return seconds if abs(seconds - before) <= 0.05 * seconds else LOG_INTERVAL_S

    def _flush(self, emitted: float | None = None) -> None:
        window, self.pending = self.pending, None
        if window is not None:
            self.tallies.of(window.k).add(
                steps=window.steps, drafted=window.drafted, accepted=window.accepted,
                at_least=window.at_least, emitted=emitted,
            )  # fmt: skip

    def finish(self) -> Imported:
        self._flush()
        if not self.tallies:
            if not self.throughput_lines and not self.notes.result():
                raise RecordError(
                    f"{self.path}: no line with '{V1}', '{V0}' or '{THROUGHPUT}'; expected the "
                    "log of a vLLM server"
                )
            self.notes.add(
                "no-speculation",
                f"{self.path}: {self.throughput_lines} throughput lines but no usable line of "
                "acceptance; was the server started with --speculative-config?",
            )
        if self.method in LOOKUP_METHODS or self.method is None:
            for tally in self.tallies.values():
                # V0 counts every step
                tally.counts_all_steps = self.counters is not None and not tally.positions_known
        if self.times.result():
            self.notes.add(
                "approximate-step-time",
                "step times follow from throughput and the requests running when the line was "
                "printed; a bench file's inter-token latency is better",
            )
        return Imported(
            file=str(self.path), format=FORMAT, tallies=tuple(self.tallies.values()),
            steps=self.times.result(), notes=self.notes.result(),
        )  # fmt: skip


def _field(key: str, line: str, where: str) -> float | None:
    found = _FIELDS[key].search(line)
    if found is None:
        return None
    return number(found[1], where, key)


def _first(pattern: re.Pattern[str], line: str) -> str | None:
    found = pattern.search(line)
    return None if found is None else found[1]


def _num_drafts(accepted: float, drafted: float, length: float, k: int) -> float:
    """Drafts behind one interval: drafted/K where every draft had K tokens, else from the
    mean length (rounded to 0.01 in the log)."""
    full = drafted / k
    if accepted == 0 or abs(1 + accepted / full - length) <= 0.0075:
        return full
    if length <= 1:
        return full
    return max(full, accepted / (length - 1))


def _same_moment(a: str | None, b: str | None) -> bool:
    if a is None or b is None:
        return a == b
    seconds = [sum(x * int(t) for x, t in zip((3600, 60, 1), s[6:].split(":"), strict=True))
               for s in (a, b)]  # fmt: skip
    return a[:5] == b[:5] and abs(seconds[0] - seconds[1]) <= 1
