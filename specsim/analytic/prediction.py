"""The closed form's answer for one deployment: rows over K, the best K, the limits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from specsim.acceptance.law import Law
from specsim.analytic.breakeven import (
    MAX_SCANNED_BATCH,
    break_even_alpha,
    paying_batches,
    paying_contexts,
)
from specsim.analytic.caveats import (
    Caveat,
    acceptance_caveats,
    grid_caveats,
    memory_caveats,
    placement_caveats,
    range_caveats,
)
from specsim.analytic.grid import Grid, components, evaluate
from specsim.cost.memory import Memory, memory
from specsim.cost.provenance import cost_warnings
from specsim.cost.source import BOUNDS, CostSource, ForwardTime
from specsim.deployment import Deployment
from specsim.errors import ScenarioError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What `predict` returns. Methods without arguments speak of the first batch and
    context; `to_frame` has one row per K, batch and context."""

    deployment: Deployment
    source: CostSource
    law: Law
    acceptance_source: str
    grid: Grid

    @property
    def _drafting(self) -> list[int]:
        return [k for k in self.grid.num_draft_tokens if k >= 1]

    @cached_property
    def _interval(self) -> tuple[Any, Any]:
        return self.grid.interval()

    def rows(self) -> list[dict[str, Any]]:
        """One mapping per K, keys as in `predict --json`."""
        grid = self.grid
        low, high = self._interval
        parts = {name: grid.part(name)[:, 0, 0] for name in ("draft", "verify", "overhead")}
        bound = grid.verify_bound()[:, 0, 0]
        return [
            {
                "num_draft_tokens": k,
                "acceptance_length": float(grid.acceptance_length[i]),
                "draft_s": float(parts["draft"][i]),
                "verify_s": float(parts["verify"][i]),
                "overhead_s": float(parts["overhead"][i]),
                "step_s": float(grid.step_s[i, 0, 0]),
                "tokens_per_s": float(grid.tokens_per_s[i, 0, 0]),
                "speedup": float(grid.speedup[i, 0, 0]),
                "speedup_low": float(low[i, 0, 0]),
                "speedup_high": float(high[i, 0, 0]),
                "verify_bound": str(bound[i]),
            }
            for i, k in enumerate(grid.num_draft_tokens)
        ]

    @cached_property
    def best(self) -> dict[str, Any]:
        """K with the largest speedup, 0 (and 1.0) when nothing pays."""
        speedup = self.grid.speedup[:, 0, 0]
        index = int(np.argmax(speedup))
        if speedup[index] <= 1:
            return {"num_draft_tokens": 0, "speedup": 1.0}
        return {
            "num_draft_tokens": self.grid.num_draft_tokens[index],
            "speedup": float(speedup[index]),
        }

    def regret(self) -> dict[int, float]:
        """K → the share of the best throughput that it loses; 0 for the best K.

        K = 0 is always in the comparison."""
        pairs = zip(self.grid.num_draft_tokens, self.grid.speedup[:, 0, 0], strict=True)
        speedup = {k: float(s) for k, s in pairs}
        speedup.setdefault(0, 1.0)
        top = max(speedup.values())
        return {k: 1 - s / top for k, s in sorted(speedup.items())}

    def baseline(self) -> dict[str, Any]:
        """Plain decoding: step time, tokens/s, what binds it."""
        base = self.grid.baseline
        return {
            "step_s": float(np.max(base.seconds[0, 0])),
            "tokens_per_s": float(self.grid.baseline_tokens_per_s[0, 0]),
            "bound": BOUNDS[int(np.ravel(base.verify.bound_code)[0])],
            "components": {
                **{k: float(v) for k, v in components(_first(base.verify)).items()},
                "overhead_s": float(np.ravel(base.overhead_s)[0]),
            },
        }

    @cached_property
    def break_even(self) -> dict[str, Any]:
        """The acceptance, batches and contexts at which speculation pays."""
        grid, deployment = self.grid, self.deployment
        batch, context = int(grid.batch[0]), int(grid.context[0])
        limit = deployment.target.spec.max_context
        return {
            "alpha": break_even_alpha(
                grid.num_draft_tokens,
                grid.step_s[:, 0, 0],
                self.baseline()["step_s"],
                deployment.draft.tree,
            ),
            "batch": paying_batches(
                deployment, self.source, self.law, self._drafting, context, self.max_batch
            ),
            "context": paying_contexts(
                deployment, self.source, self.law, self._drafting, batch, limit
            ),
        }

    @property
    def max_batch(self) -> int:
        """The largest batch worth asking about: what fits, if anything does."""
        fitting = self.memory.max_concurrency or MAX_SCANNED_BATCH
        return min(MAX_SCANNED_BATCH, fitting)

    @cached_property
    def memory(self) -> Memory:
        """What fits with the largest K of the rows."""
        return memory(self.deployment, max(self.grid.num_draft_tokens), int(self.grid.context[0]))

    def memory_summary(self) -> dict[str, Any]:
        """Bytes over all GPUs of the replica (weights) or per GPU (buffers), and what fits."""
        m, target = self.memory, self.deployment.target
        draft = self.deployment.draft.model
        plain = memory(self.deployment.without_draft(), 0, int(self.grid.context[0]))
        kv_draft = 0.0
        if draft is not None and m.kv_bytes_per_token > target.kv_bytes_per_token_per_gpu:
            kv_draft = draft.spec.kv_bytes_per_token(draft.kv)
        return {
            "target_weights_bytes": target.weights_bytes,
            "logits_bytes": m.logits_bytes,
            "graph_bytes": m.graph_bytes,
            "activation_bytes": m.activation_bytes,
            "draft_weights_bytes": m.draft_weights_bytes
            * (draft.tensor_parallel if draft is not None else 1),
            "kv_bytes_per_token": target.spec.kv_bytes_per_token(target.kv),
            "draft_kv_bytes_per_token": kv_draft,
            "budget_bytes_per_gpu": m.budget_bytes,
            "used_bytes_per_gpu": m.budget_bytes - m.kv_pool_bytes,
            "fits": m.fits,
            "max_concurrency": m.max_concurrency,
            "max_concurrency_without_speculation": plain.max_concurrency,
        }

    @cached_property
    def warnings(self) -> list[Caveat]:
        """Everything that would mislead a reader of the rows."""
        grid = self.grid
        batch, context = int(grid.batch[0]), int(grid.context[0])
        found = [
            *memory_caveats(self.deployment, self.memory, batch, context),
            *acceptance_caveats(self.law, grid.num_draft_tokens, self.acceptance_source),
            *grid_caveats(self.deployment, grid),
            *placement_caveats(self.deployment, context),
            *range_caveats(self.source, self.law, grid.batch, grid.context),
            *(Caveat(code=code, message=text) for code, text in cost_warnings(self.deployment)),
        ]
        pays = self.break_even["batch"]
        if pays and pays[-1][1] < min(batch, self.max_batch):
            found.append(
                Caveat(
                    code="beyond-crossover",
                    message=f"batch {batch} is beyond the last batch at which speculation pays, "
                    f"{pays[-1][1]}",
                )
            )
        return found

    def sources(self) -> dict[str, str]:
        """What the numbers rest on."""
        runtime = self.deployment.runtime
        return {
            "cost": f"{self.source.name}; runtime {runtime.name}",
            "acceptance": self.acceptance_source,
        }

    def to_dict(self) -> dict[str, Any]:
        """The keys of `predict --json`, `inputs` left out."""
        return {
            "baseline": self.baseline(),
            "rows": self.rows(),
            "best": self.best,
            "break_even": self.break_even,
            "memory": self.memory_summary(),
            "sources": self.sources(),
            "warnings": [{"code": c.code, "message": c.message} for c in self.warnings],
        }

    def to_frame(self) -> pd.DataFrame:
        """Tidy pandas: one row per K, batch and context."""
        import pandas as pd

        grid = self.grid
        low, high = self._interval
        index = pd.MultiIndex.from_product(
            [grid.num_draft_tokens, grid.batch.astype(int), grid.context.astype(int)],
            names=["num_draft_tokens", "batch", "context"],
        )
        shape = grid.step_s.shape
        columns = {
            "acceptance_length": np.broadcast_to(grid.acceptance_length[:, None, None], shape),
            "draft_s": grid.part("draft"),
            "verify_s": grid.part("verify"),
            "overhead_s": grid.part("overhead"),
            "step_s": grid.step_s,
            "tokens_per_s": grid.tokens_per_s,
            "baseline_tokens_per_s": np.broadcast_to(grid.baseline_tokens_per_s, shape),
            "speedup": grid.speedup,
            "speedup_low": low,
            "speedup_high": high,
            "verify_bound": grid.verify_bound(),
        }
        data = {name: np.asarray(values).ravel() for name, values in columns.items()}
        return pd.DataFrame(data, index=index).reset_index()

    def _repr_html_(self) -> str:
        best = self.best
        head = (
            f"<p><b>{self.deployment.target.spec.name}</b> on {self.deployment.num_gpus} × "
            f"{self.deployment.gpu.name}: best K = {best['num_draft_tokens']}, "
            f"speedup {best['speedup']:.2f}×</p>"
        )
        html: str = self.to_frame().to_html(index=False, float_format=lambda x: f"{x:.4g}")
        return head + html


def _first(time: ForwardTime) -> ForwardTime:
    """The pass at the first batch and context."""
    return ForwardTime(**{
        name: np.ravel(getattr(time, name))[0]
        for name in ("seconds", "memory_s", "compute_s", "latency_s")
    })  # fmt: skip


def predict_deployment(
    deployment: Deployment, source: CostSource, law: Law, acceptance_source: str,
    num_draft_tokens: Iterable[int], batch: int | Sequence[int], context: int | Sequence[int],
) -> Prediction:  # fmt: skip
    """The closed form for a resolved deployment.

    Raises:
        ScenarioError: if a context is beyond the target's maximum.
        ValueError: for an empty K, K < 0, batch < 1 or context < 0.
    """
    ks = tuple(num_draft_tokens)
    if not ks:
        raise ValueError("num_draft_tokens is empty")
    limit = deployment.target.spec.max_context
    if np.max(context) > limit:
        raise ScenarioError(
            f"context {int(np.max(context))} is beyond the {limit} tokens that "
            f"{deployment.target.spec.name} was made for"
        )
    return Prediction(
        deployment=deployment, source=source, law=law, acceptance_source=acceptance_source,
        grid=evaluate(deployment, source, law, ks, batch, context),
    )  # fmt: skip
