"""Where everything stands in the bucket. Keys are built from ids only, never from what a user typed."""

from __future__ import annotations

import hashlib

from jobs.ids import Kind, kind_of

_FOLDER: dict[Kind, str] = {"job": "jobs/", "model": "models/", "dataset": "datasets/", "mask": "masks/"}


def folder(kind: Kind) -> str:
    """Return the prefix of all items of this kind."""
    return _FOLDER[kind]


def prefix(item: str) -> str:
    """Return the prefix of everything that belongs to one item."""
    return f"{_FOLDER[kind_of(item)]}{item}/"


def request(item: str) -> str:
    """Return the key of what the user was promised; the item exists when this does."""
    return prefix(item) + "request.json"


def file(item: str) -> str:
    """Return the key of an upload's bytes."""
    return prefix(item) + "file"


def cancel(item: str) -> str:
    """Return the key that says that the user cancelled."""
    return prefix(item) + "cancel.json"


def outcome(item: str) -> str:
    """Return the key of the one outcome."""
    return prefix(item) + "outcome.json"


def attempts(item: str) -> str:
    """Return the prefix of all attempts."""
    return prefix(item) + "attempts/"


def attempt(item: str, number: int, event: str) -> str:
    """Return the key of an attempt's event: ``started``, ``released`` or ``ended``."""
    return f"{attempts(item)}{number}/{event}.json"


def artifact(item: str, number: int, token: str, name: str) -> str:
    """Return the key of an artifact; the token keeps two attempts of one number apart."""
    return f"{attempts(item)}{number}-{token}/{name}"


def checkpoints(job: str) -> str:
    """Return the prefix of a job's finished steps; they are the job's, whichever attempt made them."""
    return prefix(job) + "checkpoints/"


def idempotency(key: str) -> str:
    """Return the key of an idempotency record; the user's own key is only hashed."""
    return f"idempotency/{hashlib.sha256(key.encode()).hexdigest()}.json"
