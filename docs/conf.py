"""Sphinx: furo's looks, Markdown by MyST, pages of examples run while they are built."""

import fastrnn

project = "fastrnn"
author = copyright = "the fastrnn developers"
version = release = fastrnn.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.intersphinx", "myst_nb"]
source_suffix = {".md": "myst-nb"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]

html_theme = "furo"
html_title = f"fastrnn {version}"

# Examples are run afresh by every build, and one that fails ends it.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300

autodoc_typehints = "none"  # the docstrings say shapes and dtypes, which annotations cannot
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False
intersphinx_mapping: dict[str, tuple[str, None]] = {}  # builds need no network
