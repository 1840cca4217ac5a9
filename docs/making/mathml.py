"""Formulas as MathML, made when the site is built: browsers show it by themselves, with no script and no web font."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import SphinxError


def mathml(latex: str, display: str) -> str:
    """Return the formula as MathML.

    Raises:
        SphinxError: A command of it is not known: it would be shown as it stands.
    """
    # A power is of the whole norm, not of its last bar, which would sink with it.
    grouped = re.sub(r"\\lVert(.*?)\\rVert", r"{\\lVert\1\\rVert}", latex.strip(), flags=re.DOTALL)
    made = convert(grouped, display=display)
    # Without a mathematical font browsers take this sign from one whose letters are far larger.
    made = made.replace("<mo>&#x022A4;</mo>", '<mi mathvariant="normal">T</mi>')
    if "\\" in made:
        raise SphinxError(f"This formula has a command that is not known: {latex}")
    return made


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math" tabindex="0">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Offer the renderer ``mathml`` to `html_math_renderer`."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
