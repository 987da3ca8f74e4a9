"""A host measurement made up from known costs and a known acceptance, for tests."""

from __future__ import annotations

import numpy as np

from specsim.records import ForwardRecord
from validation.host_plan import EARLY_EXIT, FITTED_K, NGRAM
from validation.host_traces import HostTraces, RequestTrace, UnitTrace

SHARE, ALPHA, TOKENS = 0.4, 0.7, 200
STEP_S, SEQUENCE_S, TOKEN_S = 0.4e-3, 0.1e-3, 0.3e-3


def passes_s(batch: float, new: float, context: float) -> float:
    """A concave pass, as a CPU's is."""
    tokens = batch * new
    return float(0.020 + 0.004 * tokens**0.8 + 1e-6 * batch * (context + new))


def made_up(
    *, slower: float = 1.0, prompts: int = 12, domains: tuple[str, ...] = ("code",), seed: int = 7
) -> HostTraces:
    """Units of both halves. `slower` multiplies the time of reported steps that draft."""
    rng = np.random.default_rng(seed)
    units = []
    for domain in domains:
        units.append(_unit(rng, "acceptance", NGRAM, 0, 8, domain, prompts, 1.0, runs=True))
        units.append(_unit(rng, "acceptance", EARLY_EXIT, FITTED_K, 8, domain, prompts, 1.0))
        for batch in (1, 4):
            for method, k in ((NGRAM, 0), (NGRAM, FITTED_K), (EARLY_EXIT, FITTED_K)):
                units.append(_unit(rng, "host", method, k, batch, domain, 4, 1.0))
            for method, k in ((NGRAM, 0), (NGRAM, 2), (NGRAM, 4), (NGRAM, 8), (EARLY_EXIT, 2),
                              (EARLY_EXIT, 4)):  # fmt: skip
                factor = slower if k else 1.0
                units.append(_unit(rng, "report", method, k, batch, domain, prompts, factor))
    header = {
        "schema": "host-runs", "device": "made up", "dtype": "float32", "threads": 1,
        "seed": seed, "versions": {"torch": "none"}, "settings": {"date": "2026-01-01"},
    }  # fmt: skip
    return HostTraces(header=header, units=tuple(units), forward=_forward())


def _forward() -> tuple[ForwardRecord, ...]:
    points = [("smollm2-135m", b, n, c) for b in (1, 2, 4) for n in (1, 2, 3, 5, 7, 9)
              for c in (0, 400)]  # fmt: skip
    points += [(EARLY_EXIT, b, 1, c) for b in (1, 4) for c in (0, 400)]
    return tuple(
        ForwardRecord(
            model=model, batch=batch, new_tokens=new, context=context, repeats=5, spread=1e-4,
            seconds=passes_s(batch, new, context) * (0.5 if model == EARLY_EXIT else 1.0),
        )
        for model, batch, new, context in points
    )  # fmt: skip


def _run(rng: np.random.Generator) -> int:
    return int(min(rng.geometric(1 - ALPHA) - 1, 8))


def _unit(
    rng: np.random.Generator, purpose: str, method: str, k: int, batch: int, domain: str,
    prompts: int, factor: float, runs: bool = False,
) -> UnitTrace:  # fmt: skip
    share = SHARE if method == NGRAM else 1.0
    requests, steps = [], []
    for i in range(prompts):
        accepted, drafted, positions = [], [], 0
        while positions < TOKENS and k:
            proposed = k if rng.random() < share else 0
            accepted.append(min(_run(rng), proposed))
            drafted.append(proposed)
            positions += accepted[-1] + 1
        every = [_run(rng) if rng.random() < share else -1 for _ in range(TOKENS)] if runs else ()
        requests.append(
            RequestTrace(
                request=f"{domain}-{i}",
                prompt_tokens=40,
                output_tokens=TOKENS,
                accepted=np.asarray(accepted, dtype=np.int64),
                drafted=np.asarray(drafted, dtype=np.int64),
                runs=np.asarray(every, dtype=np.int64),
            )
        )
    for row in range(0, prompts, batch):
        group = requests[row : row + batch]
        count = min((len(r.accepted) for r in group), default=0) if k else TOKENS
        for step in range(count):
            taken = sum(int(r.accepted[step]) for r in group) if k else 0
            drafted_sum = sum(int(r.drafted[step]) for r in group) if k else 0
            verify = passes_s(batch, 1 + drafted_sum / batch, 160)
            draft = 0.5 * k * passes_s(batch, 1, 160) if method == EARLY_EXIT else 0.0
            rest = STEP_S + SEQUENCE_S * batch + TOKEN_S * drafted_sum
            whole = factor * (verify + draft + rest)
            steps.append([batch, batch + taken, drafted_sum, 160 * batch, draft, verify, rest, 0,
                          whole])  # fmt: skip
    return UnitTrace(
        purpose=purpose, method=method, num_draft_tokens=k, temperature=0.0, batch=batch,
        domain=domain, group=0, core_share=1.0, requests=tuple(requests),
        steps=np.asarray(steps if purpose != "acceptance" else [], dtype=float).reshape(-1, 9),
    )  # fmt: skip
