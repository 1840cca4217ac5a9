"""Form fields from JSON Schemas, and values back from what was typed: a new algorithm needs no new page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Schema = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of an algorithm as a form field."""

    name: str  # of the field
    label: str
    help: str
    hint: str  # its range and its default
    choices: tuple[str, ...]  # empty: it is typed
    numeric: bool
    value: str
    error: str | None


def options(
    part: str, algorithm: str, schema: Schema, values: Mapping[str, str], errors: Mapping[str, str]
) -> list[Option]:
    """Return a field for each option that a JSON Schema names.

    Args:
        part: Of the recipe.
        algorithm: Whose options they are.
        schema: Of the options.
        values: What was typed before, by field name.
        errors: What is wrong with it, by field name.
    """
    found = []
    for name, property_ in schema.get("properties", {}).items():
        field = f"{part}.{algorithm}.{name}"
        found.append(
            Option(
                name=field,
                label=name.replace("_", " "),
                help=str(property_.get("description", "")),
                hint=_hint(property_, name in schema.get("required", ())),
                choices=_choices(property_),
                numeric=all(form.get("type") in {"integer", "number"} for form in _forms(property_)),
                value=values.get(field, ""),
                error=errors.get(field),
            )
        )
    return found


def given(part: str, algorithm: str, schema: Schema, values: Mapping[str, str]) -> dict[str, Any]:
    """Return the options that were typed; those left empty keep their defaults."""
    typed = {name: values.get(f"{part}.{algorithm}.{name}", "").strip() for name in schema.get("properties", {})}
    return {name: value_of(schema["properties"][name], text) for name, text in typed.items() if text}


def value_of(schema: Schema, text: str) -> Any:
    """Return what a text means for a schema; the text itself if it fits none of its forms, for others to refuse.

    >>> value_of({"anyOf": [{"type": "number"}, {"const": "auto"}, {"type": "null"}]}, "auto")
    'auto'
    >>> value_of({"type": "array", "items": {"type": "number"}}, "0.5, 0.9"), value_of({"type": "integer"}, "x")
    ([0.5, 0.9], 'x')
    """
    for form in _forms(schema):
        fits, value = _read(form, text)
        if fits:
            return value
    return text


def _forms(schema: Schema) -> list[Schema]:
    forms: list[Schema] = list(schema.get("anyOf") or schema.get("oneOf") or [schema])
    return forms


def _choices(schema: Schema) -> tuple[str, ...]:
    """Return what may be chosen, where that is a list."""
    found: list[str] = []
    for form in _forms(schema):
        if "enum" in form:
            found += map(_text, form["enum"])
        elif "const" in form:
            found.append(_text(form["const"]))
        elif form.get("type") == "boolean":
            found += ["true", "false"]
        elif form.get("type") == "null":
            found.append("null")
        else:
            return ()
    return tuple(dict.fromkeys(found))


def _read(form: Schema, text: str) -> tuple[bool, Any]:
    kind = form.get("type")
    for known in [*form.get("enum", ()), *([form["const"]] if "const" in form else [])]:
        if text == _text(known):
            return True, known
    if "enum" in form or "const" in form:
        return False, None
    try:
        if kind == "null":
            return text.lower() in {"null", "none"}, None
        if kind == "boolean":
            return text.lower() in {"true", "false"}, text.lower() == "true"
        if kind in {"integer", "number"}:
            return True, int(text) if kind == "integer" else float(text)
        if kind == "array" and not text.startswith("["):
            return True, [value_of(form.get("items", {}), part.strip()) for part in text.split(",") if part.strip()]
        if kind in {"array", "object"}:
            value = json.loads(text)
            return isinstance(value, list if kind == "array" else dict), value
    except (ValueError, RecursionError):
        return False, None
    return kind in {"string", None}, text


def _hint(schema: Schema, required: bool) -> str:
    """Return range and default in a few words."""
    said = []
    for form in _forms(schema):
        least, most = form.get("minimum"), form.get("maximum")
        over, under = form.get("exclusiveMinimum"), form.get("exclusiveMaximum")
        bounds = [f"> {over}" if over is not None else f"≥ {least}" if least is not None else ""]
        bounds.append(f"< {under}" if under is not None else f"≤ {most}" if most is not None else "")
        kind = {"integer": "a whole number", "number": "a number", "array": "a list: a, b, c"}.get(form.get("type", ""))
        if kind:
            said.append(", ".join([kind, *filter(None, bounds)]))
        elif not _choices(schema) and ("const" in form or form.get("type") == "null"):
            said.append(_text(form.get("const")))
    if required:
        said.append("required")
    elif "default" in schema:
        said.append(f"default: {_text(schema['default'])}")
    return "; ".join(said)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return ", ".join(map(str, value)) if isinstance(value, list) else json.dumps(value)
