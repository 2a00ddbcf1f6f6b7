"""Equations as MathML, which browsers typeset themselves: no JavaScript, no fonts and no network are needed."""

from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml


def _visit(translator: Any, node: Any) -> None:
    block = isinstance(node, nodes.math_block)
    tex = tex2mathml(node.astext(), as_block=block)
    translator.body.append(f'<div class="equation">{tex}</div>\n' if block else tex)
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_html_math_renderer("mathml", inline_renderers=(_visit, None), block_renderers=(_visit, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
