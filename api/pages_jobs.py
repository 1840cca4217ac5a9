"""The pages of jobs: all of them, and one with all that is known of it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

import pages
from api.artifacts import send
from api.documents import job_of
from api.errors import InvalidRequest, NoSuchPath
from api.jobs import known_job, pair
from api.pages_shown import PageRoute, go, show
from api.renderings import read_report, rendered
from api.services import JobId, WithContext, WithService
from jobs.errors import Unavailable
from jobs.history import changes
from jobs.records import JobView
from jobs.states import ENDED
from pages.report import context as of_report
from pruning_core.report import Report

router = APIRouter(include_in_schema=False, route_class=PageRoute)

_LIMIT = 25
_STATES = ("queued", "running", "succeeded", "failed", "cancelled")


@router.get("/ui")
def listed(
    request: Request, service: WithService, cursor: str | None = None, state: str = "", label: str = ""
) -> Response:
    """Show the jobs, newest first."""
    if state not in {"", *_STATES}:
        raise InvalidRequest("There is no such state.", expected=list(_STATES), received=state[:80])
    views, following = service.list_jobs(cursor or None, _LIMIT, state=state or None, label=pair(label or None))
    chosen = {name: value for name, value in (("state", state), ("label", label)) if value}
    return show(
        request,
        "jobs.html",
        jobs=[_row(view) for view in views],
        states=_STATES,
        state=state,
        label=label,
        first="/ui?" + urlencode(chosen) if cursor else None,
        following="/ui?" + urlencode({**chosen, "cursor": following}) if following else None,
        moving=any(view.state not in ENDED for view in views),
    )


@router.get("/ui/jobs/{id}")
def one(request: Request, id: JobId, service: WithService) -> Response:
    """Show one job: where it stands, and when it has succeeded what came out."""
    view = known_job(id, service.get_job(id))
    report: Report | None = None
    if view.state == "succeeded":
        # Of an older version, or out of reach for a moment: the rest of the page stands without it.
        with suppress(pages.Unrenderable, Unavailable):
            report = read_report(service, id)
    values: dict[str, Any] = {} if report is None else of_report(report)
    return show(
        request, "job.html", job=job_of(view), row=_row(view), changes=changes(view), **{"report": None, **values}
    )


@router.post("/ui/jobs/{id}/cancel", operation_id="cancel_job")
def cancel(id: JobId, service: WithService) -> Response:
    """Cancel the job, and show it."""
    service.cancel_job(id)
    return go(f"/ui/jobs/{id}")


@router.get("/ui/jobs/{id}/report.json", operation_id="download_report")
async def report_json(request: Request, id: JobId, context: WithContext) -> Response:
    """Send the report as it is stored, also to a browser, which would rather have HTML."""
    return await send(id, "report", None, request, context, redirect=False)


@router.get("/ui/jobs/{id}/report.md", operation_id="download_report")
async def report_md(id: JobId, context: WithContext) -> Response:
    """Send the report as Markdown."""
    return await run_in_threadpool(rendered, context.service, id, "text/markdown", None)


@router.get("/ui/{rest:path}")
def unknown(rest: str) -> Response:
    """Say that there is no such page."""
    raise NoSuchPath("There is no such page.", received=f"/ui/{rest}"[:200], advice="The list of jobs is at /ui.")


def _row(view: JobView) -> dict[str, Any]:
    """Return what a list shows of a job."""
    select = view.recipe.get("select") or {}
    refine = view.recipe.get("refine") or {}
    model = view.inputs.get("model")
    begun, ended = view.started_at or view.created_at, view.ended_at
    return {
        "view": view,
        "file": model.filename if model is not None and model.filename else view.model,
        "algorithm": " + ".join(str(part["algorithm"]) for part in (select, refine) if part.get("algorithm"))
        or "default",
        "target": _target(select),
        "seconds": (ended - begun).total_seconds() if ended is not None else None,
    }


def _target(select: dict[str, Any]) -> str:
    """Return in a few words how sparse it is to become."""
    sparsity, pattern = select.get("sparsity"), select.get("pattern")
    if isinstance(sparsity, int | float):
        said = f"{100 * sparsity:g} %"
    elif isinstance(sparsity, list):
        said = ", ".join(f"{100 * level:g}" for level in sparsity) + " %"
    elif isinstance(sparsity, dict):
        said = "goal"
    else:
        said = ""
    if isinstance(pattern, dict):
        n, m = pattern.get("n"), pattern.get("m")
        short = {"n:m": f"{n}:{m}", "block": "x".join(map(str, pattern.get("shape") or ())), "mask": "mask"}
        pattern = short.get(str(pattern.get("type")))
    return f"{said} {pattern}".strip() if isinstance(pattern, str) and pattern != "unstructured" else said
