"""`python -m reference evaluate-drafts`: what trained drafts are worth; docs/drafts.* ."""

from __future__ import annotations

import argparse
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
    parser.add_argument("--k", type=int, default=4, help="drafted tokens a step (default: 4)")
    parser.add_argument("--prompts", type=int, default=8, help="decoded prompts a domain")
    parser.add_argument("--float32-prompts", type=int, default=2, help="the same in float32")
    parser.add_argument("--tokens", type=int, default=64, help="output tokens a decoded prompt")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("out/drafts"), help="held-out data")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="page, JSON and figures")
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure, merge, write the page."""
    from reference.training import page

    for name, least in (("k", 1), ("prompts", 2), ("float32_prompts", 0), ("tokens", 8)):
        if getattr(options, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)} < {least}")
    path = options.docs / "drafts.json"
    if not options.page_only:
        measure(options, path)
    page.write(path, options.docs)
    return 0


def measure(options: argparse.Namespace, path: Path) -> None:
    """Evaluate each draft and merge the results into the JSON file and the cards."""
    import torch

    from reference.draft.trained import read_card, shipped, shipped_path, write_card
    from reference.options import set_threads
    from reference.train_command import cli_progress
    from reference.training import assess
    from reference.weights import load

    set_threads(options.threads)
    files = options.drafts or [shipped_path(name) for name in shipped()]
    cards = {file.stem: read_card(file) for file in files}
    paths = {file.stem: file for file in files}
    fast = load(options.target, dtype=torch.bfloat16)
    results = {name: assess.described(paths[name], card) for name, card in cards.items()}
    with cli_progress("overlap") as progress:
        task = progress.add_task("overlap", total=len(files), note="")
        source = load(options.target, dtype=torch.float32, pack=False)
        for name, file in paths.items():
            results[name]["overlap"] = assess.overlaps(
                file, cards[name], source, fast, options.folder / "data", options.k
            )
            progress.update(task, advance=1)
    del source
    settings = [("bfloat16", 0.0, options.prompts), ("bfloat16", 1.0, options.prompts),
                ("float32", 0.0, options.float32_prompts)]  # fmt: skip
    for dtype, temperature, prompts in settings:
        if prompts < 2:
            continue
        target = fast if dtype == "bfloat16" else load(options.target, dtype=torch.float32)
        with cli_progress(f"decode {dtype} T={temperature:g}") as progress:
            task = progress.add_task("decode", total=None, note="")
            found = assess.decoding(
                paths, target, options.k, temperature, prompts, options.tokens,
                tick=lambda: progress.update(task, advance=1),  # noqa: B023
            )  # fmt: skip
        for name, domains in found.items():
            results[name].setdefault("decoding", {})[f"{dtype}/{temperature:g}"] = domains
    assess.merge(path, results, assess.circumstances(options.k, options.threads))
    for name, card in cards.items():
        held_out = {key: results[name][key] for key in ("overlap", "decoding")}
        write_card(paths[name], {**card, "held_out": held_out})
