"""What would go wrong with an engine's settings: a code and a sentence each."""

from __future__ import annotations

from collections.abc import Iterator

from specsim.interop.common import Note
from specsim.interop.serving_plan import ServingPlan

#: vLLM's default largest CUDA graph, in tokens.
VLLM_MAX_CAPTURE = 512


def lint(plan: ServingPlan, engine: str, *, synthetic: bool = False) -> tuple[Note, ...]:
    """Conflicts of a plan on one engine."""
    checks = [*_general(plan, engine)]
    if engine == "vllm":
        checks += [*_vllm(plan, synthetic)]
    elif engine == "sglang":
        checks += [*_sglang(plan)]
    elif engine == "llamacpp":
        checks += [*_llamacpp(plan)]
    return tuple(checks)


def _general(plan: ServingPlan, engine: str) -> Iterator[Note]:
    if not plan.speculates:
        yield Note(code="no-speculation", message="K is 0: nothing about speculation is emitted")
        return
    if plan.policy in ("goodput", "per-request"):
        yield Note(
            code="policy-not-in-engine",
            message=f"speculation.policy = {plan.policy}: no engine has it; K = "
            f"{plan.num_draft_tokens} is fixed",
        )
    if plan.policy == "adaptive" and engine != "sglang":
        yield Note(
            code="policy-not-in-engine",
            message=f"speculation.policy = adaptive is SGLang's; {engine} gets K = "
            f"{plan.num_draft_tokens}",
        )
    if plan.schedule and engine != "vllm":
        yield Note(
            code="schedule-dropped",
            message=f"{engine} has no schedule over the batch size; K = {plan.num_draft_tokens} is "
            "fixed",
        )
    if plan.kv_budget is not None:
        yield Note(
            code="kv-budget-dropped",
            message=f"draft.kv_budget = {plan.kv_budget}: {engine} has no such setting",
        )
    if plan.tree is not None and engine not in ("sglang", "trtllm"):
        yield Note(
            code="tree-against-chain",
            message=f"draft.tree: {engine} verifies chains only; it gets a chain of "
            f"{plan.num_draft_tokens} tokens, whose acceptance is lower than the tree's",
        )
    if plan.method in ("eagle", "eagle3") and plan.draft is not None and "/" not in plan.draft:
        yield Note(code="local-head", message=f"{plan.draft!r} must be a checkpoint of the engine")


def _vllm(plan: ServingPlan, synthetic: bool) -> Iterator[Note]:
    if not plan.speculates:
        return
    degree = plan.draft_tensor_parallel
    if degree is not None and degree not in (1, plan.tensor_parallel):
        yield Note(
            code="draft-parallel-degree",
            message=f"draft_tensor_parallel_size = {degree}: vLLM takes 1 or the target's "
            f"{plan.tensor_parallel}",
        )
    widest = plan.max_num_seqs * (plan.num_draft_tokens + 1)
    if widest > VLLM_MAX_CAPTURE:
        yield Note(
            code="capture-size",
            message=f"a full batch verifies {plan.max_num_seqs} x {plan.num_draft_tokens + 1} = "
            f"{widest} tokens, above vLLM's default largest CUDA graph of {VLLM_MAX_CAPTURE}: "
            "set the capture sizes that --command prints, or such steps run without a graph",
        )
    if widest > plan.max_num_batched_tokens:
        yield Note(
            code="batched-tokens",
            message=f"a full batch verifies {widest} tokens but max_num_batched_tokens is "
            f"{plan.max_num_batched_tokens}",
        )
    if plan.schedule:
        if plan.replicas > 1:
            yield Note(
                code="data-parallel-schedule",
                message=f"with data parallel ({plan.replicas} replicas) vLLM ignores "
                "num_speculative_tokens_per_batch_size; serve replicas as separate instances",
            )
        if any(k == 0 for _, _, k in plan.schedule):
            yield Note(
                code="scheduled-zero",
                message="at K = 0 the drafter still runs to keep its cache current, and its memory "
                "stays reserved: that is slower than speculation switched off",
            )
        yield Note(
            code="schedule-counts-prefills",
            message="the batch size that vLLM looks up counts requests in prefill too",
        )
    if synthetic:
        yield Note(
            code="synthetic",
            message="drafts are accepted by chance: speed is real, text is not; never serve users",
        )


def _sglang(plan: ServingPlan) -> Iterator[Note]:
    if plan.policy == "adaptive" and plan.method not in ("eagle", "eagle3"):
        yield Note(
            code="adaptive-method", message="SGLang's adaptive speculation is for EAGLE drafts"
        )
    if plan.policy == "adaptive" and plan.tree is not None and plan.tree[1] > 1:
        yield Note(
            code="tree-against-chain",
            message=f"adaptive steps need a chain, but the tree has topk = {plan.tree[1]}",
        )
    if plan.tree is not None:
        steps, topk, nodes = plan.tree
        if topk == 1 and nodes != steps:
            yield Note(
                code="tree-against-chain",
                message=f"topk = 1 is a chain of {steps} steps; SGLang sets num_draft_tokens to "
                f"{steps + 1}, not {nodes + 1}",
            )
    if plan.draft_tensor_parallel not in (None, plan.tensor_parallel):
        yield Note(
            code="draft-parallel-degree",
            message=f"draft.tensor_parallel = {plan.draft_tensor_parallel}: SGLang runs the draft "
            f"on the target's {plan.tensor_parallel} GPUs",
        )


def _llamacpp(plan: ServingPlan) -> Iterator[Note]:
    if plan.tensor_parallel > 1:
        yield Note(
            code="tensor-parallel",
            message=f"hardware.tensor_parallel = {plan.tensor_parallel}: llama.cpp splits layers, "
            "not tensors, unless --split-mode row is given",
        )
