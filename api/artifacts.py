"""Download what a job produced: streamed, resumable, verifiable."""

from __future__ import annotations

from contextlib import aclosing
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

import pages
from api.digests import as_header
from api.errors import InvalidRequest, NotAcceptable, RangeNotSatisfiable
from api.filenames import derived, disposition
from api.negotiation import preferred
from api.problems import responses
from api.ranges import lists_etag, range_applies, wanted_span
from api.renderings import FORMS, rendered
from api.services import Context, JobId, WithContext
from api.transfers import fetch
from jobs.artifacts import ArtifactName
from jobs.errors import LevelNeeded, NotFound, NotReady, Unavailable
from jobs.service import Service
from pruning_core.errors import PruningError

router = APIRouter(tags=["results"])

_SUFFIX_OF_FORMAT = {"pt2": ".pt2", "safetensors": ".safetensors", "safetensors-zip": ".zip"}
_SUMMARY: dict[ArtifactName, str] = {
    "model": "Download the pruned model",
    "masks": "Download the masks",
    "compact": "Download the pruned model in compact form",
    "report": "Download the report",
}
_DESCRIPTION: dict[ArtifactName, str] = {
    "model": "In the format in which the model came; masked weights are exact zeros. A job with a list of sparsities "
    "has several: `?sparsity=` says which.",
    "masks": "A safetensors file: for each pruned weight, by name, a boolean tensor of its shape; true = kept. A job "
    "with a list of sparsities has several: `?sparsity=` says which.",
    "compact": "The pruned model without its zeros, and under zstd: `python -m pruning_core.expand` makes every byte "
    "of the model again, and compares its SHA-256. A job with a list of sparsities has several: `?sparsity=` says "
    "which.",
    "report": "What was measured on the produced files, level by level: sparsity, quality beside dense and magnitude, "
    "size, latency. `Accept` says in which form: `application/json` (the stored document, and what comes without a "
    "wish), `text/html` (one self-contained file with plots, to be read, printed or attached) or `text/markdown`. "
    "Each form has its own ETag; ranges and `?redirect=true` are for JSON.",
}
_MEDIA_TYPE: dict[ArtifactName, str] = {
    "model": "application/octet-stream",
    "masks": "application/octet-stream",
    "compact": "application/octet-stream",
    "report": "application/json",
}


class Download(StreamingResponse):
    """A stream that lets go of the bucket at once when the client leaves."""

    async def stream_response(self, send: Send) -> None:
        """Send the body; close its source however this ends."""
        body = self.body_iterator
        async with aclosing(body):  # type: ignore[type-var]
            await super().stream_response(send)


async def send(
    job: str, name: ArtifactName, sparsity: float | None, request: Request, context: Context, *, redirect: bool
) -> Response:
    """Answer a download, conditional or partial, or say from where the bucket itself sends it.

    Raises:
        NotFound: There is no such job or level.
        LevelNeeded: There are several levels, and none was named.
        NotReady: It has not succeeded.
        RangeNotSatisfiable: No byte is in the wanted range.
    """
    service, headers = context.service, request.headers
    stored = await run_in_threadpool(service.artifact, job, name, sparsity)
    if stored.sha256 is None:
        raise Unavailable("The bucket does not say the SHA-256 of this file.", advice="Tell the operator.")
    if redirect:
        named = disposition(await run_in_threadpool(_filename, service, job, name, sparsity))
        url = service.multipart.download_url(
            stored.key,
            disposition=named,
            content_type=_MEDIA_TYPE[name],
            seconds=context.settings.presigned_seconds,
            head=request.method == "HEAD",
        )
        return Response(status_code=307, headers={"Location": url, "Cache-Control": "no-store"})
    etag = f'"{stored.sha256}"'
    varying = {"Vary": "Accept"} if name == "report" else {}
    always = varying | {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Repr-Digest": as_header(stored.sha256),
    }
    if lists_etag(headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=always)
    span = wanted_span(headers.get("range"), stored.size) if range_applies(headers.get("if-range"), etag) else None
    always["Content-Disposition"] = disposition(await run_in_threadpool(_filename, service, job, name, sparsity))
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
    _, body = await run_in_threadpool(service.bucket.open, stored.key, *limits)
    return Download(fetch(body, context.downloads), status, always, _MEDIA_TYPE[name])


def _filename(service: Service, job: str, name: ArtifactName, sparsity: float | None) -> str:
    found = service.get_job(job)
    known = found.inputs.get("model") if found is not None else None
    # The name is kept with the job: its model may have been deleted.
    named = known is not None and known.filename is not None and "." in known.filename
    upload = service.get_upload(found.model) if found is not None and not named else None
    given = known.filename if known is not None else upload.filename if upload is not None else None
    if name == "report":
        return derived(given, "-report", ".json")
    level = "" if sparsity is None else f"-{sparsity:.6g}"
    if name == "masks":
        return derived(given, f"-masks{level}", ".safetensors")
    if name == "compact":
        return derived(given, f"-pruned{level}", ".compact")
    format_ = str((upload.inspection or {}).get("format")) if upload is not None else ""
    return derived(given, f"-pruned{level}", None if given and "." in given else _SUFFIX_OF_FORMAT.get(format_))


_HEADERS = {
    "ETag": "The file's SHA-256 (hexadecimal), for If-None-Match and If-Range.",
    "Content-Digest": "RFC 9530, of a whole file.",
    "Repr-Digest": "RFC 9530, of the file, also with a part of it.",
    "Content-Disposition": "A name to save it under.",
    "Accept-Ranges": "bytes, or none where a form is made anew for each answer.",
}


def _documented(name: ArtifactName) -> dict[int | str, dict[str, Any]]:
    headers = {header: {"description": text, "schema": {"type": "string"}} for header, text in _HEADERS.items()}
    content = {_MEDIA_TYPE[name]: {"schema": {"type": "string", "format": "binary"}}}
    whole: dict[str, Any] = content
    errors: list[type[PruningError]] = [NotFound, NotReady, InvalidRequest]
    if name == "report":
        content = {_MEDIA_TYPE[name]: {"schema": {"$ref": "#/components/schemas/Report"}}}
        whole = content | {form: {"schema": {"type": "string"}} for form in FORMS[1:]}
        headers["Vary"] = {"description": "Accept", "schema": {"type": "string"}}
        errors += [NotAcceptable, pages.Unrenderable]
    else:
        errors.append(LevelNeeded)
    return {
        200: {"description": "The file.", "headers": headers, "content": whole},
        206: {"description": "The wanted range of it.", "headers": headers, "content": content},
        307: {
            "description": "With `?redirect=true`: a presigned URL of the bucket, which also answers ranges.",
            "headers": {"Location": {"description": "A secret, good for an hour.", "schema": {"type": "string"}}},
        },
        304: {"description": "The client has it already (If-None-Match)."},
        **responses(*errors, RangeNotSatisfiable, Unavailable),
    }


_Range = Annotated[str | None, Header(alias="Range", description="One range, e.g. `bytes=1000-`.")]
_Redirect = Annotated[
    bool,
    Query(description="Answer with a redirect (307) to the bucket: large files need not pass through the api."),
]
_Sparsity = Annotated[
    float | None,
    Query(ge=0, le=1, description="Which level, as the job's `result` names it; needed where there are several."),
]


def _add(name: ArtifactName) -> None:
    path = f"/jobs/{{id}}/{name}"
    described: dict[str, Any] = {
        "summary": _SUMMARY[name],
        "description": _DESCRIPTION[name],
        "operation_id": f"download_{name}",
        "response_class": Response,
        "responses": _documented(name),
    }

    async def of_level(
        id: JobId,
        request: Request,
        context: WithContext,
        sparsity: _Sparsity = None,
        redirect: _Redirect = False,
        _range: _Range = None,
    ) -> Response:
        return await send(id, name, sparsity, request, context, redirect=redirect)

    async def of_job(
        id: JobId, request: Request, context: WithContext, redirect: _Redirect = False, _range: _Range = None
    ) -> Response:
        form = preferred(request.headers.get("accept"), FORMS)
        if form is None:
            raise NotAcceptable(
                "The report does not come in this form.",
                expected=list(FORMS),
                received=request.headers.get("accept", "")[:200],
            )
        if form == "application/json":
            return await send(id, name, None, request, context, redirect=redirect)
        return await run_in_threadpool(rendered, context.service, id, form, request.headers.get("if-none-match"))

    download = of_job if name == "report" else of_level
    router.add_api_route(path, download, methods=["GET"], **described)
    router.add_api_route(path, download, methods=["HEAD"], include_in_schema=False)


for _name in get_args(ArtifactName):
    _add(_name)
