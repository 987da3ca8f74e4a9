"""GPUs, runtimes and acceptance presets: plausible, sourced, strictly checked, quick."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from specsim import catalogue
from specsim.catalogue import loader, rows
from specsim.errors import ConfigError, UnknownNameError

DIRECTORY = Path(catalogue.__file__).parent
FILES = ("models", "gpus", "runtimes", "acceptance")


def raw(file: str) -> dict[str, Any]:
    with (DIRECTORY / f"{file}.toml").open("rb") as stream:
        return tomllib.load(stream)


@pytest.mark.parametrize("file", FILES)
def test_every_row_has_a_source(file: str) -> None:
    for name, row in raw(file).items():
        assert row.get("source"), name


@pytest.mark.parametrize("file", FILES)
def test_names_and_aliases_are_unique(file: str) -> None:
    seen: set[str] = set()
    for name, row in raw(file).items():
        for alias in {name.lower(), *(alias.lower() for alias in row.get("aliases", ()))}:
            assert alias not in seen, alias
            seen.add(alias)


@pytest.mark.parametrize("name", catalogue.list_gpus())
def test_every_gpu(name: str) -> None:
    gpu = catalogue.gpu(name)
    assert 8e9 <= gpu.memory_bytes <= 400e9
    assert 0.2e12 <= gpu.bandwidth_bytes_per_s <= 10e12
    assert 20 <= gpu.ridge_flops_per_byte <= 700
    assert gpu.confidence in ("high", "medium", "low")
    assert gpu.peak_flops.get("fp8", gpu.peak_flops["bf16"]) >= gpu.peak_flops["bf16"]
    assert 1e10 <= gpu.link_bytes_per_s <= 1e12
    assert gpu.bandwidth_share <= 1
    assert gpu.compute_share <= 1


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("h100", "h100-sxm-80gb"),
        ("H100-SXM", "h100-sxm-80gb"),
        ("a100", "a100-sxm-80gb"),
        ("a100-40gb", "a100-sxm-40gb"),
        ("rtx-3090", "rtx3090-24gb"),
        ("t4", "t4-16gb"),
        ("tpu-v4", "tpu-v4"),
        ("trainium-2", "trainium2-96gb"),
        ("gb10-dgx-spark-128gb", "gb10-128gb"),
    ],
)
def test_gpu_aliases(alias: str, name: str) -> None:
    assert catalogue.gpu(alias).name == name


def test_h100_by_hand() -> None:
    gpu = catalogue.gpu("h100-sxm-80gb")
    assert gpu.memory_bytes == 80 * 2**30
    assert gpu.bandwidth_bytes_per_s == 3.35e12
    assert gpu.peak_flops == {"bf16": 989e12, "fp8": 1979e12, "int8": 1979e12}
    assert gpu.link_bytes_per_s == 450e9  # one direction
    assert gpu.price_usd_per_h == (2.69, 12.29)


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown GPU 'h101'; did you mean .*h100"):
        catalogue.gpu("h101")
    with pytest.raises(UnknownNameError, match="unknown runtime"):
        catalogue.runtime("vlllm")
    with pytest.raises(UnknownNameError, match=r"did you mean .*code"):
        catalogue.acceptance_preset("coed")


@pytest.mark.parametrize("name", catalogue.list_runtimes())
def test_every_runtime(name: str) -> None:
    runtime = catalogue.runtime(name)
    for key in rows._RUNTIME_CONSTANTS:
        estimate = getattr(runtime, f"{key}_s")
        assert 0 <= estimate.low <= estimate.value <= estimate.high < 0.01
        assert estimate.source
    if runtime.graph_sizes:
        assert runtime.graph_sizes[-1] == runtime.max_graph_tokens


def test_the_ideal_runtime_adds_nothing() -> None:
    ideal = catalogue.runtime("ideal")
    assert all(getattr(ideal, f"{key}_s").high == 0 for key in rows._RUNTIME_CONSTANTS)
    assert ideal.graph_sizes == ()


def test_vllm_is_a_named_version_with_its_default_graphs() -> None:
    vllm = catalogue.runtime("vllm")
    assert vllm.name == "vllm-0.10"
    expected = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))
    assert vllm.graph_sizes == expected
    assert vllm.step_s.value == pytest.approx(1.207e-3)
    assert catalogue.runtime("vllm-0.14").step_s.value < vllm.step_s.value
    for name in ("sglang", "trtllm", "hf-eager", "gpt-fast", "llamacpp"):
        assert catalogue.runtime(name).name in catalogue.list_runtimes()


@pytest.mark.parametrize("name", catalogue.list_acceptance_presets())
def test_every_preset(name: str) -> None:
    preset = catalogue.acceptance_preset(name)
    assert preset.definition
    assert len(preset.values) == len(preset.low) == len(preset.high)
    assert preset.domain
    if preset.at_num_draft_tokens is not None and preset.kind == "acceptance_length":
        assert preset.high[0] <= preset.at_num_draft_tokens + 1


@pytest.mark.parametrize(
    ("name", "value", "low", "high"),
    [
        ("code", 0.75, 0.70, 0.80),
        ("factual-qa", 0.675, 0.60, 0.75),
        ("creative", 0.575, 0.50, 0.65),
    ],
)
def test_presets_of_the_article(name: str, value: float, low: float, high: float) -> None:
    preset = catalogue.acceptance_preset(name)
    assert (preset.kind, preset.values, preset.low, preset.high) == (
        "alpha",
        (value,),
        (low,),
        (high,),
    )
    assert "conditional" in preset.definition


def test_enough_presets() -> None:
    assert len(catalogue.list_acceptance_presets()) >= 12


# --- strictness ---------------------------------------------------------------------------

GPU_ROW = raw("gpus")["h100-sxm-80gb"]
RUNTIME_ROW = raw("runtimes")["vllm-0.10"]
PRESET_ROW = raw("acceptance")["code"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory": 80}, "unknown key 'memory'"),
        ({"memory_gb": "80"}, "memory_gb = '80': wrong type"),
        ({"memory_gb": True}, "memory_gb = True: wrong type"),
        ({"memory_gb": 0}, "memory_gb is missing|more than 0"),
        ({"source": ""}, "source is missing"),
        ({"tflops": {"fp8": 1}}, "expected bf16"),
        ({"tflops": {"bf16": 1, "fp6": 1}}, "known dtypes"),
        ({"price_usd_per_h": [3, 2]}, r"expected \[low, high\]"),
    ],
)
def test_gpu_rows_are_strict(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rows.gpu_from_row("x", {**GPU_ROW, **change}, {})


def test_fitted_constants_are_merged() -> None:
    constants = {"bandwidth_share": 0.9, "fixed_s": 2e-6, "constants_source": "kernels"}
    gpu = rows.gpu_from_row("x", GPU_ROW, constants)
    assert (gpu.bandwidth_share, gpu.fixed_s, gpu.constants_source) == (0.9, 2e-6, "kernels")
    assert gpu.compute_share == catalogue.GpuSpec.__dataclass_fields__["compute_share"].default


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"bandwidth": 0.9}, "unknown key 'bandwidth'"),
        ({"bandwidth_share": 1.01}, "a number up to 1.0"),
        ({"bandwidth_share": 0}, "a number up to 1.0"),
        ({"bandwidth_share": "0.9"}, "a number"),
        ({"fixed_s": -1e-6}, "a number"),
        ({"fixed_s": 0.1}, "a number up to 0.001"),
        ({"constants_source": 3}, "expected a string"),
    ],
)
def test_fitted_constants_are_strict(constants: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rows.gpu_from_row("x", GPU_ROW, constants)


def test_constants_of_an_unknown_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpus.toml").write_text((DIRECTORY / "gpus.toml").read_text())
    (tmp_path / "constants.toml").write_text("[h101]\nbandwidth_share = 0.9\n")
    monkeypatch.setattr(loader, "_DIRECTORY", tmp_path)
    caches = (loader._rows, loader._names, loader._constants, loader._gpu)
    for cache in caches:
        cache.cache_clear()
    try:
        with pytest.raises(ConfigError, match="'h101' is not a GPU"):
            loader.gpu("h100")
    finally:
        monkeypatch.undo()
        for cache in caches:
            cache.cache_clear()


def test_constants_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpus.toml").write_text((DIRECTORY / "gpus.toml").read_text())
    (tmp_path / "constants.toml").write_text('["h100-sxm-80gb"]\ncompute_share = 0.5\n')
    monkeypatch.setattr(loader, "_DIRECTORY", tmp_path)
    caches = (loader._rows, loader._names, loader._constants, loader._gpu)
    for cache in caches:
        cache.cache_clear()
    try:
        assert loader.gpu("h100").compute_share == 0.5
    finally:
        monkeypatch.undo()
        for cache in caches:
            cache.cache_clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_ms": [1, 1, 1]}, "unknown key"),
        ({"step_us": [1, 2, 3]}, r"expected \[value, low, high\]"),
        ({"step_us": [1, 0]}, r"expected \[value, low, high\]"),
        ({"step_us": ["1", "0", "2"]}, r"expected \[value, low, high\]"),
        ({"graph_sizes": [4, 2]}, "increasing"),
        ({"graph_sizes": ["4"]}, "increasing"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization"),
        ({"engine": ""}, "engine is missing"),
    ],
)
def test_runtime_rows_are_strict(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rows.runtime_from_row("x", {**RUNTIME_ROW, **change})


def test_runtime_rows_need_every_constant() -> None:
    row = {key: value for key, value in RUNTIME_ROW.items() if key != "token_us"}
    with pytest.raises(ConfigError, match="token_us is missing"):
        rows.runtime_from_row("x", row)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "acceptance"}, "kind = 'acceptance': expected alpha"),
        ({"values": [0.9]}, "low ≤ values ≤ high"),
        ({"values": ["a"]}, "numbers"),
        ({"values": []}, "values is missing"),
        ({"values": [0.7, 0.7]}, "length"),
        ({"high": [1.2]}, "from 0.0 to 1.0"),
        ({"kind": "acceptance_length", "values": [2], "low": [2], "high": [2]}, "at_num_draft"),
        (
            {"kind": "survival", "values": [0.5, 0.6], "low": [0.5, 0.6], "high": [0.5, 0.6]},
            "must not rise",
        ),
        ({"colour": "red"}, "unknown key 'colour'"),
    ],
)
def test_acceptance_rows_are_strict(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rows.acceptance_from_row("x", {**PRESET_ROW, **change})


def test_model_rows_are_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    good = raw("models")["llama-3.1-8b"]
    table = {
        "unknown": {**good, "colour": "red"},
        "unsourced": {**good, "source": ""},
        "orphan": {"like": "nothing", "source": "x"},
        "wrong": {**good, "config": {**good["config"], "hidden_size": "x"}},
        "misspelt": {**good, "config": {**good["config"], "hiden_size": 4096}},
    }
    monkeypatch.setattr(loader, "_rows", lambda file: table)
    expected = {
        "unknown": "unknown key 'colour'",
        "unsourced": "source is missing",
        "orphan": "expected a row with a config",
        "wrong": "hidden_size = 'x'",
        "misspelt": "hiden_size",
    }
    for name, message in expected.items():
        with pytest.raises(ConfigError, match=message):
            loader._model.__wrapped__(name)


def test_two_rows_may_not_share_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_rows", lambda file: {"a": {"aliases": ["B"]}, "b": {}})
    with pytest.raises(ConfigError, match="names both"):
        loader._names.__wrapped__("models.toml")


# --- files by path ------------------------------------------------------------------------


def test_a_path_is_read_as_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        catalogue.model(str(tmp_path / "missing.json"))
    with pytest.raises(ConfigError, match="No such file"):
        catalogue.model(str(tmp_path))  # a directory without a config.json
    with pytest.raises(UnknownNameError):
        catalogue.model("some-org/some-model")  # no such path: a name


def test_the_catalogue_is_light() -> None:
    """Nothing but the standard library is imported to read all four files and make every
    object."""
    code = (
        "import sys\n"
        "import specsim.catalogue as c\n"
        "for names, get in ((c.list_models, c.model), (c.list_gpus, c.gpu),\n"
        "    (c.list_runtimes, c.runtime), (c.list_acceptance_presets, c.acceptance_preset)):\n"
        "    for name in names(): get(name)\n"
        "print(*{'numpy', 'pydantic', 'pandas', 'yaml', 'torch'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
