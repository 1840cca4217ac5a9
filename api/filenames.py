"""File names that come from a client and go back to one."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from urllib.parse import quote

_LONGEST = 200
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]")


def clean(name: str | None) -> str | None:
    r"""Return the last part of a path without control characters; None if nothing is left.

    >>> clean("C:\\models\\net.pt2"), clean("../../etc/passwd"), clean(".."), clean(None)
    ('net.pt2', 'passwd', None, None)
    """
    last = re.split(r"[/\\]", name or "")[-1]
    printable = "".join(letter for letter in last if letter.isprintable()).strip()
    if not printable.strip("."):
        return None
    stem, suffix = PurePosixPath(printable).stem, PurePosixPath(printable).suffix[:20]
    return stem[: _LONGEST - len(suffix)] + suffix


def derived(name: str | None, addition: str, suffix: str | None = None) -> str:
    """Return the name of a file made from another.

    Args:
        name: What the other was called.
        addition: What is put behind its stem.
        suffix: The new suffix; None keeps the old one.

    >>> derived("net.v2.pt2", "-pruned"), derived(None, "-masks", ".safetensors")
    ('net.v2-pruned.pt2', 'model-masks.safetensors')
    """
    path = PurePosixPath(name or "model")
    return f"{path.stem}{addition}{path.suffix if suffix is None else suffix}"


def disposition(name: str) -> str:
    r"""Return a ``Content-Disposition`` header (RFC 6266) that saves as this name.

    >>> disposition("résumé.pt2")
    'attachment; filename="r_sum_.pt2"; filename*=UTF-8\'\'r%C3%A9sum%C3%A9.pt2'
    """
    ascii_name = _UNSAFE.sub("_", name)
    header = f'attachment; filename="{ascii_name}"'
    return header if ascii_name == name else f"{header}; filename*=UTF-8''{quote(name, safe='')}"
