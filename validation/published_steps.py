"""Published step times, and what the cost model says each of them takes.

They are the rows of `data/published.csv` whose sources print the times of a step; none of
them was used to fit the GPU's constants (those come from kernels alone).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from specsim.catalogue import GpuSpec, RuntimeSpec, loader
from specsim.cost.roofline import Roofline
from specsim.cost.step import decode_step
from specsim.deployment import Deployment, PlacedModel, make_draft
from validation.published_rows import table

#: Sources that print times of steps, by a part of their names.
SOURCES = ("MagicDec", "vLLM issue #20780", "SpecForge")
MODELS = {
    "Llama2-7B-32K": "llama-2-7b-32k",
    "Llama3.1-8B": "llama-3.1-8b",
    "Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "Mistral-7B-v0.3": "mistral-7b-v0.3",
    "Qwen-2.5-7B": "qwen2.5-7b",
}
#: Bandwidth share of MagicDec's own attention kernels on A100, one of the four constants
#: fitted to its Llama-2 rows (`validation.fit_runtimes`); the A100 table has vLLM's.
MAGICDEC_ATTENTION_SHARE = 0.864
#: Tokens of context where a source gives none (MT-Bench turns).
ASSUMED_CONTEXT = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """One row: times in seconds, None where the source has none."""

    source: str
    model: str
    gpu: str
    tensor_parallel: int
    batch: int
    context: float
    num_draft_tokens: int
    task: str
    method: str
    baseline_s: float | None
    draft_s: float | None
    verify_s: float | None
    step_s: float | None

    @property
    def label(self) -> str:
        """How a report calls it."""
        return (
            f"{self.model} {self.gpu}×{self.tensor_parallel} batch {self.batch} "
            f"context {self.context:g} K={self.num_draft_tokens}"
        )


@cache
def published(source: str) -> tuple[Published, ...]:
    """The rows whose source contains `source`.

    Raises:
        KeyError: for one that is not among `SOURCES`.
    """
    if not any(source in known for known in SOURCES):
        raise KeyError(f"{source!r} prints no times of steps; {', '.join(SOURCES)} do")
    return tuple(_row(row) for row in table() if source in row["source"])


def _row(row: dict[str, str]) -> Published:
    def seconds(key: str) -> float | None:
        return float(row[key]) * 1e-3 if row[key] else None

    baseline = seconds("baseline_ms_per_token")
    if baseline is None and row["baseline_tps"]:
        baseline = 1 / float(row["baseline_tps"])
    per_token = seconds("spec_ms_per_token")
    if per_token is None and row["spec_tps"]:
        per_token = 1 / float(row["spec_tps"])
    tau = float(row["tau"]) if row["tau"] else None
    return Published(
        source=f"{row['source']}, {row['locator']} ({row['url']})",
        model=row["target_model"],
        gpu=row["hardware"].split(" ")[0].lower(),  # "H100 (same author…": as in its sequel
        tensor_parallel=_degree(row["n_gpu_tp"]),
        batch=int(row["batch_or_concurrency"]),
        context=float(row["context_len"] or ASSUMED_CONTEXT),
        num_draft_tokens=int(row["K"]),
        task=row["task"],
        method=row["method"],
        baseline_s=baseline,
        draft_s=seconds("t_draft_total_ms"),
        verify_s=seconds("t_verify_ms"),
        step_s=per_token * tau if per_token and tau else None,
    )


def _degree(printed: str) -> int:
    """GPUs, where a source says ("8", "1 (inferred for 8B)"); one where it does not."""
    digits = printed.split(" ")[0]
    return int(digits) if digits.isdigit() else 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Predicted:
    """The model's baseline step, draft round, verify pass and whole step, in seconds."""

    baseline_s: float
    draft_s: float
    verify_s: float
    step_s: float


def deployment(row: Published, runtime: RuntimeSpec, gpu: GpuSpec, method: str) -> Deployment:
    """The row's deployment; `method` is "eagle", "eagle3" or "sparse-kv" (a budget of 512
    tokens)."""
    target = PlacedModel(spec=loader.model(MODELS[row.model]), tensor_parallel=row.tensor_parallel)
    budget = 512 if method == "sparse-kv" else None
    draft = make_draft(target, method=method, kv_budget=budget)
    return Deployment(target=target, draft=draft, gpu=gpu, runtime=runtime)


def predict(row: Published, runtime: RuntimeSpec, gpu: GpuSpec, method: str) -> Predicted:
    """What the model says. The verify time carries the step's host time, as MagicDec and
    plain decoding measure it."""
    placed = deployment(row, runtime, gpu, method)
    source = Roofline(gpu=gpu)
    plain = decode_step(placed.without_draft(), source, 0, row.batch, row.context)
    step = decode_step(placed, source, row.num_draft_tokens, row.batch, row.context)
    return Predicted(
        baseline_s=float(plain.seconds),
        draft_s=float(step.draft.seconds),
        verify_s=float(step.verify.seconds + step.overhead_s) - runtime.draft_step_s.value,
        step_s=float(step.seconds),
    )


def magicdec_gpu(row: Published, share: float = MAGICDEC_ATTENTION_SHARE) -> GpuSpec:
    """The row's GPU; on A100 with MagicDec's attention kernels."""
    gpu = loader.gpu(row.gpu)
    return dataclasses.replace(gpu, attention_share=share) if row.gpu == "a100" else gpu


def magicdec_runtime(row: Published) -> RuntimeSpec:
    """MagicDec's runtime on the row's GPU.

    Its step is one compiled graph, so what a sequence and a token add is work of the GPU
    (cache bookkeeping, sampling), bound by memory: the A100's constants shrink with its
    bandwidth over this GPU's. The host's time a step stays.
    """
    runtime = loader.runtime("magicdec")
    ratio = loader.gpu("a100").bandwidth_bytes_per_s / loader.gpu(row.gpu).bandwidth_bytes_per_s
    return dataclasses.replace(
        runtime,
        sequence_s=dataclasses.replace(runtime.sequence_s, value=runtime.sequence_s.value * ratio),
        token_s=dataclasses.replace(runtime.token_s, value=runtime.token_s.value * ratio),
    )


def magicdec_groups() -> Iterator[tuple[str, list[Published]]]:
    """Rows by model and GPU."""
    rows = published("MagicDec")
    for model, gpu in dict.fromkeys((row.model, row.gpu) for row in rows):
        yield f"{model} {gpu}", [row for row in rows if (row.model, row.gpu) == (model, gpu)]
