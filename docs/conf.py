"""How the documentation is built: `make docs`. Warnings are errors."""

import sys
from pathlib import Path

import tdro

sys.path.insert(0, str(Path(__file__).parent))

project, author, version = "tdro", "the tdro contributors", tdro.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "reference_pages"]
exclude_patterns = ["_build", "notebooks"]
html_theme = "furo"
html_title = f"tdro {version}"
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
