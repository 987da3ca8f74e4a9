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
# # 6. Which K and which draft for a real service?
#
# A chat service on Llama-3.1-70B has to keep 50 ms per output token and a first token within two
# seconds. Arrivals and lengths are those of Azure's conversation trace of 2023 (CC-BY-4.0,
# Splitwise, ISCA 2024) where the environment variable `SPECSIM_DATA` leads to it; otherwise
# Poisson arrivals with the trace's mean lengths stand in for it, and the next cell says so.

# %%
import os
from pathlib import Path

import pandas as pd

import specsim as ss
from specsim import plots

MINUTES = 5
path = Path(os.environ.get("SPECSIM_DATA", "")) / "traces" / "azure2023_conv_full.csv"
if path.is_file():
    arrivals = {"process": "trace", "file": str(path), "start_s": 600, "end_s": 600 + 60 * MINUTES}
    prompt = output = {"distribution": "trace"}
    print(f"Azure conversation trace, {MINUTES} minutes of it")
else:
    arrivals = {"process": "poisson", "rate_per_s": 5.5}
    prompt = {"distribution": "lognormal", "mean": 1155, "cv": 1.0, "maximum": 14000}
    output = {"distribution": "lognormal", "mean": 211, "cv": 0.8, "maximum": 1000}
    print("Synthetic traffic (SPECSIM_DATA has no traces/azure2023_conv_full.csv)")

scenario = ss.Scenario.from_dict({
    "target": {"model": "llama-3.1-70b", "weights": "fp8"},
    "draft": {"model": "llama-3.2-1b"},
    "hardware": {"gpu": "h100-sxm", "tensor_parallel": 4, "replicas": 2},
    "acceptance": {"alpha": 0.75, "standard_error": 0.03},
    "workload": {"arrivals": arrivals, "prompt_tokens": prompt, "output_tokens": output,
                 "num_requests": 2000},
    "slo": {"ttft_s": 2.0, "tpot_s": 0.05},
})

# %% [markdown]
# ## The plan
#
# `ss.plan` searches drafts, K, policies, batch limits and parallel degrees with the closed form
# and replays the best in the simulator. Only the 1B draft's acceptance was measured; that of
# the others is an estimate and carries a wider interval.

# %%
plan = ss.plan(scenario)
print("Odds that speculation beats none:", f"{plan.probability_better_than_off:.0%}")
pd.DataFrame(
    [(r.candidate.label, r.candidate.policy.kind, r.candidate.largest_k, r.objective, r.low,
      r.high, r.regret, 1e3 * r.demand_tpot_s) for r in plan.ranked],
    columns=["draft", "policy", "largest K", plan.objective, "low", "high", "loses", "TPOT, ms"],
).style.hide(axis="index").format(precision=2).format({"loses": "{:.0%}"})

# %%
ax = plan.plot()

# %% [markdown]
# ## Which draft size?
#
# Every draft that was looked at with the one K that serves most requests within the SLO, its time
# per output token at the demanded load from the closed form, and what the acceptance rests on.

# %%
table = plan.table[plan.table.policy.isin(["fixed", "off"])]
best = table.sort_values("demand_tpot_s").drop_duplicates("draft")
best[["draft", "num_draft_tokens", "demand_tpot_s", "demand_batch", "acceptance"]].round(
    {"demand_tpot_s": 4, "demand_batch": 1}
).style.hide(axis="index").format(precision=4)

# %% [markdown]
# ## Which K?
#
# What every other K loses, for the measured draft, at three loads.

# %%
loads = [1, 16, 64]
ones = [
    ss.predict(
        target="llama-3.1-70b", draft="llama-3.2-1b", gpu="h100-sxm", weights="fp8",
        tensor_parallel=4, acceptance=scenario.resolve().law, num_draft_tokens=range(13),
        batch=batch, context=1250,
    )
    for batch in loads
]
ax = plots.curves(
    range(13), {f"batch {b}": [100 * v for v in p.regret().values()] for b, p in zip(loads, ones)},
    xlabel="draft tokens per step, K", ylabel="throughput lost, %", title="The price of a wrong K",
)

# %% [markdown]
# ## The service with it and without it
#
# The same requests, once with the plan and once without speculation.

# %%
off = scenario.with_set(["draft={method: none}", "speculation.policy='off'"])
results = {"the plan": ss.simulate(plan.best), "no speculation": ss.simulate(off)}
rows = {}
for label, result in results.items():
    s = result.summary().service
    rows[label] = {
        "requests": s.completed, "TTFT p99, s": s.ttft_s.p99, "TPOT p50, ms": 1e3 * s.tpot_s.p50,
        "TPOT p99, ms": 1e3 * s.tpot_s.p99, "end to end p50, s": s.e2e_s.p50,
        "within the SLO": s.goodput_requests_per_s / s.throughput_requests_per_s,
    }
pd.DataFrame(rows).T.round(3)

# %%
ax = plots.simulation_latency({
    f"per output token, {label}": result.latencies["time per output token"]
    for label, result in results.items()
})

# %% [markdown]
# ## How sure is that?

# %%
ax = plots.tornado_bars([
    {"parameter": b.parameter, "low": b.low, "high": b.high}
    for b in plan.sensitivity
])

# %%
print(plan.answers[8].answer)

# %% [markdown]
# ## What to do
#
# - Put your own numbers into the scenario: `specsim plan your.yaml --html plan.html` gives all of
#   this as one page.
# - If the plan rests on an estimate, measure what answer 9 names before you build on it.
# - Prefer a schedule to one K: it keeps the gain at night and does no harm at the peak.
# - `specsim export` turns the plan into the engine's flags.
