"""Handlers that take several jobs in one call."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from conftest import LIMIT_S, Gateway, eventually

from galley import App, Context, JobFailed, NoRetry, Worker, current, job

#: Longer than any test: a call that waits for it has failed.
NEVER = 3600.0


def test_a_call_has_as_many_jobs_as_are_asked_for_and_each_gets_its_own_result(
    gateway: Gateway, name: str, start: Any
) -> None:
    app, calls = App(), []

    @app.task_of_many("sum", count=3, delay=NEVER, queue=name)
    def add(jobs: list[Context]) -> list[int]:
        with pytest.raises(RuntimeError):
            current()
        calls.append(len(jobs))
        return [sum(job.job["args"]) for job in jobs]

    # Places are left: it is the number of jobs that begins a call
    start(app.worker(concurrency=8))
    handles = [add.enqueue(number, 10) for number in range(6)]
    assert [handle.wait() for handle in handles] == [10, 11, 12, 13, 14, 15]
    assert calls == [3, 3]


def test_a_call_begins_with_fewer_jobs_when_the_delay_is_over(gateway: Gateway, name: str, start: Any) -> None:
    app = App()

    @app.task_of_many("count", count=8, delay=0.2, queue=name)
    async def count(jobs: list[Context]) -> list[int]:
        await asyncio.sleep(0)
        return [len(jobs)] * len(jobs)

    start(app.worker(concurrency=8))
    assert count.wait() == 1


def test_what_is_raised_fails_all_and_what_is_given_fails_one(gateway: Gateway, name: str, start: Any) -> None:
    app = App()

    @app.task_of_many("mixed", count=3, delay=NEVER, queue=name, retry={"max_attempts": 1})
    def mixed(jobs: list[Context]) -> list[Any]:
        by = {"good": "done", "bad": ValueError("not this one"), "worse": NoRetry("never")}
        return [by[job.job["args"][0]] for job in jobs]

    @app.task_of_many("broken", count=2, delay=NEVER, queue=name, retry={"max_attempts": 1})
    def broken(jobs: list[Context]) -> None:
        raise LookupError("all of them")

    @app.task_of_many("short", count=2, delay=NEVER, queue=name, retry={"max_attempts": 1})
    def short(jobs: list[Context]) -> list[int]:
        return [1]

    start(app.worker(concurrency=8))
    good, bad, worse = [mixed.enqueue(kind) for kind in ("good", "bad", "worse")]
    assert good.wait() == "done"
    for handle, message in [(bad, "not this one"), (worse, "never")]:
        with pytest.raises(JobFailed, match=message):
            handle.wait()
    for handle in [broken.enqueue(), broken.enqueue()]:
        with pytest.raises(JobFailed, match="all of them"):
            handle.wait()
    for handle in [short.enqueue(), short.enqueue()]:
        with pytest.raises(JobFailed, match="one result for each: 2, not 1 results"):
            handle.wait()


def test_a_job_that_is_cancelled_while_it_waits_for_others_is_not_in_the_call(
    gateway: Gateway, name: str, start: Any
) -> None:
    app, calls = App(), []

    @app.task_of_many("pairs", count=2, delay=NEVER, queue=name)
    def pairs(jobs: list[Context]) -> None:
        calls.append([job.id for job in jobs])

    worker = start(app.worker(concurrency=2, lease=1))
    alone = pairs.enqueue()
    eventually("it waits in the worker", lambda: worker._active or None)
    alone.cancel()
    eventually("its place is free", lambda: None if worker._active else True)
    both = [pairs.enqueue(), pairs.enqueue()]
    assert [handle.wait() for handle in both] == [None, None]
    assert [set(call) for call in calls] == [{handle.id for handle in both}]


def test_an_asynchronous_call_is_cancelled_when_nobody_wants_any_of_its_jobs(
    gateway: Gateway, name: str, start: Any
) -> None:
    app, began, ended = App(), threading.Event(), threading.Event()

    @app.task_of_many("forever", count=2, delay=NEVER, queue=name)
    async def forever(jobs: list[Context]) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    worker = start(app.worker(concurrency=2, lease=1))
    first, second = forever.enqueue(), forever.enqueue()
    assert began.wait(LIMIT_S)
    first.cancel()
    eventually("it is told", lambda: any(job.cancelled.is_set() for job in worker._active.values()) or None)
    assert not ended.is_set()
    second.cancel()
    assert ended.wait(LIMIT_S)
    eventually("the places are free", lambda: worker._is_idle() or None)


def test_a_worker_that_stops_calls_with_what_it_has(gateway: Gateway, name: str, start: Any) -> None:
    worker = Worker(queues=[name], concurrency=2)

    @worker.jobs("last", count=2, delay=NEVER)
    def last(jobs: list[Context]) -> list[int]:
        return [len(jobs)]

    start(worker)
    handle = App().client.enqueue("last", queue=name)
    eventually("it waits in the worker", lambda: worker._active or None)
    worker.stop()
    assert App().client.result(handle["id"]) == 1


def test_what_no_worker_can_do_is_an_error_at_once() -> None:
    app = App()

    @app.task_of_many("large", count=5)
    def large(jobs: list[Context]) -> None:
        pass

    with pytest.raises(ValueError, match=r"count=5 for jobs of type large.*concurrency=4"):
        app.worker()
    assert app.worker(concurrency=5)
    for wrong in [{"count": 0}, {"count": 1, "delay": -1.0}, {"count": 1, "delay": float("nan")}]:
        with pytest.raises(ValueError, match="count must be at least 1"):
            app.task_of_many("wrong", **wrong)
    with pytest.raises(TypeError, match="priority"):
        app.task_of_many("wrong", count=1, priorty=1)
    with pytest.raises(TypeError, match="large: its jobs have a list of arguments; to cannot be named"):
        large.job(to="ada")


@pytest.mark.parametrize("mode", ["fake", "inline"])
def test_in_test_modes_a_call_has_one_job(mode: str) -> None:
    app = App()

    @app.task_of_many("double", count=10, retry={"max_attempts": 1})
    async def double(jobs: list[Context]) -> list[Any]:
        return [job.job["args"][0] * 2 if job.job["args"] else ValueError("no number") for job in jobs]

    with app.fake() if mode == "fake" else app.inline() as jobs:
        double.enqueue(4)
        app.client.enqueue_many([job("double", 5), double.job()])
        jobs.drain()
        ends = [(job["state"], job.get("result")) for job in jobs.jobs]
    assert ends == [("completed", 8), ("completed", 10), ("discarded", None)]
