"""`python -m validation.measure_host --out DIR`: measures the real decoder on this machine.

Writes `forward.jsonl` (forward-pass records, in four rounds between the runs, of which the
fastest counts) and `runs.jsonl` (a header and one line a unit of
`validation.host_plan`; `validation.host_traces` reads it). Interrupted, it goes on where it
stopped. One thread by default: the process then owns a core whatever else runs, and a unit
that got less than `QUIET` of it is measured again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from reference import cli
from reference.decode import Decoder, StepResult
from reference.measure import ngram_runs, time_forward
from reference.options import choose_dtype, make_drafter, set_threads
from reference.policy import fixed
from reference.prompts import Prompt
from reference.report import warm_up
from reference.request import Request
from reference.sampling import SeededRandomness, Warp
from reference.stopping import StopRule
from reference.weights import Loaded, load
from specsim.records import ForwardRecord, Header, RecordWriter, read_all
from validation.host_plan import (
    EARLY_EXIT,
    NGRAM,
    OUTPUT_TOKENS,
    REPORTED_K,
    Unit,
    acceptance_units,
    host_units,
    report_units,
)

TARGET = "smollm2-135m"
SEED = 20_261_124
CAPACITY = 320
#: Share of a core that a timed unit must have had, and how often it is tried.
QUIET, TRIES = 0.97, 2
#: Timed passes: (batches, new tokens, contexts, repeats). Long passes read a prompt and
#: compute logits at its last token only, as the decoder does.
VERIFYING = ((1, 2, 4), (1, 2, 3, 5, 7, 9), (64, 160), 3)
READING = ((1, 2, 4), (16, 32, 64, 128, 192), (64,), 3)
DRAFTING = ((1, 4), (1,), (64, 160), 3)
READ_TOKENS = 256  # more tokens than this in one pass are not timed
LONGEST_DRAFT = max(max(ks) for ks in REPORTED_K.values())


@dataclass(frozen=True)
class Until(StopRule):
    """Stops at a stop token, or after the step that reaches `limit` tokens: unlike a
    maximum length it shortens no draft, so that every step drafts K tokens."""

    limit: int = 0

    def cut(self, generated: Sequence[int], start: int) -> int | None:
        """See StopRule."""
        kept = super().cut(generated, start)
        return len(generated) if kept is None and len(generated) >= self.limit else kept


def requests_of(unit: Unit, target: Loaded, output_tokens: int) -> list[Request]:
    """One request a prompt; its random stream depends on the prompt alone."""
    assert target.tokenizer is not None
    return [
        Request(
            prompt.id, target.tokenizer.chat(prompt.text), output_tokens + LONGEST_DRAFT + 1,
            SeededRandomness(SEED, int(prompt.id.rpartition("-")[2])),
            Until(tokens=target.tokenizer.eos, limit=output_tokens),
        )
        for prompt in unit.prompts
    ]  # fmt: skip


def decode(unit: Unit, target: Loaded, output_tokens: int = OUTPUT_TOKENS) -> dict[str, Any]:
    """The unit's line: every step's totals and times, and every request's accepted tokens.

    `steps` are those in which no row read its prompt: rows, emitted, drafted and context
    tokens, then draft, verify, sample, host and whole time in microseconds.
    """
    drafter, _ = make_drafter(unit.method if unit.num_draft_tokens else "none", target)
    decoder = Decoder(
        target.model, drafter, warp=Warp(temperature=unit.temperature),
        policy=fixed(unit.num_draft_tokens), rows=unit.batch, capacity=CAPACITY,
    )  # fmt: skip
    plain_ngram = unit.purpose == "acceptance" and unit.method == NGRAM
    waiting = requests_of(unit, target, output_tokens + LONGEST_DRAFT * plain_ngram)
    requests, steps = list(waiting), []
    waiting.reverse()
    accepted: dict[str, list[int]] = {r.name: [] for r in requests}
    drafted: dict[str, list[int]] = {r.name: [] for r in requests}
    start, processor = time.perf_counter(), time.process_time()
    while waiting or decoder.rows:
        while waiting and len(decoder.rows) < unit.batch:
            decoder.admit(waiting.pop())
        begin = time.perf_counter()
        results = decoder.step()
        whole = time.perf_counter() - begin
        for result in results:
            if result.num_draft_tokens:
                accepted[result.request.name].append(result.num_accepted)
                drafted[result.request.name].append(result.num_drafted)
        if not results[0].mixed:
            steps.append(step_row(results, whole))
    share = (time.process_time() - processor) / (time.perf_counter() - start)
    line: dict[str, Any] = {
        **{k: v for k, v in asdict(unit).items() if k != "prompts"}, "name": unit.name,
        "core_share": round(share, 3),
        "requests": [
            {"request": r.name, "prompt_tokens": len(r.prompt), "output_tokens": len(r.generated),
             "accepted": accepted[r.name], "drafted": drafted[r.name]}
            for r in requests
        ],
        "steps": steps,
    }  # fmt: skip
    if plain_ngram:
        for prompt, request, entry in zip(unit.prompts, requests, line["requests"], strict=True):
            entry["runs"] = runs_of(prompt, request, output_tokens)
    if unit.purpose == "acceptance":
        line["steps"] = []
    return line


def step_row(results: Sequence[StepResult], whole: float) -> list[int]:
    """One step's totals; see `decode`."""
    first = results[0]
    times = [first.seconds.get(n, 0.0) for n in ("draft", "verify", "sample", "host")]
    return [
        first.batch, sum(len(r.emitted) for r in results), sum(r.num_drafted for r in results),
        sum(r.context for r in results), *(round(1e6 * t) for t in (*times, whole)),
    ]  # fmt: skip


def runs_of(prompt: Prompt, request: Request, output_tokens: int) -> list[int]:
    """Accepted run of an n-gram draft from every output position but the first (which the
    prompt's own pass emits); −1 where nothing is proposed. Tokens beyond the last position
    were generated so that runs are not cut."""
    found = ngram_runs(prompt, request.tokens, len(request.prompt), LONGEST_DRAFT)
    return [
        r.num_accepted if r.num_drafted else -1 for r in found if 1 <= r.position < output_tokens
    ]


def forward_pieces(target: Loaded, round_: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(name, what times it) of every pass of one round."""
    layers = int(EARLY_EXIT.partition(":")[2])
    kinds = ((TARGET, VERIFYING, None, False), (TARGET, READING, None, True),
             (EARLY_EXIT, DRAFTING, layers, False))  # fmt: skip
    for name, (batches, new_tokens, contexts, repeats), num_layers, last_only in kinds:
        for batch in batches:
            for new in new_tokens:
                if batch * new > READ_TOKENS:
                    continue
                for context in contexts:
                    call = partial(
                        timed_pass,
                        target,
                        name,
                        batch,
                        new,
                        context,
                        repeats,
                        num_layers,
                        last_only,
                    )
                    yield f"{round_}/{name}/{batch}/{new}/{context}", call


def timed_pass(
    target: Loaded, name: str, batch: int, new: int, context: int, repeats: int,
    num_layers: int | None, last_only: bool,
) -> ForwardRecord:  # fmt: skip
    """Time of one kind of pass of the target, or of its first layers."""
    model = target.model
    cache = model.new_cache(batch, CAPACITY)
    select = torch.arange(1, batch + 1) * new - 1 if last_only else None

    def call(packed: Any, cache: Any, num_layers: int | None = None) -> object:
        return model(packed, cache, select=select, num_layers=num_layers)

    return time_forward(
        call, cache, name, batch, new, context, repeats=repeats, num_layers=num_layers
    )


def header(target: Loaded, schema: str, threads: int, dtype: str) -> Header:
    """What was measured, where and with what."""
    return Header(
        schema=schema, device=processor_name(), dtype=dtype, threads=threads, seed=SEED,
        versions={**cli.versions(), "commit": commit()},
        settings={"target": TARGET, "output_tokens": OUTPUT_TOKENS, "capacity": CAPACITY,
                  "date": datetime.date.today().isoformat()},
    )  # fmt: skip


def processor_name() -> str:
    """The CPU's name and its number of cores."""
    names = [platform.processor() or platform.machine()]
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        names = [line.partition(":")[2].strip() for line in text.splitlines()
                 if line.startswith("model name")] or names  # fmt: skip
    return f"{names[0]}, {len(names)} cores"


def commit() -> str:
    """The commit of the checkout, or nothing outside one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True,
            cwd=Path(__file__).parent,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


class Measurement:
    """Two files in a folder; what they hold already is not measured again."""

    def __init__(
        self, folder: Path, target: Loaded, threads: int, dtype: str, quiet: float = QUIET
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.target, self.quiet, self.runs_path = target, quiet, folder / "runs.jsonl"
        self.forward_path = folder / "forward.jsonl"
        self._header = partial(header, target, threads=threads, dtype=dtype)
        if not self.runs_path.exists():
            self._append({"schema_version": 1, **asdict(self._header(schema="host-runs"))})
        lines = self.runs_path.read_text(encoding="utf-8").splitlines()
        self.done = {json.loads(line)["name"] for line in lines[1:] if line.endswith("}")}

    def _append(self, line: dict[str, Any]) -> None:
        with self.runs_path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")

    def forward(self, round_: int, limit: int | None = None) -> None:
        """One round of timed passes, if it is not in the file."""
        have: list[ForwardRecord] = []
        first = self._header(schema="forward")
        if self.forward_path.exists():
            first, have = read_all(self.forward_path, ForwardRecord)
        pieces = list(forward_pieces(self.target, round_))[:limit]
        if len(have) >= len(pieces) * (round_ + 1):
            return
        with RecordWriter(self.forward_path, first, resume=True) as writer:
            for name, timed in pieces[len(have) - len(pieces) * round_ :]:
                print(f"\r{name:50}", end="", file=sys.stderr)
                writer.write(timed())

    def units(self, units: Sequence[Unit], *, timed: bool = True) -> None:
        """Units that are not in the file; a disturbed one is tried again."""
        for i, unit in enumerate(u for u in units if u.name not in self.done):
            line: dict[str, Any] = {"core_share": -1.0}
            for _ in range(TRIES if timed else 1):
                again = decode(unit, self.target)
                line = max(line, again, key=lambda found: found["core_share"])
                if line["core_share"] >= self.quiet:
                    break
            self._append(line)
            self.done.add(unit.name)
            share = f"{line['core_share']:.2f}"
            print(f"\r{i + 1} {unit.name:60} {share}", end="", file=sys.stderr)


def halved(units: list[Unit]) -> tuple[list[Unit], list[Unit]]:
    """First and second half."""
    return units[: len(units) // 2], units[len(units) // 2 :]


def main(arguments: list[str] | None = None) -> int:
    """Measure; see the module."""
    parser = argparse.ArgumentParser(prog="python -m validation.measure_host", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("validation/data/host"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--only", choices=("acceptance", "timed"), help="one part only")
    parser.add_argument("--quiet", type=float, default=QUIET,
                        help="share of a core below which a unit is measured again")  # fmt: skip
    parser.add_argument("--limit", type=int, help="at most so many pieces of each kind")
    options = parser.parse_args(arguments)
    threads, start = set_threads(options.threads), time.monotonic()
    target = load(TARGET, dtype=choose_dtype(options.dtype), device=torch.device("cpu"))
    warm_up(target.model, (1, 16))
    job = Measurement(options.out, target, threads, options.dtype, options.quiet)
    few = slice(None, options.limit)
    try:
        if options.only != "timed":
            job.units(list(acceptance_units())[few], timed=False)
        if options.only != "acceptance":
            reported = list(report_units())[few]
            parts = (list(host_units())[few], *halved(reported))
            for round_, part in enumerate(parts):
                job.forward(round_, options.limit)
                job.units(part)
            job.forward(len(parts), options.limit)
    except KeyboardInterrupt:
        return cli.INTERRUPTED
    print(f"\n{time.monotonic() - start:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
