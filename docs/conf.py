"""How Sphinx makes the site: ``make docs``. Nothing is fetched, when it is built or when it is read."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from docs.making import write_all

project = "pruning-service"
author = "the authors of pruning-service"
release = version = installed("pruning-service")

extensions = ["myst_parser", "docs.making.mathml", "docs.making.accessible"]
myst_enable_extensions = ["attrs_inline", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

html_theme = "furo"
html_title = "pruning-service"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["site.css"]
# What other pages include; only generated/algorithms has pages of its own.
exclude_patterns = ["generated/*.md", "generated/facts", "generated/options", "generated/figures", "making"]

write_all()
