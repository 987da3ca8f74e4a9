"""What is measured on a CPU: prompts in two halves, and units of a few seconds each.

A unit decodes some prompts under one setting. Units of one group of prompts, plain decoding
among them, are decoded in turn, step by step (`validation.host_decode`), so that a machine
that drifts slows all settings alike. One half of the prompts (`fit`) gives acceptance and
host time, the other (`report`) is only compared with.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from reference.prompts import DOMAINS, Prompt, load_prompts

NGRAM, EARLY_EXIT = "ngram", "early-exit:24"
TEMPERATURES = (0.0, 1.0)
BATCHES = (1, 4)
#: K of each method in the reported half; 0 is plain decoding.
REPORTED_K = {NGRAM: (2, 4, 8), EARLY_EXIT: (2, 4)}
#: K from which acceptance at larger K is extrapolated, and K of the host time's runs.
FITTED_K = 4
#: Prompts per domain of the reported half, by method and batch: drafting with most of the
#: target's layers is slow, and its acceptance varies less from prompt to prompt.
REPORTED_PROMPTS = {(NGRAM, 1): 16, (NGRAM, 4): 16, (EARLY_EXIT, 1): 8, (EARLY_EXIT, 4): 16}
#: Output tokens after which a request is over (the last step may overshoot). So many prompts
#: and tokens leave a τ uncertain by 4 % in the median and 8 % at the 90th percentile of the
#: settings; with 24 tokens it was 11 %, more than the error that is to be measured.
OUTPUT_TOKENS = 48
#: Rows of the batch where acceptance alone is wanted.
WIDE = 8


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Prompts decoded under one setting; `purpose` is "acceptance", "host" or "report"."""

    purpose: str
    method: str
    num_draft_tokens: int
    temperature: float
    batch: int
    domain: str
    group: int
    prompts: tuple[Prompt, ...]

    @property
    def name(self) -> str:
        """Unique within a measurement."""
        return (
            f"{self.purpose}/{self.method}/k{self.num_draft_tokens}/t{self.temperature:g}"
            f"/b{self.batch}/{self.domain}/{self.group}"
        )


def grouped(units: Iterable[Unit]) -> list[list[Unit]]:
    """Units that decode the same prompts for the same purpose, together."""
    return [
        list(same)
        for _, same in itertools.groupby(
            units, key=lambda u: (u.purpose, u.domain, u.temperature, u.batch, u.group)
        )
    ]


def halves(domain: str) -> tuple[list[Prompt], list[Prompt]]:
    """(fit, report): every other prompt of each kind, in the order of the file.

    A kind is the id's first part: `copy` holds copy and summarise tasks in equal numbers.
    """
    fit: list[Prompt] = []
    report: list[Prompt] = []
    for kind in dict.fromkeys(_kind(p) for p in load_prompts(domain)):
        own = [p for p in load_prompts(domain) if _kind(p) == kind]
        fit += own[::2]
        report += own[1::2]
    return _mixed(fit), _mixed(report)


def _kind(prompt: Prompt) -> str:
    return prompt.id.rpartition("-")[0]


def _mixed(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Kinds in turn, so that any first part of the list holds all of them."""
    return sorted(prompts, key=lambda p: (p.id.rpartition("-")[2], p.id))


def acceptance_units() -> Iterator[Unit]:
    """The fitting half, decoded plainly for n-gram (what it would have drafted follows from
    the output, at any temperature: its draft is one token, accepted when the target draws
    it) and with the draft itself for early exit. Time does not matter here."""
    for domain, temperature in itertools.product(DOMAINS, TEMPERATURES):
        fit = tuple(halves(domain)[0])
        for method, k in ((NGRAM, 0), (EARLY_EXIT, FITTED_K)):
            yield Unit(
                purpose="acceptance", method=method, num_draft_tokens=k,
                temperature=temperature, batch=WIDE, domain=domain, group=0, prompts=fit,
            )  # fmt: skip


def host_units() -> Iterator[Unit]:
    """A few prompts of the fitting half, short and long ones, for the host time of a step."""
    for batch, temperature in itertools.product(BATCHES, TEMPERATURES):
        for group, domain in enumerate(("code", "copy")):
            prompts = tuple(halves(domain)[0][: max(2, batch)])
            settings = [(NGRAM, 0), (NGRAM, FITTED_K), (EARLY_EXIT, FITTED_K)]
            for method, k in _rotated(settings, group):
                yield Unit(
                    purpose="host", method=method, num_draft_tokens=k, temperature=temperature,
                    batch=batch, domain=domain, group=group, prompts=prompts,
                )  # fmt: skip


def report_units() -> Iterator[Unit]:
    """The reported half, every method × K × domain × batch × temperature."""
    for batch in BATCHES:
        size = 2 * batch if batch > 1 else 1
        for group in range(16 // size):
            for domain, temperature in itertools.product(DOMAINS, TEMPERATURES):
                prompts = tuple(halves(domain)[1][group * size : (group + 1) * size])
                settings = [(NGRAM, 0)]
                for method, ks in REPORTED_K.items():
                    if (group + 1) * size <= REPORTED_PROMPTS[method, batch]:
                        settings += [(method, k) for k in ks]
                if len(settings) == 1:
                    continue
                for method, k in _rotated(settings, group):
                    yield Unit(
                        purpose="report", method=method, num_draft_tokens=k,
                        temperature=temperature, batch=batch, domain=domain, group=group,
                        prompts=prompts,
                    )  # fmt: skip


def _rotated(settings: Sequence[tuple[str, int]], by: int) -> list[tuple[str, int]]:
    shift = by % len(settings)
    return [*settings[shift:], *settings[:shift]]
