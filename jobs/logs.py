"""Logs: one event a line, each with the ids it is about.

Code logs as ever: ``logger.info("begin item=%s attempt=%d", item, number)``. As JSON, the words become the event and
the pairs become fields; whatever `bound` holds at that moment (request id, item, attempt, worker) comes along.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal, ParamSpec, TextIO, TypeVar

from jobs import tracing
from jobs.ids import new_ulid

P = ParamSpec("P")
T = TypeVar("T")
Format = Literal["json", "text"]

_bound: ContextVar[Mapping[str, Any]] = ContextVar("bound", default=MappingProxyType({}))
_PAIR = re.compile(r"(\w+)=%(?:[sd]|\.\d+f)")
_TEMPLATE = re.compile(r"([^%=]*[^%= ])((?: \w+=%(?:[sd]|\.\d+f))+)")
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}")
#: What a line has anyway: a field of this name gets an underscore.
_TAKEN = frozenset({"time", "level", "logger", "event"})


@contextmanager
def bound(**ids: Any) -> Iterator[None]:
    """Put these ids into every line that is logged inside the block; None: not known, left out."""
    known = {name: value for name, value in ids.items() if value is not None}
    token = _bound.set({**_bound.get(), **known})
    try:
        yield
    finally:
        _bound.reset(token)


def current(name: str) -> str | None:
    """Return a bound id, or None.

    >>> with bound(request_id="r1"):
    ...     current("request_id")
    'r1'
    """
    return _bound.get().get(name)


def origin() -> dict[str, str]:
    """Return what an item's record keeps of the request that made it: ``request_id``, ``traceparent``, if known."""
    known = {"request_id": current("request_id"), "traceparent": tracing.current()}
    return {name: value for name, value in known.items() if value is not None}


def carried(function: Callable[P, T]) -> Callable[P, T]:
    """Return the function, bound to what is bound now: a new thread begins with nothing."""
    context = copy_context()

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return context.run(function, *args, **kwargs)

    return call


def request_id(given: str | None) -> str:
    r"""Return the id that a client gave, if it is well-formed, else a new one.

    >>> request_id("ci-run-17"), request_id("two\nlines")[:4]
    ('ci-run-17', 'req_')
    """
    return given if given is not None and _REQUEST_ID.fullmatch(given) else "req_" + new_ulid()


def configure(form: Format, level: str, stream: TextIO | None = None) -> None:
    """Send everything this process logs to one stream, in one form; call it once, at the start.

    Args:
        form: JSON lines, or text for a terminal.
        level: The lowest level that is shown.
        stream: Default: standard error.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.captureWarnings(True)
    for name in ("botocore", "urllib3"):
        # What they say at DEBUG holds signatures and keys.
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLevelName(level)))


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, logger, event, then ids and fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; never raises for the sake of a value."""
        event, fields = _read(record)
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": event,
            **{name + "_" * (name in _TAKEN): value for name, value in {**_bound.get(), **fields}.items()},
        }
        if (trace := tracing.current()) is not None:
            line["trace_id"] = trace.split("-")[1]
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str).encode("utf-8", "replace").decode()


class TextLines(logging.Formatter):
    """A record as a line for people. What a user sent cannot begin a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with a traceback below it."""
        _, fields = _read(record)
        said = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in record.getMessage())
        ids = "".join(f" {name}={value}" for name, value in _bound.get().items() if name not in fields)
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {said}{ids}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _read(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """Return the event and the fields of a record; a message of another shape is the event as it is."""
    match = _TEMPLATE.fullmatch(str(record.msg)) if record.args and isinstance(record.args, tuple) else None
    if match is None or not isinstance(record.args, tuple):
        return record.getMessage(), {}
    plain = [v if isinstance(v, int | float | str) or v is None else str(v) for v in record.args]
    return match[1], dict(zip(_PAIR.findall(match[2]), plain, strict=False))


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
