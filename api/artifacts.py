"""Download what a job produced: streamed, resumable, verifiable."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated, Any, Literal, get_args

from fastapi import APIRouter, Header, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from api.digests import as_header
from api.errors import RangeNotSatisfiable
from api.filenames import derived, disposition
from api.problems import responses
from api.ranges import lists_etag, range_applies, wanted_span
from api.services import Context, JobId, WithContext
from api.transfers import fetch
from jobs.errors import NotFound, NotReady, Unavailable
from jobs.service import Service

Name = Literal["model", "masks", "report"]

router = APIRouter(tags=["results"])

_SUFFIX_OF_FORMAT = {"pt2": ".pt2", "safetensors": ".safetensors", "safetensors-zip": ".zip"}
_SUMMARY: dict[Name, str] = {
    "model": "Download the pruned model",
    "masks": "Download the masks",
    "report": "Download the report",
}
_DESCRIPTION: dict[Name, str] = {
    "model": "In the format in which the model came; masked weights are exact zeros.",
    "masks": "A safetensors file: for each pruned weight, by name, a boolean tensor of its shape; true = kept.",
    "report": "What was measured on the produced file: sparsity, quality beside dense and magnitude, size, latency.",
}
_MEDIA_TYPE: dict[Name, str] = {
    "model": "application/octet-stream",
    "masks": "application/octet-stream",
    "report": "application/json",
}


class Download(StreamingResponse):
    """A stream that lets go of the bucket at once when the client leaves."""

    async def stream_response(self, send: Send) -> None:
        """Send the body; close its source however this ends."""
        body = self.body_iterator
        async with aclosing(body):  # type: ignore[type-var]
            await super().stream_response(send)


async def send(job: str, name: Name, request: Request, context: Context) -> Response:
    """Answer a download, conditional or partial.

    Raises:
        NotFound: There is no such job.
        NotReady: It has not succeeded.
        RangeNotSatisfiable: No byte is in the wanted range.
    """
    service, headers = context.service, request.headers
    key, stored = await run_in_threadpool(service.artifact, job, name)
    if stored.sha256 is None:
        raise Unavailable("The bucket does not say the SHA-256 of this file.", advice="Tell the operator.")
    etag = f'"{stored.sha256}"'
    always = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Repr-Digest": as_header(stored.sha256),
    }
    if lists_etag(headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=always)
    span = wanted_span(headers.get("range"), stored.size) if range_applies(headers.get("if-range"), etag) else None
    always["Content-Disposition"] = disposition(await run_in_threadpool(_filename, service, job, name))
    if span is None:
        # Of what is sent (RFC 9530): with a part, that is not the file's digest.
        always |= {"Content-Length": str(stored.size), "Content-Digest": as_header(stored.sha256)}
    else:
        always["Content-Length"] = str(len(span))
        always["Content-Range"] = f"bytes {span.start}-{span.end}/{stored.size}"
    status = 200 if span is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=always, media_type=_MEDIA_TYPE[name])
    limits = (None, None) if span is None else (span.start, span.end)
    _, body = await run_in_threadpool(service.bucket.open, key, *limits)
    return Download(fetch(body, context.downloads), status, always, _MEDIA_TYPE[name])


def _filename(service: Service, job: str, name: Name) -> str:
    found = service.get_job(job)
    upload = service.get_upload(found.model) if found is not None else None
    given = upload.filename if upload is not None else None
    if name == "masks":
        return derived(given, "-masks", ".safetensors")
    if name == "report":
        return derived(given, "-report", ".json")
    format_ = str((upload.inspection or {}).get("format")) if upload is not None else ""
    return derived(given, "-pruned", None if given and "." in given else _SUFFIX_OF_FORMAT.get(format_))


_HEADERS = {
    "ETag": "The file's SHA-256 (hexadecimal), for If-None-Match and If-Range.",
    "Content-Digest": "RFC 9530, of a whole file.",
    "Repr-Digest": "RFC 9530, of the file, also with a part of it.",
    "Content-Disposition": "A name to save it under.",
    "Accept-Ranges": "bytes",
}


def _documented(name: Name) -> dict[int | str, dict[str, Any]]:
    headers = {header: {"description": text, "schema": {"type": "string"}} for header, text in _HEADERS.items()}
    content = {_MEDIA_TYPE[name]: {"schema": {"type": "string", "format": "binary"}}}
    if name == "report":
        content = {_MEDIA_TYPE[name]: {"schema": {"$ref": "#/components/schemas/Report"}}}
    return {
        200: {"description": "The file.", "headers": headers, "content": content},
        206: {"description": "The wanted range of it.", "headers": headers, "content": content},
        304: {"description": "The client has it already (If-None-Match)."},
        **responses(NotFound, NotReady, RangeNotSatisfiable, Unavailable),
    }


def _add(name: Name) -> None:
    @router.get(
        f"/jobs/{{id}}/{name}",
        summary=_SUMMARY[name],
        description=_DESCRIPTION[name],
        operation_id=f"download_{name}",
        response_class=Response,
        responses=_documented(name),
    )
    async def download(
        id: JobId,
        request: Request,
        context: WithContext,
        _range: Annotated[str | None, Header(alias="Range", description="One range, e.g. `bytes=1000-`.")] = None,
    ) -> Response:
        return await send(id, name, request, context)

    router.add_api_route(f"/jobs/{{id}}/{name}", download, methods=["HEAD"], include_in_schema=False)


for _name in get_args(Name):
    _add(_name)
