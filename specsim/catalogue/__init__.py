"""What exists: models, GPUs, runtimes and acceptance figures, a source for every row."""

from specsim.catalogue.draft_heads import as_eagle_head, head_for
from specsim.catalogue.hf_config import load_config, model_from_config
from specsim.catalogue.loader import (
    acceptance_preset,
    aliases,
    gpu,
    list_acceptance_presets,
    list_gpus,
    list_models,
    list_runtimes,
    model,
    runtime,
)
from specsim.catalogue.specs import (
    AcceptancePreset,
    AttentionSpec,
    Estimate,
    FeedForwardSpec,
    GpuSpec,
    LayerGroup,
    ModelSpec,
    RuntimeSpec,
)

__all__ = [
    "AcceptancePreset",
    "AttentionSpec",
    "Estimate",
    "FeedForwardSpec",
    "GpuSpec",
    "LayerGroup",
    "ModelSpec",
    "RuntimeSpec",
    "acceptance_preset",
    "aliases",
    "as_eagle_head",
    "gpu",
    "head_for",
    "list_acceptance_presets",
    "list_gpus",
    "list_models",
    "list_runtimes",
    "load_config",
    "model",
    "model_from_config",
    "runtime",
]
