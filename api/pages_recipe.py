"""From the fields of the form to a recipe, and from what the service says against it back to the fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from api.errors import InvalidRequest
from api.pages_fields import Group, Option, given, grouped, whole
from pruning_core.errors import PruningError
from pruning_core.recipe import RECOMMENDED, Recipe, catalogue

#: Parts of a recipe that name an algorithm. The form chooses it in a field named like the part.
PARTS = ("select", "refine")


@dataclass(frozen=True, kw_only=True)
class RecipeForm:
    """All fields of a recipe but the names of the algorithms."""

    parts: Mapping[str, Group]  # what a part has whatever its algorithm
    algorithms: Mapping[str, tuple[Group, ...]]  # by part: the options of each
    rest: Group

    def counting(self, values: Mapping[str, str]) -> Iterator[Option]:
        """Yield the fields that count with what was chosen."""
        for part in PARTS:
            for group in self.algorithms[part]:
                if group.choice == _chosen(part, values):
                    yield from group.all(values)
            yield from self.parts[part].all(values)
        yield from self.rest.all(values)


@cache
def recipe_form() -> RecipeForm:
    """Return the fields that the schemas of recipe and algorithms make."""
    return form_of_schema(Recipe.model_json_schema(), catalogue())


def form_of_schema(schema: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> RecipeForm:
    """Return the fields of a recipe.

    Args:
        schema: Of the recipe.
        known: The algorithms, as `GET /algorithms` has them.
    """
    own = _own(schema)
    algorithms: dict[str, list[Group]] = {part: [] for part in PARTS}
    for name, entry in known.items():
        part, patterns = entry["part"], entry.get("patterns")
        served = f" Patterns: {', '.join(patterns)}." if patterns else ""
        about = {"help": f"{entry['summary']} {entry['source']}.{served}", "chooser": part, "choice": name}
        options = whole(entry["options"], entry["options"].get("$defs", {}))
        algorithms[part].append(grouped(options, f"{part}.{name}", part, f"Options of {name}", **about))
    return RecipeForm(
        parts={part: grouped(own[part], part, part, part) for part in PARTS},
        algorithms={part: tuple(groups) for part, groups in algorithms.items()},
        rest=grouped(own[""], "", "", "recipe"),
    )


def recipe_of(values: Mapping[str, str]) -> dict[str, Any]:
    """Return the recipe that a filled-in form means; whether it can be used is the service's to say.

    Raises:
        InvalidRequest: A property was typed in two ways.
    """
    own = _own(Recipe.model_json_schema())
    recipe: dict[str, Any] = {}
    for part in PARTS:
        if algorithm := _chosen(part, values):
            options = catalogue().get(algorithm, {}).get("options", {})
            named = given(whole(options, options.get("$defs", {})), f"{part}.{algorithm}", values)
            recipe[part] = {"algorithm": algorithm, **named, **given(own[part], part, values)}
    return {**recipe, **given(own[""], "", values)}


def labels_of(values: Mapping[str, str]) -> dict[str, str]:
    """Return the labels, one ``name=value`` in each line.

    Raises:
        InvalidRequest: A line is none.
    """
    found = {}
    for line in filter(None, map(str.strip, values.get("labels", "").splitlines())):
        name, separator, value = line.partition("=")
        if not separator:
            problem = f"expected name=value, got {line[:80]!r}"
            raise InvalidRequest(f"labels: {problem}", errors=[{"field": "labels", "problem": problem}])
        found[name.strip()] = value.strip()
    return found


def errors_of(error: PruningError, values: Mapping[str, str]) -> dict[str, str]:
    """Return what is wrong by field name; what belongs to no field stands under an empty name."""
    found: dict[str, str] = {}
    for place, problem in _told(error):
        name, text = _field(place, problem, values)
        found[name] = f"{found[name]}; {text}" if name in found else text
    return found


def _own(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schemas of a recipe's parts without their algorithm, and of all else under an empty name."""
    properties = whole(schema, schema.get("$defs", {}))["properties"]
    found: dict[str, Any] = {"": {"properties": {key: value for key, value in properties.items() if key not in PARTS}}}
    for part in PARTS:
        forms = properties[part].get("anyOf", [properties[part]])
        (one,) = (form for form in forms if "properties" in form)
        own = {key: value for key, value in one["properties"].items() if key != "algorithm"}
        found[part] = {**one, "properties": own}
    return found


def _chosen(part: str, values: Mapping[str, str]) -> str:
    return values.get(part) or (RECOMMENDED if part == "select" else "")


def _told(error: PruningError) -> Iterator[tuple[str, str]]:
    listed = error.extensions.get("errors")
    if isinstance(listed, list) and listed:
        for item in listed:
            yield str(item.get("field", "")), str(item.get("problem", ""))
        return
    text = error.detail if error.advice is None else f"{error.detail} {error.advice}"
    yield str(error.extensions.get("field", "")), text


def _field(place: str, problem: str, values: Mapping[str, str]) -> tuple[str, str]:
    """Return the field that is at fault, and what is wrong with it."""
    if place.partition(".")[0] in {"model", "calibration", "validation", "masks", "labels"}:
        return place.partition(".")[0], problem
    known, within = list(recipe_form().counting(values)), place.removeprefix("recipe.")
    for part in PARTS:
        # Options are told by the algorithm's own schema, which names them in front.
        if within in {part, f"{part}.{_chosen(part, values)}"}:
            option, separator, text = problem.partition(": ")
            name = f"{part}.{_chosen(part, values)}.{option.partition('.')[0]}"
            if separator and any(name == one.name for one in known):
                return name, text.partition(" (options of")[0]
    at = [one for one in known if within == one.name or f"{within}.".startswith(f"{one.place}.")]
    if at:
        return max(at, key=lambda one: (within == one.name, len(one.place))).name, problem
    # Of an object as a whole: its first field.
    inside = [one for one in known if one.place.startswith(f"{within}.")]
    for part in PARTS:
        if within in {part, f"{part}.algorithm"}:
            return part, problem
    if inside and place.startswith("recipe."):
        return inside[0].name, problem
    return "", f"{place}: {problem}" if place else problem
