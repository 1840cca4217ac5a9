"""Plans: what a job would do, before anything is queued."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from api.auth import SCOPE
from api.documents import DATASET_EXAMPLE, MODEL_EXAMPLE, RECIPE_EXAMPLE, Answer, Document
from api.errors import InvalidRequest, MalformedRequest, UnsupportedContentType
from api.json_bodies import read_as
from api.problems import responses
from api.services import WithContext
from jobs.errors import NotFound, NotReady, RejectedUpload, TooLarge, Unavailable
from pruning_core.errors import MaskError, NothingToPrune, RecipeError

router = APIRouter(prefix="/plans", tags=["jobs"])

_BODY = {"application/json": {"schema": {"$ref": "#/components/schemas/PlanRequest"}}}


class PlanRequest(BaseModel):
    """A job to be thought through."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [{"model": MODEL_EXAMPLE, "calibration": DATASET_EXAMPLE, "recipe": RECIPE_EXAMPLE}]
        },
    )

    model: str = Field(description="Id of a model that has been inspected.")
    calibration: str | None = Field(default=None, description="Id of a dataset; makes the estimate better.")
    masks: str | None = Field(default=None, description="Id of a mask, for a recipe that takes one.")
    recipe: Document = Field(description="As for POST /jobs.")


class PlannedLayer(Answer):
    """A prunable layer."""

    name: str
    weight: str | None = None
    kind: str
    shape: list[int]
    weights: int
    takes_part: bool


class PlannedLevel(Answer):
    """A model that would be made."""

    sparsity: float | None = Field(description="As asked for; null where pattern, mask or goal decide.")
    weights: int = Field(description="Of the layers that take part.")
    kept: int | None = Field(description="Weights that would stay; null: only the search for the goal can tell.")
    sparsity_reached: float | None = Field(description="What the pattern can do: blocks and left-over channels round.")


class Estimate(Answer):
    """Orders of magnitude."""

    memory_bytes: int
    seconds_at_least: float
    rule: str = Field(description="How it was made.")


class Plan(Answer):
    """What a job would do."""

    recipe: Document = Field(description="With every default filled in.")
    layers: list[PlannedLayer]
    unprunable: dict[str, str]
    levels: list[PlannedLevel]
    estimate: Estimate


@router.post(
    "",
    summary="See what a job would do; nothing is queued",
    operation_id="create_plan",
    response_model=Plan,
    responses=responses(
        *(MalformedRequest, NotFound, NotReady, TooLarge, UnsupportedContentType),
        *(InvalidRequest, RecipeError, RejectedUpload, NothingToPrune, MaskError, Unavailable),
    ),
    openapi_extra={SCOPE: "read", "requestBody": {"required": True, "content": _BODY}},
)
async def create(request: Request, context: WithContext) -> Plan:
    """Check the request as `POST /jobs` does, and further: do layers and mask fit the inspected model?"""
    wanted = await read_as(request, context.api, PlanRequest)
    found = await run_in_threadpool(
        lambda: context.service.plan(wanted.model, wanted.recipe, calibration=wanted.calibration, masks=wanted.masks)
    )
    return Plan.model_validate(found)
