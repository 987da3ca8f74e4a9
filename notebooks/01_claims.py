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
# # 1. Which of the article's claims hold?
#
# An article of 2026-05-17 on speculative decoding states ten things. Each is checked here by
# the same models that `specsim predict` uses. A claim *holds*, *holds if* its assumption is
# true, or *fails*; every figure shows by how much. `specsim audit` prints the same.

# %%
import pandas as pd
from IPython.display import Markdown, display

from specsim import plots
from specsim.audit import audit_claims

claims = {claim.number: claim for claim in audit_claims()}
pd.set_option("display.max_colwidth", None)
pd.DataFrame(
    [(c.number, c.verdict, c.claim, c.assumptions) for c in claims.values()],
    columns=["claim", "verdict", "what it says", "under which assumption"],
).style.hide(axis="index").set_properties(**{"text-align": "left"})


# %%
def show(number):
    """A claim: its figure if there is something to see, its numbers otherwise."""
    claim = claims[number]
    display(Markdown(f"**{claim.claim}** → {claim.verdict}: {claim.assumptions}."))
    if claim.chart:
        plots.claim_figure(number, claim.chart)
    else:
        display(claim.numbers)


# %% [markdown]
# ## Memory decides (claims 1 and 5)
#
# Decoding reads every weight for every token. That is why a wider pass is nearly free, as long
# as the batch is small.

# %%
show(1)

# %%
show(5)

# %% [markdown]
# ## What a draft costs (claims 2 and 3)

# %%
show(2)

# %%
show(3)

# %% [markdown]
# ## Acceptance (claims 4, 8 and 9)
#
# The claim about 50 % acceptance is the one that misleads most: the draft has to be almost free.

# %%
show(4)

# %%
show(8)

# %%
show(9)

# %% [markdown]
# ## Gains, and their limits (claims 6, 7 and 10)
#
# The published gains are those of small batches. The same deployment at a larger batch gains
# less, and in the end loses.

# %%
show(6)

# %%
show(7)

# %%
show(10)

# %% [markdown]
# ## What to do
#
# - Ask of every "acceptance rate" which of the four it is, and at which K: see
#   [notation](../docs/notation.md).
# - Take a speedup measured at batch 1 for what it is. Ask for the batch your service runs at:
#   `specsim predict --batch 64`, or `specsim plan` for the whole service.
# - Count the draft: its passes are sequential. `specsim predict --explain` shows their time.
