"""Export: keys that the engines know, the lint's conflicts, and the way back."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from specsim.cli.main import run
from specsim.errors import ScenarioError
from specsim.interop.engine_config import scenario_of_sglang, scenario_of_vllm
from specsim.interop.engine_keys import (
    LLAMACPP_FLAGS,
    SGLANG_ADAPTIVE_KEYS,
    SGLANG_ALGORITHMS,
    SGLANG_FLAGS,
    TRTLLM_KEYS,
    TRTLLM_TYPES,
    VLLM_KEYS,
    VLLM_METHODS,
    VLLM_REMOVED,
)
from specsim.interop.export import ENGINES, Export, capture_sizes, export
from specsim.interop.serving_plan import serving_plan
from specsim.scenario import Scenario

BASE: dict[str, Any] = {
    "target": {"model": "llama-3.1-70b", "weights": "fp8"},
    "draft": {"method": "draft-model", "model": "llama-3.2-1b", "num_draft_tokens": 4},
    "hardware": {"gpu": "h100-sxm", "tensor_parallel": 4},
    "acceptance": {"alpha": 0.75},
    "engine": {"max_num_seqs": 64},
}


def made(
    name: str, /, *, synthetic: bool = False, version: str | None = None, **sections: Any
) -> Export:
    """An export of BASE with sections changed."""
    data = {k: {**BASE.get(k, {}), **sections.get(k, {})} for k in {*BASE, *sections}}
    plan = serving_plan(Scenario.from_dict(data))
    return export(plan, name, synthetic=synthetic, version=version)


def codes(result: Export) -> set[str]:
    return {note.code for note in result.notes}


def vllm(**more: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(made("vllm", **more).text)
    return config


METHODS: dict[str, dict[str, Any]] = {
    "draft-model": {"model": "llama-3.2-1b"}, "mtp": {"model": None}, "ngram": {"model": None},
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", ENGINES)
def test_only_keys_that_the_engine_has(engine: str, method: str) -> None:
    target = {"model": "deepseek-v3" if method == "mtp" else "llama-3.1-70b"}
    result = made(engine, draft={"method": method, **METHODS[method]}, target=target)
    if engine == "vllm":
        assert set(json.loads(result.text)) <= set(VLLM_KEYS)
        assert not set(json.loads(result.text)) & set(VLLM_REMOVED)
        assert json.loads(result.text)["method"] in VLLM_METHODS
    elif engine == "sglang":
        flags = [w for w in shlex.split(result.text) if w.startswith("--")]
        assert set(flags) <= set(SGLANG_FLAGS)
        assert result.config["--speculative-algorithm"] in SGLANG_ALGORITHMS
    elif engine == "trtllm":
        speculative = yaml.safe_load(result.text)["speculative_config"]
        assert set(speculative) <= set(TRTLLM_KEYS)
        assert speculative["decoding_type"] in TRTLLM_TYPES
    else:
        flags = [w for w in shlex.split(result.text) if w.startswith("-")]
        assert set(flags) <= set(LLAMACPP_FLAGS)


def test_vllm_config_says_what_the_scenario_says() -> None:
    assert vllm() == {
        "method": "draft_model", "model": "meta-llama/Llama-3.2-1B", "num_speculative_tokens": 4,
    }  # fmt: skip
    assert vllm(draft={"tensor_parallel": 1})["draft_tensor_parallel_size"] == 1


def test_synthetic_rates_are_unconditional_and_fall() -> None:
    config = vllm(synthetic=True)
    assert config["rejection_sample_method"] == "synthetic"
    assert config["synthetic_acceptance_rates"] == pytest.approx(
        [0.75**i for i in range(1, 5)], abs=1e-6
    )
    plan = serving_plan(Scenario.from_dict({k: v for k, v in BASE.items() if k != "acceptance"}))
    with pytest.raises(ScenarioError, match="acceptance: expected one"):
        export(plan, "vllm", synthetic=True)
    with pytest.raises(ScenarioError, match="only vllm can"):
        made("sglang", synthetic=True)


SCHEDULE = {"policy": "batch-schedule", "schedule": [[1, 8, 5], [9, 32, 3], [33, 48, 0]]}


def test_schedule_reaches_the_largest_batch() -> None:
    config = vllm(speculation=SCHEDULE)
    assert config["num_speculative_tokens"] == 5
    assert config["num_speculative_tokens_per_batch_size"] == [[1, 8, 5], [9, 32, 3], [33, 64, 0]]
    found = codes(made("vllm", speculation=SCHEDULE))
    assert {"scheduled-zero", "schedule-counts-prefills"} <= found
    assert "schedule-dropped" in codes(made("sglang", speculation=SCHEDULE))


def test_capture_sizes_hold_a_full_batch_of_every_width() -> None:
    plan = serving_plan(Scenario.from_dict({**BASE, "speculation": SCHEDULE}))
    sizes = capture_sizes(plan)
    assert {64 * 6, 64 * 4, 64 * 1} <= set(sizes)
    assert sizes == sorted(set(sizes))
    assert all(any(size % w == 0 for w in (6, 4, 1)) for size in sizes)


#: Conflict → (engine, scenario sections that have it).
CONFLICTS: dict[str, tuple[str, dict[str, Any]]] = {
    "draft-parallel-degree": ("vllm", {"draft": {"tensor_parallel": 2}}),
    "capture-size": ("vllm", {"engine": {"max_num_seqs": 256}}),
    "batched-tokens": ("vllm", {"engine": {"max_num_batched_tokens": 256}}),
    "data-parallel-schedule": ("vllm", {"speculation": SCHEDULE, "hardware": {"replicas": 2}}),
    "tree-against-chain": ("vllm", {"draft": {"tree": {"steps": 5, "topk": 4, "nodes": 16}}}),
    "policy-not-in-engine": ("vllm", {"speculation": {"policy": "goodput"}}),
    "adaptive-method": ("sglang", {"speculation": {"policy": "adaptive"}}),
    "kv-budget-dropped": ("vllm", {"draft": {"kv_budget": 512}}),
    "tensor-parallel": ("llamacpp", {}),
    "no-speculation": ("vllm", {"speculation": {"policy": "off"}}),
    "speculation-off": ("vllm", {"speculation": {"policy": "off"}}),
}  # fmt: skip


@pytest.mark.parametrize("code", CONFLICTS)
def test_lint_explains_conflicts(code: str) -> None:
    engine, sections = CONFLICTS[code]
    result = made(engine, **sections)
    assert code in codes(result)
    clean = made(engine)
    assert code not in codes(clean) or code == "tensor-parallel"


def test_a_clean_scenario_has_nothing_to_say() -> None:
    assert codes(made("vllm")) == set()


def test_sglang_counts_the_root() -> None:
    flags = made("sglang").config
    assert flags["--speculative-num-steps"] == "4"
    assert flags["--speculative-num-draft-tokens"] == "5"
    adaptive = made("sglang", speculation={"policy": "adaptive", "candidate_steps": [1, 4]}).config
    assert adaptive["--speculative-adaptive"] is True
    config = json.loads(adaptive["--speculative-adaptive-config"])
    assert config == {"candidate_steps": [1, 4]}
    assert set(config) <= set(SGLANG_ADAPTIVE_KEYS)


def test_methods_an_engine_lacks_are_refused() -> None:
    for engine in ENGINES:
        with pytest.raises(ScenarioError, match=f"early-exit.*{engine} cannot do it"):
            made(engine, draft={"method": "early-exit", "model": None, "exit_layer": 8})
    with pytest.raises(ScenarioError, match="needs the eagle3 checkpoint"):
        made("vllm", draft={"method": "eagle3", "model": None})


def test_an_older_vllm_gets_no_newer_key() -> None:
    assert set(json.loads(made("vllm", version="0.10").text)) <= {
        key for key, since in VLLM_KEYS.items() if since == "0.10"
    }
    with pytest.raises(ScenarioError, match="num_speculative_tokens_per_batch_size"):
        made("vllm", version="0.10", speculation=SCHEDULE)
    with pytest.raises(ScenarioError, match=r"expected 0\.32, 0\.10"):
        made("vllm", version="0.5")


def test_k_left_open_is_the_closed_forms_best() -> None:
    result = made("vllm", draft={"num_draft_tokens": "1:8"})
    (note,) = [n for n in result.notes if n.code == "chosen-k"]
    chosen = json.loads(result.text)["num_speculative_tokens"]
    assert f"K = {chosen} is the closed form's best" in note.message


# --- the way back -----------------------------------------------------------------------


@given(
    k=st.integers(1, 12),
    method=st.sampled_from(["draft-model", "ngram"]),
    degree=st.sampled_from([None, 1, 4]),
    widths=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 12)), max_size=4),
)
def test_vllm_round_trip(
    k: int, method: str, degree: int | None, widths: list[tuple[int, int]]
) -> None:
    draft: dict[str, Any] = {"method": method, "num_draft_tokens": k, "model": None}
    if method == "draft-model":
        draft |= {"model": "llama-3.2-1b", "tensor_parallel": degree}
    sections: dict[str, Any] = {"draft": draft}
    rows, low = [], 1
    for width, row_k in widths:
        rows.append([low, low + width - 1, row_k])
        low += width
    if rows and any(r[2] for r in rows):
        sections["speculation"] = {"policy": "batch-schedule", "schedule": rows}
        sections["engine"] = {"max_num_seqs": low - 1}
    back = scenario_of_vllm(vllm(**sections))
    expected_k = max((r[2] for r in rows), default=0) or k
    assert back["draft"]["num_draft_tokens"] == expected_k
    assert back["draft"]["method"] == method
    assert back["draft"].get("tensor_parallel") == draft.get("tensor_parallel")
    if "speculation" in sections:
        assert back["speculation"] == sections["speculation"]
    else:
        assert "speculation" not in back


def test_synthetic_round_trip_keeps_the_acceptance() -> None:
    back = scenario_of_vllm(vllm(synthetic=True))
    assert back["acceptance"]["survival"] == pytest.approx([0.75**i for i in range(1, 5)], abs=1e-6)
    Scenario.from_dict({**back, "draft": {**back["draft"], "model": "llama-3.2-1b"}})


@given(
    k=st.integers(1, 12), tree=st.one_of(st.none(), st.tuples(st.integers(1, 8), st.integers(2, 8)))
)
def test_sglang_round_trip(k: int, tree: tuple[int, int] | None) -> None:
    draft: dict[str, Any] = {"num_draft_tokens": k}
    if tree is not None:
        draft |= {"tree": {"steps": tree[0], "topk": tree[1], "nodes": tree[0] * tree[1]},
                  "num_draft_tokens": "auto"}  # fmt: skip
    result = made("sglang", draft=draft)
    back = scenario_of_sglang(result.text)["draft"]
    assert back["method"] == "draft-model"
    assert back["model"] == "meta-llama/Llama-3.2-1B"
    if tree is None:
        assert back["num_draft_tokens"] == k
    else:
        assert back["tree"] == draft["tree"]


def test_removed_and_mistaken_keys_say_what_to_write() -> None:
    for key, instead in VLLM_REMOVED.items():
        with pytest.raises(ScenarioError, match=instead.split()[0]):
            scenario_of_vllm({"num_speculative_tokens": 3, key: 1})
    with pytest.raises(ScenarioError, match="unknown key 'num_spec'"):
        scenario_of_vllm({"num_spec": 3})


# --- the command ------------------------------------------------------------------------


def command(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(list(arguments))
    return status, out.getvalue(), err.getvalue()


def test_command_prints_the_engines_own_form(tmp_path: Any) -> None:
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(BASE))
    status, out, _ = command("export", str(path), "--engine", "vllm")
    assert status == 0
    assert json.loads(out)["num_speculative_tokens"] == 4
    status, out, _ = command("export", str(path), "--engine", "vllm", "--command")
    words = shlex.split(out)
    assert words[:2] == ["vllm", "serve"]
    assert json.loads(words[words.index("--speculative-config") + 1])["method"] == "draft_model"
    status, out, _ = command("export", str(path), "--engine", "trtllm", "--json")
    assert json.loads(out)["config"]["speculative_config"]["decoding_type"] == "DraftTarget"
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"best": BASE, "alternatives": []}))
    status, out, _ = command("export", str(plan), "--engine", "sglang")
    assert "--speculative-algorithm STANDALONE" in out
    for arguments in (["--engine", "tgi"], ["--engine", "vllm", "--engine-version", "1"]):
        status, out, err = command("export", str(path), *arguments)
        assert (status, out) == (2, "")
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
