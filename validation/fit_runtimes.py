"""`python -m validation.fit_runtimes`: constants of engines from published step times.

Prints what `catalogue/runtimes.toml` states, in microseconds. Each engine has at most four
constants and is fitted on part of its rows (see `validation.full_steps` for the others).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from specsim.catalogue import Estimate, RuntimeSpec, loader
from specsim.cost.roofline import Roofline
from specsim.cost.step import target_pass
from specsim.cost.work import Work
from validation.full_steps import (
    FITTED_BATCHES,
    VLLM_FIT,
    VLLM_REST_S,
    vllm_deployment,
    vllm_grid,
    vllm_published,
)
from validation.published_steps import magicdec_gpu, predict, published

#: Prompt lengths of `full_steps.vllm_grid`'s contexts, and new tokens of a pass in vLLM.
PROMPTS, PASS_TOKENS = (128, 256, 512, 1024, 2048), 8192


def set_constants(runtime: RuntimeSpec, **seconds: float) -> RuntimeSpec:
    """The runtime with some constants replaced."""
    estimates = {
        name: Estimate(value=value, low=0.0, high=2 * value) for name, value in seconds.items()
    }
    return dataclasses.replace(runtime, **estimates)  # type: ignore[arg-type]


def minimise(
    loss: Callable[[Sequence[float]], float], start: Sequence[float]
) -> tuple[list[float], float]:
    """Nelder–Mead over non-negative constants, scaled by their start."""
    from scipy.optimize import minimize

    origin = np.asarray(start, dtype=float)

    def scaled(x: np.ndarray) -> float:
        return 1e3 if np.min(x) < 0 else loss((x * origin).tolist())

    x = np.ones(len(origin))
    for _ in range(3):
        found = minimize(
            scaled, x, method="Nelder-Mead", options={"maxiter": 500, "xatol": 1e-3, "fatol": 1e-8}
        )
        x = found.x
    return (x * origin).tolist(), float(found.fun)


def fit_vllm() -> dict[str, float]:
    """Sequence and token on the fitted batches; the step's 1.207 ms is the authors' own."""
    placed, source = vllm_deployment("eagle"), Roofline(gpu=loader.gpu("h100"))
    batch, new, context = vllm_grid()
    use = np.isin(batch, FITTED_BATCHES)
    batch, new, context = batch[use], new[use], context[use]
    gpu_s = target_pass(placed, source, batch, new, context).seconds
    observed = vllm_published(batch, new, context)

    def loss(constants: Sequence[float]) -> float:
        sequence, token = constants
        host = placed.runtime.step_s.value + sequence * batch + token * batch * (new - 1)
        return float(np.mean(np.abs(np.log((gpu_s + host) / observed))))

    (sequence, token), _ = minimise(loss, (5e-6, 1e-5))
    return {"sequence_s": sequence, "token_s": token}


def fit_vllm_prompts() -> dict[str, float]:
    """What a prompt token takes beyond the roofline: passes over whole prompts, as the
    published fit has them, in the batches and lengths of `fit_vllm` that one pass holds."""
    placed, source = vllm_deployment("eagle"), Roofline(gpu=loader.gpu("h100"))
    batch, prompt = np.meshgrid(FITTED_BATCHES, PROMPTS, indexing="ij")
    inside = batch * prompt <= PASS_TOKENS
    batch, prompt = batch[inside].astype(float), prompt[inside].astype(float)
    tokens = batch * prompt
    base, token, _ = VLLM_FIT  # its authors count no key as cached during the prefill
    observed = base + token * tokens + VLLM_REST_S
    work = Work(
        tokens=tokens, sequences=batch, logit_rows=batch, kv_tokens=tokens,
        pairs=tokens * (prompt + 1) / 2,
    )  # fmt: skip
    host = placed.runtime.step_s.value + placed.runtime.sequence_s.value * batch
    roofline = source.work_time(placed.target, work).seconds + host

    def loss(constants: Sequence[float]) -> float:
        return float(np.mean(np.abs(np.log((roofline + constants[0] * tokens) / observed))))

    (prompt_token,), _ = minimise(loss, (5e-6,))
    return {"prompt_token_s": prompt_token}


def fit_magicdec() -> dict[str, float]:
    """Step, sequence, token and the attention's bandwidth share, on Llama-2/A100 rows."""
    runtime = loader.runtime("magicdec")
    rows = [row for row in published("MagicDec") if row.gpu == "a100" and "Llama2" in row.model]

    def loss(constants: Sequence[float]) -> float:
        step, sequence, token, share = constants
        if share > 1:
            return 1e3
        trial = set_constants(runtime, step_s=step, sequence_s=sequence, token_s=token)
        total = 0.0
        for row in rows:
            guess = predict(row, trial, magicdec_gpu(row, share), "sparse-kv")
            assert row.baseline_s
            assert row.verify_s
            plain, verify = guess.baseline_s / row.baseline_s, guess.verify_s / row.verify_s
            total += abs(np.log(plain)) + abs(np.log(verify)) + abs(np.log(verify / plain))
        return float(total / len(rows))

    values, _ = minimise(loss, (3e-3, 1.9e-5, 5e-6, 0.86))
    return dict(zip(("step_s", "sequence_s", "token_s", "attention_share"), values, strict=True))


def fit_sglang() -> dict[str, float]:
    """Step, draft round and draft pass on MT-Bench, one sequence, H200."""
    runtime, gpu = loader.runtime("sglang-0.4"), loader.gpu("h200")
    rows = [row for row in published("SpecForge") if row.task == "mtbench"]

    def loss(constants: Sequence[float]) -> float:
        step, draft_step, draft_pass = constants
        trial = set_constants(
            runtime, step_s=step, draft_step_s=draft_step, draft_pass_s=draft_pass
        )
        total = 0.0
        for row in rows:
            guess = predict(row, trial, gpu, "eagle3")
            assert row.baseline_s
            assert row.step_s
            total += np.log(guess.baseline_s / row.baseline_s) ** 2
            total += np.log(guess.step_s / row.step_s) ** 2
        return float(total)

    values, _ = minimise(loss, (6e-4, 6e-4, 1.75e-4))
    return dict(zip(("step_s", "draft_step_s", "draft_pass_s"), values, strict=True))


def main() -> int:
    """Print the constants."""
    for name, fit in (
        ("vllm-0.10", fit_vllm), ("vllm-0.10", fit_vllm_prompts), ("magicdec", fit_magicdec),
        ("sglang", fit_sglang),
    ):  # fmt: skip
        for constant, value in fit().items():
            unit = "" if constant.endswith("_share") else " µs"
            print(f"{name}: {constant} = {value * (1e6 if unit else 1):.4g}{unit}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
