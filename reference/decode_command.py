"""`python -m reference decode`: text, and what speculation did for it."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from reference import cli

EXAMPLES = """\
examples:
  python -m reference decode --draft ngram --k 8 --prompt "Repeat after me: one two three four"
  python -m reference decode --draft early-exit:24 --k 2 --prompt "The capital of France is"
  python -m reference decode --draft early-exit:20 --tree 3,2 --temperature 0.8 --prompt "Once"

Greedy decoding (--temperature 0, the default) is checked against autoregressive decoding
in the same run; float32 makes the two identical, bfloat16 may differ where two tokens tie.
"""


def add_parser(commands: Any) -> None:
    """Add this command's options."""
    parser = commands.add_parser(
        "decode",
        help="decode a prompt speculatively; prints text, speed and acceptance",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_model_options(parser)
    parser.add_argument("--draft", default="ngram", help=cli.DRAFT_HELP + " (default: ngram)")
    parser.add_argument("--k", default="4", help="drafted tokens a step, or adaptive (default: 4)")
    parser.add_argument("--tree", help="draft a tree: children a level, such as 3,2,1")
    parser.add_argument("--distinct", action="store_true", help="siblings without replacement")
    parser.add_argument(
        "--rule", default="chain", choices=cli.RULE_NAMES,
        help="accept rule; typical is LOSSY (default: chain; trees always use tree)",
    )  # fmt: skip
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="the prompt")
    source.add_argument("--prompt-file", metavar="FILE", help="read the prompt from a file")
    parser.add_argument("--raw", action="store_true", help="no chat layout around the prompt")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    parser.add_argument("--top-k", type=int, default=0, help="0 keeps all tokens")
    parser.add_argument("--top-p", type=float, default=1.0, help="1 keeps all tokens")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="stop string")
    parser.add_argument("--ignore-eos", action="store_true", help="go on to --max-new-tokens")
    parser.add_argument("--batch", type=int, default=1, help="rows decoding this prompt at once")
    parser.add_argument("--context", type=int, default=2048, help="cache slots a row")
    parser.add_argument("--no-baseline", action="store_true", help="no autoregressive run")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Decode; exit status 0, or 130 with the partial result after Ctrl-C."""
    from reference import report
    from reference.options import (
        choose_device,
        choose_dtype,
        make_drafter,
        make_policy,
        set_threads,
    )
    from reference.sampling import Warp
    from reference.weights import load

    policy = make_policy(options.k, options.tree)  # cheap mistakes before slow loading
    warp = Warp(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)
    prompt = options.prompt if options.prompt is not None else cli.read_text(options.prompt_file)
    device, dtype = choose_device(options.device), choose_dtype(options.dtype)
    if options.batch < 1:
        raise ValueError(f"batch={options.batch} < 1")
    set_threads(options.threads)
    target = load(options.target, dtype=dtype, device=device)
    drafter, warning = make_drafter(options.draft, target, distinct=options.distinct)
    cli.warn(warning)
    ids, stop = encode(options, target.tokenizer, prompt)
    common = {"warp": warp, "rows": options.batch, "capacity": options.context}
    decoder = decoder_for(target.model, drafter, policy=policy, rule=options.rule, **common)
    width = len(policy_shape(policy))
    longest = max(1, min(width + 1, options.max_new_tokens, decoder.cache.capacity))
    report.warm_up(target.model, sorted({1, longest}))
    settings = (ids, options.max_new_tokens, options.batch, options.seed, stop)
    ours = report.make_run(decoder, *settings)
    plain = decoder_for(target.model, None, **common)
    baseline = None if options.no_baseline else report.make_run(plain, *settings)
    printer = Printer(target.tokenizer, silent=options.json)
    status = 0
    try:
        report.interleave(ours, baseline, printer)
    except KeyboardInterrupt:
        status = cli.INTERRUPTED
    result = report.summary(ours, baseline, target.tokenizer)
    result |= {
        "device": str(device),
        "dtype": options.dtype,
        "draft": options.draft,
        "num_draft_tokens": width,
    }
    if status:
        result["interrupted"] = True
    if options.json:
        cli.print_json(result)
    else:
        print(f"\n\n{report.closing_lines(result)}")
    return status


def decoder_for(model: Any, drafter: Any, **settings: Any) -> Any:
    """A `Decoder` (imported late: torch takes a second, `--help` should not)."""
    from reference.decode import Decoder

    return Decoder(model, drafter, **settings)


def policy_shape(policy: Any) -> tuple[int, ...]:
    """What a policy drafts in the first step."""
    from reference.policy import History

    shape: tuple[int, ...] = policy(History())
    return shape


def encode(options: argparse.Namespace, tokenizer: Any, prompt: str) -> tuple[list[int], Any]:
    """Token ids of the prompt, and when to stop."""
    from reference.stopping import StopRule

    if tokenizer is None:
        raise ValueError(f"{options.target} has no tokenizer, so it cannot read a prompt")
    ids = tokenizer.encode(prompt) if options.raw else tokenizer.chat(prompt)
    eos = frozenset() if options.ignore_eos else tokenizer.eos
    return ids, StopRule(eos, tuple(options.stop), tokenizer.decode)


class Printer:
    """Streams the first row's text as it grows; half a character waits for its rest."""

    def __init__(self, tokenizer: Any, *, silent: bool) -> None:
        self.tokenizer, self.silent, self.shown = tokenizer, silent, 0

    def __call__(self, run: Any) -> None:
        if self.silent:
            return
        request = run.requests[0]
        text = self.tokenizer.decode(request.generated)
        whole = text if request.finished else text.rstrip("\ufffd")
        sys.stdout.write(whole[self.shown :])
        sys.stdout.flush()
        self.shown = max(self.shown, len(whole))
