"""Typed tasks and the test modes; no gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import galley
from galley import App, current, job


def app_with_tasks() -> tuple[App, Any, Any]:
    app = App("http://127.0.0.1:1", patience=0)

    @app.task("email.send", queue="mail", priority=3)
    async def send(to: str, subject: str = "hello", *, urgent: bool = False) -> str:
        await asyncio.sleep(0)
        return f"{to} {subject} {urgent} {current().attempt}"

    @app.task("add")
    def add(a: int, b: int = 2, *more: int) -> int:
        return a + b + sum(more)

    return app, send, add


def test_arguments_become_the_list_of_the_job_and_come_back_by_name() -> None:
    app, send, add = app_with_tasks()
    assert send.job("ada") == {"type": "email.send", "args": ["ada"], "options": {"queue": "mail", "priority": 3}}
    assert send.job(to="ada", urgent=True)["args"] == ["ada", "hello", True]
    assert add.job(1)["args"] == [1]
    assert add.job(1, 2, 3, 4)["args"] == [1, 2, 3, 4]
    assert add(1, 2, 3) == 6
    with app.inline():
        assert send.sync.wait(urgent=True, to="ada") == "ada hello True 1"
        assert add.wait(1, 2, 3, 4) == 10
        assert asyncio.run(send.wait("ada", "bye")) == "ada bye False 1"
        assert asyncio.run(add.aio.wait(a=1)) == 3


def test_a_misspelt_argument_or_option_names_the_nearest() -> None:
    app, send, add = app_with_tasks()
    with app.fake() as jobs:
        for call, said in [
            (lambda: send.sync.enqueue("ada", subjct="x"), "did you mean 'subject'?"),
            (lambda: asyncio.run(send.enqueue("ada", subjct="x")), "did you mean 'subject'?"),
            (lambda: add.enqueue(), "missing a required argument: 'a'"),
            (lambda: add.with_options(priorty=1), "with_options() has no option 'priorty': did you mean 'priority'?"),
            (lambda: app.task("x", qeue="a"), "task() has no option 'qeue': did you mean 'queue'?"),
            (lambda: job("x", scheduled_att=1), "job() has no option 'scheduled_att': did you mean 'scheduled_at'?"),
        ]:
            with pytest.raises(TypeError) as refused:
                call()
            assert said in str(refused.value)
        assert jobs.jobs == []


def test_a_task_that_no_job_can_call_is_refused() -> None:
    app = App()
    with pytest.raises(TypeError, match=r"takes \*\*arguments"):
        app.task("x")(lambda **named: None)
    app.task("x")(lambda: None)
    with pytest.raises(ValueError, match="there is a task for x already"):
        app.task("x")(lambda: None)
    with pytest.raises(RuntimeError, match="only a handler"):
        current()


def test_the_fake_mode_keeps_jobs_until_they_are_drained() -> None:
    app, send, add = app_with_tasks()
    with app.fake() as jobs:
        later = add.schedule(3600, 1)
        with pytest.raises(TimeoutError):
            later.wait()
        asyncio.run(send.with_options(queue="bulk").enqueue("ada"))
        app.client.enqueue_many([add.job(5), job("add", 6, queue="other")])
        assert app.client.publish("orders", {"order": 7}) and app.client.publish_many("orders", ["a"])
        jobs.assert_enqueued("email.send", args=["ada"], queue="bulk")
        jobs.assert_enqueued("add", count=3)
        jobs.assert_not_enqueued("email.send", queue="mail")
        with pytest.raises(AssertionError, match=r"expected a job add with args=\[9\].*add\[1\] in default"):
            jobs.assert_enqueued("add", args=[9])
        with pytest.raises(AssertionError):
            jobs.assert_not_enqueued("add")
        assert (later.job["state"], later.cancel()["state"]) == ("scheduled", "cancelled")
        assert [ran["state"] for ran in jobs.drain()] == ["completed"] * 3
        assert [found.get("result") for found in jobs.enqueued("add")] == [None, 7, 8]
        assert jobs.messages == [("orders", {"order": 7}), ("orders", "a")]
        with pytest.raises(NotImplementedError, match="test that with a gateway"):
            app.client.subscribe("orders")
    # Outside the block the gateway is asked again
    with pytest.raises(galley.Unavailable):
        add.enqueue(1)


def test_jobs_that_handlers_enqueue_are_drained_too_and_middleware_runs() -> None:
    app, seen = App(), []

    @app.middleware
    def around(ctx: galley.Context, call_next: Callable[[], Any]) -> Any:
        seen.append(ctx.job["type"])
        return call_next()

    @app.task("second")
    async def second() -> str:
        return "second"

    @app.task("first")
    def first() -> str:
        return second.sync.enqueue().id

    with app.fake() as jobs:
        handle = first.enqueue()
        jobs.drain()
        assert app.client.result(handle.wait()) == "second"
    with app.inline():
        assert app.client.result(first.wait()) == "second"
    assert seen == ["first", "second"] * 2


def test_a_failed_job_has_all_its_attempts_at_once_unless_its_handler_says_no() -> None:
    app = App()

    @app.task("flaky", retry={"max_attempts": 5})
    def flaky(until: int) -> int:
        if current().attempt < until:
            raise ValueError(f"attempt {current().attempt}")
        return current().attempt

    @app.task("hopeless")
    async def hopeless() -> None:
        raise galley.NoRetry("never")

    @app.task("unsendable")
    def unsendable(value: Any) -> None: ...

    with app.inline():
        assert flaky.wait(3) == 3
        with pytest.raises(galley.JobFailed, match="attempt 5") as failed:
            flaky.wait(9)
        assert len(failed.value.job["errors"]) == 5
        with pytest.raises(galley.JobFailed, match="never") as failed:
            hopeless.sync.wait()
        assert failed.value.job["attempt"] == 1
        with pytest.raises(TypeError, match="not JSON serializable"):
            unsendable.enqueue(object())


@pytest.mark.parametrize("mode", ["fake", "inline"])
def test_workflows_run_in_the_test_modes_as_they_do_at_a_gateway(mode: str) -> None:
    app = App()

    @app.task("make", retry={"max_attempts": 1})
    def make(n: int) -> int:
        if n < 0:
            raise ValueError("negative")
        return n

    @app.task("sum")
    async def total() -> int:
        return sum(result or 0 for result in current().parent_results)

    with getattr(app, mode)() as jobs:
        chain = app.client.chain(make.job(3), make.job(4), total.job())
        broken = app.client.chain(make.job(-1), total.job())
        group = app.client.group(make.job(1), make.job(2))
        callbacks = {"on_complete": total.job(), "on_success": make.job(100), "on_failure": make.job(200)}
        good = app.client.batch(make.job(5), make.job(6), **callbacks)
        bad = app.client.batch(make.job(5), make.job(-6), **callbacks)
        if mode == "fake":
            assert [member["state"] for member in chain["members"]] == ["available", "waiting", "waiting"]
            doomed = app.client.group(make.job(7))
            assert app.client.cancel_workflow(doomed["id"])["state"] == "cancelled"
            jobs.drain()
            jobs.assert_enqueued("make", args=[7], count=1)
        state = {
            name: app.client.get_workflow(workflow["id"])["state"]
            for name, workflow in [("chain", chain), ("broken", broken), ("group", group), ("good", good), ("bad", bad)]
        }
        assert state == {
            "chain": "completed",
            "broken": "failed",
            "group": "completed",
            "good": "completed",
            "bad": "failed",
        }
        assert app.client.result(chain["members"][2]["id"]) == 7
        assert app.client.get(broken["members"][1]["id"])["state"] == "cancelled"

        def ended(workflow: galley.Workflow) -> dict[str, Any]:
            return {job["on"]: app.client.get(job["id"]).get("result") for job in workflow["callbacks"]}

        assert ended(good) == {"on_complete": 11, "on_success": 100, "on_failure": None}
        assert ended(bad) == {"on_complete": 5, "on_success": None, "on_failure": 200}


@pytest.mark.parametrize("mode", ["fake", "inline"])
def test_nested_workflows_and_steps_for_each_element_run_in_the_test_modes(mode: str) -> None:
    app = App()

    @app.task("split")
    def split(n: int) -> Any:
        return list(range(n)) if n >= 0 else {"no": "list"}

    @app.task("times")
    def times(factor: int, n: int) -> int:
        return factor * n

    @app.task("gather")
    async def gather() -> list[Any]:
        return current().parent_results

    with getattr(app, mode)() as jobs:
        client = app.client
        mapped = client.chain(split.job(3), times.each(10), gather.job())
        empty = client.chain(split.job(0), times.each(10), gather.job())
        wrong = client.chain(split.job(-1), times.each(10), gather.job())
        steps = {
            "split": split.job(2),
            "each": galley.for_each(galley.chain(galley.job("times", 2), galley.job("times", 3)), "split"),
            "all": gather.job(),
        }
        tree = client.dag(steps, {"all": ["each"]})
        inner = galley.group(times.job(1, 2), galley.chain(times.job(1, 3), gather.job()), name="inner")
        nested = client.chain(split.job(1), inner, gather.job())
        if mode == "fake":
            assert [member["state"] for member in nested["members"]] == ["available", "waiting", "waiting"]
            doomed = client.group(galley.group(times.job(7, 7)))
            cancelled = client.cancel_workflow(doomed["members"][0]["id"])
            assert (cancelled["state"], cancelled["parent_workflow_id"]) == ("cancelled", doomed["id"])
            assert client.get_workflow(doomed["id"])["state"] == "failed"
            jobs.drain()
        jobs.assert_enqueued("times", args=[10, 2], count=1)

        def over(workflow: galley.Workflow) -> tuple[str, Any]:
            shown = client.get_workflow(workflow["id"])
            return shown["state"], client.get(shown["members"][-1]["id"]).get("result")

        assert over(mapped) == ("completed", [[0, 1, 2], [0, 10, 20]])
        assert over(empty) == ("completed", [[], []])
        assert over(wrong) == ("failed", None)
        error = client.get_workflow(wrong["id"])["members"][1]["error"]
        assert error["code"] == "not_an_array"
        assert over(tree) == ("completed", [[0, 3]])
        assert over(nested) == ("completed", [[0], [2, [3]]])
        member = client.get_workflow(nested["id"])["members"][1]
        assert (member["type"], member["workflow"], member["state"]) == ("group", True, "completed")
        shown = client.get_workflow(member["id"])
        assert (shown["parent_workflow_id"], shown["parent_workflow_index"]) == (nested["id"], 1)
        with pytest.raises(TypeError, match="times: too many positional arguments"):
            times.each(1, 2)
        with pytest.raises(ValueError, match="is for each element of 'nobody', which is none of the jobs: a"):
            client.dag({"a": times.each(1, of="nobody")}, {})
