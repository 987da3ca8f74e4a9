"""Sphinx: MyST pages, the API from docstrings, nothing from the network."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

project = "specsim"
author = "the specsim authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
nitpicky = False
suppress_warnings = ["myst.header", "misc.highlighting_failure", "toc.empty_glob"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
myst_fence_as_directive: list[str] = []

default_role = "code"  # docstrings write code in single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature of the source is long enough; docstrings say units
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = "specsim"
html_show_sphinx = False
html_copy_source = False
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True


def _plain(app, what, name, obj, options, lines):  # type: ignore[no-untyped-def]
    """Docstrings are prose with formulas, not reStructuredText: escape what it would read."""
    for i, line in enumerate(lines):
        if line.lstrip().startswith((">>> ", "... ")):
            continue
        lines[i] = line.replace("|", r"\|").replace("*", r"\*")


def setup(app):  # type: ignore[no-untyped-def]
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _plain, priority=100)
