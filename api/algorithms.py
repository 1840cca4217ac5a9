"""What can be asked for: the algorithms and the JSON Schema of a recipe."""

from __future__ import annotations

from functools import cache
from typing import Any

from fastapi import APIRouter
from pydantic import Field

from api.documents import Answer, Document
from pruning_core.recipe import Recipe, catalogue

router = APIRouter(tags=["algorithms"])


class Algorithm(Answer):
    """One way to choose the mask."""

    summary: str
    source: str = Field(description="The paper.")
    options: Document = Field(description="JSON Schema of its options; they stand beside `algorithm` in `select`.")


class Algorithms(Answer):
    """All there is."""

    algorithms: dict[str, Algorithm]
    recipe: Document = Field(description="JSON Schema (2020-12) of a whole recipe, options included.")


@router.get("/algorithms", summary="List algorithms and their options", operation_id="list_algorithms")
def algorithms() -> Algorithms:
    """What there is, with ranges, defaults and descriptions."""
    return Algorithms(
        algorithms={name: Algorithm.model_validate(entry) for name, entry in catalogue().items()},
        recipe={"$schema": "https://json-schema.org/draft/2020-12/schema", **recipe_schema()},
    )


@cache
def recipe_schema() -> Document:
    """Return the JSON Schema of a recipe: `select` is one of the algorithms, each with just its own options."""
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    common = definitions.pop("Select")
    for name, entry in catalogue().items():
        definitions[f"select_{name}"] = _select_with(common, name, entry)
    schema["properties"]["select"] = {
        "oneOf": [{"$ref": f"#/$defs/select_{name}"} for name in catalogue()],
        "description": common["description"],
    }
    schema["examples"] = [{"select": {"algorithm": name, "sparsity": 0.9}} for name in catalogue()]
    return schema


def _select_with(common: Document, name: str, entry: Document) -> Document:
    options = entry["options"]
    properties: dict[str, Any] = {**common["properties"], **options.get("properties", {})}
    properties["algorithm"] = {"const": name, "description": entry["summary"]}
    return {
        "title": name,
        "description": entry["summary"],
        "type": "object",
        "properties": properties,
        "required": [*common["required"], *options.get("required", ())],
        "additionalProperties": False,
    }
