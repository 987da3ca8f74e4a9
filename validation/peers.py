"""`python -m validation peers`: other estimators beside ours, on published measurements.

AIConfigurator composes a decode step from measured kernels; its speculative option
(`nextn`) verifies nextn + 1 tokens and prices the draft as that many more layers. It knows
no host time and no acceptance, so its speedup is the published τ times its plain step over
its speculative one. `validation.measure_peers` asks it; the answers are in
`data/peers.json`, so that this comparison needs no wheel. GenZ is an analytical roofline at
data-sheet peaks; it is asked by `validation.measure_genz` (`data/peers_genz.json`) for the
steps without speculation of models that it knows. Reported only: no bound.

As their authors report them, against real vLLM without speculation, time per output token:
AIConfigurator 19.9 %, AISimulate 19.7 %, BLIS 13.0 %.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import specsim as ss
from specsim.cost.roofline import Roofline
from specsim.cost.step import decode_step
from specsim.deployment import NO_DRAFT, Deployment, PlacedModel
from validation import published
from validation.full_steps import vllm_published
from validation.published_rows import (
    CONTEXTS,
    DEFAULT_CONTEXT,
    GPUS,
    MODELS,
    RUNTIMES,
    Case,
    cases,
    table,
)
from validation.rows import Row, comparison, statistic

PATH = Path(__file__).parent / "data" / "peers.json"
GENZ_PATH = Path(__file__).parent / "data" / "peers_genz.json"
#: Our names → GenZ's.
GENZ_MODELS = {"llama-3.1-8b": "meta-llama/meta-llama-3.1-8b"}
#: Our names → theirs. A model that they do not ship is handed to them as a configuration.
SYSTEMS = {"h100-sxm-80gb": "h100_sxm", "h200-sxm-141gb": "h200_sxm",
           "b200-sxm-180gb": "b200_sxm", "gb200-186gb": "gb200"}  # fmt: skip
THEIR_MODELS = {"llama-3.1-8b": "meta-llama/Meta-Llama-3.1-8B", "qwen3-4b": "qwen3-4b",
                "kimi-k2.6": "nvidia/Kimi-K2.6-NVFP4"}  # fmt: skip
#: The published vLLM fit is asked at batches that gave our runtime no constants.
FIT_BATCHES, FIT_CONTEXTS = (2, 8, 32), (512, 2048)
#: Sources of plain steps that gave our runtimes constants: shown, not counted as ours.
FITTED_STEPS = ("vLLM issue #20780", "SpecForge")
#: Sources that print tokens per second of one user, not of the whole batch.
PER_USER = ("vLLM blog: EAGLE 3.1",)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A decode step to be estimated; `num_draft_tokens` 0 without speculation."""

    model: str
    gpu: str
    engine: str
    tensor_parallel: int
    batch: int
    context: int
    num_draft_tokens: int

    @property
    def key(self) -> str:
        """Identifies the answer in the recorded file."""
        return (
            f"{self.model}|{self.gpu}|{self.engine}|tp{self.tensor_parallel}|b{self.batch}"
            f"|c{self.context}|k{self.num_draft_tokens}"
        )


@dataclass(frozen=True, kw_only=True)
class PlainStep:
    """A published step without speculation, in seconds."""

    label: str
    source: str
    deployment: Deployment
    batch: int
    context: int
    seconds: float

    @property
    def question(self) -> Question:
        """What to ask."""
        return question(self.deployment, self.batch, self.context, 0)


def question(deployment: Deployment, batch: int, context: int, k: int) -> Question:
    """A deployment in their terms."""
    return Question(
        model=deployment.target.spec.name, gpu=deployment.gpu.name,
        engine=deployment.runtime.name.partition("-")[0],
        tensor_parallel=deployment.target.tensor_parallel, batch=batch, context=context,
        num_draft_tokens=k,
    )  # fmt: skip


def askable(deployment: Deployment) -> bool:
    """Whether they know the model and the GPU."""
    return deployment.target.spec.name in THEIR_MODELS and deployment.gpu.name in SYSTEMS


def plain_steps() -> list[PlainStep]:
    """Published steps without speculation; rows that differ by task only are averaged."""
    found: dict[tuple[Any, ...], list[tuple[float, int]]] = defaultdict(list)
    for row in table():
        gpu = GPUS.get(row["hardware"].split(" (same")[0])
        known = row["engine"] in RUNTIMES and RUNTIMES[row["engine"]][1]
        printed = row["baseline_ms_per_token"] or row["baseline_tps"]
        if not (known and gpu and printed and row["target_model"] in MODELS):
            continue
        batch = int(row["batch_or_concurrency"])
        users = 1 if row["source"].startswith(PER_USER) else batch
        ms = row["baseline_ms_per_token"]
        seconds = float(ms) / 1e3 if ms else users / float(row["baseline_tps"])
        degree = int(row["n_gpu_tp"][:1]) if row["n_gpu_tp"][:1].isdigit() else 1
        weights = "fp4" if "FP4" in row["precision"] else "bf16"
        key = (row["source"], MODELS[row["target_model"]], gpu, RUNTIMES[row["engine"]][0], degree,
               weights, batch)  # fmt: skip
        found[key].append((seconds, CONTEXTS.get(row["task"], DEFAULT_CONTEXT)))
    steps = [*_fit_steps(), *(_plain_step(key, values) for key, values in found.items())]
    return [step for step in steps if askable(step.deployment)]


def _plain_step(key: tuple[Any, ...], values: Sequence[tuple[float, int]]) -> PlainStep:
    source, model, gpu, runtime, degree, weights, batch = key
    deployment = _deployment(model, gpu, runtime, degree, weights)
    seconds, context = (float(np.mean(column)) for column in zip(*values, strict=True))
    return PlainStep(
        label=f"{model} {deployment.gpu.name} {runtime} batch {batch}", source=source,
        deployment=deployment, batch=batch, context=round(context), seconds=seconds,
    )  # fmt: skip


def _deployment(model: str, gpu: str, runtime: str, degree: int, weights: str) -> Deployment:
    target = PlacedModel(spec=ss.model(model), weights=weights, tensor_parallel=degree)
    return Deployment(target=target, draft=NO_DRAFT, gpu=ss.gpu(gpu), runtime=ss.runtime(runtime))


def _fit_steps() -> Iterator[PlainStep]:
    deployment = _deployment("llama-3.1-8b", "h100", "vllm-0.10", 1, "bf16")
    for batch in FIT_BATCHES:
        for context in FIT_CONTEXTS:
            seconds = float(vllm_published(np.array(batch), np.array(1), np.array(context)))
            yield PlainStep(
                label=f"llama-3.1-8b h100 vllm-0.10 batch {batch} context {context}",
                source="arXiv 2601.11580, the authors' fit", deployment=deployment, batch=batch,
                context=context, seconds=seconds,
            )  # fmt: skip


def chains() -> list[Case]:
    """Published speedups of drafts that are chains, with τ, on models and GPUs they know.

    Trees and block drafters are left out: `nextn` is a chain of layers like the target's.
    """
    return [
        case
        for case in cases(("C_tau_hw",))[0]
        if case.known_stack and case.tau is not None and askable(case.deployment)
        and case.deployment.draft.tree is None and case.deployment.draft.method.startswith("eagle")
    ]  # fmt: skip


def questions() -> list[Question]:
    """Everything that is asked, without repetition."""
    asked = [step.question for step in plain_steps()]
    for case in chains():
        asked += [question(case.deployment, case.batch, case.context, k)
                  for k in (0, case.num_draft_tokens)]  # fmt: skip
    return list(dict.fromkeys(asked))


def rows() -> list[Row]:
    """Every row; none without recorded answers."""
    if not PATH.exists():
        return []
    found = rows_of(json.loads(PATH.read_text(encoding="utf-8")))
    if GENZ_PATH.exists():
        found += genz_rows(json.loads(GENZ_PATH.read_text(encoding="utf-8")))
    return found


def genz_rows(recorded: dict[str, Any]) -> list[Row]:
    """GenZ's steps, and our error on the same ones."""
    answers: dict[str, float | None] = recorded["milliseconds"]
    who = f"{recorded['tool']} {recorded['version']}"
    found: list[Row] = []
    own = []
    for step in plain_steps():
        ms = answers.get(step.question.key)
        if ms is None:
            continue
        row = comparison(f"step, {who}: {step.label}", ms, 1e3 * step.seconds, "ms",
                         provenance=f"{who}; {step.source}")  # fmt: skip
        row.tags.update(batch=step.batch)
        found.append(row)
        own.append(_our_seconds(step) / step.seconds - 1)
    theirs = [row.error or 0.0 for row in found]
    for name, errors in ((who, theirs), (f"ours where {who} answers", own)):
        if errors:
            mean = 100 * float(np.mean(errors))
            found.append(statistic(
                f"step without speculation, {name}: median |error|", np.median(np.abs(errors)),
                provenance=f"{len(errors)} published steps; mean {mean:+.1f} %; "
                f"{recorded['command']}, {recorded['date']}",
            ))  # fmt: skip
    return found


def rows_of(recorded: dict[str, Any]) -> list[Row]:
    """The rows of recorded answers (key → milliseconds, None where they had none)."""
    answers: dict[str, float | None] = recorded["milliseconds"]
    who = f"{recorded['tool']} {recorded['version']}"
    absent = [q.key for q in questions() if answers.get(q.key) is None]
    return [
        *_plain(answers, who),
        *_speculative(answers, who),
        Row(name=f"asked, not answered by {who}", error=None,
            provenance=f"{', '.join(absent) or 'none'}; {recorded['command']}, "
            f"{recorded['date']}"),
    ]  # fmt: skip


def _plain(answers: dict[str, float | None], who: str) -> Iterator[Row]:
    errors: list[tuple[float, float, bool]] = []
    for step in plain_steps():
        ms = answers.get(step.question.key)
        if ms is None:
            continue
        pair = []
        for name, predicted in ((who, ms), ("ours", 1e3 * _our_seconds(step))):
            row = comparison(
                f"step, {name}: {step.label}", predicted, 1e3 * step.seconds, "ms",
                provenance=f"{name}; {step.source}",
            )  # fmt: skip
            row.tags.update(batch=step.batch)
            pair.append(row.error or 0.0)
            yield row
        errors.append((pair[0], pair[1], step.source.startswith(FITTED_STEPS)))
    yield from _medians("step without speculation", who, errors,
                        "published steps; they model no host time")  # fmt: skip


def _our_seconds(step: PlainStep) -> float:
    source = Roofline(gpu=step.deployment.gpu)
    return float(np.max(decode_step(step.deployment, source, 0, step.batch, step.context).seconds))


def _speculative(answers: dict[str, float | None], who: str) -> Iterator[Row]:
    errors: list[tuple[float, float, bool]] = []
    for case in chains():
        plain, drafted = (
            answers.get(question(case.deployment, case.batch, case.context, k).key)
            for k in (0, case.num_draft_tokens)
        )
        if plain is None or drafted is None or case.tau is None:
            continue
        own = published.predict(case)
        pair = []
        for name, speedup in ((who, case.tau * plain / drafted), ("ours", own.speedup)):
            row = comparison(
                f"speedup, {name}: {case.label}", speedup, case.speedup, "x",
                provenance=f"{name}; {case.source}",
            )  # fmt: skip
            row.tags.update(batch=case.batch, K=case.num_draft_tokens)
            pair.append(row.error or 0.0)
            yield row
        errors.append((pair[0], pair[1], own.fitted))
    yield from _medians("speedup", who, errors, "published speedups of EAGLE chains, τ as printed")


def _medians(
    what: str, who: str, errors: Sequence[tuple[float, float, bool]], note: str
) -> Iterator[Row]:
    """Theirs and ours over all rows, then over those that gave us no constants."""
    table_ = np.array(errors, dtype=float).reshape(-1, 3)
    held = table_[table_[:, 2] == 0]
    for scope, chosen in (("", table_), (", rows that we did not fit on", held)):
        for column, name in enumerate((who, "ours")):
            if len(chosen):
                error = chosen[:, column]
                yield statistic(
                    f"{what}, {name}{scope}: median |error|", np.median(np.abs(error)),
                    provenance=f"{len(chosen)} {note}; mean {100 * float(np.mean(error)):+.1f} %",
                )  # fmt: skip
