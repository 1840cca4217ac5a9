"""API keys. The bucket holds a digest of each secret, never the secret.

The digest is a plain SHA-256. A slow, salted hash protects what people choose; a secret here has 256 random bits, and
nobody finds it from its digest at any speed. So checking one costs microseconds, and slows no request down.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field

from jobs import layout
from jobs.bucket import Bucket
from jobs.clock import Clock, Down
from jobs.errors import Conflict, NotFound, Unavailable
from jobs.ids import new_ulid
from jobs.records import now
from jobs.tenants import is_tenant
from pruning_core.errors import InputError

Scope = Literal["read", "write", "admin"]
#: Each includes those before it.
SCOPES: tuple[Scope, ...] = get_args(Scope)
MAX_KEYS = 1000
MAX_NAME_LENGTH = 100
#: How long a process trusts what it last read of a key: so quickly a revocation takes effect everywhere.
TRUSTED_SECONDS = 5.0
MAX_GRACE = timedelta(days=7)

_ULID = r"[0-7][0-9A-HJKMNP-TV-Z]{25}"
_ID = re.compile(rf"key_{_ULID}")
_TOKEN = re.compile(rf"prk_({_ULID})_([0-9a-f]{{64}})")
_USED = "pruning:keys:used"
_REMEMBERED = 10_000


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Secret(_Record):
    """What is known of one secret of a key."""

    sha256: str = Field(repr=False)
    created_at: datetime
    expires_at: datetime | None = None


class Key(_Record):
    """One key: whose it is, and what it may do."""

    id: str
    tenant: str
    name: str
    scope: Scope
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    secrets: tuple[Secret, ...] = Field(repr=False)

    @property
    def state(self) -> Literal["active", "expired", "revoked"]:
        """Whether it opens anything."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if _past(self.expires_at) else "active"

    def fits(self, secret: str) -> bool:
        """Return whether the key is active and this is a secret of it; takes the same time whichever differs."""
        digest = _digest(secret)
        same = [hmac.compare_digest(digest, known.sha256) and not _past(known.expires_at) for known in self.secrets]
        return any(same) and self.state == "active"


def includes(scope: Scope, needed: Scope) -> bool:
    """Return whether a key of this scope may do what needs that one.

    >>> includes("admin", "read"), includes("read", "write")
    (True, False)
    """
    return SCOPES.index(scope) >= SCOPES.index(needed)


@dataclass(frozen=True)
class _Known:
    key: Key
    until: float


class Keys:
    """All keys, of all tenants. Safe to share between threads."""

    def __init__(self, bucket: Bucket, clock: Clock, *, trusted_seconds: float = TRUSTED_SECONDS) -> None:
        self._bucket, self._clock, self._trusted = bucket, clock, trusted_seconds
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._guard = threading.Lock()

    # -- checking --------------------------------------------------------------------------------------------------

    def remembered(self, token: str) -> Key | None:
        """Return the key that this token opens, if that was read a moment ago; asks nobody."""
        id, secret = _parts(token)
        with self._guard:
            known = self._known.get(id) if id else None
        if known is None or known.until < time.monotonic():
            return None
        return known.key if known.key.fits(secret) else None

    def check(self, token: str) -> Key | None:
        """Return the key that this token opens, or None.

        Raises:
            Unavailable: The bucket does not answer, so it cannot be said.
        """
        id, secret = _parts(token)
        found = self._read(id) if id else None
        if found is None or not found.fits(secret):
            return None
        with self._guard:
            self._known[id] = _Known(found, time.monotonic() + self._trusted)
            self._known.move_to_end(id)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        with suppress(Down):  # only to be shown; not worth more
            self._clock.redis.hset(_USED, id, now())
        return found

    # -- looking ---------------------------------------------------------------------------------------------------

    def get(self, tenant: str, id: str) -> Key:
        """Return a tenant's key.

        Raises:
            NotFound: The tenant has none of this id.
        """
        found = self._read(id) if _ID.fullmatch(id) else None
        if found is None or found.tenant != tenant:
            raise NotFound("There is no key of this id.", received=id[:64], advice="GET /keys lists them.")
        return found

    def page(self, tenant: str, after: str | None = None, limit: int | None = None) -> list[Key]:
        """Return a tenant's keys, oldest first, those after an id.

        Raises:
            InputError: It is no id of a key.
        """
        if after is not None and not _ID.fullmatch(after):
            raise InputError("The cursor is not one of this service.", received=after[:64])
        folder = layout.key_markers(tenant)
        names = self._bucket.list(folder, None if after is None else folder + after, limit)
        found = (self._read(name.removeprefix(folder)) for name in names)
        # A crash may leave a name without its key.
        return [key for key in found if key is not None]

    def last_used(self, ids: list[str]) -> dict[str, datetime]:
        """Return when these keys were last seen, as far as that is known: to a few seconds, and not for ever."""
        try:
            seen = cast(list[str | None], self._clock.redis.hmget(_USED, ids)) if ids else []
        except Down:
            return {}
        return {id: datetime.fromisoformat(text) for id, text in zip(ids, seen, strict=False) if text}

    def any(self) -> bool:
        """Return whether there is any key at all."""
        return any(True for _ in self._bucket.list("keys/", limit=1))

    # -- changing --------------------------------------------------------------------------------------------------

    def create(
        self, tenant: str, name: str, scope: Scope, *, by: str, expires_at: datetime | None = None
    ) -> tuple[Key, str]:
        """Make a key.

        Args:
            tenant: Whose.
            name: What people call it.
            scope: What it may do.
            by: Who makes it: a key's id, or another word for it.
            expires_at: When it ends to work; None: never by itself.

        Returns:
            The key and its token, which nobody can read again.

        Raises:
            InputError: One of these cannot be used.
            Conflict: The tenant has too many keys.
        """
        if not is_tenant(tenant):
            raise InputError("This cannot be the name of a tenant.", expected="a-z, 0-9, '-'", received=tenant[:80])
        if not 0 < len(name) <= MAX_NAME_LENGTH:
            raise InputError("The name's length is impossible.", expected=f"1 to {MAX_NAME_LENGTH} characters")
        if _past(expires_at):
            raise InputError("The key would have expired already.", received=str(expires_at))
        if sum(1 for _ in self._bucket.list(layout.key_markers(tenant), limit=MAX_KEYS)) >= MAX_KEYS:
            raise Conflict(f"There are {MAX_KEYS} keys already.", advice="Rotate a key instead of making new ones.")
        ulid, secret = new_ulid(), secrets.token_hex(32)
        made = Key(
            id=f"key_{ulid}",
            tenant=tenant,
            name=name,
            scope=scope,
            created_at=_now(),
            created_by=by,
            expires_at=expires_at,
            secrets=(Secret(sha256=_digest(secret), created_at=_now()),),
        )
        self._bucket.put_json(layout.key_markers(tenant) + made.id, {"id": made.id})
        self._bucket.put_json(layout.key(made.id), _document(made))
        return made, f"prk_{ulid}_{secret}"

    def rotate(self, tenant: str, id: str, *, grace: timedelta) -> tuple[Key, str]:
        """Give a key a new secret, valid at once; the ones before it end after the grace period.

        Raises:
            NotFound: The tenant has no such key.
            Conflict: It is revoked or expired.
            Unavailable: Redis does not answer: two rotations at once could undo each other.
        """
        try:
            with self._clock.lock(f"key:{id[:40]}", wait=5) as locked:
                if not locked:
                    raise Unavailable("This key is just being changed.", advice="Try again in a moment.")
                key = self.get(tenant, id)
                if key.state != "active":
                    raise Conflict(f"The key is {key.state}.", expected="active", received=key.state)
                end, secret = _now() + min(grace, MAX_GRACE), secrets.token_hex(32)
                still = tuple(
                    old.model_copy(update={"expires_at": min(old.expires_at or end, end)})
                    for old in key.secrets
                    if not _past(old.expires_at)
                )
                changed = key.model_copy(
                    update={"secrets": (*still, Secret(sha256=_digest(secret), created_at=_now()))}
                )
                self._bucket.put_json(layout.key(id), _document(changed))
        except Down:
            raise Unavailable("Redis does not answer, and keys rotate under a lock.", advice="Try again.") from None
        self._forget(id)
        return changed, f"prk_{id.removeprefix('key_')}_{secret}"

    def revoke(self, tenant: str, id: str, *, by: str) -> Key:
        """End a key for good: here at once, in other processes when they next read it; needs the bucket alone.

        Raises:
            NotFound: The tenant has no such key.
        """
        self.get(tenant, id)
        self._bucket.write_once(layout.revoked(id), {"revoked_at": now(), "by": by})
        self._forget(id)
        return self.get(tenant, id)

    def _forget(self, id: str) -> None:
        with self._guard:
            self._known.pop(id, None)

    def _read(self, id: str) -> Key | None:
        document = self._bucket.get_json(layout.key(id))
        if document is None:
            return None
        return Key.model_validate({**document, **(self._bucket.get_json(layout.revoked(id)) or {})})


def _parts(token: str) -> tuple[str, str]:
    match = _TOKEN.fullmatch(token)
    return (f"key_{match[1]}", match[2]) if match else ("", "")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _document(key: Key) -> dict[str, Any]:
    return key.model_dump(mode="json", exclude_none=True)


def _now() -> datetime:
    return datetime.now(UTC)


def _past(moment: datetime | None) -> bool:
    return moment is not None and moment <= _now()
