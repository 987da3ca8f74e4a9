"""What fits: weights, KV cache, draft, logits, activations, graph pools, on each GPU."""

from __future__ import annotations

from dataclasses import dataclass

from specsim.deployment import WEIGHTLESS_METHODS, Deployment, kv_elements_per_gpu
from specsim.units import dtype_bytes, human_bytes

#: CUDA context, NCCL buffers and allocator fragmentation that no engine can use.
#: (vLLM logs 0.5–1.5 GiB as "non-torch memory" on H100.)
CONTEXT_BYTES = 1.0e9
#: Pool of captured CUDA graphs (vLLM logs 0.3–1.0 GiB for 67 sizes of an 8B model);
#: a draft captures a second set.
GRAPH_POOL_BYTES = 0.6e9
#: Live activation rows of the widest layer: residual, normalised input, gate and up, down.
LIVE_ROWS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes on each GPU of the target's group, and how many sequences fit.

    `max_concurrency` is for sequences of `context` tokens (plus K + 1 lookahead slots),
    not capped by `max_num_seqs`; 0 when the weights alone do not fit.
    """

    target_weights_bytes: float
    draft_weights_bytes: float
    logits_bytes: float
    activation_bytes: float
    graph_bytes: float
    kv_bytes_per_token: float  # target and draft, on one GPU
    state_bytes_per_sequence: float
    budget_bytes: float
    kv_capacity_tokens: int
    max_concurrency: int

    @property
    def kv_pool_bytes(self) -> float:
        """What is left for the KV cache (negative if the rest does not fit)."""
        used = (
            self.target_weights_bytes + self.draft_weights_bytes + self.logits_bytes
            + self.activation_bytes + self.graph_bytes + CONTEXT_BYTES
        )  # fmt: skip
        return self.budget_bytes - used

    @property
    def fits(self) -> bool:
        """Whether at least one sequence can be served."""
        return self.max_concurrency >= 1

    def explain(self) -> str:
        """One line: what is needed, what is there."""
        needed = self.budget_bytes - self.kv_pool_bytes
        return (
            f"{human_bytes(needed)} of weights and buffers per GPU against "
            f"{human_bytes(self.budget_bytes)} that the engine may use"
        )


def memory(deployment: Deployment, num_draft_tokens: int, context: int) -> Memory:
    """What one GPU of the target's group holds with K = `num_draft_tokens`.

    A draft on the target's GPUs costs its weights, its KV cache and K + 1 lookahead slots
    a sequence; `draft.own_gpus` costs the target nothing but the slots. Logits are
    B · (K + 1) · V in fp32 (vLLM gathers the whole vocabulary on every rank).
    """
    target, draft = deployment.target, deployment.draft
    batch = deployment.max_num_seqs
    spec = target.spec
    draft_weights, draft_kv, draft_state = _draft_bytes(deployment)
    per_token = target.kv_bytes_per_token_per_gpu
    logits = batch * (num_draft_tokens + 1) * spec.vocab_size * 4.0
    widest = max((g.feed_forward.intermediate_size for g in spec.layers), default=0)
    row = 2.0 * (LIVE_ROWS * spec.hidden_size + 3 * widest / target.tensor_parallel)
    activation = deployment.max_num_batched_tokens * row
    graphs = 0.0
    if deployment.runtime.graph_sizes:
        graphs = GRAPH_POOL_BYTES * (2 if draft.model is not None else 1)
    budget = deployment.gpu.memory_bytes * deployment.gpu_memory_utilization
    # verification snapshots the recurrent state at every drafted position
    state = spec.state_bytes_per_sequence("fp32") / target.tensor_parallel
    state = state * (num_draft_tokens + 1) + draft_state
    pool = budget - (
        target.weights_bytes_per_gpu + draft_weights + logits + activation + graphs + CONTEXT_BYTES
    )
    slots = context + num_draft_tokens + 1
    blocks = -(-slots // deployment.block_size) * deployment.block_size
    sliding = _bounded_kv_bytes(deployment, blocks)
    per_sequence = (per_token * blocks if sliding is None else sliding) + draft_kv * blocks + state
    concurrency = int(pool // per_sequence) if pool > 0 and per_sequence > 0 else 0
    return Memory(
        target_weights_bytes=target.weights_bytes_per_gpu,
        draft_weights_bytes=draft_weights,
        logits_bytes=logits,
        activation_bytes=activation,
        graph_bytes=graphs,
        kv_bytes_per_token=per_token + draft_kv,
        state_bytes_per_sequence=state,
        budget_bytes=budget,
        kv_capacity_tokens=max(0, int(pool // (per_sequence / blocks))) if per_sequence else 0,
        max_concurrency=concurrency,
    )


def _draft_bytes(deployment: Deployment) -> tuple[float, float, float]:
    """Weights, KV bytes per token and state bytes per sequence that the draft adds to
    each of the target's GPUs."""
    draft = deployment.draft
    if draft.model is None or draft.method in WEIGHTLESS_METHODS or draft.own_gpus:
        return 0.0, 0.0, 0.0
    model = draft.model
    state = model.spec.state_bytes_per_sequence("fp32") / model.tensor_parallel
    kv = 0.0 if draft.method == "medusa" else model.kv_bytes_per_token_per_gpu
    return model.weights_bytes_per_gpu, kv, state


def _bounded_kv_bytes(deployment: Deployment, slots: int) -> float | None:
    """KV bytes of one sequence of `slots` token slots (whole blocks, lookahead included)
    where sliding windows bound some layers; None if none do."""
    target = deployment.target
    windows = [g.attention.window for g in target.spec.layers]
    if not any(windows):
        return None
    total = 0.0
    for group in target.spec.layers:
        window = group.attention.window
        kept = slots if window is None else min(slots, window + deployment.block_size)
        total += group.count * kept * kv_elements_per_gpu(group, target.tensor_parallel)
    return total * dtype_bytes(target.kv)
