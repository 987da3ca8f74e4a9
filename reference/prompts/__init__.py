"""Prompts written for this project: code, factual questions, creative writing, copying.

One JSON Lines file a domain, each line {"id", "text"}. `copy` holds copy and summarise
tasks, where much of the output occurs in the prompt: the case for n-gram drafting.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from specsim.errors import UnknownNameError

DOMAINS = ("code", "factual-qa", "creative", "copy")


@dataclass(frozen=True)
class Prompt:
    """One prompt: `id` starts with its kind ("code-07", "summarise-03")."""

    id: str
    text: str
    domain: str


def load_prompts(domain: str) -> list[Prompt]:
    """All prompts of a domain, in order.

    Raises:
        UnknownNameError: for a domain there is none of.
    """
    if domain not in DOMAINS:
        raise UnknownNameError("prompt domain", domain, DOMAINS)
    lines = Path(__file__).with_name(f"{domain}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Prompt(domain=domain, **json.loads(line)) for line in lines]
