"""Every call of the service, from its OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docs.making import put

Document = Mapping[str, Any]


def write(folder: Path) -> None:
    """Write ``rest.md``."""
    from api.app import create_app

    put(folder / "rest.md", page(create_app().openapi()))


def page(document: Document) -> str:
    """Return the calls by tag, and below them the schemas that they name."""
    groups: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for verb, operation in operations.items():
            tag = operation.get("tags", ["other"])[0]
            groups.setdefault(tag, []).append(_operation(path, verb, operation))
    parts = [f"## {tag[0].upper()}{tag[1:]}\n\n" + "\n".join(calls) for tag, calls in groups.items()]
    schemas = document["components"]["schemas"]
    parts.append("## Schemas\n\n" + "\n".join(_schema(name, schema) for name, schema in sorted(schemas.items())))
    return "\n".join(parts)


def _operation(path: str, verb: str, operation: Document) -> str:
    parts = [
        f"(call-{operation['operationId']})=",
        f"### `{verb.upper()} {path}`",
        *(_plain(operation[key]) for key in ("summary", "description") if operation.get(key)),
    ]
    if operation.get("parameters"):
        parts.append(
            _table(("parameter", "in", "needed", "what it is"), [_parameter(one) for one in operation["parameters"]])
        )
    if "requestBody" in operation:
        bodies = [f"`{kind}`{_named(content)}" for kind, content in operation["requestBody"]["content"].items()]
        parts.append(f"Body: {'; or '.join(bodies)}.")
    answers = [
        (f"{status}", _cell(answer["description"]).replace(".; ", "; "), _media(answer))
        for status, answer in operation["responses"].items()
    ]
    parts.append(_table(("status", "when", "content"), answers))
    return "\n\n".join(parts) + "\n"


def _parameter(one: Document) -> tuple[str, ...]:
    return f"`{one['name']}`", one["in"], "yes" if one.get("required") else "no", _cell(one.get("description", ""))


def _media(answer: Document) -> str:
    return "; ".join(f"`{kind}`{_named(content)}" for kind, content in answer.get("content", {}).items()) or "–"


def _named(content: Document) -> str:
    name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
    return f": [{name}](#schema-{name})" if name else ""


def _schema(name: str, schema: Document) -> str:
    parts = [f"(schema-{name})=", f"### {name}"]
    if schema.get("description"):
        parts.append(_plain(schema["description"]))
    needed = set(schema.get("required", ()))
    rows = [
        (f"`{field}`", _kind(one), "yes" if field in needed else "no", _cell(one.get("description", "")))
        for field, one in schema.get("properties", {}).items()
    ]
    if rows:
        parts.append(_table(("field", "type", "needed", "what it is"), rows))
    return "\n\n".join(parts) + "\n"


def _kind(schema: Document) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#schema-{name})" if "$defs" not in schema["$ref"] else name
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_kind(part) for part in schema[several]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return kind if isinstance(kind, str) else " or ".join(kind)


def _table(names: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [names, ("---",) * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    return text.replace("<", "\\<")


def _cell(text: str) -> str:
    return _plain(" ".join(text.split())).replace("|", "\\|")
