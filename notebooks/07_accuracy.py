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
# # 7. How far can the predictions be trusted?
#
# Every comparison of `python -m validation` puts a prediction beside a measurement that was not
# used for fitting. Here are the largest of them with their errors, and where they go wrong.
# [Accuracy](../docs/accuracy.md) has all of them, missed bounds included.

# %%
import sys
from collections import defaultdict
from textwrap import shorten

import pandas as pd

sys.path.insert(0, "..")

from specsim import plots
from validation.comparisons import run

NAMES = ["published", "full_steps", "serving_h100", "peers"]
compared = {name: run(name) for name in NAMES}
pd.DataFrame(
    [(name, len(c.errors), c.as_dict()["median_error"], c.as_dict()["p90_error"],
      sum(r.passed is True for r in c.rows), sum(r.passed is False for r in c.rows))
     for name, c in compared.items()],
    columns=["comparison", "cases", "median |error|", "90th percentile", "bounds kept", "missed"],
).style.format({"median |error|": "{:.1%}", "90th percentile": "{:.1%}"}, na_rep="no data").hide()

# %% [markdown]
# ## Speedups that others published
#
# Acceptance is taken as published; what is predicted is the time of a step. The strip is ±10 %.

# %%
rows = [r for r in compared["published"].rows if r.observed and r.predicted and r.unit == "x"]
groups = defaultdict(list)
for row in rows:
    source = shorten(row.provenance.split(";")[0].split(" (")[0], 30, placeholder=" …")
    groups[source].append((row.predicted, row.observed))
largest = dict(sorted(groups.items(), key=lambda item: -len(item[1]))[:6])
figure, axes = plots.side_by_side(3)
plots.predicted_against_measured(largest, axes[0])
for ax, tag, label in zip(axes[1:], ("batch", "K"), ("batch, sequences", "draft tokens, K")):
    tagged = [r for r in rows if tag in r.tags]
    plots.errors_over([r.tags[tag] for r in tagged], [r.error for r in tagged], ax, xlabel=label)

# %%
def summary(name, count=12):
    """The rows of a comparison that sum up many cases."""
    found = [r for r in compared[name].rows if r.observed is None and r.error is not None]
    verdict = {True: "kept", False: "missed", None: ""}
    return pd.DataFrame(
        [(r.name, f"{r.error:.1%}", "" if r.bound is None else f"{r.bound:.0%}", verdict[r.passed])
         for r in found[:count]],
        columns=["", "error", "bound", ""],
    ).style.hide(axis="index")


summary("published")

# %% [markdown]
# ## Whole steps of engines

# %%
rows = [r for r in compared["full_steps"].rows if r.observed and r.predicted]
pd.DataFrame(
    [(r.name, r.predicted, r.observed, r.unit, f"{r.error:+.1%}") for r in rows],
    columns=["step", "predicted", "measured", "unit", "error"],
).style.hide(axis="index").format(precision=4)

# %% [markdown]
# ## Where it goes wrong
#
# The cases with the largest errors. Most are engines whose host time is not known, tasks whose
# trees or contexts the source does not print, or mixtures of experts.

# %%
worst = sorted(
    (r for r in compared["published"].rows if r.observed and r.unit == "x"),
    key=lambda r: -abs(r.error),
)[:10]
pd.DataFrame(
    [(r.name, r.predicted, r.observed, f"{r.error:+.0%}") for r in worst],
    columns=["case", "predicted", "measured", "error"],
).style.hide(axis="index").format(precision=2)

# %% [markdown]
# ## What to do
#
# - For vLLM and SGLang take the interval that `specsim predict` prints: it was made to cover
#   published speedups. For other engines take it as a first guess.
# - Choosing K is safer than naming the speedup: errors of step times mostly cancel.
# - A handful of your own measurements beats all of this: `specsim plan --probe vllm` says which,
#   `specsim fit` makes a calibration of them.
