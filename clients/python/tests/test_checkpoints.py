"""Checkpoints and steps: what an attempt saves, and what the next one finds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from conftest import Gateway, eventually

import galley
from galley import App, GalleyError, JobFailed, NoRetry, current

AT_ONCE: galley.RetryPolicy = {"max_attempts": 5, "initial_interval": "PT0.1S"}


def test_a_step_runs_once_and_later_attempts_get_its_result(gateway: Gateway, name: str, start: Any) -> None:
    app, ran = App(), []

    def charge(order: int, *, currency: str) -> tuple[int, str]:
        ran.append("charge")
        return order, currency

    def ship() -> str:
        ran.append("ship")
        if current().attempt < 3:
            raise ConnectionError("the carrier is away")
        return "on its way"

    @app.task("fulfil", queue=name, retry=AT_ONCE)
    def fulfil(order: int) -> Any:
        ctx = current()
        paid = ctx.step("charge", charge, order, currency="EUR")
        ctx.checkpoint([*(ctx.state or []), ctx.attempt])
        return [paid, ctx.step("ship", ship), ctx.step("ship", ship), ctx.state]

    start(app.worker())
    assert fulfil.wait(7) == [[7, "EUR"], "on its way", "on its way", [1, 2, 3]]
    assert ran == ["charge", "ship", "ship", "ship"]


def test_steps_of_an_asynchronous_handler_run_side_by_side(gateway: Gateway, name: str, start: Any) -> None:
    app, ran = App(), []

    @app.task("pages", queue=name, retry=AT_ONCE)
    async def pages(count: int) -> Any:
        ctx = current()

        async def page(number: int) -> int:
            ran.append(number)
            await asyncio.sleep(0)
            return number * number

        done = await asyncio.gather(*[ctx.step_async(f"page-{number}", page, number) for number in range(count)])
        await ctx.checkpoint_async({"seen": sum(done)})
        if ctx.attempt == 1:
            raise ValueError("once more")
        return [done, ctx.state]

    start(app.worker())
    assert pages.sync.wait(4) == [[0, 1, 4, 9], {"seen": 14}]
    assert sorted(ran) == [0, 1, 2, 3]


def test_what_cannot_be_a_step_is_an_error(gateway: Gateway, name: str, start: Any) -> None:
    app = App()

    async def later() -> int:
        return 1

    @app.task("wrong", queue=name, retry={"max_attempts": 1})
    def wrong(kind: str) -> None:
        ctx = current()
        if kind == "nested":
            ctx.step("a", lambda: ctx.step("a", lambda: 1))
        elif kind == "asynchronous":
            _ = ctx.step("a", later)
        elif kind == "set":
            ctx.step("a", lambda: {1})

    @app.task("large", queue=name, retry=AT_ONCE)
    def large() -> None:
        current().step("a", lambda: "x" * (1 << 20))

    start(app.worker())
    for kind, message in [("nested", "of its own"), ("asynchronous", "step_async"), ("set", "not JSON serializable")]:
        with pytest.raises(JobFailed, match=message):
            wrong.wait(kind)
    with pytest.raises(JobFailed, match="1048576") as failed:
        large.wait()
    assert failed.value.job["attempt"] == 1, "another attempt would not change that"


def test_an_attempt_that_is_not_the_current_one_cannot_save(gateway: Gateway, name: str, start: Any) -> None:
    app, seen = App(), []

    @app.task("cancelled", queue=name)
    def cancelled() -> None:
        ctx = current()
        client = galley.Client()
        client.cancel(ctx.id)
        with pytest.raises(GalleyError) as refused:
            ctx.checkpoint(1)
        seen.append((refused.value.status, ctx.cancelled.is_set()))

    start(app.worker())
    cancelled.enqueue()
    assert eventually("the handler was refused", lambda: seen or None) == [(409, True)]


def test_a_test_mode_keeps_checkpoints_until_the_job_is_done() -> None:
    app, ran = App(), []

    @app.task("fulfil")
    def fulfil() -> Any:
        ctx = current()
        ctx.step("charge", lambda: ran.append("charge"))
        ctx.checkpoint((ctx.state or 0) + 1)
        if ctx.attempt == 1:
            raise ConnectionError("away")
        return ctx.state

    @app.task("hopeless")
    def hopeless() -> None:
        current().checkpoint("half")
        raise NoRetry("never")

    with app.fake() as jobs:
        fulfil.enqueue()
        hopeless.enqueue()
        done, failed = jobs.drain()
    assert (done["result"], ran, done.get("checkpoint")) == (2, ["charge"], None)
    assert failed["checkpoint"]["state"] == "half"
