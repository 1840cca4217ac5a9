"""Form fields from JSON Schemas, and values back from what was typed: a new field of a recipe needs no new page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from api.errors import InvalidRequest

Schema = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One property as a form field."""

    name: str  # of the field
    place: str  # in the recipe, as a problem names it
    label: str
    help: str
    hint: str  # its range and its default
    choices: tuple[str, ...]  # empty: it is typed
    default: str  # of the choices; empty: one that says "default"
    numeric: bool


@dataclass(frozen=True, kw_only=True)
class Group:
    """The fields of one object, and the objects within it."""

    name: str
    title: str
    help: str = ""
    chooser: str = ""  # the field on which it depends whether this group counts; empty: it always does
    choice: str = ""  # the value of it with which this group does
    options: tuple[Option, ...]
    groups: tuple[Group, ...]

    def all(self, values: Mapping[str, str] | None = None) -> Iterator[Option]:
        """Yield every field in it; with values only those that count with them."""
        chosen = {option.name: option.default for option in self.options}
        yield from self.options
        for group in self.groups:
            other = values is not None and (values.get(group.chooser) or chosen.get(group.chooser)) != group.choice
            if not (group.chooser and other):
                yield from group.all(values)

    def wrong(self, errors: Mapping[str, str]) -> bool:
        """Return whether a field in it has an error."""
        return any(option.name in errors for option in self.all())


def grouped(schema: Schema, name: str, place: str, title: str, **more: str) -> Group:
    """Return a field for each property of an object, and a group for each that is an object itself.

    Of a property that may be one of several objects, told apart by a tag, the field chooses the tag. One that may be a
    value or an object has both, for one of them to be used.

    Args:
        schema: Of the object; `whole` leaves no references in it.
        name: What the names of its fields begin with.
        place: Of the object in the recipe.
        title: For people,
        more: and the other fields of the group.
    """
    options, groups = [], []
    for key, property_ in schema.get("properties", {}).items():
        field, where, label = _joined(name, key), _joined(place, key), key.replace("_", " ")
        objects, tag = _objects(property_), _tag(property_)
        typed = [form for form in _forms(property_) if form not in objects and form.get("type") != "null"]
        if tag:
            members = {member["properties"][tag]["const"]: member for member in objects}
            chosen = {"enum": list(members), "description": property_.get("description", "What each is stands below.")}
            options.append(_option(field, where, label, chosen, default=_default(property_, tag)))
            for choice, member in members.items():
                rest = {**member, "properties": {k: v for k, v in member["properties"].items() if k != tag}}
                about = {"chooser": field, "choice": choice, "help": _plain(member)}
                title_ = f"{label.capitalize()} {choice}"
                groups.append(grouped(rest, f"{field}.{choice}", where, title_, **about))
            continue
        if typed:
            value = {"description": property_.get("description", ""), "anyOf": typed} if objects else property_
            options.append(_option(field, where, label, value, required=key in schema.get("required", ())))
        for member in objects:
            also = f" as a {str(member.get('title', 'object')).lower()}" if typed else ""
            groups.append(grouped(member, field, where, label.capitalize() + also, help=_plain(member)))
    return Group(name=name, title=title, options=tuple(options), groups=tuple(groups), **more)


def given(schema: Schema, name: str, values: Mapping[str, str]) -> dict[str, Any]:
    """Return the object that was typed into the fields that `grouped` makes; what was left empty keeps its default.

    Raises:
        InvalidRequest: A property was typed both as a value and as an object.
    """
    found: dict[str, Any] = {}
    for key, property_ in schema.get("properties", {}).items():
        field, tag = _joined(name, key), _tag(property_)
        text = values.get(field, "").strip()
        if tag:
            chosen = text or _default(property_, tag)
            members = {member["properties"][tag]["const"]: member for member in _objects(property_)}
            if chosen not in members:
                found[key] = text
                continue
            value = given(members[chosen], f"{field}.{chosen}", values)
            if value or chosen != _default(property_, tag):
                found[key] = {tag: chosen, **value}
            continue
        nested = {k: v for member in _objects(property_) for k, v in given(member, field, values).items()}
        if text and nested:
            problem = f"expected a value here, or {', '.join(nested)}; got both"
            raise InvalidRequest(f"{field}: {problem}", errors=[{"field": field, "problem": problem}])
        if text or nested:
            found[key] = nested or value_of(property_, text)
    return found


def whole(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """Return a schema with each reference replaced by what it refers to; none may refer to itself.

    >>> whole({"$ref": "#/$defs/a", "default": 1}, {"a": {"type": "integer"}})
    {'type': 'integer', 'default': 1}
    """
    if isinstance(schema, list):
        return [whole(item, definitions) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: whole(value, definitions) for key, value in schema.items() if key not in ("$ref", "$defs")}
    if "$ref" in schema:
        return {**whole(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions), **found}
    return found


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


def _option(name: str, place: str, label: str, schema: Schema, *, default: str = "", required: bool = False) -> Option:
    return Option(
        name=name,
        place=place,
        label=label,
        help=_plain(schema),
        hint=_hint(schema, required),
        choices=_choices(schema),
        default=default,
        numeric=all(form.get("type") in {"integer", "number", "null"} for form in _forms(schema)),
    )


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _plain(schema: Schema) -> str:
    """Return the description, without marks of code."""
    return str(schema.get("description", "")).replace("`", "")


def _forms(schema: Schema) -> list[Schema]:
    forms: list[Schema] = list(schema.get("anyOf") or schema.get("oneOf") or [schema])
    return forms


def _objects(schema: Schema) -> list[Schema]:
    return [form for form in _forms(schema) if "properties" in form]


def _tag(schema: Schema) -> str:
    return str(schema.get("discriminator", {}).get("propertyName", ""))


def _default(schema: Schema, tag: str) -> str:
    """Return which of the tagged objects it is without a choice."""
    default = schema.get("default") or {}
    return str(default.get(tag) or _objects(schema)[0]["properties"][tag]["const"])


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
            found += [] if _is_null(schema) else ["null"]  # what is left empty is it already
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
            parts = [part.strip() for part in text.split(",") if part.strip()]
            known = [*form.get("prefixItems", ())]
            return True, [
                value_of(known[i] if i < len(known) else form.get("items", {}), part) for i, part in enumerate(parts)
            ]
        if kind in {"array", "object"}:
            value = json.loads(text)
            return isinstance(value, list if kind == "array" else dict), value
    except (ValueError, RecursionError):
        return False, None
    return kind in {"string", None}, text


def _is_null(schema: Schema) -> bool:
    """Return whether it is null without a choice."""
    return "default" in schema and schema["default"] is None


def _hint(schema: Schema, required: bool) -> str:
    """Return range and default in a few words."""
    said = []
    for form in _forms(schema):
        bounds = [
            f"{sign} {form[key]:g}"
            for key, sign in (("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤"))
            if form.get(key) is not None and abs(form[key]) < 2**53
        ]
        letters = ", ".join("abcdef"[: len(form.get("prefixItems", "abc"))])
        kind = {"integer": "a whole number", "number": "a number", "array": f"a list: {letters}"}.get(
            form.get("type", "")
        )
        if kind:
            said.append(", ".join([kind, *bounds]))
        elif form.get("type") == "null" and _is_null(schema):
            continue
        elif not _choices(schema) and ("const" in form or form.get("type") == "null"):
            said.append(_text(form.get("const")))
    if required:
        said.append("required")
    elif "default" in schema:
        said.append(f"default: {_text(schema['default']) or 'none'}")
    return "; ".join(said)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return ", ".join(map(str, value)) if isinstance(value, list) else json.dumps(value)
