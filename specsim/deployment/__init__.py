"""A deployment: target, draft, GPU and runtime, placed; `make_draft` fits a draft to a target."""

from specsim.deployment.build import EAGLE3_DRAFT_VOCAB, make_draft, medusa_head, truncated
from specsim.deployment.parts import (
    METHODS,
    NO_DRAFT,
    PARALLEL_METHODS,
    WEIGHTLESS_METHODS,
    Deployment,
    Draft,
    Method,
    PlacedModel,
    Routing,
    Tree,
    kv_elements_per_gpu,
)

__all__ = [
    "EAGLE3_DRAFT_VOCAB",
    "METHODS",
    "NO_DRAFT",
    "PARALLEL_METHODS",
    "WEIGHTLESS_METHODS",
    "Deployment",
    "Draft",
    "Method",
    "PlacedModel",
    "Routing",
    "Tree",
    "kv_elements_per_gpu",
    "make_draft",
    "medusa_head",
    "truncated",
]
