"""The shipped models: their counts against published ones, and every row's manners."""

from __future__ import annotations

import re

import pytest

from specsim import catalogue
from specsim.catalogue import ModelSpec, head_for, model
from specsim.errors import UnknownNameError

# Totals without multi-token-prediction layers, as the checkpoints' own metadata and the
# model cards give them.
TOTALS = {
    "llama-3.1-8b": 8.030e9,
    "llama-3.1-70b": 70.55e9,
    "llama-3.1-405b": 405.85e9,
    "llama-2-7b": 6.738e9,
    "mixtral-8x7b": 46.70e9,
    "qwen3-30b-a3b": 30.53e9,
    "gpt-oss-120b": 116.83e9,
    "deepseek-v3": 671.03e9,
    "smollm2-135m": 134.5e6,
}
# Without the input embedding.
ACTIVE = {
    "mixtral-8x7b": 12.749e9,
    "qwen3-30b-a3b": 3.042e9,
    "gpt-oss-120b": 5.133e9,
    "deepseek-v3": 36.626e9,
}
KV_BYTES = {"llama-3.1-8b": 131_072, "llama-3.1-70b": 327_680, "deepseek-v3": 70_272}

# Exact totals of published checkpoints (their safetensors metadata).
EXACT = {
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "tinyllama-1.1b": 1_100_048_384,
    "llama-68m": 68_030_208,
    "mistral-7b-v0.1": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-4b": 4_022_468_096,
    "qwen3-32b": 32_762_123_264,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b": 999_885_952,
    "phi-2": 2_779_683_840,
    "phi-4": 14_659_507_200,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-6.7b": 6_658_473_984,
    "llama-160m": 162_417_408,
    "codellama-34b": 33_743_970_304,
    "mistral-7b": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "mistral-small-24b": 23_572_403_200,
    "deepseek-v2-lite": 15_706_484_224,
    "gemma-2-9b": 9_241_705_984,
    "phi-3-mini": 3_821_079_552,
    "phi-4-mini": 3_836_021_760,
    "opt-1.3b": 1_315_758_080,
    "opt-2.7b": 2_651_596_800,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "starcoder2-3b": 3_030_371_328,
    "t5-base": 247_577_856,
    "t5-large": 783_150_080,
    "t5-xl": 2_849_757_184,
    "gpt2": 124_439_808,
    "t5-small": 76_961_152,
    "t5-xxl": 11_135_332_352,
}

# EAGLE (arXiv 2401.15077), section 4: trainable parameters of the heads.
EAGLE_HEADS = {
    "eagle-llama-2-7b": 0.24e9,
    "eagle-llama-2-13b": 0.37e9,
    "eagle-vicuna-33b": 0.56e9,
    "eagle-llama-2-70b": 0.99e9,
}

# Total parameters stand in these names, but not as a plain "…b".
NAMED_OTHERWISE = {
    "llama-4-scout": 109e9,
    "llama-4-maverick": 400e9,
    "mixtral-8x7b": 46.7e9,
    "mixtral-8x22b": 141e9,
}
# The round number in the name is further than 5 % from the checkpoint's own count.
LOOSELY_NAMED = {
    "gemma-2-2b": 2.61e9,
    "gemma-3-4b": 3.88e9,  # without its vision tower
    "qwama-0.5b": 0.473e9,  # its smaller vocabulary
    "qwen2.5-7b": 7.62e9,
    "deepseek-r1-distill-qwen-7b": 7.62e9,
    "qwen2.5-14b": 14.77e9,
    "qwen3-14b": 14.77e9,
    "opt-350m": 331e6,
    "mimo-7b": 7.62e9,
    "qwen2.5-1.5b": 1.54e9,
    "llama-3.2-1b": 1.24e9,
    "llama-3.2-3b": 3.21e9,
    "llama-2-7b-32k": 6.74e9,
    "qwen3-0.6b": 0.596e9,
}


def all_counted(spec: ModelSpec) -> int:
    return spec.num_parameters + spec.encoder_parameters


@pytest.mark.parametrize(("name", "total"), TOTALS.items())
def test_totals_within_half_a_percent(name: str, total: float) -> None:
    assert model(name).num_parameters == pytest.approx(total, rel=0.005)


@pytest.mark.parametrize(("name", "total"), EXACT.items())
def test_totals_to_the_last_parameter(name: str, total: int) -> None:
    assert all_counted(model(name)) == total


@pytest.mark.parametrize(
    ("name", "text_only"),
    [
        ("gemma-3-4b", 3_880_099_328),
        ("gemma-3-12b", 11_765_788_416),
        ("gemma-3-27b", 27_009_002_240),
    ],
)
def test_gemma3_totals_but_for_the_image_tokens(name: str, text_only: int) -> None:
    """KerasHub's presets count the text models, whose vocabulary lacks 64 rows."""
    spec = model(name)
    assert spec.num_parameters - 64 * spec.hidden_size == text_only


@pytest.mark.parametrize(("name", "active"), ACTIVE.items())
def test_active_parameters(name: str, active: float) -> None:
    assert model(name).num_active_parameters == pytest.approx(active, rel=0.0005)


@pytest.mark.parametrize(("name", "kv_bytes"), KV_BYTES.items())
def test_kv_bytes_per_token(name: str, kv_bytes: int) -> None:
    assert model(name).kv_bytes_per_token("bf16") == kv_bytes
    assert model(name).kv_bytes_per_token("fp8") == kv_bytes / 2


@pytest.mark.parametrize(("name", "size"), EAGLE_HEADS.items())
def test_eagle_heads_have_the_published_size(name: str, size: float) -> None:
    assert round(model(name).num_parameters / 1e9, 2) == size / 1e9


@pytest.mark.parametrize(
    ("target", "head"),
    [
        ("llama-3.1-8b", "eagle-llama-3.1-8b"),
        ("llama-2-70b", "eagle-llama-2-70b"),
        ("vicuna-13b", "eagle-vicuna-13b"),
    ],
)
def test_derived_eagle_head_equals_the_released_one(target: str, head: str) -> None:
    assert head_for(model(target), "eagle").num_parameters == model(head).num_parameters


def test_derived_eagle3_head_equals_the_released_one() -> None:
    derived = head_for(model("llama-3.1-8b"), "eagle3", draft_vocab_size=32000)
    released = model("eagle3-llama-3.1-8b")
    assert derived.num_parameters == released.num_parameters
    assert released.fusion_inputs == 3 * 4096


def test_mtp_head_has_the_published_size() -> None:
    """DeepSeek-V3's model card: 14B of MTP module weights, of which embedding and head
    (0.93e9 each) are the main model's."""
    head = head_for(model("deepseek-v3"), "mtp")
    assert head.num_parameters + 2 * 0.927e9 == pytest.approx(14e9, rel=0.05)
    assert head.fusion_inputs == 2 * 7168
    with pytest.raises(ValueError, match="no multi-token-prediction"):
        head_for(model("llama-3.1-8b"), "mtp")
    with pytest.raises(ValueError, match="ngram"):
        head_for(model("llama-3.1-8b"), "ngram")


@pytest.mark.parametrize("name", catalogue.list_models())
def test_every_row(name: str) -> None:
    spec = model(name)
    assert spec.name == name == name.lower()
    assert spec.source
    assert not spec.source.startswith("models.toml")
    assert spec.family
    assert spec.num_parameters > 1e6
    assert 0 < spec.num_active_parameters <= spec.num_parameters + spec.head_parameters
    assert spec.max_context >= 512
    assert spec.kv_bytes_per_token() > 0


def size_in_name(name: str) -> float | None:
    """'qwen3-30b-a3b' → 30e9."""
    found = re.search(r"-([\d.]+)([bm])(?:-|$)", name)
    return float(found[1]) * {"b": 1e9, "m": 1e6}[found[2]] if found else None


@pytest.mark.parametrize(
    "name", [name for name in catalogue.list_models() if model(name).head_of is None]
)
def test_size_implied_by_the_name(name: str) -> None:
    named = NAMED_OTHERWISE.get(name) or LOOSELY_NAMED.get(name) or size_in_name(name)
    if named is None:
        pytest.skip("no size in the name")
    assert all_counted(model(name)) == pytest.approx(named, rel=0.05)


def test_there_are_enough() -> None:
    assert len(catalogue.list_models()) >= 45


def test_aliases_are_unique_and_resolve() -> None:
    seen: dict[str, str] = {}
    for name in catalogue.list_models():
        for alias in (name, *catalogue.aliases(name, kind="models")):
            assert seen.setdefault(alias.lower(), name) == name
            assert model(alias).name == name


@pytest.mark.parametrize(
    "alias",
    [
        "meta-llama/Llama-3.1-70B-Instruct",
        "META-LLAMA/LLAMA-3.1-70B",
        " llama-3.1-70b ",
        "llama-3.1-70b-instruct",
    ],
)
def test_hugging_face_ids_are_aliases(alias: str) -> None:
    assert model(alias).name == "llama-3.1-70b"


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean .*llama-3\.1-70b"):
        model("llama-3.1-71b")


def test_families_share_a_vocabulary() -> None:
    """Models of one family may draft for each other, so their vocabularies must agree
    (Qwen pads its tables to different lengths; Gemma 3's text-only model stops short of
    the image tokens, CodeLlama 34B of the infilling tokens)."""
    padding = {"qwen2": 152_064, "gemma-3": 262_208, "codellama": 32_016}
    sizes: dict[str, set[int]] = {}
    for name in catalogue.list_models():
        spec = model(name)
        sizes.setdefault(spec.family, set()).add(spec.vocab_size)
    for family, vocabularies in sizes.items():
        if len(vocabularies) > 1:
            assert max(vocabularies) == padding[family]


def test_drafts_of_the_published_pairs_share_the_targets_family() -> None:
    pairs = {
        "llama-3.1-70b": ["llama-3.2-1b", "llama-3.1-8b", "qwama-0.5b", "eagle3-llama-3.3-70b"],
        "llama-2-7b-32k": ["tinyllama-1.1b", "llama-68m"],
        "vicuna-13b": ["vicuna-68m", "eagle-vicuna-13b", "eagle3-vicuna-13b"],
        "t5-xxl": ["t5-small", "t5-base", "t5-large"],
        "kimi-k2.6": ["eagle3.1-kimi-k2.6-mla"],
        "qwen3-4b": ["dflash-qwen3-4b", "qwen3-0.6b"],
    }
    for target, drafts in pairs.items():
        for draft in drafts:
            assert model(draft).family == model(target).family
