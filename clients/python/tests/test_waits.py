"""Jobs that wait in the middle of their work: for signals, for people, for times."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Gateway, eventually

import galley
from galley import App, GalleyError, JobFailed, NoRetry, current

ONCE: galley.RetryPolicy = {"max_attempts": 1}


def waits_for(gateway: Gateway, id: str, step: str) -> galley.Job:
    client = galley.Client(gateway.url)

    def found() -> galley.Job | None:
        job = client.get(id)
        return job if job.get("waiting", {}).get("step") == step else None

    return eventually(f"the job waits at {step}", found)


def test_a_job_waits_without_its_worker_and_goes_on_with_the_signal(gateway: Gateway, name: str, start: Any) -> None:
    app, ran = App(), []
    client = galley.Client(gateway.url)

    @app.task("refund", queue=name, retry=ONCE)
    def refund(order: int) -> Any:
        ctx = current()
        ctx.step("look", lambda: ran.append("look"))
        try:
            answers = [ctx.wait_for_signal("answered", 3600), ctx.wait_for_signal("answered", 3600, step="second")]
        except Exception:
            ran.append("caught")
            raise
        finally:
            ran.append("unwound")
        late = ctx.wait_for_signal("never", 0)
        ctx.sleep("cool down", 0.01)
        return [[answer and answer["data"] for answer in answers], late, ctx.attempt, order]

    start(app.worker())
    job = refund.enqueue(7)
    waiting = waits_for(gateway, job.id, "answered")
    assert waiting["state"] == "scheduled" and waiting["waiting"]["signal"] == "answered"
    sent = client.signal(job.id, "answered", {"ok": True}, signal_id="first")
    assert (sent["sequence"], client.signal(job.id, "answered", {"ok": True}, signal_id="first")) == (1, sent)
    waits_for(gateway, job.id, "second")
    client.signal(job.id, "answered", "again")
    assert job.wait(60) == [[{"ok": True}, "again"], None, 1, 7]
    assert ran.count("look") == 1 and "caught" not in ran and len(ran) == 6, ran
    assert client.signals(job.id) == []
    with pytest.raises(GalleyError) as refused:
        client.signal(job.id, "answered")
    assert refused.value.status == 409


def test_an_asynchronous_handler_waits_for_a_person(gateway: Gateway, name: str, start: Any) -> None:
    app = App()
    client = galley.Client(gateway.url)

    @app.task("payout", queue=name, retry=ONCE)
    async def payout(amount: int) -> Any:
        decision = await current().wait_for_approval_async("payout", 3600)
        if decision is None or not decision["approved"]:
            raise NoRetry(f"not approved: {decision and decision['comment']}")
        await current().sleep_async("cool down", 0)
        return [amount, decision["by"]]

    start(app.worker())
    approved, rejected = payout.sync.enqueue(1), payout.sync.enqueue(2)
    for job in (approved, rejected):
        waits_for(gateway, job.id, "approval.payout")
    client.approve(approved.id, "payout", by="ann")
    client.reject(rejected.id, "payout", comment="too much")
    assert approved.wait(60) == [1, "ann"]
    with pytest.raises(JobFailed, match="not approved: too much"):
        rejected.wait(60)


def test_jobs_of_one_call_wait_by_themselves(gateway: Gateway, name: str, start: Any) -> None:
    client = galley.Client(gateway.url)
    worker = galley.Worker(gateway.url, [name], concurrency=2)

    @worker.jobs("ask", count=2, delay=0.1)
    def ask(jobs: list[galley.Context]) -> list[Any]:
        results: list[Any] = []
        for ctx in jobs:
            try:
                answer = ctx.wait_for_signal("go") if ctx.job["args"][0] == "wait" else {"data": "at once"}
                results.append(answer and answer["data"])
            except galley.Waiting as waiting:
                results.append(waiting)
        return results

    start(worker)
    one, other = client.enqueue("ask", "wait", queue=name), client.enqueue("ask", "go on", queue=name)
    assert client.result(other["id"]) == "at once"
    waits_for(gateway, one["id"], "go")
    client.signal(one["id"], "go", 5)
    assert client.result(one["id"]) == 5


def test_the_test_mode_waits_for_signals_and_not_for_times() -> None:
    app = App()

    @app.task("refund", retry=ONCE)
    def refund(order: int) -> Any:
        ctx = current()
        ctx.sleep("cool down", 3600)
        answer = ctx.wait_for_signal("answered", 60)
        return [order, answer and answer["data"], ctx.attempt]

    with app.fake() as fake:
        one, other = refund.enqueue(1), refund.enqueue(2)
        fake.drain()
        assert [job["waiting"]["signal"] for job in fake.jobs] == ["answered", "answered"]
        assert app.client.signal(one.id, "answered", "yes")["sequence"] == 1
        fake.end_wait(other.id)
        fake.drain()
        assert (one.wait(), other.wait()) == ([1, "yes", 1], [2, None, 1])
        with pytest.raises(GalleyError):
            app.client.signal(one.id, "answered")
    with app.inline():
        job = refund.enqueue(3)
        app.client.signal(job.id, "answered", "no")
        assert job.wait() == [3, "no", 1]
