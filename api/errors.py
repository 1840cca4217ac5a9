"""Errors that only HTTP knows; the rest come from `jobs.errors` and `pruning_core.errors`."""

from __future__ import annotations

from typing import Any

from pruning_core.errors import InputError, PruningError


class MalformedRequest(PruningError):  # noqa: N818 - named after what it says, as in the other rooms
    """The request is not well-formed: JSON, form or header."""

    slug = "malformed-request"
    title = "Malformed request"
    status = 400


class InvalidRequest(InputError):  # noqa: N818
    """A field or parameter is missing, unknown or out of range; ``errors`` names each."""

    slug = "invalid-request"
    title = "Invalid request"


class UnsupportedContentType(PruningError):  # noqa: N818
    """The body is declared as something this call does not read."""

    slug = "unsupported-content-type"
    title = "Unsupported content type"
    status = 415


class NotAcceptable(PruningError):  # noqa: N818
    """The client takes none of the forms that there are."""

    slug = "not-acceptable"
    title = "Not in this form"
    status = 406


class EmptyBody(InputError):  # noqa: N818
    """An upload without a byte."""

    slug = "empty-body"
    title = "Empty body"


class RangeNotSatisfiable(PruningError):  # noqa: N818
    """The wanted bytes lie behind the end of the file."""

    slug = "range-not-satisfiable"
    title = "Range not satisfiable"
    status = 416


class Unauthenticated(PruningError):  # noqa: N818
    """The call needs an API key, and none that is valid came with it."""

    slug = "unauthenticated"
    title = "No valid key"
    status = 401

    def __init__(self, detail: str, *, challenged: bool = False, **more: Any) -> None:
        """Say what went wrong.

        Args:
            detail: As always.
            challenged: Nothing was sent; otherwise what was sent is no good (RFC 6750 tells these apart).
            more: As always.
        """
        super().__init__(detail, **more)
        self.challenge = 'Bearer realm="pruning-service"' + ("" if challenged else ', error="invalid_token"')


class InsufficientScope(PruningError):  # noqa: N818
    """The key is valid, and its scope does not include this call."""

    slug = "insufficient-scope"
    title = "The key may not do this"
    status = 403


class RateLimited(PruningError):  # noqa: N818
    """Too many calls of this key, or without a valid key from this address; `Retry-After` says when to go on."""

    slug = "rate-limited"
    title = "Too many requests"
    status = 429


class ForeignOrigin(PruningError):  # noqa: N818
    """A page of another web site tried to change something."""

    slug = "foreign-origin"
    title = "Foreign origin"
    status = 403


class RemoteRefused(PruningError):  # noqa: N818
    """The request comes from another machine, and the service is for this one only."""

    slug = "remote-refused"
    title = "Other machines are not answered"
    status = 403


class UnknownHost(PruningError):  # noqa: N818
    """The request is for a host name this service does not answer to."""

    slug = "unknown-host"
    title = "Unknown host name"
    status = 421


class NoSuchPath(PruningError):  # noqa: N818
    """There is nothing at this path."""

    slug = "no-such-path"
    title = "No such path"
    status = 404


class MethodNotAllowed(PruningError):  # noqa: N818
    """The path exists, the method on it does not."""

    slug = "method-not-allowed"
    title = "Method not allowed"
    status = 405


class TooManyStreams(PruningError):  # noqa: N818
    """So many clients follow or wait for jobs that no more are taken; try again, or poll."""

    slug = "too-many-streams"
    title = "Too many streams"
    status = 429


class UploadStalled(PruningError):  # noqa: N818
    """The client stopped sending in the middle of an upload."""

    slug = "upload-stalled"
    title = "The upload stalled"
    status = 408


class UploadCut(PruningError):  # noqa: N818
    """The connection ended in the middle of an upload; nothing was stored."""

    slug = "upload-cut"
    title = "The upload was cut off"
    status = 400
