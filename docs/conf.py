"""How Sphinx builds these pages: `make docs`. Pages under generated/ are written anew by every build."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent / "src")]
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

# Before autodoc sets TYPE_CHECKING while it imports, with which pydantic's models cannot be made.
import fastapi  # noqa: E402, F401

import llmdiff  # noqa: E402

project = "LLMDiff"
author = "The LLMDiff authors"
project_copyright = "The LLMDiff authors, Apache License 2.0"
release = version = llmdiff.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "docstrings",
    "generated_pages",
    "mathml",
]
# results/*.md and *.json are what was recorded; the pages made of them stand in generated/.
exclude_patterns = ["_build", "extensions", "results"]
myst_enable_extensions = ["colon_fence", "substitution"]
# ```math, which GitHub typesets as well.
myst_fence_as_directive = ["math"]
html_math_renderer = "mathml"
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing_repository"]

# Quotes stay as they are typed: many stand around arguments.
smartquotes = False
# `name` in a docstring is code.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = False
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
toc_object_entries_show_parents = "hide"
nitpicky = True
# Nothing is fetched from elsewhere while building, so what other libraries document is named, not linked.
nitpick_ignore_regex = [
    (r"py:.*", r"(?!llmdiff(_lab)?\.).*"),
    (r"py:(class|obj|data)", r"llmdiff(_lab)?\..*\.([A-Z]\w*|_\w+|checked_template)"),
]

html_theme = "furo"
html_title = "LLMDiff"
html_static_path = ["static"]
html_css_files = ["llmdiff.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#a32d2d", "color-brand-content": "#a32d2d"},
    "dark_css_variables": {"color-brand-primary": "#f0a3a3", "color-brand-content": "#f0a3a3"},
}
copybutton_prompt_text = r"\$ "
copybutton_prompt_is_regexp = True
