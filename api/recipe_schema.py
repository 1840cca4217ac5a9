"""The JSON Schema of a recipe: what the core's models say, with the options of each algorithm and the short forms."""

from __future__ import annotations

from functools import cache
from typing import Any

from api.documents import Document
from pruning_core.recipe import MAX_LEVELS, RECOMMENDED, Recipe, catalogue

_BOUNDS = ("max_accuracy_drop", "max_loss_increase")
_PATTERNS = {"unstructured": "Unstructured", "n:m": "NofM", "block": "Block", "mask": "Mask"}
#: Patterns may be written as a text.
_SHORT: dict[str, Document] = {
    "unstructured": {"const": "unstructured"},
    "n:m": {"type": "string", "pattern": r"^\d{1,3}:\d{1,3}$", "examples": ["2:4"]},
    "block": {"type": "string", "pattern": r"^\d{1,3}x\d{1,3}$", "examples": ["4x1"]},
    "mask": {"const": "mask"},
}
_EXAMPLES: list[Document] = [
    {"select": {"sparsity": 0.9}},
    {"select": {"algorithm": "chita", "sparsity": 0.9}},
    {"select": {"algorithm": "chita", "sparsity": [0.5, 0.7, 0.9]}},
    {"select": {"algorithm": "chita", "sparsity": {"max_accuracy_drop": 0.01}}},
    {"select": {"algorithm": "magnitude", "pattern": "2:4", "layers": {"exclude": ["head*"]}}},
    {"select": {"algorithm": "magnitude", "pattern": "mask"}},
]


@cache
def recipe_schema() -> Document:
    """Return the JSON Schema (2020-12) of a recipe.

    ``select`` is one of the algorithms that choose a mask, ``refine`` one of those that re-fit under it, each with
    just its own options; at least one of the two is there. The service also checks what a schema cannot say: that a
    list rises, that n < m.
    """
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    select, refine = definitions.pop("Select"), definitions.pop("Refine")
    for kind, name in _PATTERNS.items():
        # Without a type it is unstructured.
        if kind != "unstructured":
            definitions[name].setdefault("required", []).append("type")
    definitions["Goal"]["oneOf"] = [
        {"required": [bound], "properties": {bound: {"type": "number"}, other: {"type": "null"}}}
        for bound, other in (_BOUNDS, _BOUNDS[::-1])
    ]
    _list_of_levels(select).update(minItems=1, maxItems=MAX_LEVELS, uniqueItems=True)
    parts: dict[str, list[Document]] = {"select": [], "refine": []}
    for name, entry in catalogue().items():
        part = entry["part"]
        common = _with_pattern(select, entry.get("patterns")) if part == "select" else refine
        definitions[f"{part}_{name}"] = _with_options(common, name, entry, definitions)
        parts[part].append({"$ref": f"#/$defs/{part}_{name}"})
    described = {"select": select["description"], "refine": refine["description"]}
    for part, choices in parts.items():
        schema["properties"][part] = {
            "anyOf": [*([{"oneOf": choices}] if choices else []), {"type": "null"}],
            "default": None,
            "description": described[part],
        }
    del schema["required"]
    schema["anyOf"] = [{"required": [part], "properties": {part: {"type": "object"}}} for part in parts]
    examples = [*_EXAMPLES, *({"refine": {"algorithm": name}} for name in _names("refine"))]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "examples": examples}


def _names(part: str) -> list[str]:
    return [name for name, entry in catalogue().items() if entry["part"] == part]


def _list_of_levels(select: Document) -> Document:
    forms: list[Document] = select["properties"]["sparsity"]["anyOf"]
    return next(form for form in forms if form.get("type") == "array")


def _with_pattern(select: Document, offered: list[str] | None) -> Document:
    """Return ``select`` with the patterns an algorithm serves, and the sparsity that goes with each."""
    kinds = [kind for kind in _PATTERNS if offered is None or kind in offered]
    forms = {kind: [{"$ref": f"#/$defs/{_PATTERNS[kind]}"}, _SHORT[kind]] for kind in kinds}
    pattern = {
        "anyOf": [form for kind in kinds for form in forms[kind]],
        "default": select["properties"]["pattern"]["default"],
        "description": "Which weights may go together. Short forms: '2:4' (of every 4 inputs 2 stay), '4x1' (blocks).",
    }
    own = {"properties": {"sparsity": {"type": "null"}}}
    rules: list[Document] = []
    for kind, then in (("mask", own), ("n:m", {"properties": {"sparsity": {"type": ["number", "null"]}}})):
        if kind in kinds:
            rules.append({"if": _is(kind), "then": then})
    exempt = [_is(kind) for kind in ("mask", "n:m") if kind in kinds]
    needed = {"required": ["sparsity"], "properties": {"sparsity": {"not": {"type": "null"}}}}
    rules.append({"if": {"not": {"anyOf": exempt}}, "then": needed} if exempt else needed)
    return {**select, "properties": {**select["properties"], "pattern": pattern}, "allOf": rules}


def _is(kind: str) -> Document:
    """Return what a ``select`` of this pattern satisfies."""
    long: Document = {"type": "object", "required": ["type"], "properties": {"type": {"const": kind}}}
    short = {key: value for key, value in _SHORT[kind].items() if key != "examples"}
    return {"required": ["pattern"], "properties": {"pattern": {"anyOf": [long, short]}}}


def _with_options(common: Document, name: str, entry: Document, definitions: Document) -> Document:
    options = entry["options"]
    definitions.update(options.get("$defs", {}))
    properties: dict[str, Any] = {**common["properties"], **options.get("properties", {})}
    properties["algorithm"] = {"const": name, "description": entry["summary"]}
    required = {*common.get("required", ()), *options.get("required", ()), "algorithm"}
    if entry["part"] == "select" and name == RECOMMENDED:
        properties["algorithm"]["default"] = name
        required.remove("algorithm")
    return {
        "title": name,
        "description": entry["summary"],
        "type": "object",
        "properties": properties,
        "required": sorted(required),
        **({"allOf": common["allOf"]} if "allOf" in common else {}),
        "additionalProperties": False,
    }
