"""Ids: the kind, an underscore, and a ULID. They sort by time and carry their kind."""

from __future__ import annotations

import re
import secrets
import threading
import time
from typing import Literal, get_args

UploadKind = Literal["model", "dataset", "mask"]
Kind = Literal["job", UploadKind]
UPLOAD_KINDS: tuple[UploadKind, ...] = get_args(UploadKind)
KINDS: tuple[Kind, ...] = ("job", *UPLOAD_KINDS)

_PREFIX: dict[Kind, str] = {"job": "job_", "model": "mdl_", "dataset": "dst_", "mask": "msk_"}
_KIND: dict[str, Kind] = {prefix: kind for kind, prefix in _PREFIX.items()}
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's base 32: no I, L, O, U
# 128 bits in 26 characters of 5 bits: the first is at most 7.
_PATTERN = re.compile(rf"({'|'.join(_PREFIX.values())})[0-7][{_ALPHABET}]{{25}}")

_lock = threading.Lock()
_last = 0


def new_ulid() -> str:
    """Return a new ULID: 48 bits of Unix milliseconds, 80 random bits; strictly rising within a process."""
    global _last
    with _lock:
        value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
        _last = value = max(value, _last + 1)
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))


def new_id(kind: Kind) -> str:
    """Return a new id of this kind.

    >>> new_id("job")[:4], len(new_id("job"))
    ('job_', 30)
    """
    return _PREFIX[kind] + new_ulid()


def is_id(kind: Kind, text: str) -> bool:
    """Return whether this is a well-formed id of this kind.

    >>> is_id("job", new_id("job")), is_id("model", new_id("job")), is_id("job", "job_../../etc")
    (True, False, False)
    """
    return text.startswith(_PREFIX[kind]) and _PATTERN.fullmatch(text) is not None


def milliseconds(item: str) -> int:
    """Return the Unix milliseconds at which a well-formed id was made.

    >>> milliseconds("job_01JD3Z8Q9W3V6Y6T0B1C2D3E4F")
    1732079017276
    """
    value = 0
    for letter in item[-26:-16]:
        value = value << 5 | _ALPHABET.index(letter)
    return value


def is_upload(text: str) -> bool:
    """Return whether this is a well-formed id of an upload of any kind."""
    return any(is_id(kind, text) for kind in UPLOAD_KINDS)


def kind_of(item: str) -> Kind:
    """Return the kind of a well-formed id.

    Raises:
        ValueError: It is no id.
    """
    if _PATTERN.fullmatch(item) is None:
        raise ValueError(f"not an id: {item[:64]!r}")
    return _KIND[item[:4]]
