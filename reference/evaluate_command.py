"""`python -m reference evaluate-drafts`: what trained drafts are worth; docs/drafts.* ."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  python -m reference evaluate-drafts                        (the shipped drafts)
  python -m reference evaluate-drafts out/drafts/layers-2.safetensors
  python -m reference evaluate-drafts --page-only            (docs/drafts.md from docs/drafts.json)

Results are merged into docs/drafts.json, one entry a draft, and put into the drafts' cards;
page and figures are then made from that file. Run it on a quiet machine.
"""

MEASURED = ("overlap", "bfloat16/0/4", "bfloat16/1/4", "bfloat16/0/2", "float32/0/4")
POSITIONS = 4  # drafted positions of which the overlap is computed


def add_parser(commands: Any) -> None:
    """Add this command's options."""
    parser = commands.add_parser(
        "evaluate-drafts",
        help="held-out overlap, acceptance, cost and speedup of trained drafts; docs/drafts.md",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("drafts", nargs="*", type=Path, help="files of train-draft")
    parser.add_argument("--target", default="smollm2-135m", metavar="NAME|PATH")
    parser.add_argument(
        "--measure", default=",".join(MEASURED), metavar="LIST",
        help="overlap, and decoding as dtype/temperature/K (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--prompts", type=int, default=8, help="decoded prompts a domain")
    parser.add_argument("--tokens", type=int, default=64, help="output tokens a decoded prompt")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("out/drafts"), help="held-out data")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="page, JSON and figures")
    parser.add_argument(
        "--csv",
        type=Path,
        default=Path("validation/data/own_drafts.csv"),
        help="rows of all drafts",
    )
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure, merge, write the page."""
    from reference.training import page, rows

    for name, least in (("prompts", 2), ("tokens", 8)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name} {getattr(options, name)} < {least}")
    for part in options.measure.split(","):
        if part != "overlap":
            parse_setting(part)
    path = options.docs / "drafts.json"
    if not options.page_only:
        measure(options, path)
    drafts = page.read(path)
    page.write(drafts, options.docs)
    options.csv.write_text(rows.to_csv(drafts), encoding="utf-8")
    return 0


def parse_setting(text: str) -> tuple[str, float, int]:
    """`bfloat16/0/4` → dtype, temperature, K.

    Raises:
        ValueError: for anything else.
    """
    found = re.fullmatch(r"(bfloat16|float32)/(\d+(?:\.\d+)?)/([1-9]\d*)", text)
    if found is None:
        raise ValueError(f"--measure {text!r}: expected overlap, or as in bfloat16/0/4")
    return found[1], float(found[2]), int(found[3])


def measure(options: argparse.Namespace, path: Path) -> None:
    """Evaluate each draft and merge the results into the JSON file and the cards."""
    import torch

    from reference.draft.trained import read_card, shipped, shipped_path, write_card
    from reference.options import choose_dtype, set_threads
    from reference.train_command import cli_progress
    from reference.training import assess
    from reference.weights import load

    set_threads(options.threads)
    files = options.drafts or [shipped_path(name) for name in shipped()]
    cards = {file.stem: read_card(file) for file in files}
    paths = {file.stem: file for file in files}
    fast = load(options.target, dtype=torch.bfloat16)
    results = {name: assess.described(paths[name], card) for name, card in cards.items()}
    for part in options.measure.split(","):
        with cli_progress(part) as progress:
            task = progress.add_task(part, total=None, note="")
            if part == "overlap":
                source = load(options.target, dtype=torch.float32, pack=False)
                for name, file in paths.items():
                    results[name]["overlap"] = assess.overlaps(
                        file, cards[name], source, fast, options.folder / "data", POSITIONS
                    )
                    progress.update(task, advance=1)
                continue
            dtype, temperature, k = parse_setting(part)
            target = (
                fast if dtype == "bfloat16" else load(options.target, dtype=choose_dtype(dtype))
            )
            found = assess.decoding(
                paths, target, k, temperature, options.prompts, options.tokens,
                tick=lambda: progress.update(task, advance=1),  # noqa: B023
            )  # fmt: skip
        for name, domains in found.items():
            results[name].setdefault("decoding", {})[part] = domains
    merged = assess.merge(path, results, assess.circumstances(options.threads))
    for name, card in cards.items():
        held_out = {key: merged[name][key] for key in ("overlap", "decoding")}
        write_card(paths[name], {**card, "held_out": held_out})
