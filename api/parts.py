"""Uploads in parts, sent straight to the bucket by presigned URLs: begin, get URLs, look, complete, abort."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.concurrency import run_in_threadpool

from api.documents import MODEL_EXAMPLE, Answer, Upload, upload_of
from api.errors import InvalidRequest, MalformedRequest, UnsupportedContentType
from api.filenames import clean
from api.json_bodies import read_as, validated
from api.problems import responses
from api.services import Context, WithContext, WithService
from jobs.errors import (
    Conflict,
    IncompleteUpload,
    NotFound,
    QuotaExceeded,
    StorageFull,
    TooLarge,
    Unavailable,
)
from jobs.ids import UploadKind
from jobs.records import SessionView
from jobs.sessions import MAX_URLS
from pruning_core.errors import InputError

router = APIRouter(prefix="/uploads", tags=["uploads"])

M = TypeVar("M", bound=BaseModel)
_DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")]
UploadId = Annotated[str, Path(description="Id of an upload in parts.", examples=[MODEL_EXAMPLE])]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PartsRequest(_Body):
    """A file that is to be sent in parts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"kind": "model", "filename": "llama.pt2", "size": 5368709120, "sha256": _DIGEST}]
        }
    )

    kind: UploadKind
    filename: Annotated[str, StringConstraints(max_length=255)] | None = Field(
        default=None, description="Downloads are named after it."
    )
    size: int = Field(ge=1, description="Bytes of the whole file.")
    sha256: Sha256 | None = Field(
        default=None, description="Of the whole file (hexadecimal); without it, it is needed to complete."
    )
    part_size: int | None = Field(
        default=None, ge=1, description="Bytes of all parts but the last, 5 MiB to 5 GiB; chosen here if left out."
    )


class UrlsRequest(_Body):
    """Which parts to send."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"parts": [1, 2]}, {}]})

    parts: list[int] | None = Field(
        default=None, max_length=MAX_URLS, description=f"Numbers; default: the first {MAX_URLS} that are missing."
    )


class CompleteRequest(_Body):
    """That the parts are sent."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"sha256": _DIGEST}, {}]})

    sha256: Sha256 | None = Field(default=None, description="Of the whole file, if it was not said at the beginning.")


class Parts(Answer):
    """An upload in parts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": MODEL_EXAMPLE,
                    "kind": "model",
                    "state": "open",
                    "filename": "llama.pt2",
                    "size": 5368709120,
                    "sha256": _DIGEST,
                    "part_size": 16777216,
                    "parts": 320,
                    "received": [1, 2, 3],
                    "created_at": "2026-11-21T10:15:00.000Z",
                    "expires_at": "2026-11-28T10:15:00.000Z",
                    "links": {
                        "self": f"/uploads/{MODEL_EXAMPLE}",
                        "urls": f"/uploads/{MODEL_EXAMPLE}/urls",
                        "complete": f"/uploads/{MODEL_EXAMPLE}/complete",
                        "upload": f"/models/{MODEL_EXAMPLE}",
                    },
                }
            ]
        }
    )

    id: str = Field(description="Also of the model, dataset or mask that it becomes.")
    kind: UploadKind
    state: Literal["open", "complete"]
    filename: str | None
    size: int
    sha256: str | None
    part_size: int = Field(description="Bytes of all parts but the last.")
    parts: int = Field(description="How many there are; the first has the number 1.")
    received: list[int] = Field(description="Numbers of the parts that the store has.")
    created_at: datetime
    expires_at: datetime | None = Field(description="What is not complete by then is thrown away; null when complete.")
    links: dict[str, str] = Field(description="`upload` is there when it is complete.")


class PartUrl(Answer):
    """Where to PUT a part."""

    number: int
    size: int = Field(description="Bytes; the store may refuse any other number.")
    url: str = Field(description="A secret: whoever has it may send the part. PUT the bytes, with no other headers.")


class PartUrls(Answer):
    """Where to PUT parts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "parts": [
                        {
                            "number": 1,
                            "size": 16777216,
                            "url": "https://s3.example/pruning/blobs/…?partNumber=1&X-Amz-Signature=…",
                        }
                    ],
                    "expires_at": "2026-11-21T11:15:00.000Z",
                }
            ]
        }
    )

    parts: list[PartUrl]
    expires_at: datetime = Field(description="Of the URLs; ask for new ones then.")


def _accepting(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


_BODY_ERRORS = (MalformedRequest, TooLarge, UnsupportedContentType, InvalidRequest)


@router.post(
    "",
    summary="Begin an upload in parts",
    description="For large files: the parts go straight to the bucket, several at a time if you like, and only those "
    "that broke off are sent again. Then: `POST /uploads/{id}/urls`, PUT each part to its URL, "
    "`POST /uploads/{id}/complete`.",
    operation_id="begin_parts",
    status_code=201,
    response_model=Parts,
    responses={
        201: {"headers": {"Location": {"description": "/uploads/<id>", "schema": {"type": "string"}}}},
        **responses(*_BODY_ERRORS, InputError, QuotaExceeded, StorageFull, Unavailable),
    },
    openapi_extra=_accepting(PartsRequest),
)
async def begin(request: Request, response: Response, context: WithContext) -> Parts:
    """Agree on an upload in parts."""
    wanted = await _read(request, context, PartsRequest)
    view = await run_in_threadpool(
        context.service.parts.create,
        wanted.kind,
        filename=clean(wanted.filename),
        size=wanted.size,
        sha256=wanted.sha256,
        part_size=wanted.part_size,
    )
    response.headers["Location"] = f"/uploads/{view.id}"
    return _shown(view)


@router.get(
    "/{id}",
    summary="Look at an upload in parts",
    description="`received` says which parts the store has: after any break, send the others.",
    operation_id="get_parts",
    response_model=Parts,
    responses=responses(NotFound, Unavailable),
)
def get(id: UploadId, service: WithService, response: Response) -> Parts:
    """Return how far it is."""
    view = service.parts.get(id)
    if view is None:
        raise NotFound("There is no open upload of this id.", received=id[:64], advice="POST /uploads begins one.")
    response.headers["Cache-Control"] = "no-store"
    return _shown(view)


@router.post(
    "/{id}/urls",
    summary="Get URLs to send parts to",
    description="Signed anew with each call, so an upload can go on after hours. A part may be sent again; the last "
    "one counts.",
    operation_id="sign_parts",
    response_model=PartUrls,
    responses=responses(*_BODY_ERRORS, InputError, NotFound, Unavailable),
    openapi_extra=_accepting(UrlsRequest, required=False),
)
async def urls(id: UploadId, request: Request, response: Response, context: WithContext) -> PartUrls:
    """Sign URLs."""
    wanted = await _read(request, context, UrlsRequest)
    signed, until = await run_in_threadpool(context.service.parts.urls, id, wanted.parts)
    response.headers["Cache-Control"] = "no-store"
    return PartUrls(parts=[PartUrl(**part.model_dump()) for part in signed], expires_at=until)


@router.post(
    "/{id}/complete",
    summary="Complete an upload in parts",
    description="Answers with the model, dataset or mask, `inspecting`: a worker compares the bytes with the announced "
    "SHA-256, which nobody has seen on their way; if they differ it is `rejected` (`digest-mismatch`) and they are "
    "thrown away. Calling this again changes nothing and answers the same.",
    operation_id="complete_parts",
    response_model=Upload,
    responses={
        200: {"headers": {"Location": {"description": "/<kind>s/<id>", "schema": {"type": "string"}}}},
        **responses(*_BODY_ERRORS, InputError, NotFound, Conflict, IncompleteUpload),
        **responses(QuotaExceeded, StorageFull, Unavailable),
    },
    openapi_extra=_accepting(CompleteRequest, required=False),
)
async def complete(id: UploadId, request: Request, response: Response, context: WithContext) -> Upload:
    """Make an upload of the parts."""
    wanted = await _read(request, context, CompleteRequest)
    view = await run_in_threadpool(context.service.parts.complete, id, wanted.sha256)
    response.headers["Location"] = f"/{view.kind}s/{view.id}"
    return upload_of(view)


@router.delete(
    "/{id}",
    summary="Abort an upload in parts",
    description="Throws away what was sent. One that is complete is deleted as what it became.",
    operation_id="abort_parts",
    status_code=204,
    responses=responses(NotFound, Conflict, Unavailable),
)
def abort(id: UploadId, service: WithService) -> None:
    """Abort it."""
    service.parts.abort(id)


async def _read(request: Request, context: Context, model: type[M]) -> M:
    empty = request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers
    return validated({}, model) if empty else await read_as(request, context.api, model)


def _shown(view: SessionView) -> Parts:
    here = f"/uploads/{view.id}"
    links = {"self": here}
    if view.state == "open":
        links |= {"urls": f"{here}/urls", "complete": f"{here}/complete"}
    else:
        links["upload"] = f"/{view.kind}s/{view.id}"
    return Parts(**{**view.model_dump(), "received": list(view.received)}, links=links)
