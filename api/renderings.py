"""A job's report in the forms that people read: rendered from the stored document at each request."""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

from starlette.responses import Response

import pages
from api.digests import as_header
from api.filenames import derived, disposition
from api.ranges import lists_etag
from jobs.service import Service
from pruning_core.report import Report

Form = Literal["application/json", "text/html", "text/markdown"]
#: In the order of preference: who does not care gets what was always there.
FORMS: tuple[Form, ...] = get_args(Form)
#: Nothing in a report loads or runs anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
#: A larger document is no report that a page could show.
_MOST_BYTES = 64 * 2**20
_SUFFIX = {"text/html": ".html", "text/markdown": ".md"}


def read_report(service: Service, job: str) -> Report:
    """Return a job's report.

    Raises:
        NotFound: There is no such job.
        NotReady: It has not succeeded.
        Unrenderable: The document is not one that can be shown.
    """
    stored = service.artifact(job, "report")
    if stored.size > _MOST_BYTES:
        raise pages.Unrenderable("This report is too long for a page.", advice="Ask for application/json.")
    _, body = service.bucket.open(stored.key)
    return pages.parse(b"".join(body))


def title_of(service: Service, job: str) -> str:
    """Return what a job's report is headed."""
    found = service.get_job(job)
    known = found.inputs.get("model") if found is not None else None
    return f"Pruning report: {known.filename}" if known is not None and known.filename else f"Pruning report: {job}"


def rendered(service: Service, job: str, form: Form, if_none_match: str | None) -> Response:
    """Answer with the report as HTML or Markdown; its ETag and digest are of just this form.

    Raises:
        NotFound: There is no such job.
        NotReady: It has not succeeded.
        Unrenderable: The document is not one that can be shown.
    """
    report, title = read_report(service, job), title_of(service, job)
    text = pages.report_html(report, title) if form == "text/html" else pages.markdown(report, title)
    body = text.encode("utf-8", "replace")
    digest = hashlib.sha256(body).hexdigest()
    headers = {
        "ETag": f'"{digest}"',
        "Cache-Control": "private, no-cache",
        "Vary": "Accept",
        "Accept-Ranges": "none",
        "Repr-Digest": as_header(digest),
    }
    if lists_etag(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    found = service.get_job(job)
    known = found.inputs.get("model") if found is not None else None
    name = derived(known.filename if known is not None else None, "-report", _SUFFIX[form])
    headers |= {
        "Content-Disposition": disposition(name).replace("attachment", "inline", 1),
        "Content-Digest": as_header(digest),
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }
    return Response(body, headers=headers, media_type=f"{form}; charset=utf-8")
