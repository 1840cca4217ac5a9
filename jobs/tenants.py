"""Tenants: who owns an item. What belongs to another tenant is as if it were not there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: The tenant of a service without keys, and of every item recorded before there were tenants.
DEFAULT = "default"

_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def is_tenant(text: str) -> bool:
    """Return whether this can be the name of a tenant: it becomes a part of keys in the bucket and in Redis.

    >>> is_tenant("vision-team"), is_tenant("Vision"), is_tenant("../x"), is_tenant("")
    (True, False, False, False)
    """
    return _PATTERN.fullmatch(text) is not None


def owner(request: Mapping[str, Any]) -> str:
    """Return whose item this is, by its ``request.json``."""
    return str(request.get("tenant", DEFAULT))
