"""Training prompts: templates × topics, in a seeded order, never one that is evaluated."""

from __future__ import annotations

import itertools
import random
import re
import tomllib
from pathlib import Path

from reference.prompts import DOMAINS, Prompt, load_prompts

#: The domains that are trained on, in the order in which a shard alternates between them.
TRAINED = ("code", "factual-qa", "creative")
_SLOT = re.compile(r"\{(\w+)\}")


def training_prompts(count: int, seed: int) -> list[Prompt]:
    """`count` different prompts, the domains in turn; the first n are the same for any count.

    Raises:
        ValueError: when there are not that many, or one is among the evaluated prompts.
    """
    each = -(-count // len(TRAINED))
    columns = [_domain_prompts(domain, each, seed) for domain in TRAINED]
    prompts = [p for row in zip(*columns, strict=True) for p in row][:count]
    evaluated = {p.text for domain in DOMAINS for p in load_prompts(domain)}
    if shared := [p.text for p in prompts if p.text in evaluated]:
        raise ValueError(f"training prompt {shared[0]!r} is an evaluation prompt")
    return prompts


def held_out_prompts() -> list[Prompt]:
    """Every hand-written prompt of the project: what drafts are evaluated on."""
    return [p for domain in DOMAINS for p in load_prompts(domain)]


def _domain_prompts(domain: str, count: int, seed: int) -> list[Prompt]:
    """Templates in turn, each with its fillings in an order of its own."""
    path = Path(__file__).with_name("prompts.toml")
    table = tomllib.loads(path.read_text(encoding="utf-8"))[domain]
    generator = random.Random(f"{seed}/{domain}")
    filled = [_fillings(template, table, generator) for template in table["templates"]]
    turns = itertools.zip_longest(*filled)  # short templates run out first
    texts = dict.fromkeys(text for turn in turns for text in turn if text is not None)
    if len(texts) < count:
        raise ValueError(f"{count} {domain} prompts wanted, there are {len(texts)}")
    chosen = itertools.islice(texts, count)
    return [Prompt(f"train-{domain}-{i:05}", text, domain) for i, text in enumerate(chosen)]


def _fillings(template: str, table: dict[str, list[str]], generator: random.Random) -> list[str]:
    slots = _SLOT.findall(template)
    options = itertools.product(*(dict.fromkeys(table[slot]) for slot in slots))
    texts = [template.format(**dict(zip(slots, values, strict=True))) for values in options]
    generator.shuffle(texts)
    return texts
