"""How Sphinx builds the pages of this folder: `make docs`. Nothing is fetched; a warning fails."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import poolkit

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))

with (HERE.parent / "pyproject.toml").open("rb") as file:
    settings = tomllib.load(file)

project = "poolkit"
author = "The poolkit authors"
version = release = poolkit.__version__

extensions = ["sphinx.ext.autodoc", "myst_parser", "pages", "references"]
exclude_patterns = ["_ext"]
nitpicky = True
suppress_warnings = ["config.cache"]

#: Where the repository is to be seen, or "" while it is nowhere: see `pages`.
repository = settings["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]

myst_heading_anchors = 4

default_role = "py:obj"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True
add_module_names = False

html_theme = "furo"
html_title = "poolkit"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "native"
