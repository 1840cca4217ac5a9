"""From the fields of the form to a recipe, and from what the service says against it back to the fields."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from api.errors import InvalidRequest
from api.pages_fields import given, value_of
from pruning_core.errors import PruningError
from pruning_core.recipe import RECOMMENDED, catalogue

_NUMBERS = {"anyOf": [{"type": "number"}, {"type": "array", "items": {"type": "number"}}]}
_WHOLE = {"type": "integer"}
#: Fields of the recipe that have a field of the form under another name.
_PLACES = {
    "recipe.select.sparsity": "sparsity",
    "recipe.select.pattern": "pattern",
    "recipe.select.layers": "exclude",
    "recipe.select.algorithm": "select",
    "recipe.refine.algorithm": "refine",
    "recipe.seed": "seed",
    "recipe.preprocess": "more",
}


def recipe_of(values: Mapping[str, str]) -> dict[str, Any]:
    """Return the recipe that a filled-in form means; whether it can be used is the service's to say.

    Raises:
        InvalidRequest: The further fields are no JSON object.
    """
    algorithm, refine = values.get("select") or RECOMMENDED, values.get("refine", "")
    select: dict[str, Any] = {"algorithm": algorithm, **_options("select", algorithm, values)}
    sparsity = values.get("sparsity", "").strip()
    bound = values.get("sparsity_kind", "")
    if sparsity and bound in {"max_accuracy_drop", "max_loss_increase"}:
        select["sparsity"] = {bound: value_of({"type": "number"}, sparsity)}
    elif sparsity:
        select["sparsity"] = value_of(_NUMBERS, sparsity)
    if pattern := _pattern(values):
        select["pattern"] = pattern
    layers = {name: _names(values.get(name, "")) for name in ("include", "exclude")}
    if any(layers.values()):
        select["layers"] = {name: names for name, names in layers.items() if names}
    recipe: dict[str, Any] = {"select": select}
    if refine:
        recipe["refine"] = {"algorithm": refine, **_options("refine", refine, values)}
    if seed := values.get("seed", "").strip():
        recipe["seed"] = value_of(_WHOLE, seed)
    return {**recipe, **_more(values)}


def labels_of(values: Mapping[str, str]) -> dict[str, str]:
    """Return the labels, one ``name=value`` in each line.

    Raises:
        InvalidRequest: A line is none.
    """
    found = {}
    for line in filter(None, map(str.strip, values.get("labels", "").splitlines())):
        name, separator, value = line.partition("=")
        if not separator:
            raise _wrong("labels", f"expected name=value, got {line[:80]!r}")
        found[name.strip()] = value.strip()
    return found


def errors_of(error: PruningError, values: Mapping[str, str]) -> dict[str, str]:
    """Return what is wrong by field name; what belongs to no field stands under an empty name."""
    found: dict[str, str] = {}
    for place, problem in _told(error):
        name, text = _field(place, problem, values)
        found[name] = f"{found[name]}; {text}" if name in found else text
    return found


def _told(error: PruningError) -> Iterator[tuple[str, str]]:
    listed = error.extensions.get("errors")
    if isinstance(listed, list) and listed:
        for item in listed:
            yield str(item.get("field", "")), str(item.get("problem", ""))
        return
    text = error.detail if error.advice is None else f"{error.detail} {error.advice}"
    yield str(error.extensions.get("field", "")), text


def _field(place: str, problem: str, values: Mapping[str, str]) -> tuple[str, str]:
    if place in {"model", "calibration", "validation", "masks"} or place == "labels" or place.startswith("labels."):
        return place.partition(".")[0], problem
    if place in {"more", "labels"}:
        return place, problem
    for part in ("select", "refine"):
        algorithm = values.get(part) or (RECOMMENDED if part == "select" else "")
        schema = catalogue().get(algorithm, {}).get("options", {})
        if place in {f"recipe.{part}", f"recipe.{part}.{algorithm}"}:
            option, separator, text = problem.partition(": ")
            name = option.partition(".")[0]
            if separator and name in schema.get("properties", {}):
                return f"{part}.{algorithm}.{name}", text.partition(" (options of")[0]
    for known, name in _PLACES.items():
        if place == known or place.startswith(known + "."):
            return name, problem
    if place in {"recipe.select", "recipe.refine"}:
        return place.removeprefix("recipe."), problem
    return "", f"{place}: {problem}" if place else problem


def _options(part: str, algorithm: str, values: Mapping[str, str]) -> dict[str, Any]:
    return given(part, algorithm, catalogue().get(algorithm, {}).get("options", {}), values)


def _pattern(values: Mapping[str, str]) -> Any:
    kind, text = values.get("pattern", ""), values.get("pattern_shape", "").strip()
    cap = values.get("max_layer_sparsity", "").strip()
    if kind == "mask":
        return "mask"
    if kind == "shape":
        return text or None
    scope: dict[str, Any] = {"scope": "layer"} if kind == "layer" else {}
    if cap:
        scope["max_layer_sparsity"] = value_of({"type": "number"}, cap)
    return scope or None


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _more(values: Mapping[str, str]) -> dict[str, Any]:
    text = values.get("more", "").strip()
    if not text:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _wrong("more", 'expected a JSON object such as {"preprocess": {…}}')
    return found


def _wrong(field: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {problem}", errors=[{"field": field, "problem": problem}])
