"""Traces across the queue, as an option (``PRUNING_TRACES=true``, extra ``otel``): from the request to the outcome.

The request's ``traceparent`` is kept in the item's record, and the worker goes on from there. Without the option every
call here does nothing, and nothing of OpenTelemetry is imported. Where spans go is for its own variables to say
(``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_TRACES_SAMPLER``, …).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_EXPORT_MS = 1000

_tracer: Any = None


def configure(enabled: bool, part: str) -> None:
    """Begin to trace in this process; call it after every fork.

    Args:
        enabled: What the setting says.
        part: ``api`` or ``worker``.

    Raises:
        RuntimeError: The packages are not installed.
    """
    if not enabled:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise RuntimeError("PRUNING_TRACES is set: install pruning-service[otel], or unset it.") from error
    provider = TracerProvider(resource=Resource.create({"service.name": f"pruning-{part}"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=_EXPORT_MS))
    use(provider)


def use(provider: Any) -> None:
    """Trace with this provider; None: not at all."""
    global _tracer
    _tracer = None if provider is None else provider.get_tracer("pruning-service")


def current() -> str | None:
    """Return the ``traceparent`` of the span that is running, or None."""
    if _tracer is None:
        return None
    from opentelemetry.trace import get_current_span

    context = get_current_span().get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}" if context.is_valid else None


@contextmanager
def span(
    name: str, *, parent: str | None = None, kind: Literal["server", "consumer", "internal"] = "internal", **about: Any
) -> Iterator[Any]:
    """Trace the block.

    Args:
        name: Of the span.
        parent: The ``traceparent`` to go on from; default: the running span's.
        kind: What OpenTelemetry calls it.
        about: Attributes; with dots for underscores.

    Yields:
        The span, for `note`, or None.
    """
    if _tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind

    with _tracer.start_as_current_span(
        name, context=_context(parent), kind=SpanKind[kind.upper()], attributes=_attributes(about)
    ) as started:
        yield started


def begin(name: str) -> Any:
    """Begin a span below the running one; hand it to `end`."""
    return None if _tracer is None else _tracer.start_span(name)


def end(started: Any) -> None:
    """End a span that `begin` returned."""
    if started is not None:
        started.end()


def note(started: Any, *, name: str | None = None, failed: str | None = None, **about: Any) -> None:
    """Say more of a span: attributes, another name, that it failed."""
    if started is None:
        return
    from opentelemetry.trace import Status, StatusCode

    started.set_attributes(_attributes(about))
    if name is not None:
        started.update_name(name)
    if failed is not None:
        started.set_status(Status(StatusCode.ERROR, failed))


def _context(traceparent: str | None) -> Any:
    if traceparent is None or _TRACEPARENT.fullmatch(traceparent) is None:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": traceparent})


def _attributes(about: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "."): value for name, value in about.items() if value is not None}
