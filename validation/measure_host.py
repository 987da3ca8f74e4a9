"""`python -m validation.measure_host --out DIR`: measures the real decoder on this machine.

Writes `forward.jsonl` (forward-pass records, in rounds between the runs, of which the
fastest counts) and `runs.jsonl` (a header and one line a unit of `validation.host_plan`;
`validation.host_traces` reads it). Interrupted, it goes on where it stopped; a folder with
another measurement is refused. One thread by default: the process then owns a core whatever
else runs, and a group of units that got less than `QUIET` of it is measured again.

Another device joins the report with `--device cuda --out validation/data/host-NAME`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from reference import cli
from reference.hardware import device_name
from reference.measure import time_forward
from reference.options import choose_device, choose_dtype, set_threads
from reference.report import warm_up
from reference.weights import Loaded, load
from specsim.errors import RecordError, SpecsimError
from specsim.records import ForwardRecord, Header, RecordWriter, read_all
from validation.host_decode import CAPACITY, SEED, decode_together
from validation.host_plan import (
    EARLY_EXIT,
    OUTPUT_TOKENS,
    Unit,
    acceptance_units,
    grouped,
    host_units,
    report_units,
)

TARGET = "smollm2-135m"
#: Share of a core that every unit of a timed group must have had, and how often it is tried.
QUIET, TRIES = 0.97, 2
#: Timed passes: (batches, new tokens, contexts, repeats). Long passes read a prompt and
#: compute logits at its last token only, as the decoder does.
VERIFYING = ((1, 2, 4), (1, 2, 3, 5, 7, 9), (64, 160), 3)
READING = ((1, 2, 4), (16, 32, 64, 128, 192), (64,), 3)
DRAFTING = ((1, 4), (1,), (64, 160), 3)
READ_TOKENS = 256  # more tokens than this in one pass are not timed
#: The reported half is cut into so many parts, with a round of passes after each.
PARTS = 6


Pass = tuple[str, int, int, int]  # model, batch, new tokens, context


def forward_pieces(target: Loaded) -> Iterator[tuple[Pass, Callable[[], ForwardRecord]]]:
    """Every pass of one round, and what times it."""
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
                    yield (name, batch, new, context), call


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
        schema=schema, device=device_name(target.model.device), dtype=dtype, threads=threads,
        seed=SEED,
        versions={**cli.versions(), "commit": commit()},
        settings={"target": TARGET, "output_tokens": OUTPUT_TOKENS, "capacity": CAPACITY,
                  "date": datetime.date.today().isoformat()},
    )  # fmt: skip


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
    """Two files in a folder; what they hold already is not measured again.

    Raises:
        RecordError: if the folder holds a measurement of another machine or setting.
    """

    def __init__(
        self, folder: Path, target: Loaded, threads: int, dtype: str, quiet: float = QUIET
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.target, self.quiet, self.runs_path = target, quiet, folder / "runs.jsonl"
        self.forward_path = folder / "forward.jsonl"
        self._header = partial(header, target, threads=threads, dtype=dtype)
        lines = []
        if self.runs_path.exists():
            # what a kill cut off is measured again
            lines = [x for x in self.runs_path.read_text(encoding="utf-8").split("\n")[:-1] if x]
            self.runs_path.write_text("".join(x + "\n" for x in lines), encoding="utf-8")
        if not lines:
            lines = [json.dumps({"schema_version": 1, **asdict(self._header(schema="host-runs"))})]
            self._append(json.loads(lines[0]))
        self._check(json.loads(lines[0]))
        self.done = {json.loads(line)["name"] for line in lines[1:]}

    def _check(self, found: dict[str, Any]) -> None:
        """A measurement is of one machine, one program and one plan."""
        own = asdict(self._header(schema="host-runs"))
        for key in ("device", "dtype", "threads", "seed"):
            if found[key] != own[key]:
                raise RecordError(f"{self.runs_path}: {key} is {found[key]!r}, here "
                                  f"{own[key]!r}; choose another folder")  # fmt: skip
        for key in ("target", "output_tokens", "capacity"):
            if found["settings"].get(key) != own["settings"][key]:
                was, now = found["settings"].get(key), own["settings"][key]
                raise RecordError(f"{self.runs_path}: {key} is {was!r}, here {now!r}; "
                                  "choose another folder")  # fmt: skip

    def _append(self, *lines: dict[str, Any]) -> None:
        text = "".join(json.dumps(x, separators=(",", ":"), allow_nan=False) + "\n" for x in lines)
        with self.runs_path.open("a", encoding="utf-8") as stream:
            stream.write(text)

    def forward(self, round_: int, limit: int | None = None) -> None:
        """The timed passes of which the file has fewer than round_ + 1."""
        have: list[ForwardRecord] = []
        first = self._header(schema="forward")
        if self.forward_path.exists():
            first, have = read_all(self.forward_path, ForwardRecord)
        timed = Counter((r.model, r.batch, r.new_tokens, r.context) for r in have)
        with RecordWriter(self.forward_path, first, resume=True) as writer:
            for key, call in list(forward_pieces(self.target))[:limit]:
                if timed[key] > round_:
                    continue
                print(f"\r{f'{round_} {key}':60}", end="", file=sys.stderr)
                writer.write(call())

    def units(self, units: Sequence[Sequence[Unit]], *, timed: bool = True) -> None:
        """Groups of units that are not in the file; a disturbed one is tried again."""
        left = [group for group in units if any(u.name not in self.done for u in group)]
        for i, group in enumerate(left):
            missing = [u for u in group if u.name not in self.done]
            best: list[dict[str, Any]] = []
            for _ in range(TRIES if timed else 1):
                again = decode_together(missing, self.target)
                if not best or core_share(again) > core_share(best):
                    best = again
                if core_share(best) >= self.quiet:
                    break
            self._append(*best)
            self.done.update(line["name"] for line in best)
            share = f"{core_share(best):.2f}"
            print(f"\r{i + 1}/{len(left)} {missing[0].name:50} {share}", end="", file=sys.stderr)


def core_share(lines: Sequence[dict[str, Any]]) -> float:
    """That of the unit that got least."""
    return float(min(line["core_share"] for line in lines))


def in_parts(groups: list[list[Unit]], count: int) -> list[list[list[Unit]]]:
    """Groups in `count` parts, in order."""
    size = -(-len(groups) // count)
    return [groups[i : i + size] for i in range(0, len(groups), size)]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m validation.measure_host", description=__doc__)
    found.add_argument("--out", type=Path, default=Path("out/host"))
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--device", default="cpu", help="cpu or cuda")
    found.add_argument("--dtype", default="bfloat16")
    found.add_argument("--only", choices=("acceptance", "timed"), help="one part only")
    found.add_argument("--quiet", type=float, default=QUIET,
                        help="share of a core below which a unit is measured again")  # fmt: skip
    found.add_argument("--limit", type=int, help="at most so many pieces of each kind")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure; see the module."""
    options = parser().parse_args(arguments)
    threads, start = set_threads(options.threads), time.monotonic()
    try:
        device = choose_device(options.device)
        target = load(TARGET, dtype=choose_dtype(options.dtype), device=device)
        job = Measurement(options.out, target, threads, options.dtype, options.quiet)
        warm_up(target.model, (1, 16))
        measure(job, options.only, options.limit)
    except (SpecsimError, ValueError) as problem:
        print(f"Error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return cli.INTERRUPTED
    print(f"\n{time.monotonic() - start:.0f} s", file=sys.stderr)
    return 0


def measure(job: Measurement, only: str | None = None, limit: int | None = None) -> None:
    """Acceptance, then timed units with rounds of passes between them."""
    few = slice(None, limit)
    if only != "timed":
        job.units(grouped(acceptance_units())[few], timed=False)
    if only != "acceptance":
        reported = grouped(report_units())[few]
        parts = [grouped(host_units())[few], *in_parts(reported, PARTS)]
        for round_, part in enumerate(parts):
            job.forward(round_, limit)
            job.units(part)
        job.forward(len(parts), limit)


if __name__ == "__main__":
    raise SystemExit(main())
