"""With OpenTelemetry installed, jobs belong to the trace of the span that enqueued them."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Gateway, missing

from galley import App, Client

try:
    from opentelemetry import baggage, context, trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
except ImportError:
    TracerProvider = None


@pytest.fixture(scope="module")
def spans() -> Any:
    if TracerProvider is None:
        missing("opentelemetry-sdk is not installed")
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


def test_a_job_belongs_to_the_span_that_enqueued_it_and_its_handler_to_the_job(
    gateway: Gateway, name: str, start: Any, spans: Any
) -> None:
    app = App()

    @app.task("inner", queue=f"{name}.nobody")
    def inner() -> None: ...

    @app.task("outer", queue=name)
    async def outer() -> str:
        return (await inner.aio.enqueue()).id

    client = Client()
    token = context.attach(baggage.set_baggage("tenant", "seven"))
    with trace.get_tracer("test").start_as_current_span("request") as request:
        sent = request.get_span_context()
        job = outer.sync.enqueue()
    context.detach(token)
    assert job.job["traceparent"] == f"00-{sent.trace_id:032x}-{sent.span_id:016x}-{sent.trace_flags:02x}"
    assert job.job["baggage"] == "tenant=seven"
    start(app.worker(queues=[name]))
    nested = client.get(job.wait())
    [process] = [span for span in spans.get_finished_spans() if span.name == "process outer"]
    assert process.context.trace_id == sent.trace_id
    assert process.attributes["messaging.message.id"] == job.id
    assert nested["traceparent"] == f"00-{sent.trace_id:032x}-{process.context.span_id:016x}-{sent.trace_flags:02x}"
    assert nested["baggage"] == "tenant=seven"


def test_baggage_that_no_handler_changes_goes_on_byte_for_byte(
    gateway: Gateway, name: str, start: Any, spans: Any
) -> None:
    app, client = App(), Client()

    @app.task("outer", queue=name)
    def outer(is_changed: bool) -> str:
        token = context.attach(baggage.set_baggage("more", "1")) if is_changed else None
        try:
            return str(client.enqueue("inner", queue=f"{name}.nobody")["id"])
        finally:
            if token is not None:
                context.detach(token)

    given = "tenant=seven; level=1,  name=%C3%A9"
    start(app.worker())
    trace_of = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    ids = [
        client.enqueue("outer", is_changed, queue=name, traceparent=trace_of, baggage=given)["id"]
        for is_changed in (False, True)
    ]
    kept, changed = (client.get(client.result(id)) for id in ids)
    sent = client.get(client.enqueue("inner", queue=f"{name}.nobody", traceparent=trace_of, baggage=given)["id"])
    assert kept["baggage"] == sent["baggage"]
    assert "more=1" in changed["baggage"]


def test_a_trace_that_is_given_counts_more_than_that_of_the_span(gateway: Gateway, name: str, spans: Any) -> None:
    given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with trace.get_tracer("test").start_as_current_span("request"):
        job = Client().enqueue("a", queue=name, traceparent=given, tracestate="vendor=1")
    assert (job["traceparent"], job["tracestate"]) == (given, "vendor=1")
    assert "baggage" not in job
