"""JSON from an untrusted file: parsed with caps, read through accessors that say where something is wrong."""

from __future__ import annotations

import json
import re
from typing import Any

from pruning_core.errors import ModelError

#: Most values in one document: each takes about 100 bytes once parsed, however few it took in the file.
MAX_VALUES = 8_000_000
_HALF_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(data: bytes | memoryview, what: str) -> Any:
    """Return the parsed document.

    Args:
        data: UTF-8 JSON, already within a size limit.
        what: Its name, for messages.

    Raises:
        ModelError: It is not JSON, nests too deeply, has absurd numbers or too many values, or text that is none: half
            a surrogate pair is legal JSON, but could be neither stored nor shown.
    """
    raw = bytes(data)
    if (count := raw.count(b",") + raw.count(b"[") + raw.count(b"{")) > MAX_VALUES:
        raise ModelError(f"{what} has too many values.", expected=f"at most {MAX_VALUES}", received=count)
    try:
        document = json.loads(raw.decode())
        if _HALF_SURROGATE.search(raw):
            json.dumps(document, ensure_ascii=False).encode()
    except RecursionError:
        raise too_deep(what) from None
    except ValueError as error:
        raise ModelError(f"{what} is not valid JSON: {str(error)[:200]}", expected="UTF-8 JSON") from None

    return document


def too_deep(what: str) -> ModelError:
    """Return the error of a document that nests too deeply."""
    return ModelError(f"{what} nests too deeply.", expected="JSON as torch.export.save writes it")


def _wrong(where: str, expected: str, value: Any) -> ModelError:
    shown = f"{len(value)} items" if isinstance(value, list | dict) else str(value)[:80]
    return ModelError(f"{where} should be {expected}.", expected=expected, received=f"{type(value).__name__}: {shown}")


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Return a JSON object, or raise ModelError."""
    if not isinstance(value, dict):
        raise _wrong(where, "an object", value)
    return value


def sequence(value: Any, where: str, most: int | None = None) -> list[Any]:
    """Return a JSON array of at most so many items, or raise ModelError."""
    if not isinstance(value, list):
        raise _wrong(where, "an array", value)
    if most is not None and len(value) > most:
        raise ModelError(f"{where} has too many items.", expected=f"at most {most}", received=len(value))
    return value


def text(value: Any, where: str) -> str:
    """Return a JSON string, or raise ModelError."""
    if not isinstance(value, str):
        raise _wrong(where, "a string", value)
    return value


def integer(value: Any, where: str) -> int:
    """Return a JSON integer in the range of 64 bits, or raise ModelError."""
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        raise _wrong(where, "a 64-bit integer", value)
    return value


def boolean(value: Any, where: str) -> bool:
    """Return a JSON true or false, or raise ModelError."""
    if not isinstance(value, bool):
        raise _wrong(where, "true or false", value)
    return value


def number(value: Any, where: str) -> float:
    """Return a float, also one of the strings that stand for infinities and NaN, or raise ModelError."""
    if isinstance(value, str) and value in ("Infinity", "-Infinity", "NaN"):
        return float(value.replace("Infinity", "inf"))
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _wrong(where, "a number", value)
    try:
        return float(value)
    except OverflowError:
        raise _wrong(where, "a number", value) from None


def member(value: Any, key: str, where: str) -> Any:
    """Return a member that an object must have, or raise ModelError."""
    found = mapping(value, where)
    if key not in found:
        raise ModelError(f"{where} lacks {key!r}.", expected=key, received=sorted(found)[:20])
    return found[key]


def union(value: Any, where: str) -> tuple[str, Any]:
    """Return kind and value of a tagged union ``{"as_int": 3}``, or raise ModelError."""
    found = mapping(value, where)
    if len(found) != 1:
        raise ModelError(
            f"{where} should have exactly one member.", expected="e.g. {'as_int': 3}", received=[*found][:9]
        )
    return next(iter(found.items()))
