"""The JSON documents of requests and answers, with the examples that the OpenAPI document shows."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from jobs.records import JobView, UploadView
from jobs.states import JobState, UploadState
from jobs.submission import MAX_LABELS

T = TypeVar("T")
Document = dict[str, Any]

RECIPE_EXAMPLE: dict[str, Any] = {"select": {"algorithm": "chita", "sparsity": 0.9}}
MODEL_EXAMPLE, DATASET_EXAMPLE = "mdl_01JD3Z8Q9W3V6Y6T0B1C2D3E4F", "dst_01JD3Z9XB3M8R6N0QSWJ5T7K2P"
_JOB = "job_01JD3ZAF2T9C4H7V8E6G0Y1X5M"

LabelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
LabelValue = Annotated[str, StringConstraints(max_length=255)]


class Answer(BaseModel):
    """What the service says."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Page(Answer, Generic[T]):
    """Part of a list, newest first."""

    items: list[T]
    next_cursor: str | None = Field(description="For `?cursor=`; null on the last page.")


class Upload(Answer):
    """An uploaded model, dataset or mask."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": MODEL_EXAMPLE,
                    "state": "ready",
                    "filename": "resnet20.pt2",
                    "size": 1163264,
                    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "created_at": "2026-11-21T10:15:00.000Z",
                    "problem": None,
                    "inspection": {"format": "pt2", "parameters": 272474},
                    "links": {"self": f"/models/{MODEL_EXAMPLE}"},
                }
            ]
        }
    )

    id: str
    state: UploadState = Field(description="`inspecting`, then `ready` or `rejected`.")
    filename: str | None = Field(description="What the client called it.")
    size: int = Field(description="Bytes.")
    sha256: str = Field(description="Hexadecimal, of the bytes as they were stored.")
    created_at: datetime
    problem: Document | None = Field(description="A problem document, when rejected.")
    inspection: Document | None = Field(
        description="When ready: of a model format, parameters, layers, unprunable, inputs, batch; of a dataset "
        "format, arrays, samples, labels, and of pictures their classes; of a mask format, weights, masks (shape and "
        "kept weights of each)."
    )
    links: dict[str, str]


class JobRequest(BaseModel):
    """What to prune, on which data, how."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {"model": MODEL_EXAMPLE, "calibration": DATASET_EXAMPLE, "recipe": RECIPE_EXAMPLE},
                {
                    "model": MODEL_EXAMPLE,
                    "calibration": DATASET_EXAMPLE,
                    "validation": "dst_01JD3ZB6P4W2K9S1D8F3N7R5QH",
                    "recipe": {"select": {**RECIPE_EXAMPLE["select"], "layers": {"exclude": ["fc*"]}}, "seed": 7},
                    "labels": {"team": "vision"},
                },
            ]
        },
    )

    model: str = Field(description="Id of a model.")
    calibration: str = Field(description="Id of the dataset that the pruning looks at.")
    validation: str | None = Field(
        default=None, description="Id of a dataset to measure quality on; default: the calibration data."
    )
    masks: str | None = Field(
        default=None, description='Id of a mask, for a recipe with the pattern "mask" or with `refine` alone.'
    )
    recipe: Document = Field(description="How to prune; GET /algorithms has its schema.")
    labels: dict[LabelName, LabelValue] = Field(
        default={}, max_length=MAX_LABELS, description="Your own names and values, for `GET /jobs?label=name=value`."
    )


class Attempt(Answer):
    """One time that a worker took the job up."""

    number: int
    worker: str
    started_at: datetime
    released: str | None = Field(description="Why the worker gave it back; such an attempt is not counted.")
    problem: Document | None = Field(description="What was seen, if it ended without an outcome.")
    ended_at: datetime | None = Field(description="When it was released, or seen to have ended without an outcome.")


class Input(Answer):
    """What is known of an upload that a job uses, also when it was deleted."""

    filename: str | None
    size: int
    sha256: str


class Job(Answer):
    """A job."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": _JOB,
                    "state": "running",
                    "stage": "select",
                    "progress": 0.42,
                    "eta_seconds": 12.5,
                    "queue_position": None,
                    "attempt": 1,
                    "attempts": [],
                    "created_at": "2026-11-21T10:16:00.000Z",
                    "started_at": "2026-11-21T10:16:00.350Z",
                    "ended_at": None,
                    "model": MODEL_EXAMPLE,
                    "calibration": DATASET_EXAMPLE,
                    "validation": None,
                    "masks": None,
                    "inputs": {
                        "model": {
                            "filename": "resnet20.pt2",
                            "size": 1163264,
                            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                        }
                    },
                    "recipe": RECIPE_EXAMPLE,
                    "labels": {},
                    "error": None,
                    "result": None,
                    "links": {"self": f"/jobs/{_JOB}", "cancel": f"/jobs/{_JOB}/cancel"},
                }
            ]
        }
    )

    id: str
    state: JobState
    stage: str | None
    progress: float = Field(ge=0, le=1, description="Of the whole job.")
    eta_seconds: float | None
    queue_position: int | None = Field(description="1: next; only while queued.")
    attempt: int = Field(description="The running or last attempt; 0: none yet.")
    attempts: list[Attempt]
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    model: str
    calibration: str
    validation: str | None
    masks: str | None
    inputs: dict[str, Input] = Field(
        description="By field: what the uploads are. They may have been deleted since the job has ended; then the "
        "links to them lead nowhere, and this still says what the job worked on."
    )
    recipe: Document
    labels: dict[str, str]
    error: Document | None = Field(description="A problem document, when failed.")
    result: Document | None = Field(
        description="Summary of the report, when succeeded. `levels` has one entry for each model that was made: "
        "sparsity, quality, size, SHA-256, links."
    )
    links: dict[str, str] = Field(description="self; cancel while it can be; model, masks, report when succeeded.")


def page_of(items: list[T], next_cursor: str | None) -> Page[T]:
    """Return a page."""
    return Page(items=items, next_cursor=next_cursor)


#: What of an inspection may be long: as long as the file has layers, arrays or masks.
_LONG = ("layers", "unprunable", "arrays", "masks", "pictures")


def upload_of(view: UploadView, *, brief: bool = False) -> Upload:
    """Return an upload as the api shows it; ``brief``, for lists: without what may be long in its inspection."""
    shown = view.model_dump(exclude={"kind", "format_hint"})
    if brief and shown["inspection"] is not None:
        shown["inspection"] = {name: value for name, value in shown["inspection"].items() if name not in _LONG}
    return Upload(**shown, links={"self": f"/{view.kind}s/{view.id}"})


def job_of(view: JobView) -> Job:
    """Return a job as the api shows it; fencing tokens stay inside."""
    here = f"/jobs/{view.id}"
    links = {"self": here, "model_upload": f"/models/{view.model}"}
    if view.state in {"queued", "running"}:
        links["cancel"] = f"{here}/cancel"
    if view.state == "succeeded":
        links |= {name: f"{here}/{name}" for name in ("model", "masks", "compact", "report")}
    shown = view.model_dump(exclude={"attempts": {"__all__": {"token"}}})
    for level in (shown["result"] or {}).get("levels", ()):
        level["links"] = {name: f"{here}/{name}?sparsity={level['sparsity']}" for name in ("model", "masks", "compact")}
    return Job(**shown, links=links)
