"""Output: what handlers stream, and what clients read of it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from conftest import LIMIT_S, Gateway, eventually

import galley
from galley import App, JobFailed, current

AT_ONCE: galley.RetryPolicy = {"max_attempts": 5, "initial_interval": "PT0.1S"}


def test_chunks_are_read_while_the_job_runs_and_again_by_each_attempt(
    gateway: Gateway, name: str, start: Any, client: Any
) -> None:
    app, may_end = App(), threading.Event()

    @app.task("tell", queue=name, retry=AT_ONCE)
    def tell(words: list[str]) -> str:
        ctx = current()
        for word in words:
            ctx.stream({"word": word})
        if ctx.attempt == 1:
            raise ConnectionError("the model is away")
        assert may_end.wait(LIMIT_S)
        ctx.stream("the end")
        return " ".join(words)

    words = ["once", "upon", "a", "time"]
    job = tell.enqueue(words)
    reader = client.output(job.id)
    start(app.worker())
    told = [next(reader) for _ in range(8)]
    assert [(chunk.attempt, chunk.data["word"]) for chunk in told] == [(n, word) for n in (1, 2) for word in words]
    may_end.set()
    assert [chunk.data for chunk in reader] == ["the end"]
    assert job.wait() == "once upon a time"
    late = list(client.output(job.id, last_id=told[6].id))
    assert [chunk.data for chunk in late] == [{"word": "time"}, "the end"]


def test_an_asynchronous_handler_streams_more_than_can_wait(gateway: Gateway, name: str, start: Any, client: Any) -> None:
    app = App()

    @app.task("count", queue=name)
    async def count(to: int) -> None:
        for number in range(to):
            await current().stream_async(number)

    start(app.worker())
    job = count.sync.enqueue(1500)
    assert [chunk.data for chunk in client.output(job.id)] == list(range(1500))


def test_a_chunk_that_is_too_large_fails_and_one_that_nobody_wants_does_not(
    gateway: Gateway, name: str, start: Any
) -> None:
    app, seen = App(), []

    @app.task("large", queue=name, retry={"max_attempts": 1})
    def large() -> None:
        current().stream("x" * (64 << 10))

    @app.task("cancelled", queue=name)
    def cancelled() -> None:
        ctx = current()
        galley.Client().cancel(ctx.id)
        ctx.stream("nobody reads this")
        seen.append(ctx.cancelled.wait(LIMIT_S))
        ctx.stream("nor this")

    start(app.worker())
    with pytest.raises(JobFailed, match="65536"):
        large.wait()
    cancelled.enqueue()
    assert eventually("it has ended", lambda: seen or None) == [True]
