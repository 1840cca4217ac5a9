"""What the theme leaves out for those who use a keyboard or a screen reader; tests/test_site.py looks at the pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

_MENDED = {
    # what may scroll by itself can be reached without a mouse
    '<div class="highlight"><pre>': '<div class="highlight"><pre tabindex="0">',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
    # a heading has a level, landmarks of one kind have names
    '<p class="caption" role="heading">': '<p class="caption" role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="All pages">',
    '<aside class="toc-drawer': '<aside aria-label="On this page" class="toc-drawer',
    # Markdown has no table without headers
    '<th class="head"><p></p></th>': "<td></td>",
}


def _mend(app: Sphinx, failure: Exception | None) -> None:
    if failure is not None or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        made = mended = page.read_text("utf-8")
        for before, after in _MENDED.items():
            mended = mended.replace(before, after)
        if mended != made:
            page.write_text(mended, "utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Mend the pages when all are written."""
    app.connect("build-finished", _mend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
