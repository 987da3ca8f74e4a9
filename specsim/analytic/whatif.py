"""What if: one point of model, draft, GPU, runtime, acceptance, batch and context.

The plain function behind the interactive notebook. It answers for every position of its
controls: what the catalogue cannot place is moved to the nearest thing that it can, and a
note says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from specsim import catalogue
from specsim.acceptance.chains import Iid
from specsim.analytic.curves import speedup_over_batch
from specsim.analytic.prediction import Prediction, predict_deployment
from specsim.catalogue.specs import ModelSpec
from specsim.cost.memory import memory
from specsim.cost.roofline import Roofline
from specsim.deployment import Deployment, Draft, PlacedModel, make_draft

#: Draft lengths that are compared; 0 is no speculation.
NUM_DRAFT_TOKENS = tuple(range(13))
#: Tensor-parallel degrees that are tried, smallest first.
DEGREES = (1, 2, 4, 8)
#: A draft model has at most this share of the target's active parameters.
LARGEST_DRAFT_SHARE = 0.5
#: What the controls of a notebook offer; `what_if` itself takes any catalogue name.
TARGETS = (
    "llama-3.1-8b", "llama-3.1-70b", "qwen3-32b", "qwen3-30b-a3b", "gemma-3-27b",
    "gpt-oss-120b", "deepseek-v3",
)  # fmt: skip
GPUS = ("l4-24gb", "rtx4090-24gb", "l40s-48gb", "a100-sxm-80gb", "h100-sxm-80gb",
        "h200-sxm-141gb", "b200-sxm-180gb", "mi300x-192gb")  # fmt: skip
RUNTIMES = ("vllm", "sglang", "trtllm", "hf-eager", "ideal")
WEIGHTS = ("bf16", "fp8", "int4")
MAX_BATCH, MAX_CONTEXT = 512, 131_072


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """One answer: `rows` over K and `curve` over batch, as figures take them."""

    prediction: Prediction
    rows: list[dict[str, Any]]
    curve: dict[str, Any]
    headline: str
    notes: tuple[str, ...]

    @property
    def best(self) -> dict[str, Any]:
        """K with the largest speedup, and that speedup; 0 and 1.0 when nothing pays."""
        return self.prediction.best

    @property
    def paying_batches(self) -> list[list[int]]:
        """Ranges of batch in which the best K beats plain decoding."""
        ranges: list[list[int]] = self.prediction.break_even["batch"]
        return ranges


def draft_options(target: str) -> tuple[str, ...]:
    """Drafts that go with a target: smaller models of its family, then methods without a
    model of their own, smallest effort last.

    Raises:
        UnknownNameError: for a target that the catalogue does not have.
    """
    spec = catalogue.model(target)
    limit = LARGEST_DRAFT_SHARE * spec.num_active_parameters
    family = [
        other.name
        for other in map(catalogue.model, catalogue.list_models())
        if other.family == spec.family
        and other.head_of is None
        and other.num_active_parameters <= limit
        and _goes_with(spec, other)
    ]
    methods = ["eagle3", *(["mtp"] if spec.mtp_layers else []), "ngram"]
    return (*family, *methods)


@cache
def _goes_with(target: ModelSpec, draft: ModelSpec) -> bool:
    try:
        make_draft(PlacedModel(spec=target), model=draft)
    except ValueError:
        return False
    return True


def what_if(
    *, target: str, draft: str, gpu: str, runtime: str = "vllm", alpha: float = 0.75,
    batch: int = 1, context: int = 1024, weights: str = "bf16", tensor_parallel: int | None = None,
) -> WhatIf:  # fmt: skip
    """The closed form at one position of the controls.

    Args:
        draft: a model's name, or one of the methods of `draft_options`; no speculation is
            the row K = 0.
        alpha: i.i.d. conditional acceptance.
        batch, context: sequences, and tokens of each; a context beyond the target's
            maximum is cut to it, with a note.
        tensor_parallel: GPUs of the replica; if left out, the fewest of 1, 2, 4, 8 that hold
            the whole batch (the most if none do).

    Returns:
        A `WhatIf`. Nothing in it is NaN; what does not fit is still computed, with a note.

    Raises:
        UnknownNameError: for a name that the catalogue does not have.
        ValueError: for a draft that does not go with the target, alpha outside [0, 1],
            batch < 1 or context < 1.

    Example:
        >>> answer = what_if(
        ...     target="llama-3.1-70b", draft="llama-3.2-1b", gpu="h100-sxm", alpha=0.8
        ... )
        >>> answer.best["speedup"] > 1, answer.rows[0]["speedup"]
        (True, 1.0)
    """
    if context < 1:
        raise ValueError(f"context={context} < 1")
    law = Iid(alpha)
    spec, notes = catalogue.model(target), []
    if context > spec.max_context:
        notes.append(f"context cut to the {spec.max_context:,} tokens {spec.name} was made for")
        context = spec.max_context
    deployment = _deployment(spec, draft, gpu, runtime, weights, tensor_parallel, batch, context)
    hardware = deployment.gpu
    prediction = predict_deployment(
        deployment, Roofline(gpu=hardware), law, f"alpha = {alpha:g}, i.i.d.",
        NUM_DRAFT_TOKENS, batch, context,
    )  # fmt: skip
    notes += [caveat.message for caveat in prediction.warnings]
    best = prediction.best
    verdict = (
        f"best K = {best['num_draft_tokens']}, {best['speedup']:.2f}×"
        if best["num_draft_tokens"]
        else "do not speculate"
    )
    return WhatIf(
        prediction=prediction,
        rows=prediction.rows(),
        curve=speedup_over_batch(prediction),
        headline=f"{spec.name} ({weights}) with {draft} on {deployment.num_gpus} × "
        f"{hardware.name}, batch {batch}, context {context:,}: {verdict}",
        notes=tuple(notes),
    )


def _deployment(
    spec: ModelSpec, draft: str, gpu: str, runtime: str, weights: str,
    tensor_parallel: int | None, batch: int, context: int,
) -> Deployment:  # fmt: skip
    """On the given number of GPUs, or the fewest that hold the batch (the most if none do)."""
    hardware, engine = catalogue.gpu(gpu), catalogue.runtime(runtime)
    found: list[Deployment] = []
    for degree in DEGREES if tensor_parallel is None else (tensor_parallel,):
        try:
            placed = PlacedModel(spec=spec, weights=weights, tensor_parallel=degree)
        except ValueError:
            if tensor_parallel is not None or not found:
                raise
            break  # the heads cannot be split further
        deployment = Deployment(
            target=placed, draft=_draft(placed, draft), gpu=hardware, runtime=engine
        )
        found.append(deployment)
        if memory(deployment, max(NUM_DRAFT_TOKENS), context).max_concurrency >= batch:
            break
    return found[-1]


def _draft(target: PlacedModel, name: str) -> Draft:
    if name in ("eagle", "eagle3", "medusa", "mtp", "ngram"):
        return make_draft(target, method=name)
    return make_draft(target, model=catalogue.model(name))
