"""A scenario becomes what an engine takes: JSON, YAML or flags."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from specsim.errors import ScenarioError
from specsim.interop.common import Note
from specsim.interop.engine_keys import VLLM_KEYS, VLLM_VERSIONS
from specsim.interop.lint import lint
from specsim.interop.serving_plan import ServingPlan

#: K = 0 to this many tokens of n-grams are looked up by default.
NGRAM_MAX, NGRAM_MIN = 4, 2


@dataclass(frozen=True, kw_only=True)
class Export:
    """`text` is what to paste, `config` the same as data; `command` a whole command line."""

    engine: str
    text: str
    config: Mapping[str, Any]
    command: str
    notes: tuple[Note, ...]


def export(
    plan: ServingPlan, engine: str, *, synthetic: bool = False, version: str | None = None
) -> Export:
    """The plan in the engine's own form, with what a lint has to say about it.

    Raises:
        ScenarioError: for an unknown engine, or a method that it does not have.
    """
    if engine not in ENGINES:
        raise ScenarioError(f"--engine {engine!r}: expected one of {', '.join(ENGINES)}")
    if synthetic and engine != "vllm":
        raise ScenarioError(f"--synthetic: {engine} cannot accept drafts by chance; only vllm can")
    version = version or VLLM_VERSIONS[0]
    if version not in VLLM_VERSIONS:
        raise ScenarioError(f"--engine-version {version!r}: expected {', '.join(VLLM_VERSIONS)}")
    text, config, command = ENGINES[engine](plan, synthetic, version)
    return Export(
        engine=engine, text=text, config=config, command=command,
        notes=(*plan.notes, *lint(plan, engine, synthetic=synthetic)),
    )  # fmt: skip


Written = tuple[str, Mapping[str, Any], str]


def _unsupported(engine: str, method: str, known: Mapping[str, str]) -> ScenarioError:
    return ScenarioError(
        f"draft.method = {method!r}: {engine} cannot do it; expected one of {', '.join(known)}"
    )


def block_drafter(plan: ServingPlan) -> str:
    """Which block drafter a draft's name says it is."""
    return "dspark" if "dspark" in (plan.draft or "").lower() else "dflash"


VLLM_METHOD = {
    "draft-model": "draft_model", "eagle": "eagle", "eagle3": "eagle3", "medusa": "medusa",
    "mtp": "mtp", "ngram": "ngram", "block": "dflash",
}  # fmt: skip


def vllm_config(plan: ServingPlan, synthetic: bool, version: str) -> dict[str, Any]:
    """The object of --speculative-config; {} without speculation.

    Raises:
        ScenarioError: for a method that vLLM lacks, or acceptance missing for --synthetic.
    """
    if not plan.speculates:
        return {}
    if plan.method not in VLLM_METHOD:
        raise _unsupported("vllm", plan.method, VLLM_METHOD)
    method = block_drafter(plan) if plan.method == "block" else VLLM_METHOD[plan.method]
    config: dict[str, Any] = {"method": method}
    if plan.draft is not None:
        config["model"] = plan.draft
    elif plan.method in ("draft-model", "eagle", "eagle3", "medusa", "block"):
        raise ScenarioError(f"draft.model: vllm needs the {plan.method} checkpoint to load")
    config["num_speculative_tokens"] = plan.num_draft_tokens
    if plan.method == "ngram":
        config |= {"prompt_lookup_max": NGRAM_MAX, "prompt_lookup_min": NGRAM_MIN}
    if plan.draft_tensor_parallel is not None and plan.draft is not None:
        config["draft_tensor_parallel_size"] = plan.draft_tensor_parallel
    if plan.schedule:
        config["num_speculative_tokens_per_batch_size"] = [list(r) for r in full_schedule(plan)]
    if plan.draft_kv is not None and plan.draft_kv != plan.target_kv:
        config["kv_cache_dtype"] = "auto" if plan.draft_kv == "bf16" else plan.draft_kv
    if synthetic:
        if plan.survival is None:
            raise ScenarioError("--synthetic: acceptance: expected one, to accept drafts by chance")
        config["rejection_sample_method"] = "synthetic"
        config["synthetic_acceptance_rates"] = [round(s, 6) for s in plan.survival]
    order = VLLM_VERSIONS.index(version)
    for key in config:
        if VLLM_VERSIONS.index(VLLM_KEYS[key]) < order:
            raise ScenarioError(f"--engine-version {version}: vllm {version} has no key {key!r}")
    return config


def full_schedule(plan: ServingPlan) -> tuple[tuple[int, int, int], ...]:
    """The schedule, its last row extended to max_num_seqs."""
    *rows, (low, high, k) = plan.schedule
    return (*rows, (low, max(high, plan.max_num_seqs), k))


def capture_sizes(plan: ServingPlan) -> list[int]:
    """CUDA graph sizes in tokens: batch · (K + 1) for the K that occur, batches 1, 2, 4, 8,
    then every 8, up to max_num_seqs, at most 512 tokens unless one step needs more."""
    widths = {k + 1 for _, _, k in plan.schedule} or {plan.num_draft_tokens + 1}
    batches = [1, 2, 4, *range(8, plan.max_num_seqs + 1, 8), plan.max_num_seqs]
    sizes = {b * w for b in batches for w in widths if b <= plan.max_num_seqs}
    return sorted(sizes)


def _vllm(plan: ServingPlan, synthetic: bool, version: str) -> Written:
    config = vllm_config(plan, synthetic, version)
    text = json.dumps(config)
    flags = [
        "vllm", "serve", plan.target, "--tensor-parallel-size", str(plan.tensor_parallel),
        "--max-num-seqs", str(plan.max_num_seqs),
        "--max-num-batched-tokens", str(plan.max_num_batched_tokens),
        "--gpu-memory-utilization", f"{plan.gpu_memory_utilization:g}",
    ]  # fmt: skip
    if plan.replicas > 1:
        flags += ["--data-parallel-size", str(plan.replicas)]
    if plan.target_kv == "fp8":
        flags += ["--kv-cache-dtype", "fp8"]
    full: dict[str, Any] = {"speculative_config": config}
    if config:
        compilation = {"cudagraph_capture_sizes": capture_sizes(plan)}
        full["compilation_config"] = compilation
        flags += ["--speculative-config", text, "--compilation-config", json.dumps(compilation)]
    full |= {"max_num_seqs": plan.max_num_seqs, "tensor_parallel_size": plan.tensor_parallel,
             "max_num_batched_tokens": plan.max_num_batched_tokens}  # fmt: skip
    return text, full, shlex.join(flags)


SGLANG_ALGORITHM = {
    "draft-model": "STANDALONE", "eagle": "EAGLE", "eagle3": "EAGLE3", "mtp": "NEXTN",
    "ngram": "NGRAM", "block": "DFLASH",
}  # fmt: skip


def sglang_flags(plan: ServingPlan) -> dict[str, str | None]:
    """Speculative flags → values (None: a switch).

    Raises:
        ScenarioError: for a method that SGLang lacks.
    """
    if not plan.speculates:
        return {}
    if plan.method not in SGLANG_ALGORITHM:
        raise _unsupported("sglang", plan.method, SGLANG_ALGORITHM)
    flags: dict[str, str | None] = {"--speculative-algorithm": SGLANG_ALGORITHM[plan.method]}
    if plan.draft is not None:
        flags["--speculative-draft-model-path"] = plan.draft
    elif plan.method in ("draft-model", "eagle", "eagle3", "block"):
        raise ScenarioError(f"draft.model: sglang needs the {plan.method} checkpoint to load")
    steps, topk, nodes = plan.tree or (plan.num_draft_tokens, 1, plan.num_draft_tokens)
    if plan.method not in ("ngram", "block"):
        flags["--speculative-num-steps"] = str(steps)
        flags["--speculative-eagle-topk"] = str(topk)
    # the root counts: a chain of K tokens verifies K + 1
    flags["--speculative-num-draft-tokens"] = str(nodes + 1)
    if plan.draft_weights == "fp8":
        flags["--speculative-draft-model-quantization"] = "fp8"
    if plan.policy == "adaptive":
        flags["--speculative-adaptive"] = None
        flags["--speculative-adaptive-config"] = json.dumps(
            {"candidate_steps": list(plan.candidate_steps)}
        )
    return flags


def _sglang(plan: ServingPlan, synthetic: bool, version: str) -> Written:
    flags = sglang_flags(plan)
    words = [w for key, value in flags.items() for w in ((key,) if value is None else (key, value))]
    command = [
        "python", "-m", "sglang.launch_server", "--model-path", plan.target,
        "--tp-size", str(plan.tensor_parallel), "--max-running-requests", str(plan.max_num_seqs),
        "--mem-fraction-static", f"{plan.gpu_memory_utilization:g}",
    ]  # fmt: skip
    if plan.replicas > 1:
        command += ["--dp-size", str(plan.replicas)]
    return (
        shlex.join(words),
        {k: v if v is not None else True for k, v in flags.items()},
        (shlex.join([*command, *words])),
    )


TRTLLM_TYPE = {
    "draft-model": "DraftTarget", "eagle3": "Eagle3", "mtp": "MTP", "ngram": "NGram",
    "block": "DFlash",
}  # fmt: skip


def trtllm_config(plan: ServingPlan) -> dict[str, Any]:
    """The YAML document of --config.

    Raises:
        ScenarioError: for a method that TensorRT-LLM lacks.
    """
    document: dict[str, Any] = {
        "tensor_parallel_size": plan.tensor_parallel,
        "max_batch_size": plan.max_num_seqs,
        "max_num_tokens": plan.max_num_batched_tokens,
        "kv_cache_config": {"free_gpu_memory_fraction": plan.gpu_memory_utilization},
    }
    if not plan.speculates:
        return document
    if plan.method not in TRTLLM_TYPE:
        raise _unsupported("trtllm", plan.method, TRTLLM_TYPE)
    steps, topk, nodes = plan.tree or (plan.num_draft_tokens, 1, plan.num_draft_tokens)
    speculative: dict[str, Any] = {"decoding_type": TRTLLM_TYPE[plan.method]}
    if plan.method == "mtp":
        speculative["num_nextn_predict_layers"] = steps
    else:
        speculative["max_draft_len"] = steps
    if plan.draft is not None:
        speculative["speculative_model"] = plan.draft
    elif plan.method in ("draft-model", "eagle3", "block"):
        raise ScenarioError(f"draft.model: trtllm needs the {plan.method} checkpoint to load")
    if plan.method == "ngram":
        speculative["max_matching_ngram_size"] = NGRAM_MAX
    if topk > 1:
        speculative |= {"use_dynamic_tree": True, "dynamic_tree_max_topK": topk,
                        "max_total_draft_tokens": nodes}  # fmt: skip
    return {**document, "speculative_config": speculative}


def _trtllm(plan: ServingPlan, synthetic: bool, version: str) -> Written:
    import yaml

    document = trtllm_config(plan)
    text = yaml.safe_dump(document, sort_keys=False)
    return (
        text.rstrip(),
        document,
        shlex.join(["trtllm-serve", plan.target, "--config", "config.yaml"]),
    )


LLAMACPP_TYPE = {
    "draft-model": "draft-simple", "eagle3": "draft-eagle3", "mtp": "draft-mtp",
    "ngram": "ngram-simple",
}  # fmt: skip


def llamacpp_flags(plan: ServingPlan) -> dict[str, str]:
    """Speculative flags → values.

    Raises:
        ScenarioError: for a method that llama.cpp lacks.
    """
    if not plan.speculates:
        return {}
    if plan.method not in LLAMACPP_TYPE:
        raise _unsupported("llamacpp", plan.method, LLAMACPP_TYPE)
    flags = {"--spec-type": LLAMACPP_TYPE[plan.method]}
    if plan.draft is not None:
        flags |= {"-md": plan.draft, "-ngld": "99"}
    elif plan.method in ("draft-model", "eagle3"):
        raise ScenarioError(f"draft.model: llamacpp needs the {plan.method} file to load")
    flags["--spec-draft-n-max"] = str(plan.num_draft_tokens)
    return flags


def _llamacpp(plan: ServingPlan, synthetic: bool, version: str) -> Written:
    flags = llamacpp_flags(plan)
    words = [word for pair in flags.items() for word in pair]
    command = ["llama-server", "-m", plan.target, "-np", str(plan.max_num_seqs), "-ngl", "99"]
    return shlex.join(words), dict(flags), shlex.join([*command, *words])


ENGINES: Mapping[str, Callable[[ServingPlan, bool, str], Written]] = {
    "vllm": _vllm, "sglang": _sglang, "trtllm": _trtllm, "llamacpp": _llamacpp,
}  # fmt: skip
