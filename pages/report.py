"""A report document as one self-contained HTML file, or as Markdown."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pydantic import ValidationError

from pages import numbers, plots, words
from pruning_core.errors import PruningError
from pruning_core.report import Report

TEMPLATES = Path(__file__).parent / "templates"
STATIC = Path(__file__).parent / "static"
#: Layers whose histograms are drawn, of each level: a file of a thousand drawings serves nobody.
HISTOGRAMS = 48
#: Figures of a file that have a place of their own; what else a report measures is listed behind them.
_PLACED = {
    *("format", "size_bytes", "size_bytes_before", "compressed_bytes", "compressed_bytes_before"),
    *("compact_bytes", "macs", "macs_before"),
    *("sha256", "latency_ms", "latency_ms_before", "ratio_interval", "batch", "runtimes", "speedup"),
}


class Unrenderable(PruningError):  # noqa: N818 - named after what it says, as in the other rooms
    """The report cannot be shown in this form; it can still be downloaded as JSON."""

    slug = "unrenderable-report"
    title = "The report cannot be shown like this"
    status = 406


def parse(document: bytes | str) -> Report:
    """Read a report document; fields that a later version added are left out.

    Raises:
        Unrenderable: It is no report that this version can read.
    """
    try:
        return Report.model_validate_json(document, extra="ignore")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise Unrenderable(
            "This report was not written in a form that this version can show.",
            received=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            advice="Ask for application/json.",
        ) from None


def report_html(report: Report, title: str = "Pruning report") -> str:
    """Return one HTML file that needs nothing else: no script, no font, no other server.

    Args:
        report: What was measured.
        title: Its heading; any text.
    """
    style = Markup((STATIC / "report.css").read_text("utf-8"))  # noqa: S704 - our own file
    return environment().get_template("report.html").render(title=title, style=style, **context(report))


def markdown(report: Report, title: str = "Pruning report") -> str:
    """Return the same as Markdown, without the drawings.

    Args:
        report: What was measured.
        title: Its heading; any text.
    """
    made = _plain_environment().get_template("report.md").render(title=title, **context(report))
    return re.sub(r"\n{3,}", "\n\n", made).strip() + "\n"


def context(report: Report) -> dict[str, Any]:
    """Return what templates know of a report."""
    return {
        "report": report,
        "pruning": report.pruning,
        "levels": list(zip(report.pruning.levels, report.files, strict=False)),
        "measure": plots.measure_of(report.pruning),
        "histograms": HISTOGRAMS,
    }


def more_figures(file: Any) -> dict[str, Any]:
    """Return what a report says of a file that has no place of its own in the page."""
    return {
        name.replace("_", " "): value
        for name, value in file.model_dump(mode="json").items()
        if name not in _PLACED and value is not None
    }


@cache
def environment() -> Environment:
    """Return the environment of the HTML templates; every value is escaped, and shows all that it holds."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=lambda value: numbers.shown(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    _equip(made)
    return made


@cache
def _plain_environment() -> Environment:
    """Return the environment of Markdown: `in_markdown` is its escaping, and `finalize` lets no value by without."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=False,  # noqa: S701 - not HTML; see finalize
        finalize=in_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    _equip(made)
    return made


def in_markdown(value: Any) -> Any:
    r"""Return a text as Markdown that shows just this text, in one line; it works in table cells too.

    >>> in_markdown("<b>*x*|y\n# z")
    '\\<b\\>\\*x\\*\\|y \\# z'
    """
    if isinstance(value, str):
        one_line = numbers.shown(" ".join(value.split()))
        return re.sub(r"([\\`*_{}\[\]<>()#!|~&])", r"\\\1", one_line)
    return value


def _equip(environment: Environment) -> None:
    environment.filters |= {
        "percent": numbers.percent,
        "number": numbers.number,
        "size": numbers.size,
        "seconds": numbers.seconds,
        "shown": numbers.shown,
    }
    environment.globals |= {"plots": plots, "words": words, "more_figures": more_figures}
