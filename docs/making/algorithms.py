"""Option tables of the algorithms, and a page for each that has none written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docs.making import PAGES, put
from pruning_core.recipe import catalogue

Entry = Mapping[str, Any]


def write(folder: Path, entries: Mapping[str, Entry] | None = None) -> None:
    """Write ``facts/<name>.md``, ``options/<name>.md``, and ``algorithms/<name>.md`` where no page is there.

    ``contents.md`` lists all pages, as those of ``docs/algorithms`` see them.
    """
    entries = catalogue() if entries is None else entries
    for name, entry in entries.items():
        put(folder / "facts" / f"{name}.md", facts(entry))
        put(folder / "options" / f"{name}.md", options(entry))
        if not written(name):
            put(folder / "algorithms" / f"{name}.md", page(name, entry))
    for path in (folder / "algorithms").glob("*.md"):
        if path.stem not in entries or written(path.stem):
            path.unlink()
    listed = "\n".join(name if written(name) else f"../generated/algorithms/{name}" for name in sorted(entries))
    put(folder / "contents.md", f":::{{toctree}}\n:hidden:\n{listed}\n:::\n")


def written(name: str) -> bool:
    """Return whether somebody wrote a page for this algorithm."""
    return (PAGES / "algorithms" / f"{name}.md").exists()


def facts(entry: Entry) -> str:
    """Return summary, source and needs, as the catalogue has them."""
    patterns = entry.get("patterns")
    needs = "calibration data" if entry["needs_data"] else "no data"
    return (
        f"{entry['summary']}\n\n"
        f"Part of a recipe: `{entry['part']}`. Needs: {needs}. "
        f"Patterns: {'all' if patterns is None else ', '.join(patterns)}.\n\n"
        f"Source: {entry['source']}.\n"
    )


def options(entry: Entry) -> str:
    """Return the options as a table."""
    properties = entry["options"].get("properties", {})
    if not properties:
        return "No options of its own.\n"
    lines = ["| option | default | may be | what it does |", "|---|---|---|---|"]
    for name, schema in properties.items():
        default = json.dumps(schema["default"], ensure_ascii=False) if "default" in schema else "–"
        text = " ".join(schema.get("description", "").split())
        lines.append(f"| `{name}` | `{_short(default)}` | {_range(schema)} | {_cell(text)} |")
    return "\n".join(lines) + "\n"


def page(name: str, entry: Entry) -> str:
    """Return a page of what the catalogue knows."""
    example = json.dumps({entry["part"]: {"algorithm": name, **_example(entry)}})
    return (
        f"# {name}\n\n{facts(entry)}\n## Recipe\n\n```json\n{example}\n```\n\n## Options\n\n{options(entry)}\n"
        "This page was made from the catalogue; a better one goes into `docs/algorithms/`.\n"
    )


def _example(entry: Entry) -> dict[str, Any]:
    if entry["part"] != "select":
        return {}
    patterns = entry.get("patterns") or ("unstructured",)
    return {"sparsity": 0.8} if "unstructured" in patterns else {"pattern": {"n:m": "2:4"}.get(patterns[0], "mask")}


def _range(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_range({**part, **_bounds(schema)}) for part in schema["anyOf"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"a list of {_range(schema['items'])}"
    words = {"null": "`null`", "boolean": "`true`, `false`", "string": "text", "integer": "whole number"}
    said = words.get(schema["type"], schema["type"])
    if schema["type"] not in ("integer", "number"):
        return said
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:,}".replace(",", " ") for key, sign in signs.items() if key in schema]
    return " ".join([said, ", ".join(limits)]).strip()


def _bounds(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if "imum" in key}


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:36].rpartition(",")[0] + ", …]"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<").replace("*", "\\*")
