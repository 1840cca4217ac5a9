"""Where everything stands in the bucket. Keys are built from ids only, never from what a user typed."""

from __future__ import annotations

import hashlib

from jobs.ids import Kind, is_id, kind_of
from jobs.tenants import DEFAULT, is_tenant

_FOLDER: dict[Kind, str] = {"job": "jobs/", "model": "models/", "dataset": "datasets/", "mask": "masks/"}
#: The prefix of the jobs whose end is still to be told.
TO_TELL = "outbox/jobs/"
#: The prefix of all markers of all tenants.
MARKERS = "tenants/"


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
    """Return where the bytes of an upload lie that was recorded by version 0.1; see `jobs.blobs.bytes_of`."""
    return prefix(item) + "file"


#: The prefix of all bytes that uploads refer to, of all tenants.
BLOBS = "blobs/"
#: The prefix of all uploads in parts, of all tenants.
SESSIONS = "uploads/"
#: The prefix of what tenants used.
USAGE = "usage/"


def blob(tenant: str, name: str) -> str:
    """Return the key of bytes that uploads of one tenant refer to."""
    return f"{BLOBS}{tenant}/{name}/bytes"


def beside(blob: str) -> str:
    """Return the prefix of such bytes and of all that is known about them."""
    return blob.removesuffix("bytes")


def reference(blob: str, item: str) -> str:
    """Return the key that says that an item needs these bytes; it is written before the item is."""
    return f"{beside(blob)}refs/{item}"


def named(blob: str, sha256: str) -> str:
    """Return the key that says that a pointer to these bytes may exist; it is written before the pointer is."""
    return f"{beside(blob)}sha256/{sha256}"


def unverified(blob: str) -> str:
    """Return the key that says that nobody has compared these bytes with their announced digest yet."""
    return f"{beside(blob)}unverified"


def pointer(tenant: str, sha256: str) -> str:
    """Return the key that says where a tenant's bytes of this digest lie."""
    return f"digests/{tenant}/{sha256}.json"


def sessions(tenant: str) -> str:
    """Return the prefix of a tenant's uploads in parts that are not complete."""
    return f"{SESSIONS}{tenant}/"


def session(tenant: str, upload: str) -> str:
    """Return the key of what was agreed about an upload in parts; it goes when the upload is recorded."""
    return f"{sessions(tenant)}{upload}.json"


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


def to_tell(job: str) -> str:
    """Return the key that says that the end of a job is still to be told to webhooks."""
    return f"{TO_TELL}{job}"


def checkpoints(job: str) -> str:
    """Return the prefix of a job's finished steps; they are the job's, whichever attempt made them."""
    return prefix(job) + "checkpoints/"


def idempotency(key: str, tenant: str = DEFAULT) -> str:
    """Return the key of an idempotency record; the user's own key is only hashed."""
    whose = "" if tenant == DEFAULT else f"{tenant}/"
    return f"idempotency/{whose}{hashlib.sha256(key.encode()).hexdigest()}.json"


def markers(tenant: str, kind: Kind) -> str:
    """Return the prefix of the markers of all items of a kind that a tenant other than the default one has."""
    return f"{MARKERS}{tenant}/{_FOLDER[kind]}"


def marker(tenant: str, item: str) -> str:
    """Return the key that says that an item is this tenant's; it is written before the item's request."""
    return markers(tenant, kind_of(item)) + item


def key(id: str) -> str:
    """Return where an API key lies: its owner, scope, and the digests of its secrets."""
    return f"keys/{id}/key.json"


def revoked(id: str) -> str:
    """Return the key that says that an API key is revoked; written once, whatever else is being changed."""
    return f"keys/{id}/revoked.json"


def key_markers(tenant: str) -> str:
    """Return the prefix of the names of a tenant's API keys."""
    return f"{MARKERS}{tenant}/keys/"


def quota(tenant: str) -> str:
    """Return where a tenant's own limits lie."""
    return f"quotas/{tenant}.json"


def usage(tenant: str, what: str, when: str) -> str:
    """Return the prefix of objects whose names say what a tenant used in a day or month."""
    return f"{USAGE}{tenant}/{what}/{when}/"


def audit(tenant: str, day: str | None = None) -> str:
    """Return the prefix of a tenant's audit log, or of one day of it."""
    return f"audit/{tenant}/" + (f"{day}/" if day else "")


def marked(key: str) -> tuple[str, str] | None:
    """Return item and tenant of a marker; None if the key is none.

    >>> marked("tenants/vision/jobs/job_01JD3Z8Q9W3V6Y6T0B1C2D3E4F")
    ('job_01JD3Z8Q9W3V6Y6T0B1C2D3E4F', 'vision')
    """
    tenant, _, rest = key.removeprefix(MARKERS).partition("/")
    folder, _, item = rest.partition("/")
    kind = next((kind for kind, name in _FOLDER.items() if name == f"{folder}/"), None)
    return (item, tenant) if kind is not None and is_id(kind, item) and is_tenant(tenant) else None
