"""What a trained draft belongs to: hashes of the target's weights and of its vocabulary."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

import torch

from reference.model import Model, ModelConfig
from reference.tokenizer import Tokenizer

_EMBEDDING_STRIDE = 64  # every 64th row: a megabyte says which weights these are


def fingerprint(model: Model) -> str:
    """Hash of a model's configuration, norms and a sample of its embedding, in bfloat16.

    The same for a model loaded in any dtype, packed or not.
    """
    digest = hashlib.sha256(json.dumps(asdict(model.config), sort_keys=True).encode())
    norms = [p for name, p in model.named_parameters() if p.dim() == 1 and "norm" in name]
    for tensor in (*norms, model.embedding[::_EMBEDDING_STRIDE]):
        rounded = tensor.detach().cpu().to(torch.bfloat16).contiguous()
        digest.update(rounded.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


def vocabulary_hash(tokenizer: Tokenizer) -> str:
    """Hash of every token and its id."""
    text = json.dumps(sorted(tokenizer.backend.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def num_parameters(config: ModelConfig) -> int:
    """Weights of a model, a tied output matrix counted once."""
    with torch.device("meta"):
        return sum(p.numel() for p in Model(config).parameters())
