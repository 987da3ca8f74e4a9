"""Real configurations and the hardware table, read in place where they are available."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from specsim import catalogue
from specsim.catalogue import gpu, load_config, model

DATA = os.environ.get("SPECSIM_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="SPECSIM_DATA is not set: samples not run")
ROOT = Path(DATA or ".")

MODELS = {
    "Qwen--Qwen3-0.6B": "qwen3-0.6b",
    "Qwen--Qwen3-1.7B": "qwen3-1.7b",
    "Qwen--Qwen3-30B-A3B": "qwen3-30b-a3b",
    "Qwen--Qwen3-32B": "qwen3-32b",
    "Qwen--Qwen3-8B": "qwen3-8b",
    "Qwen--Qwen3.5-27B": "qwen3.5-27b",
    "XiaomiMiMo--MiMo-7B-Base": "mimo-7b",
    "deepseek-ai--DeepSeek-V3": "deepseek-v3",
    "deepseek-ai--DeepSeek-V3.2": "deepseek-v3.2",
    "meta-llama--Meta-Llama-3.1-70B": "llama-3.1-70b",
    "meta-llama--Meta-Llama-3.1-8B": "llama-3.1-8b",
    "mistralai--Mixtral-8x7B-v0.1": "mixtral-8x7b",
    "openai--gpt-oss-120b": "gpt-oss-120b",
    "openai--gpt-oss-20b": "gpt-oss-20b",
}
HEADS = {
    "deepseek-v3-671b-eagle3": "eagle3-deepseek-v3",
    "gpt-oss-120B-eagle3": "eagle3-gpt-oss-120b",
    "llama3-8B-eagle3": "eagle3-llama-3.1-8b",
    "qwen3-30B-A3B-eagle3": "eagle3-qwen3-30b-a3b",
    "qwen3-4b-dspark": "dspark-qwen3-4b",
    "qwen3-8b-dflash": "dflash-qwen3-8b",
}
FILES = [(f"hf_configs/{file}_config.json", name) for file, name in MODELS.items()] + [
    (f"draft_configs/{file}.json", name) for file, name in HEADS.items()
]


@pytest.mark.parametrize(("file", "name"), FILES)
def test_rows_equal_the_configurations(file: str, name: str) -> None:
    theirs, ours = load_config(ROOT / "samples" / file), model(name)
    assert theirs.layers == ours.layers
    assert theirs.num_parameters == ours.num_parameters
    assert theirs.num_active_parameters == ours.num_active_parameters
    assert theirs.max_context == ours.max_context
    assert theirs.mtp_layers == ours.mtp_layers
    assert (theirs.head_of, theirs.fusion_inputs) == (ours.head_of, ours.fusion_inputs)


def test_every_sample_is_read() -> None:
    files = sorted((ROOT / "samples").glob("*_configs/*.json"))
    assert len(files) >= 21
    for path in files:
        assert load_config(path).num_parameters > 0


def hardware() -> list[dict[str, str]]:
    with (ROOT / "gpus.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_every_device_of_the_table_is_there_and_equal() -> None:
    table = hardware()
    assert len(table) >= 21
    for row in table:
        ours = gpu(row["id"])
        assert ours.memory_bytes == float(row["mem_gb"]) * 2**30  # see rows.py
        assert ours.bandwidth_bytes_per_s == float(row["hbm_bw_gbps"]) * 1e9
        for dtype, column in (
            ("bf16", "bf16_tflops_dense"),
            ("fp8", "fp8_tflops_dense"),
            ("int8", "int8_tops_dense"),
            ("fp4", "fp4_tflops_dense"),
        ):
            if row[column]:
                assert ours.peak_flops[dtype] == pytest.approx(float(row[column]) * 1e12)
        if row["scaleup_bw_gbps_bidir"]:
            assert ours.link_bytes_per_s == float(row["scaleup_bw_gbps_bidir"]) * 1e9 / 2
        assert ours.confidence == row["confidence"]


def test_presets_are_in_the_published_table() -> None:
    """Acceptance figures, digit for digit; the model cards' and the article's are not there."""
    with (ROOT / "published.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    numbers: set[float] = set()
    for row in table:
        for column in ("tau", "alpha", "per_position_acceptance"):
            for text in row[column].replace(";", " ").split():
                if text.replace(".", "", 1).isdigit():
                    numbers.add(float(text))
    elsewhere = ("article", "lightseekorg", "k-l-lambda", "DeepSeek-V3 technical")
    checked = 0
    for name in catalogue.list_acceptance_presets():
        preset = catalogue.acceptance_preset(name)
        if not preset.source.startswith(elsewhere):
            assert set(preset.values) <= numbers, name
            checked += 1
    assert checked >= 35


def test_targets_and_drafts_of_the_published_table_are_there() -> None:
    """Whatever published.csv names and whose dimensions are public."""
    known = {
        "T5-XXL (11B, T5 v1.1 enc-dec)": "t5-xxl",
        "Llama2-7B-32K": "llama-2-7b-32k",
        "Kimi-K2.5 (MoE, MXFP4)": "kimi-k2.5",
        "Kimi-K2.6-NVFP4 (MoE)": "kimi-k2.6",
        "Llama3-70B": "llama-3-70b",
        "Vicuna-33B v1.3": "vicuna-33b",
        "Mistral-7B-v0.3": "mistral-7b",
        "Qwen-2.5-7B": "qwen2.5-7b",
        "DeepSeek-V3 671B (MoE)": "deepseek-v3",
    }
    with (ROOT / "published.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    targets = {row["target_model"] for row in table}
    assert set(known) <= targets
    for name in known.values():
        assert model(name).num_parameters
    drafts = {row["draft_model"] for row in table if "/" in row["draft_model"]}
    ids = [draft.split("(")[-1].rstrip(")") for draft in drafts]
    missing = [
        name
        for name in ids
        if name.lower() not in catalogue.loader._names("models.toml")
        and not name.startswith("amd/")  # an fp8 copy of lightseekorg/kimi-k2.5-eagle3
    ]
    assert missing == []
