"""Sphinx configuration; `tox run -e docs` builds with -W, so that a warning is an error."""

from importlib.metadata import version as _version

project = "lvskit"
copyright = "the lvskit authors"
release = version = _version("lvskit")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"lvskit {version}"

myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 3

autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# In docstrings, `name` is code.
default_role = "code"
