"""Who calls, and what they may do: API keys in ``Authorization: Bearer``, or for browsers in one cookie.

Not in the URL (URLs are logged), and in no header of our own: those are places that proxies know to keep out of logs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Never, TypeVar
from urllib.parse import quote

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import cookies
from api.errors import InsufficientScope, RateLimited, Unauthenticated
from api.problems import problem_response
from api.rates import Rate, Rates, peer_name
from api.settings import ApiSettings
from jobs.errors import Unavailable
from jobs.keys import TRUSTED_SECONDS, Key, Keys, includes
from jobs.keys import Scope as KeyScope
from jobs.tenants import DEFAULT
from pruning_core.errors import PruningError

if TYPE_CHECKING:
    from api.services import Context

T = TypeVar("T")
#: What anybody may call: it says nothing about anybody's items.
OPEN = frozenset(
    {
        *("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/ui/sign-in"),
        *(f"/ui/static/{name}" for name in ("report.css", "pages.css", "pages.js")),
    }
)
SIGN_IN = "/ui/sign-in"
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
#: In ``openapi_extra`` of a route: the scope it needs, where the method does not say it.
SCOPE = "x-scope"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """On whose behalf a request acts."""

    tenant: str
    scope: KeyScope
    key: str | None  # the id; None: this service knows no keys

    @property
    def name(self) -> str:
        """Who, for records."""
        return self.key or "anonymous"


ANYBODY = Caller(tenant=DEFAULT, scope="admin", key=None)


class Authenticate:
    """Finds out who calls, before anything of the body is read."""

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self.app = app
        self.settings = settings
        self._calls = Rate(per_second=settings.rate_per_second, burst=settings.rate_burst)
        self._failures = failures(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through as somebody, or answer 401; without keys everybody is the default tenant."""
        if scope["type"] != "http" or (self.settings.keys_required and scope["path"] in OPEN):
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        if not self.settings.keys_required:
            state["caller"] = ANYBODY
            await self.app(scope, receive, send)
            return
        context: Context = scope["app"].state.context
        try:
            token, key = await self._let_in(scope, context.keys, context.rates)
            verdict = await context.rates.take(f"key:{key.id}", self._calls)
            if not verdict.allowed:
                raise RateLimited(
                    "This key calls too often.",
                    expected=f"at most {self._calls.per_second:g} calls a second, {self._calls.burst} at once",
                    advice="Wait, or follow a job with GET /jobs/{id}/events instead of polling.",
                    retry_after=verdict.retry_after,
                )
        except PruningError as error:
            if isinstance(error, Unauthenticated) and scope["path"].split("/")[1:2] == ["ui"]:
                there = RedirectResponse(f"{SIGN_IN}?next={quote(scope['path'], safe='/')}", 303)
                await there(scope, receive, send)
                return
            await problem_response(error)(scope, receive, send)
            return
        state["caller"] = Caller(tenant=key.tenant, scope=key.scope, key=key.id)
        await self.app(scope, _while_valid(receive, context.keys, token), _with(send, verdict.headers()))

    async def _let_in(self, scope: Scope, keys: Keys, rates: Rates) -> tuple[str, Key]:
        """Return token and key of a request.

        A key that was good a moment ago comes in whatever its neighbours behind the same address do; anything else
        is looked at only while that address has not failed too often.
        """
        headers = Headers(scope=scope)
        given = headers.getlist("authorization")
        token = bearer_in(given[0]) if len(given) == 1 else ""
        if not given and (token := cookies.token_in(headers)) and not is_reading(scope["method"]):
            cookies.check_origin(headers)
        if token and (key := keys.remembered(token)) is not None:
            return token, key
        async with counted(scope, rates, self._failures):
            token = token or bearer(headers)
            return token, await opened(keys, token)


def failures(settings: ApiSettings) -> Rate:
    """Return how often one address may call without a valid key."""
    return Rate(per_second=settings.failures_per_minute / 60, burst=settings.failures_burst)


@asynccontextmanager
async def counted(scope: Scope, rates: Rates, limit: Rate) -> AsyncIterator[None]:
    """Count each `Unauthenticated` of the block against the caller's address.

    Raises:
        RateLimited: There were too many before; the block is not entered.
    """
    peer = f"peer:{peer_name((scope.get('client') or [None])[0])}"
    verdict = await rates.take(peer, limit, cost=0)
    if not verdict.allowed:
        raise RateLimited("Too many calls without a valid key came from your address.", retry_after=verdict.retry_after)
    try:
        yield
    except Unauthenticated:
        await rates.take(peer, limit)
        raise


async def opened(keys: Keys, token: str) -> Key:
    """Return the key that a token opens.

    Raises:
        Unauthenticated: It opens none.
    """
    key = await run_in_threadpool(keys.check, token)
    if key is None:
        raise Unauthenticated(
            "This key opens nothing: it is unknown, expired or revoked.",
            expected="a valid key",
            advice="Make a new one, or ask whoever administers this service.",
        )
    return key


def _with(send: Send, headers: dict[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": list(message.get("headers", ()))}
            MutableHeaders(scope=message).update(headers)
        await send(message)

    return sending


def _while_valid(receive: Receive, keys: Keys, token: str) -> Receive:
    """Return ``receive`` as of a client that hangs up when its key ends: long streams end with it."""
    due = time.monotonic() + TRUSTED_SECONDS

    async def receiving() -> Message:
        nonlocal due
        while True:
            try:
                async with asyncio.timeout_at(_loop_time(due)):
                    return await receive()
            except TimeoutError:
                if not await _holds(keys, token):
                    return {"type": "http.disconnect"}
                due = time.monotonic() + TRUSTED_SECONDS

    return receiving


async def _holds(keys: Keys, token: str) -> bool:
    try:
        return (keys.remembered(token) or await run_in_threadpool(keys.check, token)) is not None
    except Unavailable:
        return True  # an outage is no reason to cut what was allowed


def _loop_time(moment: float) -> float:
    return asyncio.get_running_loop().time() + max(moment - time.monotonic(), 0.0)


def bearer(headers: Headers) -> str:
    """Return the token that a request carries.

    Raises:
        Unauthenticated: There is none, or it is not said as RFC 6750 has it.
    """
    given = headers.getlist("authorization")
    token = bearer_in(given[0]) if len(given) == 1 else ""
    if not token:
        raise Unauthenticated(
            "This call needs an API key." if not given else "The Authorization header cannot be read.",
            expected="one header Authorization: Bearer prk_…",
            advice="An administrator makes keys: POST /keys, or `python -m cli.keys create` for the first.",
            challenged=not given,
        )
    return token


def bearer_in(header: str) -> str:
    """Return the token in one Authorization header, or an empty text."""
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def caller(request: Request) -> Caller:
    """Return who calls.

    Raises:
        Unauthenticated: Nobody was let in: a route asks that is open to all.
    """
    found: Caller | None = getattr(request.state, "caller", None)
    return found or _nobody()


def _nobody() -> Never:
    raise Unauthenticated("This call needs an API key.", expected="Authorization: Bearer prk_…", challenged=True)


def needed(route: object, method: str) -> KeyScope:
    """Return the scope that a call of this route needs: its ``x-scope``, or by its method."""
    extra = getattr(route, "openapi_extra", None) or {}
    scope: KeyScope = extra.get(SCOPE, scope_of(method))
    return scope


def scope_of(method: str) -> KeyScope:
    """Return the scope that a call of this method needs, unless its route says otherwise."""
    return "read" if is_reading(method) else "write"


def is_reading(method: str) -> bool:
    """Return whether calls of this method change nothing."""
    return method.upper() in _READING


def authorise(request: Request) -> None:
    """Refuse what the caller's key is not made for; every route of the app depends on this.

    Raises:
        InsufficientScope: The key's scope is too small.
    """
    if request.url.path in OPEN:
        return
    scope = needed(request.scope.get("route"), request.method)
    who = caller(request)
    if not includes(who.scope, scope):
        raise InsufficientScope(
            f"This call needs a key of scope {scope!r}; this one has {who.scope!r}.",
            expected=scope,
            received=who.scope,
            advice="An administrator of your tenant can make such a key: POST /keys.",
        )


def in_loop(dependency: Callable[[Request], T]) -> Callable[[Request], Awaitable[T]]:
    """Return a dependency that runs in the event loop. FastAPI gives a plain function a thread, which costs more."""

    async def run(request: Request) -> T:
        return dependency(request)

    return run


Authorised = Depends(in_loop(authorise))
#: ``openapi_extra`` of routes for administrators: of keys, of the audit log, of metrics.
ADMIN: dict[str, str] = {SCOPE: "admin"}
