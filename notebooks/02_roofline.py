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
# # 2. Where does the time of a decoding step go?
#
# Speculation is worth something because a pass over five tokens takes about as long as a pass
# over one. When is that so, and when does it stop? The answer is in the roofline: what a pass
# reads against what it multiplies.

# %%
import specsim as ss
from specsim import plots
from specsim.analytic import series

BATCHES = [1, 4, 16, 64, 256]
prediction = ss.predict(
    target="llama-3.1-70b", draft="llama-3.2-1b", gpu="h100-sxm", tensor_parallel=4,
    acceptance=ss.acceptance.Iid(0.75), num_draft_tokens=range(9), context=1024,
)
deployment = prediction.deployment

# %% [markdown]
# ## A pass, operation by operation
#
# Each bar is one pass of the target over a batch of sequences. Blue waits for memory, orange
# for the tensor cores, grey for launches and links.

# %%
figure, (ax,) = plots.side_by_side(1, width=9.5, height=3.8)
ax = plots.part_bars(
    {f"batch {b}, {n} token{'s' * (n > 1)} each": series.pass_operations(deployment, n, b, 1024)
     for b, n in [(1, 1), (1, 5), (64, 1), (64, 5), (256, 5)]},
    ax,
    title="llama-3.1-70b on 4 × H100, context 1024",
)

# %% [markdown]
# ## Under the roofline
#
# Left of the ridge, more tokens in a pass cost nothing: the weights are read anyway. Verifying
# K + 1 tokens moves a pass to the right, a larger batch does too. They spend the same reserve.

# %%
found = series.on_the_roofline(deployment, [0, 4], BATCHES, 1024)
ax = plots.roofline_chart(found)
print(f"A weight matrix turns compute-bound at about {found['ridge_tokens']:.0f} tokens a pass.")

# %% [markdown]
# ## What verifying costs
#
# The time of a pass over n tokens per sequence, in units of a pass over one. At batch 1 the
# line is flat: verification is almost free. At large batches every token costs.

# %%
widths = list(range(1, 14))
ax = plots.curves(
    widths, series.pass_growth(deployment, widths, BATCHES, 1024), reference=1.0,
    xlabel="tokens per sequence in the pass, K + 1", ylabel="time, passes over one token",
    title="The price of verifying",
)

# %% [markdown]
# ## A whole step
#
# The draft's passes come one after the other, so their time grows with K while that of
# verification hardly does. The host adds its part in every step.

# %%
ax = plots.step_breakdown(prediction.rows())

# %%
prediction.baseline()

# %% [markdown]
# ## What to do
#
# - Multiply your batch by K + 1 and compare with the ridge above. Well below: speculate, and
#   care about the draft's time. Near it or above: a small K, or none.
# - `specsim predict --explain` lists these operations with bytes and FLOPs for your deployment.
# - If the draft is latency-bound (a warning says so), a smaller draft will not be faster; a
#   head such as EAGLE, or CUDA graphs, will.
