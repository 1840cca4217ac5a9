"""What can be asked for: the algorithms and the JSON Schema of a recipe."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import Field

from api.documents import Answer, Document
from api.recipe_schema import recipe_schema
from pruning_core.recipe import catalogue

router = APIRouter(tags=["algorithms"])


class Algorithm(Answer):
    """One way to choose the mask, or to re-fit the weights under it."""

    part: Literal["select", "refine"] = Field(description="Which part of a recipe names it.")
    summary: str
    source: str = Field(description="The paper.")
    needs_data: bool = Field(description="Whether it looks at the calibration data.")
    patterns: list[str] | None = Field(default=None, description="The patterns it serves; null: all.")
    options: Document = Field(description="JSON Schema of its options; they stand beside `algorithm`.")


class Algorithms(Answer):
    """All there is."""

    algorithms: dict[str, Algorithm]
    recipe: Document = Field(
        description="JSON Schema (2020-12) of a whole recipe: both parts, every pattern, every form of sparsity."
    )


@router.get("/algorithms", summary="List algorithms and their options", operation_id="list_algorithms")
def algorithms() -> Algorithms:
    """What there is, with ranges, defaults and descriptions."""
    return Algorithms(
        algorithms={name: Algorithm.model_validate(entry) for name, entry in catalogue().items()},
        recipe=recipe_schema(),
    )
