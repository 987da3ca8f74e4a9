"""`python -m reference serve`: real requests in real time, one record a request."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from reference import cli

EXAMPLES = """\
examples:
  python -m reference serve --rate 0.5 --num-requests 20 --slots 4 --out served.jsonl
  python -m reference serve --trace arrivals.csv --draft ngram --k 4 --out served.jsonl

A trace is CSV or JSON Lines with arrival_s, output_tokens and either prompt (text) or
prompt_tokens (a number: a synthetic prompt, and exactly output_tokens are generated).
"""


def add_parser(commands: Any) -> None:
    """Add this command's options."""
    parser = commands.add_parser(
        "serve",
        help="continuous batching of requests arriving in real time",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_model_options(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--trace", metavar="FILE", help="arrivals, CSV or JSON Lines")
    source.add_argument("--rate", type=float, help="Poisson arrivals per second")
    parser.add_argument("--num-requests", type=int, default=16, help="with --rate")
    parser.add_argument("--output-tokens", type=int, default=64, help="with --rate: at most")
    parser.add_argument("--domains", default="code,factual-qa,creative,copy", help="with --rate")
    parser.add_argument("--draft", default="none", help=cli.DRAFT_HELP + " (default: none)")
    parser.add_argument("--k", default="4", help="drafted tokens a step, or adaptive")
    parser.add_argument("--slots", type=int, default=4, help="requests in the batch at once")
    parser.add_argument("--prefill-chunk", type=int, default=64, help="prompt tokens a step")
    parser.add_argument("--context", type=int, default=1024, help="cache slots a request")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--out", metavar="FILE.jsonl", help="request records")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Serve; exit status 0, or 130 after Ctrl-C with the completed requests kept."""
    from reference.decode import Decoder
    from reference.hardware import device_name
    from reference.options import (
        choose_device,
        choose_dtype,
        make_drafter,
        make_policy,
        set_threads,
    )
    from reference.report import warm_up
    from reference.sampling import Warp
    from reference.serve import serve, summarise
    from reference.weights import load

    policy, warp = make_policy(options.k), Warp(temperature=options.temperature)
    threads = set_threads(options.threads)
    device = choose_device(options.device)
    target = load(options.target, dtype=choose_dtype(options.dtype), device=device)
    if target.tokenizer is None:
        raise ValueError(f"{options.target} has no tokenizer, so it cannot read prompts")
    drafter, warning = make_drafter(options.draft, target)
    cli.warn(warning)
    decoder = Decoder(
        target.model, drafter, warp=warp, policy=policy, rows=options.slots,
        capacity=options.context, prefill_chunk=options.prefill_chunk,
    )  # fmt: skip
    arrivals = make_arrivals(options, target)
    for arrival in arrivals:  # refuse now what could not be admitted later
        check_length(arrival, decoder.cache.capacity)
    writer = make_writer(options, threads, device_name(device))
    warm_up(target.model, (1, min(options.prefill_chunk, decoder.cache.capacity)))
    records, status = [], 0
    try:
        for record in serve(decoder, arrivals, eos=target.tokenizer.eos, seed=options.seed):
            records.append(record)
            if writer:
                writer.write(record)
            print(f"\r{len(records)}/{len(arrivals)} requests", end="", file=sys.stderr)
    except KeyboardInterrupt:
        status = cli.INTERRUPTED
    finally:
        print(file=sys.stderr)
        if writer:
            writer.close()
    result = summarise(records, len(arrivals))
    if status:
        result["interrupted"] = True
    show(result, as_json=options.json)
    return status


def make_arrivals(options: argparse.Namespace, target: Any) -> list[Any]:
    """From the trace, or Poisson arrivals of the prompt sets."""
    from reference.prompts import load_prompts
    from reference.serve import poisson_arrivals, read_trace

    if options.trace is not None:
        return read_trace(options.trace, target.tokenizer, target.model.config.vocab_size)
    sets = [load_prompts(domain) for domain in options.domains.split(",")]
    prompts = [prompt for group in zip(*sets, strict=True) for prompt in group]
    return poisson_arrivals(
        prompts, target.tokenizer, rate_per_s=options.rate, num_requests=options.num_requests,
        output_tokens=options.output_tokens, seed=options.seed,
    )  # fmt: skip


def check_length(arrival: Any, capacity: int) -> None:
    """Raises ValueError when a request is longer than a slot."""
    need = len(arrival.prompt) + arrival.output_tokens
    if need > capacity:
        raise ValueError(
            f"request {arrival.name}: prompt of {len(arrival.prompt)} and output of "
            f"{arrival.output_tokens} tokens exceed --context {capacity}"
        )


def make_writer(options: argparse.Namespace, threads: int, device: str) -> Any:
    """A record file for --out, or None."""
    from specsim.records import Header, RecordWriter

    if options.out is None:
        return None
    names = ("target", "draft", "k", "slots", "prefill_chunk", "temperature", "trace", "rate",
             "num_requests", "output_tokens", "domains")  # fmt: skip
    header = Header(
        schema="request",
        device=device,
        dtype=options.dtype,
        threads=threads,
        seed=options.seed,
        versions=cli.versions(),
        settings={name: getattr(options, name) for name in names},
    )
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    return RecordWriter(options.out, header)


def show(result: dict[str, Any], *, as_json: bool) -> None:
    """The summary on stdout."""
    if as_json:
        cli.print_json(result)
        return
    rate = result["throughput_tokens_per_s"]
    print(f"{result['completed']} of {result['requests']} requests, {result['output_tokens']} "
          f"tokens in {result['duration_s']:.1f} s"
          + (f" ({rate:.1f} tokens/s)" if rate else ""))  # fmt: skip
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        if result[name]:
            values = "  ".join(f"{key} {value:.3f}" for key, value in result[name].items())
            print(f"{name:7}  {values}")
