"""Reads the benchmarks' tables: Markdown in, rows out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

Row = dict[str, str]


@dataclass(frozen=True)
class Table:
    """A table, the heading it stands under, and its file."""

    file: str
    heading: str
    rows: tuple[Row, ...]

    def row(self, **wanted: str) -> Row:
        """Return the one row with these cells; spaces of a column's name are written as ``_``.

        Raises:
            LookupError: There is none, or more than one.
        """
        named = {name.replace("_", " "): value for name, value in wanted.items()}
        found = [row for row in self.rows if named.items() <= row.items()]
        if len(found) != 1:
            raise LookupError(f"{self.file}, {self.heading!r}: {len(found)} rows with {named}, expected one")
        return found[0]


def read(path: Path) -> list[Table]:
    """Return the tables of a file, in order."""
    tables, heading, lines = [], "", []
    for line in [*path.read_text("utf-8").splitlines(), ""]:
        if line.startswith("|"):
            lines.append([cell.strip() for cell in line.strip().strip("|").split("|")])
            continue
        if lines:
            names, _, *cells = lines
            rows = tuple(dict(zip(names, row, strict=True)) for row in cells)
            tables.append(Table(path.name, heading, rows))
            lines = []
        if line.startswith("#"):
            heading = line.lstrip("# ")
    return tables


def table(path: Path, heading: str) -> Table:
    """Return the table under the heading that begins so.

    Raises:
        LookupError: There is none, or more than one.
    """
    found = [one for one in read(path) if one.heading.startswith(heading)]
    if len(found) != 1:
        raise LookupError(f"{path.name}: {len(found)} tables under {heading!r}, expected one")
    return found[0]


def number(cell: str, place: int = 0) -> float | None:
    """Return a number of a cell, or None.

    >>> number("91.06 [90.78, 91.37] (91.0)"), number("–"), number("84.67 ± 1.20, 4.09, 0.40", 3)
    (91.06, None, 0.4)
    """
    found = re.findall(r"-?\d+(?:\.\d+)?", cell)
    return float(found[place]) if place < len(found) else None
