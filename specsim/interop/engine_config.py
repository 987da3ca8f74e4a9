"""Reads back what an engine takes: a vLLM --speculative-config or SGLang flags → scenario
keys. The inverse of `export` where the engine's settings say everything."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from specsim.errors import ScenarioError
from specsim.interop.engine_keys import SGLANG_FLAGS, VLLM_KEYS, VLLM_REMOVED
from specsim.interop.export import SGLANG_ALGORITHM, VLLM_METHOD


def scenario_of_vllm(
    config: Mapping[str, Any], where: str = "speculative-config"
) -> dict[str, Any]:
    """Sections `draft`, `speculation` and, for synthetic acceptance, `acceptance`.

    Raises:
        ScenarioError: for keys that vLLM has dropped or never had; says what to write.
    """
    for key in config:
        if key in VLLM_REMOVED:
            raise ScenarioError(f"{where}: key {key!r} is gone from vLLM; use {VLLM_REMOVED[key]}")
        if key not in VLLM_KEYS:
            raise ScenarioError(f"{where}: unknown key {key!r}; expected {', '.join(VLLM_KEYS)}")
    methods = {v: k for k, v in VLLM_METHOD.items()} | {"dspark": "block", "ngram_gpu": "ngram"}
    method = str(config.get("method", "draft_model"))
    if method not in methods:
        raise ScenarioError(f"{where}: method = {method!r}: expected one of {', '.join(methods)}")
    draft: dict[str, Any] = {
        "method": methods[method],
        "num_draft_tokens": _whole(config, "num_speculative_tokens", where),
    }
    if "model" in config:
        draft["model"] = config["model"]
    if "draft_tensor_parallel_size" in config:
        draft["tensor_parallel"] = _whole(config, "draft_tensor_parallel_size", where)
    sections: dict[str, Any] = {"draft": draft}
    rows = config.get("num_speculative_tokens_per_batch_size")
    if rows:
        sections["speculation"] = {"policy": "batch-schedule", "schedule": [list(r) for r in rows]}
    if "synthetic_acceptance_rates" in config:
        sections["acceptance"] = {"survival": list(config["synthetic_acceptance_rates"])}
    elif "synthetic_acceptance_length" in config:
        sections["acceptance"] = {
            "acceptance_length": config["synthetic_acceptance_length"],
            "at_k": draft["num_draft_tokens"],
        }
    return sections


def scenario_of_sglang(text: str, where: str = "flags") -> dict[str, Any]:
    """Section `draft` (and `speculation` for the adaptive policy) of SGLang's flags.

    Raises:
        ScenarioError: for speculative flags that SGLang does not have.
    """
    words = shlex.split(text)
    values: dict[str, str] = {}
    for i, word in enumerate(words):
        if word.startswith("--speculative"):
            if word not in SGLANG_FLAGS:
                raise ScenarioError(f"{where}: unknown flag {word}; expected one of SGLang's")
            following = words[i + 1] if i + 1 < len(words) else ""
            values[word] = "" if following.startswith("--") else following
    algorithm = values.get("--speculative-algorithm", "")
    methods = {v: k for k, v in SGLANG_ALGORITHM.items()}
    if algorithm not in methods:
        raise ScenarioError(
            f"{where}: --speculative-algorithm {algorithm}: expected {', '.join(methods)}"
        )
    draft: dict[str, Any] = {"method": methods[algorithm]}
    if "--speculative-draft-model-path" in values:
        draft["model"] = values["--speculative-draft-model-path"]
    verified = _whole(values, "--speculative-num-draft-tokens", where)
    topk = int(values.get("--speculative-eagle-topk", "1"))
    if topk > 1:
        steps = _whole(values, "--speculative-num-steps", where)
        draft["tree"] = {"steps": steps, "topk": topk, "nodes": verified - 1}
    else:
        draft["num_draft_tokens"] = verified - 1  # the root counts
    sections: dict[str, Any] = {"draft": draft}
    if "--speculative-adaptive" in values:
        import json

        config = json.loads(values.get("--speculative-adaptive-config") or "{}")
        sections["speculation"] = {
            "policy": "adaptive", "candidate_steps": config.get("candidate_steps", [1, 3, 7]),
        }  # fmt: skip
    return sections


def _whole(values: Mapping[str, Any], key: str, where: str) -> int:
    value = values.get(key)
    try:
        number = int(str(value))
    except ValueError:
        raise ScenarioError(f"{where}: {key} = {value!r}: expected a whole number") from None
    if not 1 <= number <= 1024:
        raise ScenarioError(f"{where}: {key} = {number}: expected 1..1024")
    return number
