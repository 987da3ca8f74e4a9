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
# # 4. When does the closed form stop being enough?
#
# `specsim predict` answers in milliseconds for a fixed batch. A service has no fixed batch:
# requests come and go, prompts are computed between decoding steps, and acceptance is luck.
# `specsim simulate` plays all that. Where do the two agree, where do they part, and why?

# %%
import tempfile

import pandas as pd

import specsim as ss
from specsim import plots

K = 4
scenario = ss.Scenario.from_dict({
    "target": {"model": "llama-3.1-70b", "weights": "fp8"},
    "draft": {"model": "llama-3.2-1b", "num_draft_tokens": K},
    "hardware": {"gpu": "h100-sxm", "tensor_parallel": 4},
    "acceptance": {"alpha": 0.75},
    "workload": {
        "arrivals": {"process": "closed", "concurrency": 1},
        "prompt_tokens": {"distribution": "constant", "value": 64},
        "output_tokens": {"distribution": "constant", "value": 1024},
        "num_requests": 400,
    },
})


def simulated(vary):
    """A grid of simulated runs as a frame."""
    with tempfile.TemporaryDirectory() as folder:
        return ss.sweep(scenario, vary, folder, workers=2).to_frame()


def closed_form(batches, context):
    """TPOT in seconds with and without speculation at these batches."""
    frame = ss.predict(
        target="llama-3.1-70b", draft="llama-3.2-1b", gpu="h100-sxm", weights="fp8",
        tensor_parallel=4, acceptance=ss.acceptance.Iid(0.75), num_draft_tokens=[0, K],
        batch=list(batches), context=context,
    ).to_frame()
    frame["tpot_s"] = frame.batch / frame.tokens_per_s
    return frame.pivot(index="batch", columns="num_draft_tokens", values="tpot_s")


# %% [markdown]
# ## Where they agree: a batch that stays
#
# A closed loop keeps the number of requests constant. Equal short prompts and long answers leave
# little to chance; the closed form is asked for the context in the middle of an answer.

# %%
CONCURRENCY = [1, 2, 4, 8, 16, 32]
loop = simulated({
    "speculation.policy": ["off", "fixed"], "workload.arrivals.concurrency": CONCURRENCY,
})
measured = loop.pivot(
    index="workload.arrivals.concurrency", columns="speculation.policy", values="tpot_s_p50"
)
form = closed_form(CONCURRENCY, context=64 + 1024 // 2)
table = pd.DataFrame({
    "closed form, off": 1e3 * form[0], "simulated, off": 1e3 * measured["off"],
    f"closed form, K = {K}": 1e3 * form[K], f"simulated, K = {K}": 1e3 * measured["fixed"],
}).rename_axis("requests in flight")
ax = plots.curves(
    CONCURRENCY, table, log2=True, measured=["simulated, off", f"simulated, K = {K}"],
    xlabel="requests in flight", ylabel="time per output token, ms, median", title="A closed loop",
)

# %%
ratio = (measured["fixed"] / form[K] - 1).abs().max()
print(f"Largest difference with speculation: {ratio:.1%}")
table.round(2)

# %% [markdown]
# ## Where they part: requests that come when they please
#
# Poisson arrivals at rising rates. The closed form is asked for the mean batch that the
# simulator found (and for the context of the mean step, 512 + 512: long answers make more steps),
# so what is left is what a mean cannot know.

# %%
RATES = [0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
scenario = scenario.with_set([
    "workload.arrivals={process: poisson, rate_per_s: 1}",
    "workload.prompt_tokens={distribution: lognormal, mean: 512, cv: 1.0}",
    "workload.output_tokens={distribution: lognormal, mean: 512, cv: 1.0}",
    "workload.num_requests=3000",
])
served = simulated({
    "speculation.policy": ["fixed"], "workload.arrivals.rate_per_s": RATES,
}).set_index("workload.arrivals.rate_per_s")
at_mean = [closed_form([max(1, round(b))], context=1024)[K].iloc[0] for b in served.mean_batch]
lines = {
    "closed form at batch 1": 1e3 * closed_form([1], context=1024)[K].iloc[0] + 0 * served.mean_batch,
    "closed form at the mean batch": [1e3 * t for t in at_mean],
    "simulated, median": 1e3 * served.tpot_s_p50,
    "simulated, 99th percentile": 1e3 * served.tpot_s_p99,
}
ax = plots.curves(
    RATES, lines, xlabel="requests per second", ylabel="time per output token, ms",
    title=f"Poisson arrivals, K = {K}",
)

# %%
served[["mean_batch", "ttft_s_p50", "ttft_s_p99", "tpot_s_p50", "tpot_s_p99", "e2e_s_p99"]].round(3)

# %% [markdown]
# ## Why
#
# Three things stand between the lines. Prompts are computed in the same steps, so tokens wait
# for them. The batch wanders, and a full batch is met by more requests than an empty one. And
# acceptance differs from request to request, which the slowest hundredth feels.

# %%
shares = {}
for rate in (1.0, 6.0):
    result = ss.simulate(scenario.with_set([f"workload.arrivals.rate_per_s={rate}"]))
    shares[f"{rate:g} requests/s"] = result.summary().utilisation
pd.DataFrame(shares).T.map("{:.0%}".format)

# %%
ax = result.plot()

# %% [markdown]
# ## What to do
#
# - One request, or a batch job with a fixed batch: `specsim predict` is enough.
# - A service below half its capacity: `specsim predict --batch` with the mean batch gives the
#   median; not the tail.
# - An SLO on a percentile, bursts, long prompts, several classes of traffic: `specsim simulate`,
#   or `specsim plan`, which simulates what its closed form finds best.
