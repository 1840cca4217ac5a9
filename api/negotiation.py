"""Which form of an answer a client wants: ``Accept`` with its weights (RFC 9110, section 12.5.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T", bound=str)
_WEIGHT = re.compile(r"(?i)q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")
#: More than any browser sends; what is beyond is not read.
_MOST_RANGES = 64


def preferred(accept: str | None, offered: Sequence[T]) -> T | None:
    """Return the offered media type that the client likes best, or None if it takes none of them.

    Args:
        accept: The header; None or empty: anything will do.
        offered: In the order in which the service prefers them.

    >>> preferred("text/html;q=0.5, */*;q=0.1", ["application/json", "text/html"])
    'text/html'
    >>> preferred("*/*", ["application/json", "text/html"]), preferred("image/png", ["text/html"])
    ('application/json', None)
    """
    wanted = _ranges(accept or "")
    if not wanted:
        return offered[0]
    weights = {media_type: _weight(media_type, wanted) for media_type in offered}
    best = max(weights.values())
    return next(media_type for media_type in offered if weights[media_type] == best) if best > 0 else None


def names(accept: str | None, media_type: str) -> bool:
    """Return whether the client asks for just this type, not only for anything.

    >>> names("text/html,*/*;q=0.8", "text/html"), names("*/*", "text/html")
    (True, False)
    """
    return _ranges(accept or "").get(media_type, 0.0) > 0


def _ranges(accept: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for item in accept.split(",")[:_MOST_RANGES]:
        name, *parameters = (part.strip().lower() for part in item.split(";"))
        if name.count("/") != 1:
            continue
        weights = [match for parameter in parameters if (match := _WEIGHT.fullmatch(parameter))]
        found[name] = max(found.get(name, 0.0), float(weights[0][1]) if weights else 1.0)
    return found


def _weight(media_type: str, wanted: dict[str, float]) -> float:
    """Return the weight of the most specific range that covers it."""
    for covering in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        if covering in wanted:
            return wanted[covering]
    return 0.0
