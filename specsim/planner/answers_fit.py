"""Answers about the engine: graphs and token budget, memory, placement, first token."""

from __future__ import annotations

import math
from collections.abc import Sequence

from specsim.cost.memory import memory
from specsim.planner.answers import QUESTIONS, Answer, Facts
from specsim.planner.candidate import Candidate
from specsim.units import human_bytes, human_seconds

#: Relative error of what an engine keeps for itself (context, graphs, activations).
BUFFER_ERROR = 0.3


def widest_step(schedule: Sequence[Sequence[int]]) -> int:
    """Tokens of the widest verify step of a schedule [batch_lo, batch_hi, K]."""
    return max(high * (k + 1) for _, high, k in schedule)


def graphs_and_tokens(facts: Facts) -> Answer:
    """4: the widest step that a CUDA graph must hold, and the token budget."""
    best = facts.best
    rows = best.schedule()
    widest = widest_step(rows)
    at_demand = round(best.demand.batch) * (best.k_at(best.demand.batch) + 1)
    runtime = best.deployment.runtime
    largest = max(runtime.graph_sizes, default=0)
    longest = max(float(c.prompts.max()) for c in facts.problem.classes)
    budget = widest + min(int(longest), 8192)
    if not largest:
        text = f"{runtime.name} uses no graphs; steps are up to {widest} tokens wide."
    elif widest <= largest:
        text = f"Capture graphs up to {widest} tokens (max_num_seqs {best.batch_limit}, K + 1)."
    else:
        text = (
            f"Steps reach {widest} tokens, more than the largest graph of {runtime.name} "
            f"({largest}): raise the capture sizes to {widest} or such steps run eager."
        )
    return Answer(
        question=QUESTIONS[3], value=float(widest),
        low=float(at_demand), high=float(widest), unit="tokens",
        answer=f"{text} max_num_batched_tokens at least {budget}.",
        reason="a step holds batch x (K + 1) tokens; a limit that is no multiple of 8, or a "
        "capture cap below it, drops whole steps out of the graphs. Low is the demanded load",
    )  # fmt: skip


def does_it_fit(facts: Facts) -> Answer:
    """5: concurrency with and without the draft, and what takes the memory."""
    spec, off = facts.subject, facts.off
    context = math.ceil(facts.problem.mean_length)
    room = memory(spec.deployment, spec.largest_k, context)
    plain = memory(off.deployment, 0, context)
    buffers = BUFFER_ERROR * (room.logits_bytes + room.activation_bytes + room.graph_bytes + 1e9)
    per_sequence = room.kv_pool_bytes / max(room.max_concurrency, 1)
    margin = buffers / per_sequence if per_sequence > 0 else 0.0
    lost = 1 - room.max_concurrency / max(plain.max_concurrency, 1)
    target_kv = off.deployment.target.kv_bytes_per_token_per_gpu
    draft_kv = max(room.kv_bytes_per_token - target_kv, 0.0)
    verdict = "Yes" if room.fits else "No"
    own = spec.draft_tensor_parallel
    where = f" per GPU (draft on {own} of them)" if own == 1 and spec.num_gpus > 1 else " per GPU"
    return Answer(
        question=QUESTIONS[4],
        value=float(room.max_concurrency), low=max(0.0, room.max_concurrency - margin),
        high=room.max_concurrency + margin, unit="sequences",
        answer=f"{verdict}: {room.max_concurrency} sequences of {context} tokens, "
        f"{plain.max_concurrency} without speculation ({lost:.0%} lost).",
        reason=f"target weights {human_bytes(room.target_weights_bytes)}, draft weights "
        f"{human_bytes(room.draft_weights_bytes)}, logits {human_bytes(room.logits_bytes)} for "
        f"K + 1 positions, KV {human_bytes(target_kv)} + {human_bytes(draft_kv)} a token of the "
        f"target and the draft{where}, of {human_bytes(room.budget_bytes)}",
    )  # fmt: skip


def where_the_draft_runs(facts: Facts) -> Answer:
    """7: the draft's parallel degree, and what the other one loses."""
    question = QUESTIONS[6]
    spec = facts.spec
    if spec is None or spec.option is None:
        return Answer(question=question, answer="There is no draft to place.", value=None, low=None,
                      high=None, unit="GPUs", reason="speculation is off")  # fmt: skip
    model = spec.deployment.draft.model
    if model is None:
        return Answer(question=question, answer="n-gram look-up runs on the host.", value=0.0,
                      low=0.0, high=0.0, unit="GPUs", reason="no weights, no passes")  # fmt: skip
    rivals = _same_but_for_degree(facts, spec)
    degree = model.tensor_parallel
    if not rivals:
        reason = "the target is on one GPU" if spec.num_gpus == 1 else "the degree is as given"
        text = f"Beside the target, on {degree} GPU{'s' if degree > 1 else ''}."
    else:
        other = rivals[0]
        loss = other.demand.tpot_s / spec.demand.tpot_s - 1
        used = other.deployment.draft.model
        assert used is not None
        text = f"Beside the target, on {degree} of its {spec.num_gpus} GPUs."
        reason = (
            f"on {used.tensor_parallel} GPU(s) a token takes {loss:+.1%} longer at the demanded "
            "load: spreading shares the draft's bytes and adds an all-reduce per layer and pass"
        )
    near = [c.deployment.draft.model for c in rivals if c.demand.tpot_s < 1.02 * spec.demand.tpot_s]
    options = {float(m.tensor_parallel) for m in near if m is not None} | {float(degree)}
    return Answer(question=question, value=float(degree), low=min(options), high=max(options),
                  unit="GPUs", answer=text, reason=reason)  # fmt: skip


def _same_but_for_degree(facts: Facts, spec: Candidate) -> list[Candidate]:
    return [
        c for c in facts.found.candidates
        if c.option is spec.option
        and c.deployment.gpu.name == spec.deployment.gpu.name
        and c.deployment.target.tensor_parallel == spec.deployment.target.tensor_parallel
        and c.draft_tensor_parallel != spec.draft_tensor_parallel
    ]  # fmt: skip


def first_token(facts: Facts) -> Answer:
    """8: what speculation adds to the time to first token."""
    question = QUESTIONS[7]
    spec, off = facts.subject, facts.off
    prompts = spec.model.draft_prefill_s
    mean, with_it, without = float(prompts.mean()), facts.ttft_s(spec), facts.ttft_s(off)
    if spec is off or not spec.speculates:
        return Answer(question=question, answer=f"Nothing: {human_seconds(without)} at the "
                      "demanded load.", value=0.0, low=0.0, high=0.0, unit="s",
                      reason="speculation is off")  # fmt: skip
    delta = with_it - without
    return Answer(
        question=question, value=delta, low=min(delta, float(prompts.min())),
        high=max(delta, float(prompts.max())), unit="s",
        answer=f"{human_seconds(with_it)} instead of {human_seconds(without)} at the demanded "
        f"load; the draft's own prefill is {human_seconds(mean)} of it on average.",
        reason="engines prefill target and draft one after the other; a smaller batch in flight "
        "shortens the queue again. The interval spans the prompts of the workload",
    )  # fmt: skip
