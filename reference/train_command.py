"""`python -m reference train-draft`: a draft for the target, from the target's own output."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import Any

from reference import cli

EXAMPLES = """\
examples:
  python -m reference train-draft --kind eagle
  python -m reference train-draft --kind layers:2 --tokens 200000 --epochs 2
  python -m reference train-draft --data-only --part 1/2     (two of these share the work)

Data and checkpoints are kept under --folder. Interrupt with Ctrl-C; the same command goes on
where it stopped, and gives the same bytes as without the interruption.
"""


def add_parser(commands: Any) -> None:
    """Add this command's options."""
    parser = commands.add_parser(
        "train-draft",
        help="train an EAGLE head or a small draft model on the target's output",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", default="smollm2-135m", metavar="NAME|PATH")
    parser.add_argument("--kind", default="eagle", help="eagle, or layers:N (default: eagle)")
    parser.add_argument("--vocab", type=int, default=8192, help="draft tokens (default: 8192)")
    parser.add_argument(
        "--tokens", type=int, default=500_000, metavar="N",
        help="tokens of the target's output to train on (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--new-tokens", type=int, default=192, help="output tokens a prompt")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4, help="sequences a step (default: 4)")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument(
        "--rollout", type=int, default=2,
        help="passes of an EAGLE head on its own states in training (default: 2)",
    )  # fmt: skip
    parser.add_argument("--dtype", default="bfloat16", help="arithmetic: bfloat16 or float32")
    parser.add_argument("--seed", type=int, default=0, help="seed of data, weights and order")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument(
        "--folder", type=Path, default=Path("out/drafts"), help="data, checkpoints, results"
    )
    parser.add_argument("--out", type=Path, help="the draft's file (default: FOLDER/KIND)")
    parser.add_argument("--save-every", type=int, default=100, metavar="STEPS")
    parser.add_argument("--data-only", action="store_true", help="make the data and stop")
    parser.add_argument("--part", default="1/1", help="with --data-only: which share of the data")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make data, train, write draft and card; 130 after Ctrl-C, with a checkpoint."""
    import torch

    from reference.options import choose_dtype, set_threads
    from reference.training.kinds import Kind
    from reference.training.train import TrainSettings
    from reference.weights import load

    kind, dtype = Kind(options.kind), choose_dtype(options.dtype)  # cheap mistakes first
    settings = TrainSettings(
        seed=options.seed, epochs=options.epochs, batch=options.batch,
        learning_rate=options.learning_rate,
        rollout=options.rollout if kind.name == "eagle" else 1,
    )  # fmt: skip
    part, parts = parse_part(options.part)
    positive = {"tokens": options.tokens, "vocab": options.vocab, "save-every": options.save_every,
                "new-tokens": options.new_tokens}  # fmt: skip
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"--{name} {value} < 1")
    set_threads(options.threads)
    writer = load(options.target, dtype=torch.bfloat16)  # writes the data
    if options.vocab > writer.model.config.vocab_size:
        raise ValueError(
            f"--vocab {options.vocab} exceeds the target's {writer.model.config.vocab_size} tokens"
        )
    if options.data_only:
        make_data(options, writer, part, parts)
        return 0
    return train(options, kind, settings, writer, dtype)


def parse_part(text: str) -> tuple[int, int]:
    """`2/3` → (2, 3).

    Raises:
        ValueError: unless it is i/n with 1 <= i <= n.
    """
    first, _, second = text.partition("/")
    if first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
        return int(first), int(second)
    raise ValueError(f"--part {text!r}: expected i/n with 1 <= i <= n, such as 1/2")


def corpora(options: argparse.Namespace, target: Any) -> tuple[Any, Any]:
    """The training corpus and the held-out one."""
    from reference.training.corpus import Corpus, CorpusSettings

    layers = target.model.config.num_layers
    common: dict[str, Any] = {
        "seed": options.seed,
        "new": options.new_tokens,
        "feature_layers": tuple(sorted({max(1, layers // 3), max(1, 2 * layers // 3), layers})),
    }
    folder = options.folder / "data"
    return (
        Corpus(target, CorpusSettings(**common), folder),
        Corpus(target, CorpusSettings(held_out=True, **common), folder),
    )


def make_data(options: argparse.Namespace, target: Any, part: int, parts: int) -> None:
    """This part's shards: of the held-out corpus, and of the training corpus' first tokens.

    The number of shards is estimated from full outputs; what is missing is made in training.
    """
    data, held_out = corpora(options, target)
    estimate = -(-options.tokens // (data.settings.rows * data.settings.new))
    jobs = [(held_out, i) for i in range(held_out.num_held_out_shards)]
    jobs += [(data, i) for i in range(estimate)]
    with cli_progress("data") as progress:
        task = progress.add_task("data", total=len(jobs[part - 1 :: parts]), note="")
        for corpus, index in jobs[part - 1 :: parts]:
            made = corpus.make(index)
            progress.update(task, advance=1, note=f"{made.num_outputs} tokens in the last shard")


def cli_progress(name: str) -> Any:
    """A rich progress bar on stderr, with a note after it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), Remaining())
    return Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))


def train(
    options: argparse.Namespace, kind: Any, settings: Any, writer: Any, dtype: Any
) -> int:  # fmt: skip
    """Train to the end or to Ctrl-C."""
    from reference.draft.trained import describe, trained_tensors, write_draft
    from reference.training import session

    data, held_out = corpora(options, writer)
    with cli_progress("data") as progress:
        task = progress.add_task("data", total=options.tokens, note="making or reading shards")
        shards = []
        for _, shard in data.shards(options.tokens):
            shards.append(shard)
            progress.update(task, advance=shard.num_outputs)
    prepared = session.prepare(
        options.target, kind, settings, dtype, shards, held_out, options.vocab,
        folder=options.folder / "checkpoints", corpus=data, warn=cli.warn,
    )  # fmt: skip
    run, stopping = prepared.run, Stopping()
    with cli_progress(kind.name) as progress:
        task = progress.add_task(kind.name, total=run.steps, completed=run.step, note="")

        def report(p: Any) -> None:
            overlap = "" if p.overlap is None else f", held-out 1 − TV {p.overlap:.3f}"
            progress.update(task, completed=p.step, note=f"loss {p.loss:.3f}{overlap}")

        finished = run.go(report, save_every=options.save_every, stop=stopping)
    if not finished:
        cli.warn(f"interrupted at step {run.step} of {run.steps}; the same command goes on")
        return cli.INTERRUPTED
    path = options.out or options.folder / f"{kind.file_stem}.safetensors"
    module = run.trainee.module
    card = session.card(prepared, writer, data, describe(module))
    write_draft(path, trained_tensors(module, run.token_ids), card)
    print(f"{path}: {run.steps} steps, held-out 1 − TV {run.history[-1][2]:.3f}")
    return 0


class Stopping:
    """True once Ctrl-C was pressed: a step is never cut in half. A second one ends at once."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __call__(self) -> bool:
        return self.asked
