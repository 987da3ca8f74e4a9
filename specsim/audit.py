"""The claims of the article that specsim began with, checked by the same models.

An article of 2026-05-17 on speculative decoding states ten things. Each function below
takes nothing and returns a `Claim`: the numbers, the assumptions under which the statement
holds, a verdict, and what a figure of it would show.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from specsim import catalogue
from specsim.acceptance.chains import Iid
from specsim.acceptance.conversions import alpha_from_acceptance_length
from specsim.analytic import acceptance_length, predict
from specsim.analytic.curves import speedup_over_batch
from specsim.analytic.formulas import break_even_cost_ratio, speedup
from specsim.analytic.prediction import Prediction
from specsim.cost.roofline import Roofline
from specsim.cost.step import decode_step
from specsim.deployment import NO_DRAFT, Deployment, PlacedModel

Verdict = Literal["holds", "holds-if", "fails"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement of the article and what became of it.

    `chart` is what to draw: {"title", "x", "y", "xlabel", "ylabel", "reference"}, where
    `y` maps a label to values and `reference` a label to a level; None where there is nothing
    to see.
    """

    number: int
    claim: str
    verdict: Verdict
    assumptions: str
    numbers: dict[str, Any]
    chart: dict[str, Any] | None = field(default=None)


def _verdict(always: bool, sometimes: bool) -> Verdict:
    """From whether the statement holds in every case looked at, or in some."""
    if always:
        return "holds"
    return "holds-if" if sometimes else "fails"


def _prediction(draft: str, alpha: float, gpu: str, **more: Any) -> Prediction:
    return predict(
        target="llama-3.1-70b", draft=draft, gpu=gpu, acceptance=Iid(alpha),
        num_draft_tokens=range(1, 9), context=1024, **more,
    )  # fmt: skip


def memory_bound() -> Claim:
    """1: a 70B model on one A100 generates 30–50 tokens/s; products alone could do more."""
    gpu = catalogue.gpu("a100-sxm-80gb")
    spec = catalogue.model("llama-3.1-70b")
    rates, ceilings, fits = {}, {}, {}
    for weights in ("bf16", "fp8", "int4"):
        placed = PlacedModel(spec=spec, weights=weights)
        deployment = Deployment(
            target=placed, draft=NO_DRAFT, gpu=gpu, runtime=catalogue.runtime("vllm")
        )
        step = decode_step(deployment, Roofline(gpu=gpu), 0, 1, 512)
        embedding = spec.vocab_size * spec.hidden_size * 2.0
        ceilings[weights] = gpu.bandwidth_bytes_per_s / (placed.weights_bytes - embedding)
        rates[weights] = float(1 / step.seconds)
        fits[weights] = placed.weights_bytes < 0.9 * gpu.memory_bytes
    compute = gpu.peak_flops["bf16"] / (2 * spec.num_active_parameters)
    return Claim(
        number=1,
        claim="Decoding is limited by memory bandwidth: 70B on one A100 gives 30-50 tokens/s; "
        "the matrix products alone could run orders of magnitude faster",
        verdict=_verdict(
            all(fits[w] and rates[w] >= 30 for w in rates),
            any(fits[w] and rates[w] >= 30 for w in rates),
        ),
        assumptions="4-bit weights: in 16 bits the model does not fit one A100, and at 8 bits "
        "bandwidth alone allows fewer than 30 tokens/s",
        numbers={
            "predicted_tokens_per_s": rates, "bandwidth_ceiling_tokens_per_s": ceilings,
            "fits_80_gb": fits, "compute_ceiling_tokens_per_s": compute,
            "compute_over_bandwidth_at_fp8": compute / ceilings["fp8"],
        },
        chart={
            "title": "70B on one A100: predicted, and what bandwidth allows",
            "x": [f"{w}{'' if fits[w] else ' (does not fit)'}" for w in rates],
            "y": {"predicted": list(rates.values()), "bandwidth ceiling": list(ceilings.values())},
            "xlabel": "weights", "ylabel": "tokens/s, batch 1",
            "reference": {"claimed: from 30": 30, "to 50": 50},
        },
    )  # fmt: skip


def drafting_in_parallel() -> Claim:
    """2: a draft of 7B or less proposes several tokens "in parallel"."""
    prediction = _prediction("llama-3.1-8b", 0.75, "h100-sxm", tensor_parallel=4)
    rows = {row["num_draft_tokens"]: row for row in prediction.rows()}
    one, eight = rows[1]["draft_s"], rows[8]["draft_s"]
    return Claim(
        number=2,
        claim="A draft of 7B or less proposes several tokens in parallel; the target checks "
        "them in one forward pass",
        # parallel heads do; whether a draft model does shows in its time against K
        verdict=_verdict(eight < 2 * one, True),
        assumptions="Medusa-like heads and block drafters draft in parallel; an ordinary draft "
        "model drafts one token after the other, so its time grows with K. The check "
        "is one pass in every case",
        numbers={"draft_s_at_k1": one, "draft_s_at_k8": eight, "ratio": eight / one},
        chart={
            "title": "One draft round of an 8B draft",
            "x": [str(k) for k in rows],
            "y": {"sequential draft": [1e3 * r["draft_s"] for r in rows.values()],
                  "if it were parallel": [1e3 * one] * len(rows)},
            "xlabel": "draft tokens, K", "ylabel": "ms a round", "reference": None,
        },
    )  # fmt: skip


def full_acceptance() -> Claim:
    """3: if all K drafts are accepted, K tokens cost one target forward pass."""
    k = 4
    emitted = Iid(1.0).acceptance_length(k)
    return Claim(
        number=3,
        claim="If all K drafts are accepted, K tokens cost one target forward pass; on a "
        "rejection one continues from the target's own sample",
        verdict=_verdict(emitted == k, emitted > k),
        assumptions="the pass also yields a bonus token, so full acceptance emits K+1 tokens; "
        "and the K draft passes have to be paid as well",
        numbers={"num_draft_tokens": k, "tokens_emitted": emitted},
        chart={
            "title": "Full acceptance: tokens from one verify pass",
            "x": [str(n) for n in range(1, 9)],
            "y": {"as claimed, K": list(range(1, 9)),
                  "emitted, K + 1": [Iid(1.0).acceptance_length(n) for n in range(1, 9)],
                  "per target pass of time, c = 0.1": [
                      float(speedup(n + 1, n, 0.1)) for n in range(1, 9)
                  ]},
            "xlabel": "draft tokens, K", "ylabel": "tokens", "reference": None,
        },
    )  # fmt: skip


def agreement_and_losslessness() -> Claim:
    """4: acceptance follows the agreement of the distributions, and the output is p."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(50), size=2)
    accepted = np.minimum(p, q)
    residual = np.maximum(p - q, 0.0)
    output = accepted + (1 - accepted.sum()) * residual / residual.sum()
    distance = 0.5 * float(np.abs(output - p).sum())
    overlap, tv = float(accepted.sum()), 0.5 * float(np.abs(p - q).sum())
    exact = distance < 1e-12 and abs(overlap - (1 - tv)) < 1e-12
    return Claim(
        number=4,
        claim="Acceptance is proportional to the agreement of the two distributions, and the "
        "output keeps the target's distribution",
        verdict="holds" if exact else "fails",
        assumptions="P(accept) equals 1 - TV(p, q) exactly when the draft's own distribution is "
        "used for the test and the residual for the correction",
        numbers={"acceptance": overlap, "one_minus_tv": 1 - tv, "tv_output_to_target": distance},
    )


def verifying_is_cheaper() -> Claim:
    """5: one parallel pass instead of K sequential ones."""
    gpu = catalogue.gpu("h100-sxm")
    deployment = Deployment(
        target=PlacedModel(spec=catalogue.model("llama-3.1-70b"), tensor_parallel=4),
        draft=NO_DRAFT, gpu=gpu, runtime=catalogue.runtime("ideal"),
    )  # fmt: skip
    source, k = Roofline(gpu=gpu), 4
    batches = 2 ** np.arange(0, 11)
    one = source.forward_time(deployment.target, batches, 1, 1024).seconds
    wide = source.forward_time(deployment.target, batches, k + 1, 1024).seconds
    ratio = wide / ((k + 1) * one)
    return Claim(
        number=5,
        claim="Verifying is cheaper than generating: one parallel pass instead of K sequential",
        verdict=_verdict(bool(np.all(ratio < 0.5)), bool(np.any(ratio < 0.5))),
        assumptions="while the pass is memory-bound; in a large batch verifying K+1 tokens costs "
        "nearly as much as generating them",
        numbers={
            "num_draft_tokens": k,
            "verify_over_generating": dict(zip(map(str, batches), ratio.tolist(), strict=True)),
        },
        chart={
            "title": "Verifying 5 tokens against generating 5",
            "x": [str(b) for b in batches],
            "y": {"verify pass / 5 decode passes": ratio.tolist()},
            "xlabel": "batch, sequences", "ylabel": "ratio of times",
            "reference": {"no gain": 1.0},
        },
    )  # fmt: skip


def two_to_three_times() -> Claim:
    """6: Google's implementation on Gemini: 2–3× throughput."""
    ratios = [0.005 * i for i in range(41)]
    needed = {
        f"{wanted:g}x": {
            f"c={c:g}": min((_alpha_for(wanted, c, k) for k in range(1, 13)), default=float("nan"))
            for c in (0.02, 0.05, 0.1)
        }
        for wanted in (2.0, 3.0)
    }
    return Claim(
        number=6,
        claim="Google's implementation on Gemini: 2-3x throughput at equal quality",
        verdict=_verdict(False, needed["2x"]["c=0.05"] < 0.9),
        assumptions="the deployment is not public; a speedup of 2-3x needs an acceptance alpha "
        "of this size at cost ratio c, at small batch and the best K",
        numbers={"alpha_needed": needed},
        chart={
            "title": "Acceptance that 2x and 3x need, at the best K",
            "x": ratios,
            "y": {f"{wanted:g}x": [min(_alpha_for(wanted, c, k) for k in range(1, 13))
                                   for c in ratios] for wanted in (2.0, 3.0)},
            "xlabel": "cost ratio c", "ylabel": "α needed",
            "reference": {"every token accepted": 1.0},
        },
    )  # fmt: skip


def _alpha_for(wanted: float, cost_ratio: float, k: int) -> float:
    """The α at which K drafts give the speedup `wanted`; infinity if none does."""
    tau = wanted * (k * cost_ratio + 1)
    return alpha_from_acceptance_length(tau, k) if tau <= k + 1 else float("inf")


def similar_on_llama_70b() -> Claim:
    """7: Meta's implementation for Llama 3 70B: similar gains on the same hardware."""
    best = {}
    for draft in ("llama-3.1-8b", "llama-3.2-1b"):
        for alpha in (0.6, 0.7, 0.8):
            prediction = _prediction(draft, alpha, "h100-sxm", tensor_parallel=4)
            best[f"{draft}, alpha={alpha:g}"] = prediction.best["speedup"]
    curve = speedup_over_batch(_prediction("llama-3.2-1b", 0.7, "h100-sxm", tensor_parallel=4))
    return Claim(
        number=7,
        claim="Meta's implementation for Llama 3 70B: similar gains on the same hardware",
        verdict=_verdict(min(best.values()) >= 2, max(best.values()) >= 2),
        assumptions="batch 1, a draft of about 1B with alpha near 0.8, or a head; with an 8B "
        "draft or alpha 0.6 the gain stays below 2x",
        numbers={"best_speedup_at_batch_1": best},
        chart=_batch_chart("70B with a 1B draft, α = 0.7, 4 × H100", curve),
    )


def _batch_chart(title: str, curve: dict[str, Any]) -> dict[str, Any]:
    return {
        "title": title, "x": np.asarray(curve["batch"]).tolist(),
        "y": {"best K at each batch": np.asarray(curve["best_speedup"]).tolist(),
              f"K = {curve['fixed_k']} kept": np.asarray(curve["fixed_speedup"]).tolist()},
        "xlabel": "batch, sequences", "ylabel": "speedup",
        "reference": {"plain decoding": 1.0},
    }  # fmt: skip


def acceptance_by_domain() -> Claim:
    """8: acceptance on chat traffic by domain."""
    measured = [
        catalogue.acceptance_preset(name)
        for name in catalogue.list_acceptance_presets()
        if catalogue.acceptance_preset(name).kind == "conditional"
    ]
    first = {preset.name: preset.values[0] for preset in measured}
    inside = [0.5 <= value <= 0.8 for value in first.values()]
    lengths: dict[str, Any] = {
        name: {
            "alpha": catalogue.acceptance_preset(name).values[0],
            "acceptance_length_at_k4": float(
                acceptance_length(catalogue.acceptance_preset(name).values[0], 4)
            ),
        }
        for name in ("code", "factual-qa", "creative")
    }
    return Claim(
        number=8,
        claim="Acceptance on chat traffic: code 70-80 %, factual question answering 60-75 %, "
        "creative writing 50-65 %",
        verdict=_verdict(False, any(inside)),
        assumptions="the article does not say which of the four rates it means; read as alpha "
        "they are what one-layer heads and small drafts of the family reach. The "
        "figures belong to a pair of models, not to a domain: measure yours",
        numbers={**lengths, "published_conditional_acceptance": first},
        chart={
            "title": "What the claimed acceptance yields at K = 4",
            "x": list(lengths),
            "y": {"tokens per step": [v["acceptance_length_at_k4"] for v in lengths.values()]},
            "xlabel": "traffic", "ylabel": "acceptance length",
            "reference": {"all accepted": 5.0},
        },
    )  # fmt: skip


def half_acceptance() -> Claim:
    """9: even at 50 % acceptance the net throughput gain is about 1.8×."""
    k, alpha, wanted = 4, 0.5, 1.8
    tau = float(acceptance_length(alpha, k))
    limit = break_even_cost_ratio(tau, k, wanted=wanted)
    prediction = _prediction("llama-3.1-8b", alpha, "h100-sxm", tensor_parallel=4)
    ratios = np.linspace(0, 0.15, 31)
    best = [max(float(speedup(acceptance_length(alpha, n), n, c)) for n in range(1, 9))
            for c in ratios]  # fmt: skip
    real = prediction.best["speedup"]
    return Claim(
        number=9,
        claim="Even at 50 % acceptance the net throughput gain is about 1.8x",
        verdict=_verdict(min(best) >= wanted, real >= wanted),
        assumptions=f"at alpha = 0.5 no K emits more than 2 tokens a step; 1.8x at K = 4 needs a "
        f"draft pass under {limit:.1%} of a target pass and no overhead",
        numbers={
            "acceptance_length_at_k4": tau, "cost_ratio_needed": limit,
            "speedup_with_8b_draft": real,
            "speedup_at_cost_ratio_0.1": float(speedup(tau, k, 0.1)),
        },
        chart={
            "title": "α = 0.5: best speedup against the draft's cost",
            "x": ratios.tolist(), "y": {"best K, no overhead": best},
            "xlabel": "cost ratio c", "ylabel": "speedup",
            "reference": {"claimed: 1.8": 1.8},
        },
    )  # fmt: skip


def twice_the_throughput() -> Claim:
    """10: no new hardware is needed to double throughput."""
    prediction = _prediction("llama-3.2-1b", 0.8, "h100-sxm", tensor_parallel=4)
    curve = speedup_over_batch(prediction)
    best, batch = np.asarray(curve["best_speedup"]), np.asarray(curve["batch"])
    doubling = batch[best >= 2]
    pays = prediction.break_even["batch"]
    return Claim(
        number=10,
        claim="No new hardware is needed to double throughput; better drafts mean more speed "
        "from the same hardware",
        verdict=_verdict(bool(np.all(best >= 2)), bool(np.any(best >= 2))),
        assumptions="at small batch only: with alpha = 0.8 and a 1B draft the gain shrinks "
        "with the batch",
        numbers={
            "speedup_at_batch_1": float(best[0]),
            "largest_batch_that_doubles": int(doubling[-1]) if len(doubling) else None,
            "batches_that_pay": pays,
        },
        chart=_batch_chart("70B with a 1B draft, α = 0.8, 4 × H100", curve),
    )


CLAIMS: tuple[Callable[[], Claim], ...] = (
    memory_bound,
    drafting_in_parallel,
    full_acceptance,
    agreement_and_losslessness,
    verifying_is_cheaper,
    two_to_three_times,
    similar_on_llama_70b,
    acceptance_by_domain,
    half_acceptance,
    twice_the_throughput,
)


def audit_claims() -> list[Claim]:
    """All ten, in order."""
    return [check() for check in CLAIMS]


def to_dict(claim: Claim, figure: str | None) -> dict[str, Any]:
    """The keys of `audit --json`."""
    row = dataclasses.asdict(claim)
    del row["chart"]
    return {**row, "figure": figure}
