"""Parameter counts against the reference implementations, built without weights.

Needs torch and transformers (the test environment has both); shapes only, no download.
"""

from __future__ import annotations

from typing import Any

import pytest

from specsim import catalogue
from specsim.catalogue import loader, model, model_from_config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# Not in transformers; Kimi is DeepSeek-V3 by another name, MiMo is Qwen2 by another name.
RENAMED = {"kimi_k2": "deepseek_v3", "mimo": "qwen2"}

SMALL: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "head_dim": 16,
}
GLM = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
#: Families and switches that no shipped row exercises.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": 24}),
    ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 48, "decoder_sparse_step": 2}),
    ("qwen3", {"attention_bias": True, "head_dim": 16}),
    ("qwen3_moe", {**EXPERTS, "head_dim": 16, "mlp_only_layers": [1]}),
    ("qwen3_next", {**EXPERTS, **LINEAR, "shared_expert_intermediate_size": 32}),
    ("gemma", {"head_dim": 16, "tie_word_embeddings": True}),
    ("glm", {"head_dim": 16, "attention_bias": True, "pad_token_id": 0}),
    ("glm4", {"head_dim": 16, "attention_bias": True, "pad_token_id": 0}),
    ("glm4_moe", {**GLM, "head_dim": 16, "use_qk_norm": True}),
    ("glm4_moe", {**GLM, "head_dim": 16, "attention_bias": True}),
    ("smollm3", {"tie_word_embeddings": True, "pad_token_id": 0}),
    ("starcoder2", {"use_bias": True}),
    ("starcoder2", {"use_bias": False, "tie_word_embeddings": True}),
    ("ministral", {"head_dim": 16}),
]


def reference_count(model_type: str, config: dict[str, Any]) -> int:
    """Parameters of the reference implementation; DeepSeek's correction bias is a buffer."""
    settings = {key: value for key, value in config.items() if key != "quantization_config"}
    made = transformers.AutoConfig.for_model(RENAMED.get(model_type, model_type), **settings)
    with torch.device("meta"):
        if model_type == "t5":
            built = transformers.T5ForConditionalGeneration(made)
        else:
            built = transformers.AutoModelForCausalLM.from_config(made)
    biases = sum(b.numel() for name, b in built.named_buffers() if "correction" in name)
    count = sum(p.numel() for p in built.parameters()) + biases
    # transformers 5 ties T5's head whatever its configuration says; the checkpoints do not
    if model_type == "t5" and built.lm_head.weight is built.shared.weight:
        count += config["vocab_size"] * config["d_model"]
    return int(count)


@pytest.mark.parametrize(
    "name", [name for name in catalogue.list_models() if model(name).head_of is None]
)
def test_shipped_models_match_the_reference(name: str) -> None:
    config = loader._config(name)
    model_type = config.pop("model_type")
    if model_type == "deepseek_v2":
        config.setdefault("q_lora_rank", None)  # TOML has no null
    spec = model(name)
    assert spec.num_parameters + spec.encoder_parameters == reference_count(model_type, config)


@pytest.mark.parametrize(("model_type", "change"), VARIANTS)
def test_variants_match_the_reference(model_type: str, change: dict[str, Any]) -> None:
    config = {**SMALL, **change}
    spec = model_from_config({"model_type": model_type, **config}, name="x", source="x")
    assert spec.num_parameters == reference_count(model_type, config)
