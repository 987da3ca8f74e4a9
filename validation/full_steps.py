"""`python -m validation.full_steps`: whole steps of serving engines, predicted.

The GPU's part is the roofline with constants from kernels; the engine's part are the
constants of `catalogue/runtimes.toml`, at most four of them per engine, fitted by
`validation.fit_runtimes` to the rows that each section below names.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from specsim.catalogue import loader
from specsim.cost.drafting import draft_round
from specsim.cost.roofline import Roofline
from specsim.cost.step import decode_step, overhead, target_pass
from specsim.deployment import Deployment, PlacedModel, make_draft
from validation.published_steps import (
    ASSUMED_CONTEXT,
    magicdec_gpu,
    magicdec_groups,
    magicdec_runtime,
    predict,
    published,
)
from validation.rows import Row, absolute_errors, bounds, comparison, missed, statistic, summary

#: arXiv 2601.11580, the authors' fit of vLLM 0.10 forward passes: milliseconds a pass, per
#: batched token and per KV token; EAGLE's proposal (K = 3) and the rest of a step.
VLLM_FIT = (5.886e-3, 0.0210e-3, 3.93e-8)
VLLM_PROPOSAL_S, VLLM_REST_S = 2.135e-3, 1.207e-3
VLLM_FIT_SOURCE = "arXiv 2601.11580, simulator/predictor.py: Llama-3.1-8B, one H100, vLLM 0.10"
#: Batches on which the constants were fitted; the others are held out.
FITTED_BATCHES = (1, 4, 16, 64)


def rows() -> list[Row]:
    """Every row."""
    parts = (_vllm_fit, _vllm_issue, _magicdec, _sglang, _frameworks, _leviathan)
    return [row for part in parts for row in part()]


def vllm_grid() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Batch 1–64, 1–8 tokens a sequence, context up to 2048 and 64k KV tokens in all."""
    batch, new, context = np.meshgrid(
        [1, 2, 4, 8, 16, 32, 64], np.arange(1, 9), [128, 256, 512, 1024, 2048], indexing="ij"
    )
    inside = batch * (context + new) <= 65_536
    return batch[inside], new[inside], context[inside]


def vllm_published(batch: np.ndarray, new: np.ndarray, context: np.ndarray) -> np.ndarray:
    """Seconds of a step without drafting, by the published fit."""
    base, token, key = VLLM_FIT
    return np.asarray(
        base + token * batch * new + key * batch * (context + new) + VLLM_REST_S, dtype=float
    )


def vllm_deployment(method: str) -> Deployment:
    """Llama-3.1-8B on one H100 under the vLLM of the published fit."""
    target = PlacedModel(spec=loader.model("llama-3.1-8b"))
    return Deployment(
        target=target, draft=make_draft(target, method=method), gpu=loader.gpu("h100"),
        runtime=loader.runtime("vllm-0.10"),
    )  # fmt: skip


def _vllm_fit() -> Iterator[Row]:
    limit = bounds("full_steps")["vllm_fit_median"]
    placed, source = vllm_deployment("eagle"), Roofline(gpu=loader.gpu("h100"))
    batch, new, context = vllm_grid()
    predicted = target_pass(placed, source, batch, new, context).seconds
    predicted = predicted + _overhead(placed, batch, new)
    error = absolute_errors(predicted, vllm_published(batch, new, context))
    held = ~np.isin(batch, FITTED_BATCHES)
    yield statistic(
        "vLLM fit, Llama-3.1-8B H100: median", np.median(error), bound=limit,
        provenance=VLLM_FIT_SOURCE + "; constants step, sequence, token",
    )  # fmt: skip
    yield statistic("vLLM fit: median of held-out batches", np.median(error[held]), bound=limit)
    yield statistic("vLLM fit: 90th percentile", np.quantile(error, 0.9))
    yield statistic("vLLM fit: worst", error.max())
    yield comparison(
        "vLLM fit: EAGLE proposal, K = 3",
        float(draft_round(placed, source, 3, 1, ASSUMED_CONTEXT).seconds)
        + placed.runtime.draft_step_s.value,
        VLLM_PROPOSAL_S, "s", provenance=VLLM_FIT_SOURCE,
    )  # fmt: skip


def _overhead(placed: Deployment, batch: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Host time of plain steps that verify `new` tokens a sequence."""
    per_token = placed.runtime.token_s.value * batch * (new - 1)
    return np.asarray(overhead(placed.runtime, 0, batch) + per_token)


def _vllm_issue() -> Iterator[Row]:
    limit = bounds("full_steps")["vllm_20780"]
    found = published("20780")
    runtime, gpu = loader.runtime("vllm-0.10"), loader.gpu("h100")
    plain = predict(found[0], runtime, gpu, "eagle").baseline_s
    assert found[0].baseline_s is not None
    yield comparison(
        "vLLM issue 20780, no draft", plain, found[0].baseline_s, "s", bound=limit,
        provenance=found[0].source,
    )  # fmt: skip
    for row in found:
        step = predict(row, runtime, gpu, "eagle").step_s
        assert row.step_s is not None
        yield comparison(
            f"vLLM issue 20780, EAGLE K={row.num_draft_tokens}", step, row.step_s, "s",
            bound=limit, provenance=row.source,
        )  # fmt: skip


def _magicdec() -> Iterator[Row]:
    limit = bounds("full_steps")
    for label, group in magicdec_groups():
        baseline, verify, ratio, draft = [], [], [], []
        for row in group:
            guess = predict(row, magicdec_runtime(row), magicdec_gpu(row), "sparse-kv")
            assert row.baseline_s
            assert row.verify_s
            assert row.draft_s
            baseline.append(guess.baseline_s / row.baseline_s - 1)
            verify.append(guess.verify_s / row.verify_s - 1)
            ratio.append(guess.verify_s / guess.baseline_s / (row.verify_s / row.baseline_s) - 1)
            if row.method.startswith("self"):
                draft.append(guess.draft_s / row.draft_s - 1)
        held = label == "Llama3.1-8B a100"
        fitted = label == "Llama2-7B-32K a100"
        note = "fitted on these rows" if fitted else "held out"
        time_bound = limit["magicdec_time_median"] if held else None
        for name, errors in (("T_AR", baseline), ("T_V", verify)):
            yield statistic(
                f"MagicDec {label}: {name} median", np.median(np.abs(errors)), bound=time_bound,
                provenance=f"{group[0].source}; {len(group)} rows, {note}",
            )  # fmt: skip
        absolute = np.abs(ratio)
        yield statistic(
            f"MagicDec {label}: T_V/T_AR median", np.median(absolute),
            bound=limit["magicdec_ratio"],
            provenance=f"{group[0].source}; {len(group)} rows, {note}",
        )  # fmt: skip
        yield statistic(
            f"MagicDec {label}: T_V/T_AR worst row", absolute.max(), bound=limit["magicdec_ratio"]
        )
        if draft:
            yield statistic(f"MagicDec {label}: draft, self, median", np.median(np.abs(draft)),
                            bound=time_bound)  # fmt: skip


def _sglang() -> Iterator[Row]:
    """SGLang on one H200: constants from MT-Bench, the other long-output tasks held out."""
    runtime, gpu = loader.runtime("sglang-0.4"), loader.gpu("h200")
    found = published("SpecForge")
    long = [row for row in found if row.task not in ("gsm8k", "financeqa")]
    baseline = [
        abs(predict(row, runtime, gpu, "eagle3").baseline_s / row.baseline_s - 1)
        for row in long
        if row.baseline_s
    ]
    yield statistic(
        "SGLang H200 Llama-3.1-8B: plain step median", np.median(baseline),
        provenance=found[0].source,
    )  # fmt: skip
    for fitted, label in ((True, "MT-Bench (fitted)"), (False, "other tasks (held out)")):
        error = [
            abs(predict(row, runtime, gpu, "eagle3").step_s / row.step_s - 1)
            for row in long
            if row.step_s and (row.task == "mtbench") == fitted
        ]
        yield statistic(f"SGLang H200 EAGLE-3 steps, {label}: median", np.median(error))


def _frameworks() -> Iterator[Row]:
    """Why one head gives 4.4 times over plain Transformers and 2.36 times in SGLang: the
    plain step of Transformers waits for its launches, and so does its verify pass, which
    then costs no more for many tokens; its head has one layer to launch, not 32."""
    target = PlacedModel(spec=loader.model("llama-3.1-8b"))
    gpu = loader.gpu("h100")
    draft = make_draft(target, method="eagle3")
    reported = {"hf-eager": (4.40, 6.13, 7), "sglang-0.4": (2.36, 3.6, 5)}
    for name, (speedup, tau, steps) in reported.items():
        placed = Deployment(target=target, draft=draft, gpu=gpu, runtime=loader.runtime(name))
        source = Roofline(gpu=gpu)
        plain = decode_step(placed.without_draft(), source, 0, 1, ASSUMED_CONTEXT).seconds
        step = decode_step(placed, source, steps, 1, ASSUMED_CONTEXT).seconds
        yield comparison(
            f"EAGLE-3 under {name}: speedup at τ = {tau}, {steps} draft passes",
            float(tau * plain / step), speedup, "×",
            provenance="arXiv 2503.01840 tables 1 and 3; τ of SGLang's run not printed, taken "
            "from the SpecForge dashboard",
        )  # fmt: skip


def _leviathan() -> Iterator[Row]:
    """Cost ratios of T5 drafts on TPU v4, which Leviathan et al. read off profiles. The
    constants are a median over NVIDIA GPUs: a compiled TPU program launches no kernels,
    so small drafts come out too dear."""
    source = Roofline(gpu=loader.gpu("tpu-v4"))

    def seconds(name: str) -> float:
        placed = PlacedModel(spec=loader.model(name))
        return float(source.forward_time(placed, 1, 1, 64).seconds)

    for name, ratio in (("t5-small", 0.02), ("t5-base", 0.04), ("t5-large", 0.11)):
        yield comparison(
            f"cost ratio of {name} to t5-xxl on TPU v4", seconds(name) / seconds("t5-xxl"), ratio,
            "", provenance="arXiv 2211.17192, table 2; printed to two decimals",
        )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Print the table; exit 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args(arguments)
    found = rows()
    if options.json:
        text = json.dumps([row.as_dict() for row in found], indent=1, ensure_ascii=False)
        options.json.write_text(text + "\n")
    print(summary(found))
    return 1 if missed(found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
