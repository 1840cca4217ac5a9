"""Makes what the site shows but nobody writes by hand: option tables, the calls, figures and plots."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"


def write_all() -> None:
    """Write everything into ``docs/generated``, from the catalogue, the OpenAPI document and the benchmarks' tables."""
    from docs.making import algorithms, figures, plots, rest

    folder = PAGES / "generated"
    algorithms.write(folder)
    rest.write(folder)
    figures.write(folder)
    plots.write(folder)


def put(path: Path, text: str) -> None:
    """Write a file if it says something else: what did not change is not built again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")
