"""`python -m reference measure`: record files, resumable, safe to interrupt."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from reference import cli

#: Options that hold comma-separated numbers.
NUMBERS = ("k", "batch", "temperature", "forward-batch", "forward-tokens", "forward-context")
Piece = tuple[str, Callable[[], Iterable[Any]]]  # a name, and what yields its records

EXAMPLES = """\
examples:
  python -m reference measure --out traces/host.jsonl --methods ngram,early-exit:24 --k 1,2,4,8
  python -m reference measure --out traces/host.jsonl --resume       (after Ctrl-C, same options)

Writes up to three files, one schema each: NAME.jsonl with one record a step,
NAME.forward.jsonl with the time of forward passes, and NAME.runs.jsonl with the accepted
run from every output position at temperature 0 (their times are 0: they were not decoded).
"""


def add_parser(commands: Any) -> None:
    """Add this command's options."""
    parser = commands.add_parser(
        "measure",
        help="record what steps and forward passes cost and accept",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_model_options(parser)
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="step records")
    parser.add_argument("--resume", action="store_true", help="go on with existing files")
    parser.add_argument("--methods", default="ngram", help="comma-separated, as decode --draft")
    parser.add_argument("--k", default="0,1,2,4,8", help="drafted tokens a step (0: none)")
    parser.add_argument("--temperature", default="0,1", help="comma-separated")
    parser.add_argument("--batch", default="1", help="rows decoded together, comma-separated")
    parser.add_argument("--domains", default="code,factual-qa,creative,copy")
    parser.add_argument("--prompts", type=int, default=4, help="prompts of each domain")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--context", type=int, default=1024, help="cache slots a row")
    parser.add_argument(
        "--what", default="steps,runs,forward", help="which files: steps, runs, forward"
    )
    parser.add_argument("--forward-batch", default="1,4", help="rows of timed passes")
    parser.add_argument("--forward-tokens", default="1,2,3,4,5,6,8,9,12,16,32")
    parser.add_argument("--forward-context", default="64,256,768")
    parser.add_argument("--repeats", type=int, default=11, help="timed passes of each kind")
    parser.add_argument("--cuda-graphs", action="store_true", help="time passes as CUDA graphs")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure; exit status 0, or 130 after Ctrl-C with all complete records kept."""
    from reference.options import choose_device, choose_dtype, set_threads
    from reference.prompts import load_prompts
    from reference.weights import load

    parts = options.what.split(",")
    for part in parts:
        if part not in ("steps", "runs", "forward"):
            raise ValueError(f"--what {part!r}: expected steps, runs, forward")
    for name in ("prompts", "max_new_tokens", "context", "repeats"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)} < 1")
    grid = {name: numbers(options, name) for name in NUMBERS}  # before anything is written
    domains = dict.fromkeys(options.domains.split(","))
    prompts = [p for d in domains for p in load_prompts(d)[: options.prompts]]
    if options.cuda_graphs and choose_device(options.device).type != "cuda":
        raise ValueError("--cuda-graphs needs a CUDA device")
    threads = set_threads(options.threads)
    target = load(
        options.target, dtype=choose_dtype(options.dtype), device=choose_device(options.device)
    )
    if target.tokenizer is None:
        raise ValueError(f"{options.target} has no tokenizer, so it cannot read prompts")
    if set(parts) & {"steps", "runs"}:
        check_lengths(options, target, prompts)
    job = Job(options, target, prompts, grid, threads)
    status = 0
    try:
        for part in parts:
            getattr(job, part)()
    except KeyboardInterrupt:
        status = cli.INTERRUPTED
    result = {"files": job.written, **({"interrupted": True} if status else {})}
    if options.json:
        cli.print_json(result)
    return status


def check_lengths(options: argparse.Namespace, target: Any, prompts: Sequence[Any]) -> None:
    """Raises ValueError when a prompt and its output do not fit in the cache."""
    slots = min(options.context, target.model.config.max_positions)
    for prompt in prompts:
        length = len(target.tokenizer.chat(prompt.text))
        if length + options.max_new_tokens > slots:
            raise ValueError(
                f"prompt {prompt.id} of {length} tokens and --max-new-tokens "
                f"{options.max_new_tokens} exceed the cache's {slots} slots (--context)"
            )


def numbers(options: argparse.Namespace, name: str) -> list[Any]:
    """A comma-separated option as numbers, each once.

    Raises:
        ValueError: naming option and value.
    """
    text = getattr(options, name.replace("-", "_"))
    kind = float if name == "temperature" else int
    lowest = 0 if name in ("k", "temperature", "forward-context") else 1
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--{name} {text!r}: expected numbers such as 1,2,4") from None
    for value in values:
        if value < lowest:
            raise ValueError(f"--{name} {text!r}: {value} < {lowest}")
        if not value < float("inf"):
            raise ValueError(f"--{name} {text!r}: {value} is not a finite number")
    return list(dict.fromkeys(values))


class Job:
    """The three parts of a measurement; each writes one file."""

    def __init__(
        self, options: argparse.Namespace, target: Any, prompts: list[Any], grid: Any, threads: int
    ) -> None:
        from reference.options import make_drafter

        self.options, self.target, self.prompts, self.grid = options, target, prompts, grid
        self.methods = list(dict.fromkeys(options.methods.split(",")))
        self.threads = threads
        self.written: dict[str, int] = {}
        self._make: Callable[[str], tuple[Any, str]] = lambda method: make_drafter(method, target)
        for method in self.methods:  # a mistyped method fails before anything is written
            cli.warn(self._make(method)[1])

    def writer(self, schema: str, suffix: str = "") -> Any:
        """An open record file, new or resumed."""
        from reference.hardware import device_name
        from specsim.records import Header, RecordWriter

        options = self.options
        names = ("target", "methods", "k", "temperature", "batch", "domains", "prompts",
                 "max_new_tokens", "context", "repeats", "cuda_graphs")  # fmt: skip
        header = Header(
            schema=schema,
            device=device_name(self.target.model.device),
            dtype=options.dtype,
            threads=self.threads,
            seed=options.seed,
            versions=cli.versions(),
            settings={"measured": suffix or "steps", **{n: getattr(options, n) for n in names}},
        )
        path = Path(options.out)
        path = path.with_name(f"{path.stem}.{suffix}.jsonl") if suffix else path
        path.parent.mkdir(parents=True, exist_ok=True)
        return RecordWriter(path, header, resume=options.resume)

    def _write(self, writer: Any, pieces: Sequence[Piece]) -> None:
        """Write each piece's records, going on after those that the file has.

        A piece is repeatable, so one that was cut off is run again and the records that
        the file already has are passed over.
        """
        from rich.console import Console
        from rich.progress import track

        skip = writer.num_existing
        done = existing_pieces(writer.path) if skip else {}
        with writer:
            for name, records in track(
                pieces, description=writer.path.name, console=Console(stderr=True)
            ):
                have = done.get(name, 0)
                if have and name != next(reversed(done)):
                    continue  # complete: a later piece follows it in the file
                for i, record in enumerate(records()):
                    if i >= have:
                        writer.write(record)
                        skip += 1
            self.written[str(writer.path)] = skip

    def steps(self) -> None:
        """Speculative runs."""
        from reference.measure import Unit, plan_units, run_unit

        g, o, target = self.grid, self.options, self.target
        units = plan_units(self.prompts, self.methods, g["k"], g["temperature"], g["batch"])

        def piece(unit: Unit) -> Iterable[Any]:
            drafter = self._make(unit.method)[0]
            return run_unit(
                unit, target.model, drafter, target.tokenizer,
                new=o.max_new_tokens, capacity=o.context, seed=o.seed,
            )  # fmt: skip

        self._write(self.writer("step"), [(u.name, partial(piece, u)) for u in units])

    def runs(self) -> None:
        """Accepted runs from every position, for the methods where they are cheap."""
        from reference.measure import early_exit_runs, greedy_output, ngram_runs

        o, model, tokenizer = self.options, self.target.model, self.target.tokenizer
        k = max(self.grid["k"])

        def piece(prompt: Any, method: str) -> Iterable[Any]:
            ids = tokenizer.chat(prompt.text)
            tokens = greedy_output(model, ids, o.max_new_tokens, o.context, tokenizer.eos)
            if method == "ngram":
                return ngram_runs(prompt, tokens, len(ids), k)
            return early_exit_runs(prompt, model, int(method[11:]), tokens, len(ids), k)

        cheap = [m for m in self.methods if m == "ngram" or m.startswith("early-exit:")]
        pieces = [
            (f"{p.id}/{m}/k{k}/t0/every-position", partial(piece, p, m))
            for p in self.prompts
            for m in cheap
        ]
        if k and cheap:
            self._write(self.writer("step", "runs"), pieces)

    def forward(self) -> None:
        """Timed passes of the target and of each draft."""
        from reference.draft.eagle import EagleDrafter
        from reference.draft.neural import DraftModelDrafter, EarlyExitDrafter
        from reference.graphs import GraphedModel
        from reference.measure import HeadPass, time_forward
        from reference.model import Model

        o, target = self.options, self.target
        models: list[tuple[str, Any, int | None]] = [(target.name, target.model, None)]
        for method in self.methods:
            drafter = self._make(method)[0]
            if isinstance(drafter, EarlyExitDrafter):
                models.append((method, target.model, drafter.num_layers))
            elif isinstance(drafter, DraftModelDrafter):
                models.append((method, drafter.model, None))
            elif isinstance(drafter, EagleDrafter):
                models.append((method, HeadPass(drafter.head, target.model), None))
        pieces: list[Piece] = []

        def timed(settings: Any, layers: int | None) -> Iterable[Any]:
            return [time_forward(*settings, repeats=o.repeats, num_layers=layers)]

        for name, model, layers in models:
            static = o.cuda_graphs and isinstance(model, Model)  # heads run eagerly
            call = GraphedModel(model) if static else model
            for batch in self.grid["forward-batch"]:
                cache = model.new_cache(batch, o.context)
                for context in self.grid["forward-context"]:
                    for n in self.grid["forward-tokens"]:
                        if context + n > o.context:
                            continue
                        key = f"{name}/{batch}/{n}/{context}"
                        settings = (call, cache, name, batch, n, context)
                        pieces.append((key, partial(timed, settings, layers)))
        self._write(self.writer("forward", "forward"), pieces)


def existing_pieces(path: Path) -> dict[str, int]:
    """How many records of each piece a file has, in its order; the last may be cut off."""
    from specsim.records import read_records

    counts: dict[str, int] = {}
    for record in read_records(path)[1]:
        piece = piece_of(record)
        counts[piece] = counts.get(piece, 0) + 1
    return counts


def piece_of(record: Any) -> str:
    """The piece that a record belongs to: its unit, its run, or its own forward pass."""
    if hasattr(record, "new_tokens"):
        return f"{record.model}/{record.batch}/{record.new_tokens}/{record.context}"
    _, _, unit = record.request.partition("/")
    return unit if "@" in unit else str(record.request)
