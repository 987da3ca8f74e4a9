"""Answers about trust and money: what the plan rests on, GPUs needed, price of tokens."""

from __future__ import annotations

import math

import numpy as np

from specsim.planner.answers import QUESTIONS, Answer, Facts
from specsim.planner.candidate import Candidate
from specsim.planner.problem import middle_price
from specsim.planner.service import components, steps_per_request
from specsim.planner.uncertainty import Z95, interval, shifted_parts

#: What to measure when a parameter moves the answer most.
MEASURE = {
    "acceptance": "acceptance of {draft} on your own prompts, at your temperature (a few hundred "
    "requests; `specsim fit` takes the engine's log)",
    "overhead": "the step time of your engine at batch 1 (`specsim plan --probe vllm`)",
    "bandwidth": "plain decoding at your batch and context (`specsim plan --probe vllm`)",
    "draft time": "the step time at two K (`specsim plan --probe vllm`)",
    "verify ratio": "the step time at K = 0 and K = {k} (`specsim plan --probe vllm`)",
    "engine stack": "the speedup itself on your engine's version (`specsim plan --probe vllm`)",
    "load": "the request rate at the busiest hour",
}


def what_it_rests_on(facts: Facts) -> Answer:
    """9: the acceptance behind the plan, how sensitive the answer is, what to measure."""
    question = QUESTIONS[8]
    spec = facts.spec
    if spec is None or spec.option is None:
        return Answer(
            question=question, answer="On none: no draft pays at its estimated acceptance.",
            value=None, low=None, high=None, unit="tokens/step",
            reason="a measured acceptance above the break-even would change that",
        )  # fmt: skip
    k = spec.k_at(spec.demand.batch) or spec.largest_k
    taus = [_mean_tau(facts, spec, z, k) for z in (0.0, -Z95, Z95)]
    kind = "given by the scenario" if spec.option.measured else "an ESTIMATE"
    bars = facts.bars
    widest = next((b for b in bars if b.parameter != "load"), None)
    first = MEASURE[widest.parameter].format(draft=spec.label, k=k) if widest else "nothing"
    moves = "; ".join(f"{b.parameter} {min(b.low, b.high):.2f}-{max(b.low, b.high):.2f}x"
                      for b in bars)  # fmt: skip
    return Answer(
        question=question, value=taus[0], low=min(taus), high=max(taus), unit="tokens/step",
        answer=f"{taus[0]:.2f} tokens per step at K = {k}, {kind}. Measure first: {first}.",
        reason=f"{spec.option.source}. Speed over no speculation at the demanded load, each "
        f"input at the ends of its interval: {moves}",
    )  # fmt: skip


def _mean_tau(facts: Facts, spec: Candidate, z: float, k: int) -> float:
    """Tokens over steps of the whole traffic, at K."""
    assert spec.option is not None
    problem = facts.problem
    parts = shifted_parts(problem, spec, z) if z else components(
        problem, spec.option.laws, spec.model.draft_tokens)  # fmt: skip
    steps = steps_per_request(problem, parts)[spec.model.draft_tokens.index(k)]
    return (problem.mean_output - 1) / float(steps)


def what_it_costs(facts: Facts) -> Answer:
    """10: requests/s per GPU within the SLO, GPUs needed, cost per million tokens."""
    question = QUESTIONS[9]
    best, problem = facts.best, facts.problem
    per_replica = facts.capacity_per_s(best)
    if per_replica is None or per_replica <= 0:
        return Answer(
            question=question, value=0.0, low=0.0, high=0.0, unit="requests/s per GPU",
            answer="No load meets the SLO on these GPUs.", reason=unmet(facts),
        )  # fmt: skip
    per_gpu = per_replica / best.num_gpus
    spread = facts.sampled.get(id(best), np.ones(1))
    low, high = (per_gpu * v / max(float(np.median(spread)), 1e-12) for v in interval(spread))
    demand = problem.rate_per_s
    text = f"{per_gpu:.3g} requests/s per GPU"
    if demand is not None:
        replicas = math.ceil(demand / per_replica - 1e-9)
        count = replicas * best.num_gpus
        text += f"; {count} GPU{'s' if count > 1 else ''} for {demand:g} requests/s"
    money, reason = _money(facts, best, per_replica)
    held = "" if demand is None or demand <= per_replica * best.replicas else (
        f" The {best.total_gpus} GPUs of the plan carry {per_replica * best.replicas:.3g} "
        "requests/s: not enough.")  # fmt: skip
    return Answer(question=question, value=per_gpu, low=low, high=high, unit="requests/s per GPU",
                  answer=f"{text}. {money}{held}", reason=reason)  # fmt: skip


def _money(facts: Facts, best: Candidate, per_replica: float) -> tuple[str, str]:
    price = best.deployment.gpu.price_usd_per_h
    name = best.deployment.gpu.name
    problem, off = facts.problem, facts.overall_off
    if price is None:
        return "", f"no price is known for {name}"
    hour = middle_price(price)

    def usd(rate: float, gpus: int, gpu_hour: float) -> float:
        return gpu_hour * gpus / (rate * problem.mean_output * 3600) * 1e6

    full = usd(per_replica, best.num_gpus, hour)
    ends = [usd(per_replica, best.num_gpus, p) for p in price]
    text = f"{full:.2f} USD per million output tokens when full ({ends[0]:.2f} to {ends[1]:.2f})"
    if problem.rate_per_s is not None:
        carried = min(problem.rate_per_s, per_replica * best.replicas)
        even = usd(carried, best.total_gpus, hour)
        text += f"; the demanded load breaks even at {even:.2f} USD"
    plain = facts.capacity_per_s(off)
    reason = f"{name} at {price[0]:g} to {price[1]:g} USD/h (middle {hour:.2f})"
    if plain and best is not off and best.deployment.gpu.name == off.deployment.gpu.name:
        ratio = (per_replica / best.num_gpus) / (plain / off.num_gpus)
        reason += (
            f"; without speculation {usd(plain, off.num_gpus, hour):.2f} USD, so a GPU-hour may "
            f"cost up to {hour * ratio:.2f} USD before speculation stops paying"
        )
    return text + ".", reason


def unmet(facts: Facts) -> str:
    """Which limit fails at the lightest load, and what would satisfy it."""
    problem, best = facts.problem, facts.best
    lightest = best.curve
    lines = []
    for index, traffic in enumerate(problem.classes):
        if float(lightest.attained[index].max()) >= problem.attained:
            continue
        name = f"class {traffic.name}: " if traffic.name else ""
        objective = traffic.objective
        tpot, ttft = float(lightest.tpot_s[0]), float(lightest.ttft_s[0])
        if objective.tpot_s is not None and tpot > 0.9 * objective.tpot_s:
            lines.append(f"{name}tpot_s = {objective.tpot_s:g} fails, {tpot:.4f} s at batch 1")
        if objective.ttft_s is not None and ttft > 0.5 * objective.ttft_s:
            lines.append(f"{name}ttft_s = {objective.ttft_s:g} fails, {ttft:.3f} s at batch 1")
        if objective.itl_s is not None:
            step = float(lightest.step_s[0])
            lines.append(
                f"{name}itl_s = {objective.itl_s:g}: a step takes {step:.4f} s, with a prefill "
                "beside it longer"
            )
        if objective.e2e_s is not None:
            total = ttft + traffic.mean_output * tpot
            lines.append(f"{name}e2e_s = {objective.e2e_s:g}, {total:.3f} s at batch 1")
    cure = (
        "a faster GPU, a higher tensor_parallel, smaller weights (target.weights: fp8, int4), or "
        f"limits above these; at batch 1 the best plan has TPOT {float(lightest.tpot_s[0]):.4f} s "
        f"and TTFT {float(lightest.ttft_s[0]):.3f} s on average"
    )
    return f"{'; '.join(lines) or 'the share that meets the SLO is too small'}. Needed: {cure}"
