"""The page from which a job is sent: files up, a form made from the algorithms' schemas, a look at the plan."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from pydantic import TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.auth import SCOPE
from api.documents import JobRequest
from api.pages_recipe import errors_of, labels_of, recipe_form, recipe_of
from api.pages_shown import PageRoute, form_of, go, show
from api.problems import invalid_request
from api.services import Context, WithContext, WithService
from api.sniff import formats
from api.uploads import receive
from jobs.errors import NotReady
from jobs.ids import UploadKind, is_id
from jobs.records import UploadView
from jobs.service import Service
from pruning_core.errors import InputError, PruningError
from pruning_core.recipe import RECOMMENDED

router = APIRouter(include_in_schema=False, route_class=PageRoute)

Role = Literal["model", "calibration", "validation", "masks"]
KINDS: dict[str, UploadKind] = {
    "model": "model",
    "calibration": "dataset",
    "validation": "dataset",
    "masks": "mask",
}
_MOST_SHOWN = 50
_Id = Annotated[str, Query(max_length=64)]


@router.get("/ui/new")
def new(
    request: Request,
    service: WithService,
    model: _Id = "",
    calibration: _Id = "",
    validation: _Id = "",
    masks: _Id = "",
) -> Response:
    """Show the form."""
    values = {"model": model, "calibration": calibration, "validation": validation, "masks": masks}
    return _form(request, service, {name: value for name, value in values.items() if value})


@router.post("/ui/uploads/{role}", operation_id="post_upload")
async def upload(request: Request, role: Role, context: WithContext) -> Response:
    """Take a file, and show the form with it chosen."""
    made = await receive(KINDS[role], request, Response(), context, filename=None, sha256=None)
    chosen = {name: request.query_params[name][:64] for name in KINDS if request.query_params.get(name)}
    return go("/ui/new?" + urlencode({**chosen, role: made.id}))


@router.post("/ui/jobs", operation_id="create_job")
async def create(request: Request, context: WithContext) -> Response:
    """Record the job and show it, or show the form again with what is wrong beside each field."""
    values = await form_of(request)
    return await run_in_threadpool(_create, request, context, values)


@router.post("/ui/plan", operation_id="create_plan", openapi_extra={SCOPE: "read"})
async def plan(request: Request, context: WithContext) -> Response:
    """Show the form again, with what the job would do."""
    values = await form_of(request)
    return await run_in_threadpool(_plan, request, context, values)


def _create(request: Request, context: Context, values: Mapping[str, str]) -> Response:
    try:
        body = _checked(values)
        view, _ = context.service.create_job(
            body.model,
            body.calibration,
            body.validation,
            body.recipe,
            dict(body.labels),
            values.get("once", "")[:255] or None,
            body.masks,
        )
    except PruningError as error:
        return _refused(request, context.service, values, error)
    return go(f"/ui/jobs/{view.id}")


def _plan(request: Request, context: Context, values: Mapping[str, str]) -> Response:
    try:
        body = _checked(values)
        found = context.service.plan(body.model, body.recipe, calibration=body.calibration, masks=body.masks)
    except NotReady as error:
        return _refused(request, context.service, values, error, advice="Wait a moment, then look again.")
    except PruningError as error:
        return _refused(request, context.service, values, error)
    return _form(request, context.service, values, plan=found)


def _checked(values: Mapping[str, str]) -> JobRequest:
    """Return what the form asks for, as `POST /jobs` would take it.

    Raises:
        InvalidRequest: A field is missing or unusable.
    """
    chosen = {role: values.get(role, "").strip() for role in KINDS}
    missing = [
        {"field": role, "problem": f"choose or upload {'a model' if role == 'model' else 'calibration data'}"}
        for role in ("model", "calibration")
        if not chosen[role]
    ]
    if missing:
        raise InputError("Something is missing.", errors=missing)
    document: dict[str, Any] = {
        **{role: id for role, id in chosen.items() if id},
        "recipe": recipe_of(values),
        "labels": labels_of(values),
    }
    try:
        return TypeAdapter(JobRequest).validate_python(document)
    except ValidationError as error:
        raise invalid_request(error.errors()) from None


def _refused(
    request: Request, service: Service, values: Mapping[str, str], error: PruningError, advice: str = ""
) -> Response:
    if error.status >= 500:
        raise error
    errors = errors_of(error, values)
    if advice:
        errors = {name: f"{text} {advice}" for name, text in errors.items()}
    return _form(request, service, values, errors=errors, status=error.status)


def _form(
    request: Request,
    service: Service,
    values: Mapping[str, str],
    *,
    errors: Mapping[str, str] | None = None,
    plan: Mapping[str, Any] | None = None,
    status: int = 200,
) -> Response:
    return show(
        request,
        "new.html",
        status=status,
        files={role: _files(service, kind, values.get(role, "")) for role, kind in KINDS.items()},
        formats={role: formats(kind) for role, kind in KINDS.items()},
        form=recipe_form(),
        recommended=RECOMMENDED,
        values=values,
        errors=errors or {},
        plan=plan,
        once=secrets.token_hex(16),
        chosen=urlencode({role: values[role] for role in KINDS if values.get(role)}),
    )


def _files(service: Service, kind: UploadKind, chosen: str) -> list[UploadView]:
    """Return the latest uploads that can be used, and the one that is chosen whatever it is."""
    found = service.list_uploads(kind, None, _MOST_SHOWN)[0]
    usable = [view for view in found if view.state != "rejected" or view.id == chosen]
    if is_id(kind, chosen) and all(view.id != chosen for view in usable):
        other = service.get_upload(chosen)
        usable += [other] if other is not None else []
    return usable
