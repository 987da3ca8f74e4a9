"""Which keys each engine's speculative configuration knows, and which it has dropped.

vLLM: vllm/config/speculative.py (main of September 2026, documentation 0.32), the keys
that 0.10 already had marked; SGLang: server arguments of 2026; TensorRT-LLM 1.4 YAML;
llama.cpp server options of 2026.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Versions that exports can be made for; the first is the default.
VLLM_VERSIONS = ("0.32", "0.10")

#: Key of --speculative-config → first version of VLLM_VERSIONS that has it.
VLLM_KEYS: Mapping[str, str] = {
    "num_speculative_tokens": "0.10",
    "model": "0.10",
    "method": "0.10",
    "draft_tensor_parallel_size": "0.10",
    "quantization": "0.10",
    "max_model_len": "0.10",
    "revision": "0.10",
    "code_revision": "0.10",
    "enforce_eager": "0.10",
    "prompt_lookup_min": "0.10",
    "prompt_lookup_max": "0.10",
    "disable_padded_drafter_batch": "0.32",
    "moe_backend": "0.32",
    "attention_backend": "0.32",
    "kv_cache_dtype": "0.32",
    "parallel_drafting": "0.32",
    "suffix_decoding_max_tree_depth": "0.32",
    "suffix_decoding_max_cached_requests": "0.32",
    "suffix_decoding_max_spec_factor": "0.32",
    "suffix_decoding_min_token_prob": "0.32",
    "num_speculative_tokens_per_batch_size": "0.32",
    "rejection_sample_method": "0.32",
    "synthetic_acceptance_rates": "0.32",
    "synthetic_acceptance_length": "0.32",
    "draft_sample_method": "0.32",
    "enable_adaptive_verification": "0.32",
    "use_heterogeneous_vocab": "0.32",
    "use_local_argmax_reduction": "0.32",
    "disable_eagle_block_drop": "0.32",
    "index_share_for_mtp_iteration": "0.32",
    "dspark_draft_topk": "0.32",
}
#: Dropped or mistaken key → what to write instead.
VLLM_REMOVED: Mapping[str, str] = {
    "disable_by_batch_size": "num_speculative_tokens_per_batch_size with K = 0 rows",
    "speculative_disable_by_batch_size": "num_speculative_tokens_per_batch_size with K = 0 rows",
    "speculative_model": "model",
    "tensor_parallel_size": "draft_tensor_parallel_size",
    "adaptive_verification": "enable_adaptive_verification",
    "ngram_prompt_lookup_max": "prompt_lookup_max",
    "ngram_prompt_lookup_min": "prompt_lookup_min",
}
VLLM_METHODS = (
    "ngram", "ngram_gpu", "medusa", "mlp_speculator", "draft_model", "suffix", "custom_class",
    "eagle", "eagle3", "extract_hidden_states", "mtp", "dflash", "dspark",
)  # fmt: skip

SGLANG_FLAGS = (
    "--speculative-algorithm", "--speculative-draft-model-path",
    "--speculative-draft-model-revision", "--speculative-draft-model-quantization",
    "--speculative-num-steps", "--speculative-eagle-topk", "--speculative-num-draft-tokens",
    "--speculative-accept-threshold-single", "--speculative-accept-threshold-acc",
    "--speculative-token-map", "--speculative-attention-mode",
    "--speculative-ngram-min-match-window-size", "--speculative-ngram-max-match-window-size",
    "--speculative-ngram-min-bfs-breadth", "--speculative-ngram-max-bfs-breadth",
    "--speculative-ngram-match-type", "--speculative-ngram-max-trie-depth",
    "--speculative-ngram-capacity", "--speculative-adaptive", "--speculative-adaptive-config",
)  # fmt: skip
SGLANG_ALGORITHMS = ("EAGLE", "EAGLE3", "NEXTN", "STANDALONE", "NGRAM", "DFLASH")
SGLANG_ADAPTIVE_KEYS = (
    "candidate_steps", "ema_alpha", "update_interval", "warmup_batches", "down_hysteresis",
    "up_hysteresis",
)  # fmt: skip

TRTLLM_KEYS = (
    "decoding_type", "max_draft_len", "speculative_model", "use_dynamic_tree",
    "dynamic_tree_max_topK", "max_total_draft_tokens", "num_nextn_predict_layers",
    "use_relaxed_acceptance_for_thinking", "relaxed_topk", "relaxed_delta",
    "max_matching_ngram_size", "use_sa_spec", "sa_spec_threshold",
)  # fmt: skip
TRTLLM_TYPES = ("MTP", "Eagle3", "NGram", "DraftTarget", "PARD", "DFlash", "SA")

LLAMACPP_FLAGS = ("--spec-type", "--spec-draft-n-max", "--draft-min", "--draft-p-min", "-md",
                  "-ngld")  # fmt: skip
