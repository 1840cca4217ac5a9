"""One page of plain HTML from an OpenAPI document: no script, no font, no link to another server."""

from __future__ import annotations

import json
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --edge: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; text-transform: capitalize; }
details { border: 1px solid var(--edge); border-radius: .4rem; margin: .5rem 0; padding: 0 .8rem; }
summary { cursor: pointer; padding: .5rem 0; }
code, pre { font: 14px/1.4 ui-monospace, monospace; }
pre { background: var(--soft); padding: .7rem; border-radius: .4rem; overflow-x: auto; }
.verb { display: inline-block; min-width: 4.5rem; font-weight: 700; }
table { border-collapse: collapse; width: 100%; }
td { border-top: 1px solid var(--edge); padding: .3rem .6rem .3rem 0; vertical-align: top; }
td:first-child { white-space: nowrap; }
"""


def page(document: dict[str, Any]) -> str:
    """Return the page.

    Args:
        document: An OpenAPI 3.1 document.
    """
    info, groups = document["info"], _by_tag(document["paths"])
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width'>",
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{_text(info.get('description', ''))} ",
        "The machine-readable description is <a href='/openapi.json'>/openapi.json</a>.</p>",
    ]
    for tag, operations in groups.items():
        parts.append(f"<h2>{escape(tag)}</h2>")
        parts += [_operation(document, path, verb, operation) for path, verb, operation in operations]
    parts.append("<h2>Schemas</h2>")
    parts += [_schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items())]
    return "".join([*parts, "</body></html>"])


def _by_tag(paths: dict[str, Any]) -> dict[str, list[tuple[str, str, dict[str, Any]]]]:
    groups: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
    for path, operations in paths.items():
        for verb, operation in operations.items():
            groups.setdefault(operation.get("tags", ["other"])[0], []).append((path, verb, operation))
    return groups


def _operation(document: dict[str, Any], path: str, verb: str, operation: dict[str, Any]) -> str:
    parts = [
        f"<details id='{escape(operation['operationId'])}'><summary><code class='verb'>{verb.upper()}</code> ",
        f"<code>{escape(path)}</code> {_text(operation.get('summary', ''))}</summary>",
        f"<p>{_text(operation.get('description', ''))}</p>",
    ]
    if operation.get("parameters"):
        parts += ["<h4>Parameters</h4><table>", *map(_parameter, operation["parameters"]), "</table>"]
    if "requestBody" in operation:
        parts.append("<h4>Body</h4>")
        parts += [_content(document, *item) for item in operation["requestBody"]["content"].items()]
    parts.append("<h4>Answers</h4><table>")
    for status, response in operation["responses"].items():
        parts.append(f"<tr><td><code>{escape(status)}</code></td><td>{_text(response['description'])}")
        if status.startswith("2"):
            parts += [_content(document, *item) for item in response.get("content", {}).items()]
        parts.append("</td></tr>")
    return "".join([*parts, "</table></details>"])


def _parameter(parameter: dict[str, Any]) -> str:
    needed = ", required" if parameter.get("required") else ""
    described = parameter.get("description", "")
    return (
        f"<tr><td><code>{escape(parameter['name'])}</code> ({parameter['in']}{needed})</td>"
        f"<td>{_text(described)}</td></tr>"
    )


def _content(document: dict[str, Any], media_type: str, content: dict[str, Any]) -> str:
    schema = content.get("schema", {})
    name = schema.get("$ref", "").rpartition("/")[2]
    resolved = document["components"]["schemas"].get(name, schema)
    shown = f"<p><code>{escape(media_type)}</code>"
    if name:
        shown += f": <a href='#schema-{escape(name)}'>{escape(name)}</a>"
    shown += f" {_text(resolved.get('description', ''))}</p>"
    return shown + "".join(f"<pre>{escape(json.dumps(example, indent=2))}</pre>" for example in _examples(resolved))


def _examples(schema: dict[str, Any]) -> list[Any]:
    examples: list[Any] = schema.get("examples", [])
    return examples


def _schema(name: str, schema: dict[str, Any]) -> str:
    shown = escape(json.dumps({key: value for key, value in schema.items() if key != "examples"}, indent=2))
    title = f"<summary><code>{escape(name)}</code></summary>"
    return f"<details id='schema-{escape(name)}'>{title}<pre>{shown}</pre></details>"


def _text(markdown: str) -> str:
    """Escape, and show `code` as code: the only markdown that the descriptions use."""
    pieces = escape(markdown).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))
