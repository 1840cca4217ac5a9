"""When a request is sent again: the same for every call, because every call of this client may be repeated safely."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from client.effects import Answer, Open, Operation, Request, Send, Sleep
from client.errors import Unreachable, problem_of

#: The service, or what stands before it, could not just now.
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
#: A defect of the request: no repetition helps.
_HOPELESS = (httpx.UnsupportedProtocol, httpx.LocalProtocolError)


def _silent(_why: str, _pause: float) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How patiently to try again.

    Args:
        seconds: How long after its first failure a request is still repeated; 0: never. A ``Retry-After`` beyond that
            ends it at once.
        first_pause: Seconds before the first repetition; doubled each time, and shortened at random by up to a half.
        longest_pause: Where the doubling ends.
        told: Called before each pause, with the reason and its seconds.
    """

    seconds: float = 120.0
    first_pause: float = 0.25
    longest_pause: float = 15.0
    told: Callable[[str, float], None] = field(default=_silent, repr=False)


class Patience:
    """Of one request, from its first failure on."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self.renew()

    def renew(self) -> None:
        """Begin anew, because there was progress."""
        self._until: float | None = None
        self._pause = self._retry.first_pause

    def after(self, why: str, at_least: float = 0.0) -> float | None:
        """Return how long to pause before the next attempt; None: no more of them."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._retry.seconds
        pause = max(self._pause * random.uniform(0.5, 1.0), at_least)  # noqa: S311 - no secret
        self._pause = min(2 * self._pause, self._retry.longest_pause)
        if now + pause > self._until:
            return None
        self._retry.told(why, pause)
        return pause


def repeatable(answer: Answer) -> bool:
    """Return whether the same request may be answered better later."""
    # Of a connection that broke in the middle of an upload the service says 400; nothing was stored.
    return answer.status in _AGAIN or (answer.status == 400 and b"problem:upload-cut" in answer.body)


def retry_after(answer: Answer) -> float:
    """Return the seconds that ``Retry-After`` asks for (RFC 9110: a number, or a date); 0 without one."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def why(error: httpx.TransportError) -> str:
    """Return what went wrong, in words.

    >>> why(httpx.ConnectError("[Errno 111] Connection refused")), why(httpx.ReadTimeout(""))
    ('Connection refused', 'ReadTimeout')
    """
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__


def pause_after(error: httpx.TransportError, patience: Patience) -> Operation[None]:
    """Pause after a broken connection.

    Raises:
        Unreachable: It was tried long enough, or can never succeed.
    """
    pause = None if isinstance(error, _HOPELESS) else patience.after(why(error))
    if pause is None:
        raise Unreachable(f"No answer from the service: {why(error)}") from error
    yield Sleep(pause)


def pause_before(answer: Answer, patience: Patience) -> Operation[None]:
    """Pause after an answer that may be better later.

    Raises:
        Problem: What it says, if it was tried long enough or no repetition helps.
    """
    problem = problem_of(answer)
    pause = patience.after(f"{answer.status}: {problem.title}", retry_after(answer)) if repeatable(answer) else None
    if pause is None:
        raise problem
    yield Sleep(pause)


def reliably(request: Request, retry: Retry, *, stream: bool = False) -> Operation[Answer]:
    """Send a request until it is answered well.

    Raises:
        Problem: The service refuses.
        Unreachable: It does not answer.
    """
    patience, attempts = Patience(retry), 0
    while True:
        attempts += 1
        try:
            answer: Answer = yield Open(request) if stream else Send(request)
        except httpx.TransportError as error:
            yield from pause_after(error, patience)
            continue
        if answer.status < 300:
            return answer
        if answer.status == 404 and request.method == "DELETE" and attempts > 1:
            return answer  # an earlier attempt did it, and its answer was lost
        yield from pause_before(answer, patience)
