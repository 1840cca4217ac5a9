"""Models, datasets and masks: stream in, list, look at, delete. One set of calls for all kinds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api import digests
from api.bodies import FormFile, blocks, check_declared_size, chunks, form_limit
from api.documents import Page, Upload, page_of, upload_of
from api.errors import EmptyBody, InvalidRequest, MalformedRequest, UnsupportedContentType, UploadStalled
from api.filenames import clean
from api.problems import responses
from api.services import Context, WithContext, WithService
from api.sniff import SNIFFED_BYTES, describe, sniff
from api.transfers import store
from jobs.errors import Conflict, DigestMismatch, NotFound, StorageFull, TooLarge, Unavailable, UnsupportedMedia
from jobs.ids import UPLOAD_KINDS, UploadKind, is_id

_EXAMPLE: dict[UploadKind, str] = {
    "model": "mdl_01JD3Z8Q9W3V6Y6T0B1C2D3E4F",
    "dataset": "dst_01JD3Z8Q9W3V6Y6T0B1C2D3E4F",
    "mask": "msk_01JD3Z8Q9W3V6Y6T0B1C2D3E4F",
}

_HEX = {"pattern": "^[0-9a-fA-F]{64}$"}
Sha256 = Annotated[
    str | None,
    Query(
        description="SHA-256 of the file (hexadecimal); if it does not match, nothing is stored. "
        "The header Content-Digest (RFC 9530) does the same for the body as sent.",
        json_schema_extra=_HEX,
    ),
]
UploadId = Annotated[str, Path(description="Id of the upload.", examples=list(_EXAMPLE.values()))]
Filename = Annotated[str | None, Query(description="What the file is called; downloads are named after it.")]


def router(kind: UploadKind) -> APIRouter:
    """Return the calls for one kind of upload."""
    plural = f"{kind}s"
    routes = APIRouter(prefix=f"/{plural}", tags=[plural])
    storing: dict[str, Any] = {
        "status_code": 201,
        "response_model": Upload,
        "responses": {
            201: {"headers": {"Location": {"description": f"/{plural}/<id>", "schema": {"type": "string"}}}},
            **responses(
                *(MalformedRequest, UploadStalled, TooLarge, UnsupportedMedia, UnsupportedContentType),
                *(DigestMismatch, EmptyBody, InvalidRequest, StorageFull, Unavailable),
            ),
        },
    }
    raw = {"application/octet-stream": {"schema": describe(kind)}}
    form = {
        "multipart/form-data": {
            "schema": {"type": "object", "required": ["file"], "properties": {"file": describe(kind)}}
        }
    }

    @routes.put(
        "",
        summary=f"Upload a {kind} (curl -T FILE …/{plural})",
        operation_id=f"put_{kind}",
        openapi_extra={"requestBody": {"required": True, "content": raw}},
        **storing,
    )
    async def put(
        request: Request, response: Response, context: WithContext, filename: Filename = None, sha256: Sha256 = None
    ) -> Upload:
        return await receive(kind, request, response, context, filename=filename, sha256=sha256)

    @routes.post(
        "",
        summary=f"Upload a {kind}, raw or as a form (curl -F file=@FILE …/{plural})",
        operation_id=f"post_{kind}",
        openapi_extra={"requestBody": {"required": True, "content": raw | form}},
        **storing,
    )
    async def post(
        request: Request, response: Response, context: WithContext, filename: Filename = None, sha256: Sha256 = None
    ) -> Upload:
        return await receive(kind, request, response, context, filename=filename, sha256=sha256)

    # One parameter name for both: OpenAPI takes /models/{id} and /models/{filename} for the same path.
    @routes.put(
        "/{id}",
        summary=f"Upload a {kind} under a file name (curl -T FILE …/{plural}/)",
        operation_id=f"put_{kind}_named",
        openapi_extra={"requestBody": {"required": True, "content": raw}},
        **storing,
    )
    async def put_named(
        id: Annotated[str, Path(description="Here: what the file is called. The id is the service's to give.")],
        request: Request,
        response: Response,
        context: WithContext,
        sha256: Sha256 = None,
    ) -> Upload:
        return await receive(kind, request, response, context, filename=id, sha256=sha256)

    @routes.get(
        "",
        summary=f"List {plural}, newest first",
        description="Without the layers, arrays and masks of each `inspection`: they stand in the answer for one.",
        operation_id=f"list_{plural}",
        response_model=Page[Upload],
        responses=responses(InvalidRequest, Unavailable),
    )
    def listed(
        service: WithService,
        cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        sha256: Annotated[str | None, Query(description="Only with these bytes.", json_schema_extra=_HEX)] = None,
    ) -> Page[Upload]:
        views, following = service.list_uploads(kind, cursor, limit, sha256=digests.from_query(sha256))
        return page_of([upload_of(view, brief=True) for view in views], following)

    @routes.get(
        "/{id}",
        summary=f"Look at a {kind}",
        description="`state` is `inspecting` until a worker has opened the file, then `ready` or `rejected`.",
        operation_id=f"get_{kind}",
        response_model=Upload,
        responses=responses(NotFound, Unavailable),
    )
    def get(id: UploadId, service: WithService) -> Upload:
        view = service.get_upload(id) if is_id(kind, id) else None
        if view is None:
            raise _no_such(kind, id)
        return upload_of(view)

    @routes.delete(
        "/{id}",
        summary=f"Delete a {kind}",
        operation_id=f"delete_{kind}",
        status_code=204,
        responses=responses(NotFound, Conflict, Unavailable),
    )
    def delete(id: UploadId, service: WithService) -> None:
        if not is_id(kind, id):
            raise _no_such(kind, id)
        service.delete_upload(id)

    return routes


async def receive(
    kind: UploadKind,
    request: Request,
    response: Response,
    context: Context,
    *,
    filename: str | None,
    sha256: str | None,
) -> Upload:
    """Stream the request's body into the bucket.

    Raises:
        PruningError: It is empty, too large, of no known format, cut, stalled, or not what its digest says; then
            nothing is stored.
    """
    _check_encoding(request)
    limit = context.settings.max_upload_bytes
    expected, announced = digests.from_query(sha256), digests.from_header(request.headers.get("content-digest"))
    content_type = request.headers.get("content-type", "")
    form: FormFile | None = None
    if content_type.partition(";")[0].strip().lower() == "multipart/form-data":
        form = FormFile(content_type, limit=limit, body_sha256=announced)
        limit = form_limit(limit)
    elif announced is not None:
        if expected not in {None, announced}:
            raise InvalidRequest("Content-Digest and ?sha256= differ.", expected=expected, received=announced)
        expected = announced
    check_declared_size(request, limit)
    declared = request.headers.get("content-length", "")
    await run_in_threadpool(context.service.expect_upload, int(declared) if declared.isdecimal() and not form else 0)
    body: AsyncIterator[bytes] = chunks(request, limit=limit, idle_seconds=context.api.idle_seconds)
    body = blocks(form.stream(body) if form is not None else body)
    first = await _head(body)
    format_hint = sniff(kind, first[:SNIFFED_BYTES])
    name = clean(form.filename if form is not None and form.filename else filename)
    async with context.shares.of(context.service.tenant):
        view = await store(
            _whole(first, body),
            lambda stream: context.service.create_upload(
                kind, stream, filename=name, format_hint=format_hint, expected_sha256=expected
            ),
            context.uploads,
        )
    response.headers["Location"] = f"/{kind}s/{view.id}"
    return upload_of(view)


def _check_encoding(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedContentType(
            "Bodies are stored as they come; an encoded one is not decoded.",
            expected="no Content-Encoding",
            received=encoding[:100],
        )


async def _head(body: AsyncIterator[bytes]) -> bytes:
    first = await anext(body, b"")
    if not first:
        raise EmptyBody("The file is empty.", expected="the bytes of a file", received="0 bytes")
    return first


async def _whole(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for block in rest:
        yield block


def _no_such(kind: UploadKind, id: str) -> NotFound:
    return NotFound(
        f"There is no {kind} of this id.",
        expected=f"an id like {_EXAMPLE[kind]}",
        received=id[:64],
        advice=f"GET /{kind}s lists them.",
    )


def routers() -> list[APIRouter]:
    """Return the calls for each kind of upload."""
    return [router(kind) for kind in UPLOAD_KINDS]
