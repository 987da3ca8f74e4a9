"""The configuration parser: what configurations do not say, and what is not one.

Fixtures are our own, cut down to the fields that matter.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specsim.catalogue import as_eagle_head, load_config, model_from_config
from specsim.catalogue.families import FAMILIES
from specsim.catalogue.hf_config import parse_config
from specsim.catalogue.specs import ModelSpec
from specsim.errors import ConfigError

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
LATENT: dict[str, Any] = {
    **LLAMA,
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "num_key_value_heads": 8,
    "q_lora_rank": 64,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 1,
}
SPARSE: dict[str, Any] = {
    **LLAMA,
    "model_type": "qwen3_moe",
    "head_dim": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
}
HYBRID: dict[str, Any] = {
    **LLAMA,
    "model_type": "qwen3_5_text",
    "head_dim": 64,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}
EAGLE3: dict[str, Any] = {
    **LLAMA,
    "architectures": ["LlamaForCausalLMEagle3"],
    "num_hidden_layers": 1,
    "draft_vocab_size": 100,
}
DFLASH: dict[str, Any] = {
    **LLAMA,
    "architectures": ["DFlashDraftModel"],
    "model_type": "qwen3",
    "head_dim": 32,
    "block_size": 16,
    "dflash_config": {"target_layer_ids": [1, 5, 9]},
}
T5: dict[str, Any] = {
    "model_type": "t5",
    "num_layers": 2,
    "d_model": 64,
    "d_ff": 128,
    "num_heads": 4,
    "d_kv": 8,
    "vocab_size": 100,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
OPT: dict[str, Any] = {
    "model_type": "opt",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "ffn_dim": 128,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 128,
}
ALL = (LLAMA, LATENT, SPARSE, HYBRID, EAGLE3, DFLASH, T5, OPT)


def read(config: dict[str, Any]) -> ModelSpec:
    return model_from_config(config, name="test", source="test.json")


def test_llama_by_hand() -> None:
    spec = read(LLAMA)
    layer = 256 * (256 + 2 * 64) + 256 * 256 + 3 * 256 * 512 + 2 * 256
    assert spec.num_parameters == 4 * layer + 256 + 2 * 1000 * 256
    assert spec.num_active_parameters == 4 * layer + 256 + 1000 * 256
    assert spec.kv_bytes_per_token() == 4 * 2 * 2 * 32 * 2
    assert spec.num_layers == 4


def test_head_dim_is_not_always_hidden_over_heads() -> None:
    attention = read({**LLAMA, "model_type": "qwen3", "head_dim": 128}).layers[0].attention
    assert attention.head_dim == 128
    assert attention.qk_norm
    assert read(LLAMA).layers[0].attention.head_dim == 32


def test_absent_kv_heads_mean_multi_head_attention() -> None:
    config = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    assert read(config).layers[0].attention.num_kv_heads == 8


def test_tied_head_is_stored_once_and_multiplied_all_the_same() -> None:
    tied, untied = read({**LLAMA, "tie_word_embeddings": True}), read(LLAMA)
    assert untied.num_parameters - tied.num_parameters == 1000 * 256
    assert untied.num_active_parameters == tied.num_active_parameters


@pytest.mark.parametrize("count_key", ["num_local_experts", "num_experts", "n_routed_experts"])
@pytest.mark.parametrize("top_key", ["num_experts_per_tok", "experts_per_token", "top_k_experts"])
def test_every_spelling_of_the_expert_count(count_key: str, top_key: str) -> None:
    config = {**LLAMA, "model_type": "qwen3_moe", "moe_intermediate_size": 64}
    feed_forward = read({**config, count_key: 16, top_key: 4}).layers[0].feed_forward
    assert (feed_forward.num_experts, feed_forward.experts_per_token) == (16, 4)


def test_mixtral_experts_are_as_wide_as_intermediate_size() -> None:
    config = {**LLAMA, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}
    spec = read(config)
    assert spec.layers[0].feed_forward.intermediate_size == 512
    inactive = 6 * 3 * 256 * 512 * 4
    assert spec.num_parameters - spec.num_active_parameters == inactive + 1000 * 256


def test_qwen_dense_layers_between_sparse_ones() -> None:
    spec = read({**SPARSE, "decoder_sparse_step": 2, "mlp_only_layers": [3]})
    kinds = {group.feed_forward.is_moe: group.count for group in spec.layers}
    assert kinds == {False: 3, True: 1}


def test_llama4_interleaves_dense_and_expert_layers_and_chunks() -> None:
    text = {
        **LLAMA,
        "model_type": "llama4_text",
        "head_dim": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 1024,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 64,
    }
    del text["tie_word_embeddings"]
    spec = read({"model_type": "llama4", "text_config": text, "vision_config": {"hidden_size": 8}})
    sparse = [group for group in spec.layers if group.feed_forward.is_moe]
    dense = [group for group in spec.layers if not group.feed_forward.is_moe]
    assert sum(group.count for group in sparse) == 2
    assert {group.feed_forward.intermediate_size for group in dense} == {1024}
    assert sparse[0].feed_forward.shared_intermediate_size == 512
    windows = {group.attention.window: group.count for group in spec.layers}
    assert windows[None] == 1  # every fourth layer sees everything
    assert spec.head_vocab_size == 1000
    assert not spec.tie_word_embeddings


def test_nested_text_config_takes_what_the_outer_object_says() -> None:
    text = {key: value for key, value in HYBRID.items() if key != "tie_word_embeddings"}
    outer = {"model_type": "qwen3_5", "text_config": text, "tie_word_embeddings": True}
    assert read(outer).tie_word_embeddings
    assert read({**outer, "tie_word_embeddings": False}).tie_word_embeddings is False


def test_latent_attention_ignores_the_kv_heads() -> None:
    spec = read(LATENT)
    assert spec.kv_bytes_per_token() == 4 * (32 + 8) * 2
    assert read({**LATENT, "num_key_value_heads": 1}).kv_bytes_per_token() == 4 * 40 * 2
    assert spec.mtp_layers == 1


def test_multi_token_prediction_is_left_out_of_the_counts() -> None:
    without = {**LATENT, "num_nextn_predict_layers": 0}
    assert read(LATENT).num_parameters == read(without).num_parameters


def test_sparse_indexer_adds_its_key_to_the_cache() -> None:
    indexed = {
        **LATENT,
        "model_type": "deepseek_v32",
        "index_n_heads": 4,
        "index_head_dim": 16,
        "index_topk": 128,
    }
    spec = read(indexed)
    assert spec.kv_bytes_per_token() == 4 * (40 + 16) * 2
    assert spec.layers[0].attention.index_topk == 128
    shared = read({**indexed, "indexer_types": ["full", "shared", "shared", "full"]})
    assert shared.kv_bytes_per_token() == (4 * 40 + 2 * 16) * 2


def test_sliding_window_set_but_not_used() -> None:
    mimo = {**LLAMA, "model_type": "mimo", "head_dim": 32, "sliding_window": 128}
    spec = read({**mimo, "use_sliding_window": False, "max_window_layers": 2})
    assert [group.attention.kind for group in spec.layers] == ["full"]
    assert read(mimo).layers == spec.layers  # off unless the file says otherwise
    used = read({**mimo, "use_sliding_window": True, "max_window_layers": 3})
    assert {group.attention.kind: group.count for group in used.layers} == {"full": 3, "sliding": 1}


def test_layer_types_mix_windows() -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    config = {
        **LLAMA,
        "model_type": "gpt_oss",
        "layer_types": kinds,
        "sliding_window": 64,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    }
    spec = read(config)
    assert {group.attention.window: group.count for group in spec.layers} == {64: 2, None: 2}
    assert spec.layers[0].attention.sinks
    del config["layer_types"]  # the family's rule is the same
    assert read(config).layers == spec.layers
    with pytest.raises(ConfigError, match=r"layer_types.*4 entries"):
        read({**config, "layer_types": kinds[:3]})


def test_gemma4_global_layers_have_heads_of_their_own() -> None:
    config = {
        **LLAMA,
        "model_type": "gemma4_text",
        "head_dim": 32,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        "sliding_window": 64,
        "global_head_dim": 64,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "num_kv_shared_layers": 1,
        "hidden_size_per_layer_input": 0,
    }
    spec = read(config)
    last = spec.layers[-1].attention
    assert (last.head_dim, last.num_kv_heads, last.key_is_value) == (64, 1, True)
    assert last.shares_kv
    assert last.kv_elements_per_token() == 0
    with pytest.raises(ConfigError, match="hidden_size_per_layer_input is missing"):
        read({key: v for key, v in config.items() if key != "hidden_size_per_layer_input"})


def test_hybrid_layers_keep_a_state_instead_of_a_cache() -> None:
    spec = read(HYBRID)
    assert {group.attention.kind: group.count for group in spec.layers} == {"linear": 3, "full": 1}
    assert spec.kv_bytes_per_token() == 2 * 2 * 64 * 2
    recurrent, convolution = 8 * 16 * 16, 3 * (2 * 64 + 128)
    assert spec.state_bytes_per_sequence() == 3 * (recurrent + convolution) * 2


def test_eagle3_fuses_three_states_and_attends_to_two() -> None:
    spec = read(EAGLE3)
    attention = 2 * 256 * (256 + 2 * 64) + 256 * 256
    layer = attention + 3 * 256 * 512 + 3 * 256
    assert spec.head_of == "eagle3"
    assert spec.num_parameters == layer + 3 * 256 * 256 + 256 + 100 * 256
    assert spec.head_vocab_size == 100
    authors = read({**EAGLE3, "architectures": ["LlamaForCausalLM"]})
    assert authors.num_parameters == spec.num_parameters
    with pytest.raises(ConfigError, match=r"architectures.*known draft head"):
        read({**EAGLE3, "architectures": ["GptOssForCausalLMEagle3"], "model_type": "gpt_oss"})


def test_a_head_may_be_narrower_than_its_target() -> None:
    spec = read({**EAGLE3, "target_hidden_size": 512})
    assert spec.fusion_inputs == 3 * 512


def test_eagle_head_from_an_unmarked_layer() -> None:
    plain = read({**LLAMA, "num_hidden_layers": 1})
    head = as_eagle_head(plain)
    marked = read({**LLAMA, "num_hidden_layers": 1, "architectures": ["LlamaForCausalLMEagle"]})
    assert plain.head_of is None
    assert head.num_parameters == marked.num_parameters
    assert head.fusion_inputs == 2 * 256


def test_block_drafter_and_its_markov_table() -> None:
    spec = read(DFLASH)
    assert (spec.head_of, spec.block_size, spec.feature_inputs) == ("dflash", 16, 3)
    options = {**DFLASH["dflash_config"], "markov_rank": 8}
    config = {**DFLASH, "architectures": ["DSparkDraftModel"], "dflash_config": options}
    dspark = read(config)
    assert dspark.num_parameters - spec.num_parameters == 2 * 8 * 1000


def test_t5_counts_the_decoder_and_sets_the_encoder_apart() -> None:
    spec = read(T5)
    attention, feed_forward = 4 * 64 * 32, 3 * 64 * 128
    cross = 2 * 64 * 32  # q and o; k and v are applied to the encoder's output once
    layer = attention + cross + feed_forward + 3 * 64
    assert spec.num_parameters == 2 * layer + 64 + 32 * 4 + 2 * 100 * 64
    encoder = 2 * (attention + feed_forward + 2 * 64) + 64 + 32 * 4
    assert spec.encoder_parameters == encoder + 2 * 2 * 64 * 32
    assert spec.kv_bytes_per_token() == 2 * 2 * 32 * 2


def test_opt_350m_embeds_in_another_width() -> None:
    plain = read(OPT)
    narrow = read({**OPT, "word_embed_proj_dim": 32})
    assert narrow.num_parameters - plain.num_parameters == 2 * 64 * 32 - 100 * 32
    assert plain.learned_positions == 130


@pytest.mark.parametrize(
    ("quantization", "dtype"),
    [
        (None, "bf16"),
        ({"quant_method": "fp8", "fmt": "e4m3"}, "fp8"),
        ({"quant_method": "mxfp4"}, "fp4"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "fp4"),
        ({"quant_method": "awq", "bits": 4}, "int4"),
        ({"quant_method": "gptq", "bits": 8}, "int8"),
    ],
)
def test_default_dtype_of_the_weights(quantization: object, dtype: str) -> None:
    assert read({**LLAMA, "quantization_config": quantization}).default_dtype == dtype


# --- what is not a configuration ---------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "4096"}, "hidden_size = '4096': expected an integer"),
        ({"hidden_size": 4096.0}, "hidden_size = 4096.0: expected an integer"),
        ({"hidden_size": True}, "hidden_size = True: expected an integer"),
        ({"hidden_size": -1}, "hidden_size = -1"),
        ({"hidden_size": 10**30}, "hidden_size = .*expected an integer from 1 to"),
        ({"vocab_size": float("nan")}, "vocab_size = nan"),
        ({"num_attention_heads": 7}, "num_attention_heads|num_key_value_heads"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3: expected a divisor"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes': expected true or false"),
        ({"model_type": "mamba3"}, "model_type = 'mamba3' is not supported.*nearest"),
        ({"model_type": "qwen9"}, "nearest supported: qwen"),
        ({"model_type": None}, "model_type is missing"),
        ({"model_type": 7}, "model_type = 7: expected a string"),
        ({"model_type": "vit"}, "not a vision model's"),
        ({"model_type": "clip_vision_model"}, "not a vision model's"),
        ({"model_type": "bert"}, "not an encoder's"),
        ({"model_type": "whisper"}, "not an audio model's"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "expected a decoder"),
        ({"_class_name": "StableDiffusionPipeline"}, "a diffusion pipeline"),
        ({"text_config": [1]}, "text_config = .*expected an object"),
        ({"quantization_config": "fp8"}, "quantization_config = 'fp8': expected an object"),
        ({"num_hidden_layers": 2000, "hidden_size": 999_999, "head_dim": 60_000}, "parameters"),
    ],
)
def test_errors_name_file_key_value_and_expectation(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read({**LLAMA, **change})
    assert str(caught.value).startswith("test.json: ")
    assert "\n" not in str(caught.value)


def test_more_experts_chosen_than_there_are() -> None:
    with pytest.raises(ConfigError, match="num_experts_per_tok = 9: expected at most"):
        read({**SPARSE, "num_experts_per_tok": 9})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("   \n", "empty"),
        ("<html>", "is not JSON"),
        ('{"a": 1', "is cut short"),
        ('{"a": "b', "is cut short"),
        ("[1, 2]", "expected a JSON object"),
        ("3", "expected a JSON object"),
        ("{" * 100_000, "config.json"),
        ('{"a":' * 100_000, "config.json"),
        ('{"hidden_size": ' + "9" * 10_000 + "}", "config.json"),
    ],
)
def test_files_that_are_no_configuration(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path)
    binary = tmp_path / "model.json"
    binary.write_bytes(b"\xff\xfe\x00weights")
    with pytest.raises(ConfigError, match="not a text file"):
        load_config(binary)
    big = tmp_path / "big.json"
    big.write_bytes(b" " * 5_000_000)
    with pytest.raises(ConfigError, match="5000000 bytes"):
        load_config(big)


def test_a_directory_names_the_model(tmp_path: Path) -> None:
    directory = tmp_path / "my-model"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(LLAMA))
    spec = load_config(directory)
    assert spec.name == "my-model"
    assert spec.source == str(directory / "config.json")


# --- fuzz: only ConfigError ever comes out ------------------------------------------------

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**12, max_value=10**40)
    | st.floats(allow_nan=True)
    | st.text(max_size=12),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4)
    ),
    max_leaves=8,
)


def accepts_or_refuses(config: dict[str, Any]) -> None:
    message = None
    try:
        spec = read(config)
    except ConfigError as error:
        message = str(error)
    if message is not None:
        assert "\n" not in message
        assert len(message) < 2000
        return
    assert 0 <= spec.num_parameters <= 1e14
    assert spec.num_layers >= 1
    assert spec.kv_bytes_per_token() >= 0


@given(st.sampled_from(ALL), st.data())
@settings(max_examples=400)
def test_fuzz_one_field_replaced(config: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(config)))
    accepts_or_refuses({**config, key: data.draw(anything)})


@given(st.sampled_from(ALL), st.data())
@settings(max_examples=300)
def test_fuzz_fields_missing_and_random(config: dict[str, Any], data: st.DataObject) -> None:
    kept = data.draw(st.sets(st.sampled_from(sorted(config))))
    extra = data.draw(st.dictionaries(st.sampled_from(sorted(config)), anything, max_size=3))
    accepts_or_refuses({**{key: config[key] for key in kept}, **extra})


@given(st.sampled_from(sorted(FAMILIES)), st.sampled_from((LLAMA, LATENT, SPARSE, HYBRID)))
def test_fuzz_every_family_reads_every_layout(model_type: str, config: dict[str, Any]) -> None:
    accepts_or_refuses({**config, "model_type": model_type})


@given(st.dictionaries(st.text(max_size=12), anything, max_size=6))
def test_fuzz_any_object(config: dict[str, Any]) -> None:
    accepts_or_refuses(config)


@given(st.sampled_from(ALL), st.floats(0, 1))
def test_fuzz_truncation(config: dict[str, Any], share: float) -> None:
    text = json.dumps(config)
    cut = text[: int(len(text) * share)]
    if len(cut) < len(text):
        with pytest.raises(ConfigError):
            parse_config(cut, where="test.json")


@given(st.binary(max_size=200))
def test_fuzz_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_config(path)


def test_fuzz_corrupted_bytes(tmp_path: Path) -> None:
    generator = random.Random(0)
    path = tmp_path / "config.json"
    original = json.dumps(SPARSE).encode()
    for _ in range(300):
        content = bytearray(original)
        for _ in range(generator.randint(1, 8)):
            content[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(bytes(content))
        try:
            load_config(path)
        except ConfigError:
            continue
