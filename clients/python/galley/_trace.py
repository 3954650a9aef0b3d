"""The trace that requests and handlers belong to. OpenTelemetry is used where it is installed, and never needed."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ._context import handled

if TYPE_CHECKING:
    from ._call import Headers
    from ._context import Context

_NAMES = ("traceparent", "tracestate", "baggage")


class _OpenTelemetry:
    def __init__(self) -> None:
        self.trace: Any = importlib.import_module("opentelemetry.trace")
        self.propagate: Any = importlib.import_module("opentelemetry.propagate")
        self.baggage: Any = importlib.import_module("opentelemetry.baggage")


def _find() -> _OpenTelemetry | None:
    try:
        return _OpenTelemetry()
    except ImportError:
        return None


_otel = _find()


def outgoing(given: Mapping[str, str | None] | None = None) -> Headers:
    """Headers of a request that makes jobs or messages: the given trace, else that of the current span, else that of
    the job whose handler runs here."""
    if given and any(given.get(name) for name in _NAMES):
        return tuple((name, value) for name in _NAMES if (value := given.get(name)))
    context = handled.get()
    inherited = dict(context._trace()) if context else {}
    carrier: dict[str, str] = {}
    if _otel is not None:
        _otel.propagate.inject(carrier)
    if "traceparent" not in carrier:
        return tuple(inherited.items())
    if inherited and _otel is not None:
        # Nobody changed the baggage: it goes on as it came, byte for byte
        received = _otel.baggage.get_all(_otel.propagate.extract(inherited))
        if _otel.baggage.get_all() == received and "baggage" in inherited:
            carrier["baggage"] = inherited["baggage"]
    return tuple((name, carrier[name]) for name in _NAMES if carrier.get(name))


@contextlib.contextmanager
def attempt_span(context: Context) -> Iterator[None]:
    """The span of an attempt, current while its handler runs."""
    if _otel is None:
        yield
        return
    job = context.job
    attributes = {
        "messaging.system": "galley",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": job["queue"],
        "messaging.message.id": job["id"],
        "galley.job.type": job["type"],
        "galley.job.attempt": job["attempt"],
    }
    parent = _otel.propagate.extract(dict(context._trace()))
    kind = _otel.trace.SpanKind.CONSUMER
    tracer = _otel.trace.get_tracer("galley")
    name = f"process {job['type']}"
    token = importlib.import_module("opentelemetry.context").attach(parent)
    try:
        with tracer.start_as_current_span(name, context=parent, kind=kind, attributes=attributes):
            yield
    finally:
        importlib.import_module("opentelemetry.context").detach(token)
