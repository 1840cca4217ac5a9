"""What can go wrong, as exceptions. All of them are `ClientError`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from client.effects import Answer

_SHOWN = ("expected", "received", "advice")


class ClientError(Exception):
    """The service refused, cannot be reached, or sent something else than it said."""


class Problem(ClientError):  # noqa: N818 - named after what it says
    """The service's answer is a problem document (RFC 9457), or a job ended in one.

    Attributes:
        document: All of it.
        status: The HTTP status, or the one that the document names.
    """

    def __init__(self, document: Mapping[str, Any], status: int | None = None) -> None:
        self.document = dict(document)
        self.status = int(status if status is not None else self.document.get("status", 0) or 0)
        super().__init__(str(self.detail or self.title))

    @property
    def type(self) -> str:
        """The stable name of the problem, a URN."""
        return str(self.document.get("type", "about:blank"))

    @property
    def slug(self) -> str:
        """The last part of the type, such as ``invalid-recipe``."""
        return self.type.rpartition(":")[2]

    @property
    def title(self) -> str:
        """What kind of problem it is, in a few words."""
        return str(self.document.get("title") or f"HTTP {self.status}")

    @property
    def detail(self) -> str | None:
        """What happened this time."""
        return self.document.get("detail")

    @property
    def expected(self) -> Any:
        """What would have been right."""
        return self.document.get("expected")

    @property
    def received(self) -> Any:
        """What came instead."""
        return self.document.get("received")

    @property
    def advice(self) -> str | None:
        """What to do."""
        return self.document.get("advice")

    def __str__(self) -> str:
        """Return the problem as a person reads it: title and detail, then what helps, one line each."""
        lines = [f"{self.title}: {self.detail}" if self.detail else self.title]
        for name in _SHOWN:
            if (value := self.document.get(name)) is not None:
                lines.append(f"  {name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
        for error in self.document.get("errors") or ():
            # One that is all that is wrong is what `detail` says.
            if isinstance(error, Mapping) and str(error.get("problem")) not in lines[0]:
                lines.append(f"  {error.get('field')}: {error.get('problem')}")
        return "\n".join(lines)


class Unreachable(ClientError):  # noqa: N818 - as above
    """No answer came, however often the request was sent."""


class DigestMismatch(ClientError):  # noqa: N818 - as above
    """What was downloaded is not what the service says that it sent; it was thrown away."""


class NotOffered(ClientError):  # noqa: N818 - as above
    """This service does not give that: it answers with another type of document."""


class StillRunning(ClientError):  # noqa: N818 - as above
    """The time to wait is over, and the job has not ended. It goes on."""


def problem_of(answer: Answer) -> Problem:
    """Return what an answer of status 300 and above says; one that is no problem document becomes one."""
    document: Any = None
    if "json" in answer.headers.get("content-type", ""):
        try:
            document = json.loads(answer.body)
        except ValueError:
            document = None
    if isinstance(document, dict) and ("type" in document or "title" in document):
        return Problem(document, answer.status)
    text = " ".join(answer.body[:2000].decode("utf-8", "replace").split())[:300]
    found: dict[str, Any] = {"type": "about:blank", "title": f"HTTP {answer.status}", "status": answer.status}
    if 300 <= answer.status < 400:
        found["detail"] = f"The answer points elsewhere: {answer.headers.get('location', 'nowhere')}"
        found["advice"] = "Use that address as the base URL, if it is the service's."
    elif text:
        found["detail"] = text
    return Problem(found, answer.status)
