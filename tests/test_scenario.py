"""Scenario files: round trip, strictness, the text of errors, fuzz."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import specsim as ss
from specsim.acceptance import BetaRequests, Empirical, Iid, Markov, Mixture, PerPosition
from specsim.errors import ScenarioError, SpecsimError, UnknownNameError
from specsim.scenario import Scenario, draft_token_range
from specsim.scenario.resolve import resolve_acceptance

INTERFACE_EXAMPLE = """
target:     {model: llama-3.1-70b, weights: fp8, kv: bf16}
draft:      {method: draft-model, model: llama-3.2-1b, num_draft_tokens: 4}
hardware:   {gpu: h100-sxm, tensor_parallel: 4, replicas: 1}
acceptance: {alpha: 0.75}
workload:
  arrivals:      {process: poisson, rate_per_s: 4.0}
  prompt_tokens: {distribution: lognormal, mean: 1024, cv: 1.0}
  output_tokens: {distribution: lognormal, mean: 256, cv: 1.0}
  num_requests: 10000
engine:     {runtime: vllm, max_num_seqs: 256, max_num_batched_tokens: 8192, chunked_prefill: true,
             gpu_memory_utilization: 0.9, block_size: 16}
speculation: {policy: fixed}
slo:        {ttft_s: 1.0, tpot_s: 0.03}
seed: 0
"""


def load(tmp_path: Path, text: str) -> Scenario:
    path = tmp_path / "scenario.yaml"
    path.write_text(text, encoding="utf-8")
    return Scenario.load(path)


class TestRoundTrip:
    def test_the_documented_file(self, tmp_path: Path) -> None:
        scenario = load(tmp_path, INTERFACE_EXAMPLE)
        again = load(tmp_path, scenario.to_yaml())
        assert again == scenario
        resolved = scenario.resolve()
        assert resolved.deployment.target.weights == "fp8"
        assert resolved.law == Iid(0.75)

    @pytest.mark.parametrize(
        "section",
        [
            {"draft": {"tree": {"steps": 5, "topk": 4, "nodes": 16}, "method": "eagle"}},
            {"draft": {"method": "none"}, "speculation": {"policy": "off"}},
            {"acceptance": {"survival": [0.8, 0.6]}},
            {"acceptance": {"mixture": [{"weight": 0.5, "acceptance": {"alpha": 0.8}},
                                        {"weight": 0.5, "acceptance": {"preset": "creative"}}]}},
            {"workload": {"classes": [{"name": "code", "weight": 2, "acceptance": {"alpha": 0.8}},
                                      {"name": "chat", "slo": {"ttft_s": 0.5}}]}},
            {"speculation": {"policy": "batch-schedule", "schedule": [[1, 8, 4], [9, 64, 0]]}},
            {"workload": {"arrivals": {"process": "closed", "concurrency": 8}}},
        ],
    )  # fmt: skip
    def test_every_section(self, tmp_path: Path, section: dict[str, Any]) -> None:
        scenario = Scenario.from_dict(section)
        assert load(tmp_path, scenario.to_yaml()) == scenario

    def test_bare_off_is_false_in_yaml(self, tmp_path: Path) -> None:
        scenario = load(tmp_path, "speculation: {policy: off}")
        assert scenario.speculation.policy == "off"


class TestErrors:
    """Each names file, key, value and what was expected."""

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("acceptence: {alpha: 0.5}", ["unknown key 'acceptence'", "'acceptance'"]),
            ("target: {modle: x}", ["'target.modle'", "'model'"]),
            ("acceptance: {alpha: 1.5}", ["acceptance.alpha = 1.5", "less than or equal to 1"]),
            ("acceptance: {alpha: yes please}", ["acceptance.alpha = 'yes please'", "number"]),
            ("acceptance: {rate: 0.7}", ["four different numbers", "draft_acceptance_rate"]),
            ("acceptance: {alpha: 0.5, preset: code}", ["alpha and preset", "exactly one"]),
            ("acceptance: {acceptance_length: 3}", ["needs at_k"]),
            ("acceptance: {alpha: 0.5, at_k: 3}", ["at_k belongs to"]),
            ("draft: {num_draft_tokens: -2}", ["draft.num_draft_tokens = -2", "0 <= K <= 64"]),
            ("draft: {method: eagel}", ["draft.method = 'eagel'", "eagle"]),
            ("draft: {tree: 'steps=2'}", ["draft.tree.topk", "required"]),
            ("hardware: {tensor_parallel: 0}", ["hardware.tensor_parallel = 0"]),
            ("engine: {gpu_memory_utilization: 90}", ["gpu_memory_utilization = 90"]),
            ("workload: {arrivals: {process: poisson}}", ["workload.arrivals", "needs rate_per_s"]),
            ("workload: {arrivals: {process: poisson, rate_per_s: -1}}", ["rate_per_s = -1"]),
            ("workload: {prompt_tokens: {distribution: lognormal, mean: 9}}", ["needs cv"]),
            ("workload: {prompt_tokens: {distribution: uniform, low: 9, high: 2}}", ["low=9"]),
            ("speculation: {policy: batch-schedule}", ["needs schedule"]),
            ("speculation: {schedule: [[2, 4, 1]]}", ["batch_lo = 1"]),
            ("point: {context: .inf}", ["point.context"]),
            ("", ["empty file"]),
            ("[1, 2]", ["expected a mapping", "list"]),
            ("target: {model: [", ["not valid YAML"]),
            ("!!python/object/apply:os.system ['true']", ["not valid YAML"]),
            ("seed: 1e400", ["seed"]),
        ],
    )
    def test_message(self, tmp_path: Path, text: str, parts: list[str]) -> None:
        with pytest.raises(ScenarioError) as caught:
            load(tmp_path, text)
        message = str(caught.value)
        assert str(tmp_path / "scenario.yaml") in message
        assert "\n" not in message
        for part in parts:
            assert part in message

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ScenarioError, match="No such file"):
            Scenario.load(tmp_path / "none.yaml")

    def test_not_text(self, tmp_path: Path) -> None:
        path = tmp_path / "x.yaml"
        path.write_bytes(b"\xff\xfe\x00a")
        with pytest.raises(ScenarioError, match="not a UTF-8 text file"):
            Scenario.load(path)

    @pytest.mark.parametrize(
        ("data", "error", "message"),
        [
            ({"target": {"model": "lama-3.1-70b"}}, UnknownNameError, "llama-3.1-70b"),
            ({"hardware": {"gpu": "h1000"}}, UnknownNameError, "did you mean"),
            ({"engine": {"runtime": "vlm"}}, UnknownNameError, "vllm"),
            ({"acceptance": {"preset": "coed"}}, UnknownNameError, "code"),
            ({"hardware": {"tensor_parallel": 3}}, ScenarioError, "does not divide the 64"),
            ({"draft": {"model": "qwen3-0.6b"}}, ScenarioError, "tokenizer"),
            ({"cost": {"source": "rooflin"}}, ScenarioError, "cost.source = 'rooflin'"),
            ({"acceptance": {}}, ScenarioError, "expected one of alpha"),
        ],
    )
    def test_resolution(self, data: dict[str, Any], error: type[Exception], message: str) -> None:
        base: dict[str, Any] = {"acceptance": {"alpha": 0.7}}
        with pytest.raises(error, match=message):
            Scenario.from_dict({**base, **data}).resolve()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["model", "alpha", "method", "x", "process"]), inner)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*Scenario.model_fields, "typo"]), json_values, max_size=3))
@settings(max_examples=150)
def test_any_mapping_is_read_or_refused(data: dict[str, Any]) -> None:
    with contextlib.suppress(SpecsimError):
        Scenario.from_dict(data)


@given(st.text(max_size=60))
@settings(max_examples=150)
def test_any_text_is_read_or_refused(tmp_path_factory, text: str) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "s.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with contextlib.suppress(SpecsimError):
        Scenario.load(path)


@given(st.integers(0, 400))
def test_any_truncation_is_read_or_refused(tmp_path_factory, length: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "s.yaml"
    path.write_text(INTERFACE_EXAMPLE[:length])
    with contextlib.suppress(SpecsimError):
        Scenario.load(path)


class TestSet:
    def test_nested_keys(self) -> None:
        base = Scenario.from_dict(yaml.safe_load(INTERFACE_EXAMPLE))
        changed = base.with_set(["draft.num_draft_tokens=7", "workload.arrivals.rate_per_s=9"])
        assert changed.draft.num_draft_tokens == 7
        assert changed.workload.arrivals.rate_per_s == 9
        assert base.draft.num_draft_tokens == 4

    def test_an_acceptance_source_replaces_the_other(self) -> None:
        base = Scenario.from_dict({"acceptance": {"acceptance_length": 3.0, "at_k": 4}})
        assert base.with_set(["acceptance.alpha=0.5"]).acceptance.given == ["alpha"]

    def test_classes_by_index(self) -> None:
        base = Scenario.from_dict({"workload": {"classes": [{"name": "a"}, {"name": "b"}]}})
        changed = base.with_set(["workload.classes.1.weight=3"])
        assert changed.workload.classes[1].weight == 3

    @pytest.mark.parametrize(
        ("assignment", "message"),
        [
            ("draft.num_draft_tokenz=3", "unknown key"),
            ("seed.x=3", "no such key"),
            ("workload.classes.7.weight=3", "not a section|no such key"),
            ("no-equals", "expected key=value"),
            ("seed=[", "--set"),
            ("seed=x", "seed = 'x'"),
        ],
    )
    def test_refused(self, assignment: str, message: str) -> None:
        with pytest.raises(ScenarioError, match=message):
            Scenario().with_set([assignment])


class TestLaws:
    @pytest.mark.parametrize(
        ("keys", "kind"),
        [
            ({"alpha": 0.7}, Iid),
            ({"alpha": 0.7, "standard_error": 0.02}, Iid),
            ({"conditional": [0.8, 0.7]}, PerPosition),
            ({"survival": "0.8,0.6"}, PerPosition),
            ({"acceptance_length": 3.0, "at_k": 4}, Iid),
            ({"draft_acceptance_rate": 0.5, "at_k": 4}, Iid),
            ({"preset": "code"}, Iid),
            ({"beta": {"mean": 0.7, "standard_deviation": 0.1}}, BetaRequests),
            ({"markov": {"alpha_easy": 0.9, "alpha_hard": 0.3, "easy_length": 9,
                         "hard_length": 4}}, Markov),
            ({"mixture": [{"weight": 1.0, "acceptance": {"alpha": 0.5}}]}, Mixture),
        ],
    )  # fmt: skip
    def test_kinds(self, keys: dict[str, Any], kind: type) -> None:
        scenario = Scenario.from_dict({"acceptance": keys})
        law, source = resolve_acceptance(scenario.acceptance, scenario.draft)
        assert isinstance(law, kind)
        assert source

    def test_recorded_runs(self, tmp_path: Path) -> None:
        path = tmp_path / "runs.jsonl"
        path.write_text('{"accepted_runs": [1, 0, 2]}\n')
        scenario = Scenario.from_dict({"acceptance": {"trace": str(path)}})
        assert isinstance(resolve_acceptance(scenario.acceptance, scenario.draft)[0], Empirical)

    @pytest.mark.parametrize("name", ss.model.__globals__["list_acceptance_presets"]())
    def test_every_preset_becomes_a_law(self, name: str) -> None:
        scenario = Scenario.from_dict({"acceptance": {"preset": name}})
        law, _ = resolve_acceptance(scenario.acceptance, scenario.draft)
        assert 1 <= law.acceptance_length(4) <= 5
        interval = law.survival_interval(3)
        if interval is not None:
            assert (interval[0] <= law.survival(3) + 1e-9).all()
            assert (law.survival(3) <= interval[1] + 1e-9).all()

    def test_alpha_of_a_tree_is_that_of_its_first_children(self) -> None:
        scenario = Scenario.from_dict(
            {"acceptance": {"alpha": 0.7}, "draft": {"method": "eagle",
             "tree": "steps=5,topk=4,nodes=16"}}
        )  # fmt: skip
        law, _ = resolve_acceptance(scenario.acceptance, scenario.draft)
        assert law.acceptance_length(16) > Iid(0.7).acceptance_length(5)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(4, [4]), ("4", [4]), ("1:3", [1, 2, 3]), ("0:1", [0, 1]), ("auto", list(range(1, 17)))],
)
def test_draft_token_range(value: int | str, expected: list[int]) -> None:
    assert list(draft_token_range(value)) == expected


@pytest.mark.parametrize("value", ["3:1", "a", "", "1:", "1:2:3", "1:100", -1, "1.5"])
def test_draft_token_range_refused(value: int | str) -> None:
    with pytest.raises(ValueError, match="expected K"):
        draft_token_range(value)
