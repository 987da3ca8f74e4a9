# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. Does one number describe acceptance?
#
# "The acceptance rate is 70 %" suggests that every drafted token is accepted with the same
# chance, independently: the i.i.d. law. What do recorded runs say? And what goes wrong when one
# extrapolates from a measurement at K = 3?
#
# The runs are those of Llama-3.1-8B on CNN/DailyMail with an EAGLE head and with n-gram look-up
# (SpecDecode-Bench), which cannot be shipped. Where the environment variable `SPECSIM_DATA` does
# not lead to them, runs are drawn from a process with easy and hard stretches, and the
# next cell says so.

# %%
import os
from pathlib import Path

import numpy as np
import pandas as pd

import specsim as ss
from specsim import plots
from specsim.acceptance import Empirical, Iid, Markov, PerPosition, load_runs
from specsim.acceptance import alpha_from_acceptance_length
from specsim.analytic import series
from specsim.fitting.choose import choose
from specsim.fitting.sequences import sequences_of_runs

path = Path(os.environ.get("SPECSIM_DATA", "")) / "acceptance" / "llama31_8b_cnn.jsonl"
if path.is_file():
    recorded = {name: load_runs(path, name) for name in ("eagle", "ngram")}
    print("Recorded runs: Llama-3.1-8B on CNN/DailyMail")
else:
    rng = np.random.default_rng(0)
    made_up = {"eagle": Markov(0.85, 0.5, 12.0, 8.0), "ngram": Markov(0.9, 0.05, 6.0, 30.0)}
    recorded = {
        name: Empirical(tuple(law.sample_runs(rng, 200) for _ in range(80)))
        for name, law in made_up.items()
    }
    print("Synthetic runs (SPECSIM_DATA has no acceptance/llama31_8b_cnn.jsonl)")

MEASURED_K = 3
KS = list(range(1, 13))

# %% [markdown]
# ## Laws fitted at K = 3
#
# All of them give the recorded number of tokens per step at K = 3. They differ in what they say
# about other K. The band is the 95 % interval of the recording, over requests. `specsim fit` chooses among them by held-out likelihood; here it sees the first
# 80 requests only, which is quicker.

# %%
laws = {}
for name, runs in recorded.items():
    laws[name] = {
        "recorded": runs,
        "i.i.d.": Iid(alpha_from_acceptance_length(runs.acceptance_length(MEASURED_K), MEASURED_K)),
        "per position": PerPosition.from_survival(tuple(runs.survival(MEASURED_K))),
        "chosen by fit": choose(sequences_of_runs(runs.requests[:80], MEASURED_K)).law,
    }

figure, axes = plots.side_by_side(2, width=5.6, height=3.8)
for ax, (name, group) in zip(axes, laws.items()):
    plots.curves(
        KS, series.accepted_over_k(group, KS), ax, measured=["recorded"], title=name,
        xlabel="draft tokens per step, K", ylabel="accepted tokens per step, τ − 1",
        bands=series.intervals_over_k({"recorded": group["recorded"]}, KS),
    )

# %% [markdown]
# With an EAGLE head every law is near the recording. With n-gram look-up the i.i.d. law promises
# too much at small K and too little at large K: where the look-up finds a match it goes on
# matching; elsewhere it finds nothing. One number hides both. The law by position sees the
# rising chance, but lets it go on for ever.
#
# ## Why: the chance depends on what came before

# %%
figure, axes = plots.side_by_side(2, width=5.6, height=3.8)
for ax, (name, group) in zip(axes, laws.items()):
    plots.curves(
        range(1, 9), series.hazards(group, 8), ax, measured=["recorded"], title=name,
        xlabel="position in the draft", ylabel="P(accepted | those before were)", ylim=(0, 1),
    )

# %% [markdown]
# ## What the error costs
#
# The best K that each law names for Llama-3.1-8B on one H100, what it promises, and what that K
# gives under the recorded runs.

# %%
rows = []
for name, group in laws.items():
    method = "ngram" if name == "ngram" else "eagle3"
    for batch in (1, 64):
        asked = {
            label: ss.predict(target="llama-3.1-8b", gpu="h100-sxm", method=method, batch=batch,
                              acceptance=law, num_draft_tokens=range(13))
            for label, law in group.items()
        }
        real = {row["num_draft_tokens"]: row["speedup"] for row in asked["recorded"].rows()}
        for label, prediction in asked.items():
            best = prediction.best
            rows.append((name, batch, label, best["num_draft_tokens"], best["speedup"],
                         real[best["num_draft_tokens"]]))
pd.DataFrame(
    rows, columns=["drafter", "batch", "law", "best K", "promised speedup", "what that K gives"]
).round(2)

# %% [markdown]
# ## Requests differ
#
# Tokens per step of single requests at K = 3. A mean over requests says little about the
# slowest tenth; the simulator draws this spread, the closed form averages it.

# %%
for name, runs in recorded.items():
    per_request = runs.per_request_acceptance_length(MEASURED_K)
    low, middle, high = np.quantile(per_request, [0.1, 0.5, 0.9])
    print(f"{name}: 10 % of requests below {low:.2f}, half below {middle:.2f}, "
          f"10 % above {high:.2f} tokens per step")

# %% [markdown]
# ## What to do
#
# - Never extrapolate n-gram acceptance with one number. Measure at two or more K, or give
#   `specsim fit` the engine's log and let it choose the law.
# - For heads, per-position figures (`--survival`, what vLLM prints) are better than one rate.
# - Ask for the interval: it counts requests, not steps, because steps of one request are alike.
