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
# # 5. What if?
#
# Another GPU, another draft, twice the batch, a better acceptance: what happens to the
# speedup? Move a control and look. Run this notebook in Jupyter for the controls; on a code host
# you see the figures of one position.
#
# Behind the controls is one plain function, `specsim.analytic.whatif.what_if`.

# %%
import ipywidgets as widgets
from IPython.display import Image, Markdown, display

from specsim.analytic import whatif
from specsim.plots import WhatIfFigure

start = {
    "target": "llama-3.1-70b", "draft": "llama-3.2-1b", "gpu": "h100-sxm-80gb",
    "runtime": "vllm", "weights": "bf16", "alpha": 0.75, "batch": 8, "context": 2048,
}
answer = whatif.what_if(**start)
figure = WhatIfFigure()
figure.draw(answer.rows, answer.curve, answer.headline)
Image(figure.png(), alt=answer.headline)

# %% [markdown]
# Left: the speedup at each K with its 95 % interval. Middle: the parts of a step. Right: the
# same deployment over the batch; where the line falls below 1, speculation loses.

# %%
print(answer.headline)
print("pays at batches", answer.paying_batches)
for note in answer.notes:
    print("note:", note)

# %% [markdown]
# ## The controls

# %%
control = {
    "target": widgets.Dropdown(options=whatif.TARGETS, value=start["target"]),
    "draft": widgets.Dropdown(options=whatif.draft_options(start["target"]), value=start["draft"]),
    "gpu": widgets.Dropdown(options=whatif.GPUS, value=start["gpu"]),
    "runtime": widgets.Dropdown(options=whatif.RUNTIMES, value=start["runtime"]),
    "weights": widgets.Dropdown(options=whatif.WEIGHTS, value=start["weights"]),
    "alpha": widgets.FloatSlider(min=0, max=1, step=0.01, value=start["alpha"]),
    "batch": widgets.SelectionSlider(options=[2**i for i in range(10)], value=start["batch"]),
    "context": widgets.SelectionSlider(
        options=[2**i for i in range(7, 18)], value=start["context"]
    ),
}
for name, widget in control.items():
    widget.description = name
picture, notes = widgets.Image(format="png"), widgets.HTML()


def redraw(change=None):
    """Answer for the controls as they stand now."""
    if change is not None and change["owner"] is control["target"]:
        with control["draft"].hold_trait_notifications():
            control["draft"].options = whatif.draft_options(control["target"].value)
    found = whatif.what_if(**{name: widget.value for name, widget in control.items()})
    figure.draw(found.rows, found.curve, found.headline)
    picture.value = figure.png()
    notes.value = "".join(f"<li>{note}</li>" for note in found.notes)


for widget in control.values():
    widget.observe(redraw, names="value")
redraw()
columns = [widgets.VBox(list(control.values())[i : i + 4]) for i in (0, 4)]
widgets.VBox([widgets.HBox(columns), picture, notes])

# %% [markdown]
# ## Four positions worth knowing
#
# The same pair of models: alone, in a full batch, with long context, and on a small GPU with
# 4-bit weights.

# %%
for change in (
    {"batch": 1}, {"batch": 256}, {"context": 65536}, {"gpu": "l4-24gb", "weights": "int4"},
):
    found = whatif.what_if(**{**start, **change})
    display(Markdown(f"- **{change}**: {found.headline}"))

# %% [markdown]
# ## What to do
#
# - Find the batch your service runs at, not the one of a benchmark, and put it in.
# - Move `alpha` by what you are unsure of. If the best K stays, stop worrying; if not, measure
#   acceptance first (how-to: which acceptance the answer rests on).
# - Then leave single points: `specsim plan` searches all of this at once, under your SLO.
