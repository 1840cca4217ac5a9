"""A browser's way to carry an API key: a cookie that no script reads and no other site sends.

It counts only where there is no ``Authorization`` header. A cookie goes along by itself, so what changes something
must also say that it comes from a page of this very origin.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from api.errors import ForeignOrigin

NAME = "pruning_key"


def token_in(headers: Headers) -> str:
    """Return the token in a request's cookie, or an empty text."""
    for header in headers.getlist("cookie"):
        for pair in header.split(";"):
            name, _, value = pair.strip().partition("=")
            if name == NAME:
                return value.strip()
    return ""


def check_origin(headers: Headers) -> None:
    """Refuse a change that comes with a cookie, unless the browser says that a page of this origin sent it.

    Raises:
        ForeignOrigin: It does not say so.
    """
    origin, host = headers.get("origin", ""), headers.get("host", "")
    from_here = origin.lower().partition("://")[2] == host.lower() if origin else False
    # Guard has refused origins that are not known already; here silence is refused too.
    if not from_here and headers.get("sec-fetch-site") != "same-origin":
        raise ForeignOrigin(
            "A key in a cookie changes something only from a page of this service.",
            expected=f"Origin: http://{host} or Sec-Fetch-Site: same-origin",
            received=headers.get("origin", headers.get("sec-fetch-site", ""))[:200],
            advice="Programs send the key as Authorization: Bearer.",
        )


def keep(response: Response, scope: Scope, token: str) -> None:
    """Let the browser keep a token until it is closed."""
    secure = scope.get("scheme") == "https"
    response.set_cookie(NAME, token, httponly=True, samesite="strict", secure=secure, path="/")


def forget(response: Response, scope: Scope) -> None:
    """Let the browser forget the token."""
    secure = scope.get("scheme") == "https"
    response.delete_cookie(NAME, httponly=True, samesite="strict", secure=secure, path="/")
