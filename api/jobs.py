"""Jobs: create, look at, list, cancel."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from api import waiting
from api.documents import Job, JobRequest, Page, job_of, page_of
from api.errors import InvalidRequest, MalformedRequest, UnsupportedContentType
from api.json_bodies import read_as
from api.problems import responses
from api.services import JobId, WithContext, WithService
from jobs.errors import Conflict, NotFound, QuotaExceeded, RejectedUpload, StorageFull, TooLarge, Unavailable
from jobs.records import JobView
from jobs.states import JobState
from pruning_core.errors import RecipeError

router = APIRouter(prefix="/jobs", tags=["jobs"])

Prefer = Annotated[str | None, Header(description=waiting.HEADER_DOC, examples=["wait=30"])]
_LOCATION = {"Location": {"description": "/jobs/<id>", "schema": {"type": "string"}}}
_BODY = {"application/json": {"schema": {"$ref": "#/components/schemas/JobRequest"}}}


@router.post(
    "",
    summary="Prune a model",
    description="Queues a job. With an `Idempotency-Key` the same request may be sent again after any network error: "
    "the first makes the job (202), each further one answers 200 with the same job as it is by then; the same key with "
    "another body is refused (409). Files that were sent again in between are the same: of an upload only the bytes "
    "count. A model or dataset may still be `inspecting`; if it is rejected later, the job "
    "fails with that problem.",
    operation_id="create_job",
    status_code=202,
    response_model=Job,
    responses={
        200: {"model": Job, "description": "This key made this job before.", "headers": _LOCATION | waiting.APPLIED},
        202: {"description": "The job is recorded and queued.", "headers": _LOCATION | waiting.APPLIED},
        **responses(
            *(MalformedRequest, NotFound, Conflict, TooLarge, UnsupportedContentType),
            *(InvalidRequest, RecipeError, RejectedUpload, QuotaExceeded, StorageFull, Unavailable),
        ),
    },
    openapi_extra={"requestBody": {"required": True, "content": _BODY}},
)
async def create(
    request: Request,
    response: Response,
    context: WithContext,
    idempotency_key: Annotated[
        str | None, Header(min_length=1, max_length=255, description="Any text that is new for each new job.")
    ] = None,
    prefer: Prefer = None,
) -> Job:
    """Check the request as far as ids and schema go, and record the job."""
    del prefer
    wanted = await read_as(request, context.api, JobRequest)
    view, created = await run_in_threadpool(
        context.service.create_job,
        wanted.model,
        wanted.calibration,
        wanted.validation,
        wanted.recipe,
        dict(wanted.labels),
        idempotency_key,
        wanted.masks,
    )
    response.status_code = 202 if created else 200
    response.headers["Location"] = f"/jobs/{view.id}"
    read = partial(context.service.get_job, view.id)
    return job_of(await waiting.as_preferred(request, response, context, view, read))


@router.get(
    "",
    summary="List jobs, newest first",
    description="A page of a filtered list may be shorter than `limit`, even empty; go on while there is a "
    "`next_cursor`.",
    operation_id="list_jobs",
    response_model=Page[Job],
    responses=responses(InvalidRequest, Unavailable),
)
def listed(
    service: WithService,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    label: Annotated[
        str | None, Query(description="Only jobs with this label: `name=value`.", examples=["team=vision"])
    ] = None,
) -> Page[Job]:
    """Return a page of jobs."""
    views, following = service.list_jobs(cursor, limit, state=state, label=pair(label))
    return page_of([job_of(view) for view in views], following)


@router.get(
    "/{id}",
    summary="Look at a job",
    description="With `Prefer: wait=N` the answer comes when the job has ended, or after N seconds.",
    operation_id="get_job",
    response_model=Job,
    responses={
        200: {"description": "The job as it is now.", "headers": waiting.APPLIED},
        **responses(NotFound, Unavailable),
    },
)
async def get(id: JobId, context: WithContext, request: Request, response: Response, prefer: Prefer = None) -> Job:
    """Return the job as it is now, or when it has ended."""
    del prefer  # described above; there may be several, so it is read from the request
    read = partial(context.service.get_job, id)
    view = known_job(id, await run_in_threadpool(read))
    response.headers["Cache-Control"] = "no-store"
    return job_of(await waiting.as_preferred(request, response, context, view, read))


@router.delete(
    "/{id}",
    summary="Delete a job that has ended",
    description="With all that it made: models, masks, report. Its `Idempotency-Key` is forgotten too, so that the "
    "same request makes a new job. What quotas count, and the audit log, keep its id. One that has not ended is "
    "refused (409): cancel it first.",
    operation_id="delete_job",
    status_code=204,
    responses=responses(NotFound, Conflict, Unavailable),
)
def delete(id: JobId, service: WithService) -> None:
    """Delete the job."""
    service.delete_job(id)


@router.post(
    "/{id}/cancel",
    summary="Cancel a job",
    description="A queued job is cancelled when this answers, a running one within seconds. Cancelling again changes "
    "nothing; a job that has succeeded or failed cannot be cancelled (409).",
    operation_id="cancel_job",
    status_code=202,
    response_model=Job,
    responses=responses(NotFound, Conflict, Unavailable),
)
def cancel(id: JobId, service: WithService) -> Job:
    """Cancel the job."""
    return job_of(service.cancel_job(id))


def known_job(id: str, view: JobView | None) -> JobView:
    """Return the job.

    Raises:
        NotFound: There is none.
    """
    if view is None:
        raise NotFound(
            "There is no job of this id.",
            expected="an id that POST /jobs gave",
            received=id[:64],
            advice="GET /jobs lists them.",
        )
    return view


def pair(label: str | None) -> tuple[str, str] | None:
    """Return the label that `?label=` looks for.

    Raises:
        InvalidRequest: It is none.
    """
    if label is None:
        return None
    name, separator, value = label.partition("=")
    if not separator or not name:
        raise InvalidRequest(
            "The label to look for cannot be read.", expected="?label=name=value", received=label[:200]
        )
    return name, value
