"""`specsim.predict`: the closed form for Python callers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from specsim import catalogue
from specsim.acceptance.law import Law
from specsim.analytic.prediction import Prediction, predict_deployment
from specsim.catalogue.specs import GpuSpec, ModelSpec, RuntimeSpec
from specsim.cost.experts import TYPICAL
from specsim.cost.roofline import Roofline
from specsim.cost.source import CostSource
from specsim.deployment import Deployment, PlacedModel, Routing, Tree, make_draft


def predict(
    *, target: ModelSpec | str, gpu: GpuSpec | str, acceptance: Law,
    draft: ModelSpec | str | None = None, method: str | None = None,
    num_draft_tokens: int | Iterable[int] = range(1, 9),
    batch: int | Sequence[int] = 1, context: int | Sequence[int] = 1024,
    tensor_parallel: int = 1, weights: str = "bf16", kv: str = "bf16",
    draft_weights: str | None = None, draft_tensor_parallel: int | None = None,
    draft_kv_budget: int | None = None, tree: Tree | None = None, exit_layer: int | None = None,
    runtime: RuntimeSpec | str = "vllm", cost_source: CostSource | None = None,
    routing: Routing = TYPICAL,
) -> Prediction:  # fmt: skip
    """Speculative decoding on one deployment, from the closed form.

    Args:
        target, draft, gpu, runtime: catalogue objects or their names.
        acceptance: the law of how many drafted tokens survive.
        method: as in a scenario; what `draft` implies when left out.
        num_draft_tokens, batch, context: scalars or sequences; every combination is
            evaluated. Context in tokens.
        cost_source: where step times come from; the GPU's roofline when left out.
        routing: how the tokens of a mixture-of-experts target spread over its experts.

    Returns:
        A `Prediction`: `.rows()`, `.best`, `.break_even`, `.to_frame()` (tidy pandas, one
        row per configuration), `.warnings`.

    Raises:
        ValueError: for impossible values or parts that do not go together.
        UnknownNameError: for a name that the catalogue does not have.

    Example:
        >>> import specsim as ss
        >>> table = ss.predict(
        ...     target="llama-3.1-8b", draft="llama-3.2-1b", gpu="h100-sxm",
        ...     acceptance=ss.acceptance.Iid(0.8), num_draft_tokens=range(1, 9), batch=[1, 8],
        ... )
        >>> len(table.to_frame())
        16
        >>> round(table.rows()[3]["acceptance_length"], 2)
        3.36
        >>> table.best["speedup"] > 1
        True
    """
    placed = PlacedModel(
        spec=catalogue.model(target) if isinstance(target, str) else target,
        weights=weights, kv=kv, tensor_parallel=tensor_parallel, routing=routing,
    )  # fmt: skip
    draft_spec = catalogue.model(draft) if isinstance(draft, str) else draft
    hardware = catalogue.gpu(gpu) if isinstance(gpu, str) else gpu
    deployment = Deployment(
        target=placed,
        draft=make_draft(
            placed, method=method, model=draft_spec, weights=draft_weights,
            tensor_parallel=draft_tensor_parallel, kv_budget=draft_kv_budget, tree=tree,
            exit_layer=exit_layer,
        ),
        gpu=hardware,
        runtime=catalogue.runtime(runtime) if isinstance(runtime, str) else runtime,
    )  # fmt: skip
    ks = (num_draft_tokens,) if isinstance(num_draft_tokens, int) else tuple(num_draft_tokens)
    source = cost_source if cost_source is not None else Roofline(gpu=hardware)
    return predict_deployment(
        deployment, source, acceptance, f"{acceptance}, as given", ks, batch, context
    )
