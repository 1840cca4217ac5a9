"""What all web pages share: how they are rendered, guarded and refused, and their few static files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any
from urllib.parse import parse_qs

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.responses import HTMLResponse, RedirectResponse, Response

from api.auth import Caller
from api.bodies import check_declared_size, chunks
from api.errors import MalformedRequest
from api.openapi import version
from api.problems import invalid_request, problem_response
from api.ranges import lists_etag
from jobs.keys import includes
from pages.report import STATIC, environment
from pruning_core.errors import PruningError

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    # Not "no-referrer": then browsers say "Origin: null" for our own forms.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "private, no-store",
}
_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript"}
_MOST_FIELDS = 2000


class PageRoute(APIRoute):
    """A route that tells its problems as a page, with the same status."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler."""
        answer = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await answer(request)
            except PruningError as error:
                return problem_page(request, error)
            except RequestValidationError as error:
                return problem_page(request, invalid_request(error.errors()))

        return handled


def show(request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
    """Return a page.

    Args:
        request: Who asks decides what the frame of the page offers.
        template: Its name.
        status: Of the answer.
        values: For the template.
    """
    caller: Caller | None = getattr(request.state, "caller", None)
    frame = {
        "signed_in": caller is not None and caller.key is not None,
        "may_change": caller is not None and includes(caller.scope, "write"),
        "version": version(),
    }
    text = environment().get_template(template).render(**frame, **values)
    return HTMLResponse(text.encode("utf-8", "replace"), status_code=status, headers=_HEADERS)


def problem_page(request: Request, error: PruningError) -> Response:
    """Return a problem as a page, with the headers that its document would have."""
    plain = problem_response(error)
    shown = show(request, "problem.html", status=error.status, problem=error.problem())
    for name in ("retry-after", "www-authenticate"):
        if name in plain.headers:
            shown.headers[name] = plain.headers[name]
    return shown


def go(path: str) -> Response:
    """Send the browser to another page, to be fetched with GET."""
    return RedirectResponse(path, 303, headers={"Cache-Control": "no-store"})


async def form_of(request: Request, most: int = 2**18) -> dict[str, str]:
    """Return the fields of a posted form; of a field that comes twice the last.

    Raises:
        MalformedRequest: It is not one that a page of ours would send.
        TooLarge: It is longer than ``most`` bytes.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/x-www-form-urlencoded":
        raise MalformedRequest(
            "This is not a form.", expected="application/x-www-form-urlencoded", received=content_type[:100]
        )
    check_declared_size(request, most)
    body = b"".join([chunk async for chunk in chunks(request, limit=most, idle_seconds=20)])
    try:
        fields = parse_qs(body.decode("utf-8"), keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict")
    except ValueError:
        raise MalformedRequest("The form cannot be read.", expected="UTF-8, few fields") from None
    return {name: values[-1] for name, values in fields.items()}


@cache
def _static(name: str) -> tuple[bytes, str]:
    data = (STATIC / name).read_bytes()
    return data, f'"{hashlib.sha256(data).hexdigest()}"'


def static(request: Request, name: str) -> Response:
    """Return a file of the pages: style or script."""
    data, etag = _static(name)
    headers = {"ETag": etag, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
    if lists_etag(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    return Response(data, headers=headers, media_type=_MEDIA_TYPES[name[name.rindex(".") :]])
