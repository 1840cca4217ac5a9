"""The way in for people where the service requires keys, the way out, and the pages' static files."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api import cookies
from api.auth import OPEN, SCOPE, SIGN_IN, counted, failures, opened
from api.errors import RateLimited, Unauthenticated
from api.pages_shown import PageRoute, form_of, go, show, static
from api.services import Context

router = APIRouter(include_in_schema=False, route_class=PageRoute)

_STATIC = "/ui/static/"
_MOST_BYTES = 4096
Next = Annotated[str, Query(alias="next")]


@router.get(SIGN_IN)
def form(request: Request, following: Next = "/ui") -> Response:
    """Show the form; where no keys are needed, there is nothing to do here."""
    context: Context = request.app.state.context
    if not context.api.keys_required:
        return go("/ui")
    return show(request, "sign-in.html", following=_ours(following), problem=None)


@router.post(SIGN_IN)
async def sign_in(request: Request) -> Response:
    """Take a key, and let the browser keep it if it opens anything."""
    context: Context = request.app.state.context
    if not context.api.keys_required:
        return go("/ui")
    fields = await form_of(request, _MOST_BYTES)
    following, token = _ours(fields.get("next", "")), fields.get("key", "").strip()
    try:
        async with counted(request.scope, context.rates, failures(context.api)):
            await opened(context.keys, token)
    except (Unauthenticated, RateLimited) as error:
        shown = show(request, "sign-in.html", status=error.status, following=following, problem=error.problem())
        if isinstance(error, RateLimited):
            shown.headers["Retry-After"] = str(error.extensions["retry_after"])
        return shown
    answer = go(following)
    cookies.keep(answer, request.scope, token)
    return answer


@router.post("/ui/sign-out", openapi_extra={SCOPE: "read"})
def sign_out(request: Request) -> Response:
    """Let the browser forget the key."""
    answer = go(SIGN_IN)
    cookies.forget(answer, request.scope)
    return answer


def _ours(path: str) -> str:
    """Return a path to go on to, if it is one of ours."""
    plain = path.startswith(("/ui/", "/ui?")) and path.isascii() and path.isprintable() and "\\" not in path
    return path if plain and "//" not in path else "/ui"


def _serve(path: str) -> None:
    name = path.removeprefix(_STATIC)

    def file(request: Request) -> Response:
        return static(request, name)

    router.add_api_route(path, file, methods=["GET"], name=f"static_{name}")


for _path in sorted(OPEN):
    if _path.startswith(_STATIC):
        _serve(_path)
