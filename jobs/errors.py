"""Errors of the service's use cases, each with the HTTP status it stands for."""

from __future__ import annotations

from pruning_core.errors import InputError, PruningError


class NotFound(PruningError):  # noqa: N818 - the field's word
    """There is no such thing, or it belongs to somebody else."""

    slug = "not-found"
    title = "Not found"
    status = 404


class Conflict(PruningError):  # noqa: N818
    """The request contradicts what is already recorded."""

    slug = "conflict"
    title = "Conflict"
    status = 409


class NotReady(PruningError):  # noqa: N818
    """It exists, but there is no result yet."""

    slug = "not-ready"
    title = "Not ready"
    status = 409


class LevelNeeded(PruningError):  # noqa: N818
    """The job made several models, and the request does not say which one it wants."""

    slug = "level-needed"
    title = "Which sparsity?"
    status = 400


class IncompleteUpload(PruningError):  # noqa: N818
    """Parts of the upload are not stored yet, or not whole."""

    slug = "incomplete-upload"
    title = "Upload not complete"
    status = 409


class TooLarge(PruningError):  # noqa: N818
    """The body is larger than this service accepts."""

    slug = "too-large"
    title = "Body too large"
    status = 413


class UnsupportedMedia(PruningError):  # noqa: N818
    """The first bytes are of no format this service reads."""

    slug = "unsupported-media"
    title = "Unsupported file format"
    status = 415


class DigestMismatch(InputError):  # noqa: N818
    """The bytes that arrived are not the bytes that were announced."""

    slug = "digest-mismatch"
    title = "Digest mismatch"


class RejectedUpload(InputError):  # noqa: N818
    """The inspection of an upload found that it cannot be used; the problem it found comes along."""

    slug = "rejected-upload"
    title = "Rejected upload"


class AttemptsExhausted(PruningError):  # noqa: N818
    """Every attempt ended without a word from the process that did the work."""

    slug = "attempts-exhausted"
    title = "All attempts failed"
    status = 500


class QuotaExceeded(PruningError):  # noqa: N818
    """The tenant has used up one of its quotas; there will be room again later."""

    slug = "quota-exceeded"
    title = "Quota exceeded"
    status = 429


class StorageFull(PruningError):  # noqa: N818
    """The tenant may store no more; waiting does not help, deleting does."""

    slug = "storage-full"
    title = "No room in the quota"
    # Not 429 or 507: both invite to try the same again later. Not 413: the same file fits when others are gone.
    status = 403


class Unavailable(PruningError):  # noqa: N818
    """A part of the service (bucket or Redis) does not answer; try again."""

    slug = "unavailable"
    title = "Service unavailable"
    status = 503
