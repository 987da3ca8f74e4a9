"""What a model, a GPU, a serving runtime and an acceptance preset *are*.

Frozen dataclasses with formula methods; no file is read here. Those of a model have files
of their own and are re-exported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from specsim.catalogue.attention_spec import AttentionKind, AttentionSpec
from specsim.catalogue.model_spec import FeedForwardSpec, LayerGroup, ModelSpec

__all__ = [
    "AcceptancePreset",
    "AttentionKind",
    "AttentionSpec",
    "Bound",
    "Estimate",
    "FeedForwardSpec",
    "GpuSpec",
    "LayerGroup",
    "ModelSpec",
    "RuntimeSpec",
]

Bound = Literal["memory", "compute", "latency"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuSpec:
    """A GPU (or TPU): datasheet limits, and how near to them its kernels come.

    The constants after `price_usd_per_h` are fitted to measured kernels of this GPU or
    carried over from others (`constants_source` says which); `cost/roofline.py` has the
    formulas and docs/cost.md the errors. Shares are ≤ 1.

    Dense products m×k by k×n: `bandwidth_share` and `compute_share` of the peaks,
    `wide_share` of the bandwidth again once there are more rows than one tensor-core tile
    (16); `ridge_exponent` of the smooth maximum; `fixed_s` per kernel; `loop_s` per unit
    of k, for the latency of the loop over k, until the loop is split (`loop_depth`),
    longer by `loop_growth` per 128 rows.
    Products in 8 or 4 bits: `narrow_compute_share`, and the quantisation of the
    activations, `quantise_s` plus `quantise_element_s` each.
    Attention over a KV cache: `attention_share` of bandwidth, `attention_fixed_s`,
    `attention_tile_s` per sequence and key–value head, `attention_depth_s` per doubling
    of the context, `attention_exponent` between bytes and tiles,
    `attention_compute_share`; `attention_narrow_share` and `attention_narrow_fixed_s` for
    a cache in 8 bits.
    Experts: `expert_share` of bandwidth, `expert_compute_share`, `expert_fixed_s`.
    Small kernels (norms, rotary embedding, activation): `small_s`.
    All-reduce: `link_share`, `link_latency_s`, `link_hop_s` per GPU beyond the second;
    messages well above `link_ramp_bytes` reach the share, smaller ones less.
    `warm_*` describe tables whose operands stay in the level-2 cache between repetitions:
    up to about so many bytes, this part of the memory time is saved. A model's own pass
    finds its weights and cache cold.
    """

    name: str
    vendor: str
    architecture: str
    memory_bytes: float
    bandwidth_bytes_per_s: float
    peak_flops: dict[str, float]  # dense, by dtype: bf16, fp8, int8, fp4
    link: str
    link_bytes_per_s: float  # one direction, per GPU, to the other GPUs of its node
    power_w: float | None = None
    price_usd_per_h: tuple[float, float] | None = None
    bandwidth_share: float = 0.85
    wide_share: float = 1.0
    compute_share: float = 0.75
    ridge_exponent: float = 2.5
    fixed_s: float = 3e-6
    loop_s: float = 0.0
    loop_depth: float = 2500.0
    loop_growth: float = 0.0
    narrow_compute_share: float = 0.75
    quantise_s: float = 2.5e-6
    quantise_element_s: float = 0.0
    attention_share: float = 0.75
    attention_fixed_s: float = 1e-5
    attention_tile_s: float = 2.5e-8
    attention_depth_s: float = 1e-6
    attention_exponent: float = 2.0
    attention_narrow_share: float = 0.75
    attention_narrow_fixed_s: float = 1.2e-5
    attention_compute_share: float = 0.5
    expert_share: float = 0.85
    expert_compute_share: float = 0.3
    expert_fixed_s: float = 2e-5
    small_s: float = 2e-6
    link_share: float = 0.75
    link_latency_s: float = 8e-6
    link_hop_s: float = 0.0
    link_ramp_bytes: float = 0.0
    warm_weights_bytes: float = 0.0
    warm_weights_saving: float = 0.0
    warm_kv_bytes: float = 0.0
    warm_kv_saving: float = 0.0
    constants_source: str = "default"
    source: str = ""
    confidence: str = ""
    notes: str = ""

    @property
    def ridge_flops_per_byte(self) -> float:
        """Arithmetic intensity at which bf16 work turns from memory- to compute-bound."""
        return self.peak_flops["bf16"] / self.bandwidth_bytes_per_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A constant with its interval and where it comes from."""

    value: float
    low: float
    high: float
    source: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeSpec:
    """What a serving engine adds to the GPU's own time in one decoding step.

    All in seconds: `step_s` once a step (scheduling, input preparation, sampling
    launch), `layer_s` per layer and forward pass (launches not hidden by a CUDA graph),
    `sequence_s` per sequence in the batch, `token_s` per token verified beyond the first
    of each sequence, `prompt_token_s` per prompt token of a pass, `draft_step_s` once per
    draft round, `draft_pass_s` per draft forward pass, `draft_layer_s` per layer of each of
    them, `ngram_s` per sequence and step that looks drafts up in the prompt. `graph_sizes`
    are the padded token counts of CUDA graphs (() = none; beyond `max_graph_tokens` a step
    runs without one).
    """

    name: str
    version: str
    engine: str
    step_s: Estimate
    layer_s: Estimate
    sequence_s: Estimate
    token_s: Estimate
    prompt_token_s: Estimate
    draft_step_s: Estimate
    draft_pass_s: Estimate
    draft_layer_s: Estimate
    ngram_s: Estimate
    graph_sizes: tuple[int, ...] = ()
    max_graph_tokens: int = 0
    overlaps_scheduling: bool = False
    gpu_memory_utilization: float = 0.9
    measured_on: tuple[str, ...] = ()  # GPUs that the constants were read off
    source: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class AcceptancePreset:
    """A named acceptance figure: which of the four "rates" it is, and its range."""

    name: str
    kind: Literal["alpha", "conditional", "survival", "acceptance_length", "draft_acceptance_rate"]
    values: tuple[float, ...]  # a scalar has one entry
    low: tuple[float, ...]
    high: tuple[float, ...]
    at_num_draft_tokens: int | None = None  # K it was measured at
    max_num_draft_tokens: int | None = None  # beyond this K it is an extrapolation
    domain: str = ""
    method: str = ""
    aliases: tuple[str, ...] = field(default=())
    definition: str = ""
    source: str = ""
