"""Both clients with a real gateway: each test runs with threads and with asyncio."""

from __future__ import annotations

import asyncio
import datetime
import http.server
import inspect
import json
import threading
from typing import Any

import pytest
from conftest import Gateway, eventually

import galley
from galley import GalleyError, Worker, job


def test_both_clients_have_the_same_surface() -> None:
    def surface(of: type) -> dict[str, list[inspect.Parameter]]:
        methods = inspect.getmembers(of, inspect.isfunction)
        return {
            name: list(inspect.signature(method).parameters.values())
            for name, method in methods
            if not name.startswith("_")
        }

    assert surface(galley.Client) == surface(galley.AsyncClient)
    assert surface(galley.Calls) == surface(galley.AsyncCalls)
    assert surface(galley.Handle) == surface(galley.AsyncHandle)
    assert surface(galley.Subscription) == surface(galley.AsyncSubscription)


def test_a_job_is_enqueued_cancelled_and_retried(client: Any, name: str) -> None:
    new = client.enqueue("email.send", "ada@example.org", queue=name, priority=5, meta={"tenant": 7}, tags=["a"])
    assert (new["state"], new["args"], new["priority"], new["meta"]) == (
        "available",
        ["ada@example.org"],
        5,
        {"tenant": 7},
    )
    assert client.cancel(new["id"])["state"] == "cancelled"
    with pytest.raises(GalleyError) as refused:
        client.cancel(new["id"])
    assert (refused.value.status, refused.value.code) == (409, "conflict")
    assert client.retry(new["id"])["state"] == "available"
    assert client.get(new["id"])["state"] == "available"
    assert client.get_queue(name)["available"] == 1


def test_a_wait_ends_with_the_result_and_a_failed_job_raises(client: Any, name: str, start: Any) -> None:
    worker = Worker(queues=[name])
    worker.job("double")(lambda ctx, n: n * 2)
    doomed = client.enqueue("doomed", queue=name, retry={"max_attempts": 1})
    done = client.enqueue("double", 21, queue=name)
    with pytest.raises(TimeoutError):
        client.result(done["id"], wait=0)
    start(worker)
    assert client.result(done["id"], wait=30) == 42
    with pytest.raises(galley.JobFailed, match="no handler for jobs of type doomed") as failed:
        client.result(doomed["id"], wait=30)
    assert failed.value.job["state"] == "discarded"


def test_many_jobs_are_stored_together_or_not_at_all(client: Any, name: str) -> None:
    jobs = client.enqueue_many([job("a", 1, queue=name), job("b", queue=name, priority=3, meta={"x": 1})])
    assert [(new["type"], new["priority"], new.get("meta")) for new in jobs] == [("a", 0, None), ("b", 3, {"x": 1})]
    with pytest.raises(GalleyError) as refused:
        client.enqueue_many([job("a", queue=name), job("No Type", queue=name)])
    assert refused.value.code == "invalid_request"
    assert client.get_queue(name)["available"] == 2


def test_an_idempotency_key_makes_one_job(client: Any, name: str) -> None:
    first = client.enqueue("a", queue=name, idempotency_key=name)
    assert client.enqueue("a", queue=name, idempotency_key=name)["id"] == first["id"]
    with pytest.raises(GalleyError) as refused:
        client.enqueue("a", 1, queue=name, idempotency_key=name)
    assert refused.value.code == "idempotency_conflict"
    assert client.get_queue(name)["available"] == 1


def test_unique_jobs_are_told_apart(client: Any, name: str) -> None:
    older = client.enqueue("a", 1, queue=name, unique={"keys": ["args"]})
    with pytest.raises(GalleyError) as refused:
        client.enqueue("a", 1, queue=name, unique={"keys": ["args"]})
    assert refused.value.code == "duplicate"
    same = client.enqueue("a", 1, queue=name, unique={"keys": ["args"], "on_conflict": "ignore"})
    assert same["id"] == older["id"]
    assert client.enqueue("a", 2, queue=name, unique={"keys": ["args"]})["id"] != older["id"]


def test_a_job_that_waits_is_debounced(client: Any, name: str) -> None:
    unique: Any = {"keys": ["args"], "args_keys": ["0"], "on_conflict": "debounce", "max_wait": "PT2H"}
    first = client.enqueue("a", 1, "old", queue=name, scheduled_at="+PT1H", unique=unique)
    second = client.enqueue("a", 1, "new", queue=name, scheduled_at="+PT1H", unique=unique)
    assert (second["id"], second["args"]) == (first["id"], [1, "new"])


def test_limits_of_a_key_and_of_a_queue_keep_jobs_waiting(client: Any, name: str, start: Any) -> None:
    worker = Worker(queues=[name])
    worker.job("a")(lambda ctx: "done")
    held = client.enqueue("a", queue=name, rate_limit={"key": "k", "concurrency": 0})
    free = client.enqueue("a", queue=name)
    start(worker)
    assert client.result(free["id"], wait=30) == "done"
    assert client.get(held["id"])["attempt"] == 0
    shown = client.limit_queue(name, concurrency=2, rate={"limit": 5, "period": "PT1S", "burst": 1})["limits"]
    assert (shown["concurrency"], shown["rate"]["limit"], shown["rate"]["burst"]) == (2, 5, 1)
    assert client.limit_queue(name, priority_aging="PT1M")["limits"] == {
        "concurrency": None,
        "rate": None,
        "max_depth": None,
        "priority_aging": "PT60S",
    }
    assert client.limit_queue(name)["limits"]["priority_aging"] is None
    client.pause_queue(name)
    assert client.get_queue(name)["paused"] is True
    client.resume_queue(name)
    assert client.get_queue(name)["paused"] is False


@pytest.mark.parametrize(
    "when",
    [
        3600,
        datetime.timedelta(hours=1),
        "+PT1H",
        datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1),
    ],
)
def test_a_time_may_be_given_in_each_way(client: Any, name: str, when: Any) -> None:
    new = client.schedule(when, "a", queue=name)
    due = datetime.datetime.fromisoformat(new["scheduled_at"].replace("Z", "+00:00"))
    minutes = (due - datetime.datetime.now(datetime.timezone.utc)).total_seconds() / 60
    assert new["state"] == "scheduled" and 50 < minutes < 61
    assert client.retry(new["id"])["state"] == "available"


def test_a_pending_job_waits_until_it_is_activated(client: Any, name: str) -> None:
    new = client.enqueue("a", queue=name, pending=True)
    assert new["state"] == "pending"
    assert client.activate(new["id"])["state"] == "available"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"priorty": 1}, "enqueue() has no option 'priorty': did you mean 'priority'?"),
        ({"retry": {"max_atempts": 1}}, "retry has no option 'max_atempts': did you mean 'max_attempts'?"),
        ({"rate_limit": {"rate": {"limt": 1}}}, "rate_limit.rate has no option 'limt': did you mean 'limit'?"),
        ({"zzz": 1}, "enqueue() has no option 'zzz'"),
    ],
)
def test_an_unknown_option_is_an_error_that_names_the_nearest(client: Any, options: Any, said: str) -> None:
    with pytest.raises(TypeError) as refused:
        client.enqueue("a", **options)
    assert str(refused.value) == said


def test_workflows_hand_results_on(client: Any, name: str, start: Any) -> None:
    worker = Worker(queues=[name])
    worker.job("make")(lambda ctx, n: n)
    worker.job("sum")(lambda ctx: sum(ctx.parent_results))
    start(worker)

    def state_of(id: str, state: str) -> Any:
        def look() -> Any:
            found = client.get_workflow(id)
            return found if found["state"] == state else None

        return eventually(f"the workflow is {state}", look)

    steps = {"a": job("make", 3, queue=name), "b": job("make", 4, queue=name), "sum": job("sum", queue=name)}
    dag = state_of(client.dag(steps, {"sum": ["a", "b"]}, name="both")["id"], "completed")
    assert (dag["type"], client.result(dag["members"][-1]["id"])) == ("dag", 7)
    with pytest.raises(ValueError, match="depends_on names 'c', which is none of the jobs: a, b, sum"):
        client.dag(steps, {"sum": ["c"]})
    chain = client.chain(job("make", 3, queue=name), job("sum", queue=name), name="totals")
    chain = state_of(chain["id"], "completed")
    assert client.result(chain["members"][-1]["id"]) == 3
    group = client.group(job("make", 1, queue=name), job("make", 2, queue=name))
    assert state_of(group["id"], "completed")["jobs_completed"] == 2
    batch = client.batch(job("make", 1, queue=name), job("make", 2, queue=name), on_success=job("sum", queue=name))
    batch = state_of(batch["id"], "completed")
    callback = eventually(
        "the callback is made",
        lambda: next((c["id"] for c in client.get_workflow(batch["id"])["callbacks"] if c.get("id")), None),
    )
    assert client.result(callback, wait=30) == 3
    each = galley.for_each(galley.chain(job("make", queue=name)))
    nested = galley.group(job("make", 1, queue=name), job("make", 2, queue=name), name="inner")
    listed = state_of(client.chain(job("make", [5, 6], queue=name), each, nested)["id"], "completed")
    assert [member.get("result") for member in listed["members"]] == [[5, 6], [5, 6], [1, 2]]
    inner = client.get_workflow(listed["members"][2]["id"])
    assert (inner["parent_workflow_id"], inner["parent_workflow_index"]) == (listed["id"], 2)
    waiting = client.group(job("make", 1, queue=f"{name}-nobody"))
    assert client.cancel_workflow(waiting["id"])["state"] == "cancelled"


def test_cron_entries_are_set_triggered_and_deleted(client: Any, name: str) -> None:
    made = client.set_cron(name, "0 9 * * MON-FRI", job("report", 1, queue=name), timezone="Europe/Berlin")
    assert (made["expression"], made["timezone"]) == ("0 9 * * MON-FRI", "Europe/Berlin")
    assert client.set_cron(name, "@daily", job("report", 1, queue=name), overlap_policy="allow")["name"] == name
    assert client.get_cron(name)["overlap_policy"] == "allow"
    assert name in [entry["name"] for entry in client.crons()]
    assert client.disable_cron(name)["enabled"] is False
    assert client.enable_cron(name)["enabled"] is True
    assert client.trigger_cron(name)["queue"] == name
    assert client.get_queue(name)["available"] == 1
    client.delete_cron(name)
    with pytest.raises(GalleyError) as refused:
        client.get_cron(name)
    assert refused.value.status == 404


def test_progress_logs_and_events_of_a_job_are_seen(client: Any, name: str, start: Any) -> None:
    worker, seen = Worker(queues=[name]), threading.Event()

    @worker.job("a")
    def handle(ctx: galley.Context) -> str:
        ctx.progress(0.5, "half")
        ctx.log("a line", level="warn")
        assert seen.wait(30)
        return "done"

    start(worker)
    id = client.enqueue("a", queue=name)["id"]
    events = client.events(id)
    assert next(event.data for event in events if event.type == "job.progress")["progress"] == 0.5
    assert client.get(id)["progress_data"] == {"message": "half"}
    seen.set()
    assert [event.type for event in events][-1] == "job.completed"
    assert [(line["message"], line["level"]) for line in client.logs(id)] == [("a line", "warn")]


def test_messages_are_published_read_and_followed(client: Any, name: str) -> None:
    with client.subscribe(name) as messages:
        ids = [client.publish(name, "text"), client.publish(name, {"order": 7}), client.publish(name, b"\0\xff")]
        ids += client.publish_many(name, ["more", [1]])
        got = [next(messages) for _ in range(5)]
        assert [message.data for message in got] == ["text", {"order": 7}, b"\0\xff", "more", [1]]
        assert [message.id for message in got] == ids
        assert messages.last_id == ids[-1]
    assert [message.data for message in client.history(name, after=ids[2])] == ["more", [1]]
    with client.subscribe(name, last_id=ids[3]) as messages:
        assert next(messages).data == [1]
    event = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.paid", "subject": "Müller, 100 %"}
    client.publish(name, {"order": 8}, attributes=event)
    [read] = client.history(name, after=ids[4])
    assert {key: read.attributes[key] for key in ("type", "subject")} == {
        "type": "order.paid",
        "subject": event["subject"],
    }


def test_a_published_message_with_a_key_is_published_once(client: Any, name: str) -> None:
    assert client.publish(name, "a", idempotency_key=name) == client.publish(name, "a", idempotency_key=name)
    assert len(client.history(name)) == 1


def test_a_pattern_covers_channels_that_come_later_and_resumes(client: Any, name: str) -> None:
    with client.subscribe(f"{name}.*") as messages:
        client.publish(f"{name}.a", "1")
        client.publish(f"{name}.b", "2")
        got = {next(messages).data, next(messages).data}
        resume = messages.last_id
    assert got == {"1", "2"}
    client.publish(f"{name}.a", "3")
    with client.subscribe(f"{name}.*", last_id=resume) as messages:
        assert next(messages).data == "3"


def test_a_subscriber_gets_the_messages_that_its_filter_matches(client: Any, name: str) -> None:
    wanted = {"attributes": {"type": {"prefix": "order."}}, "data": {"/total": {"gte": 100}}}
    for channels in ([name], [name, f"{name}.*"]):
        with client.subscribe(*channels, filter=wanted) as messages:
            for kind, total in (("order.paid", 99), ("x", 100), ("order.paid", 100), ("order.sent", 101)):
                event = {"specversion": "1.0", "id": "1", "source": "/shop", "type": kind}
                client.publish(name, {"total": total}, attributes=event)
            assert [next(messages).data["total"] for _ in range(2)] == [100, 101]
    with pytest.raises(galley.GalleyError) as refused:
        next(client.subscribe(name, filter={"attributes": {"type": {"suffix": "x"}}}))
    assert refused.value.status == 400


WORDS = "Съешь ещё этих мягких французских булок 🥐"
#: The differences of the second and third message from the one before, by another program.
DELTAS = {2: '2_\nA:{"id":"1-22N@A,3:2}}2ydjHr;', 3: '2_\nA:{"id":"1-32N@A,3:3}}2yeEHr;'}


def shown(number: int) -> str:
    data = f'{{"words":"{WORDS}","n":{number}}}'
    return f'{{"id":"1-{number}","channel":"a","time":"2026-01-01T00:00:00.000Z","data":{data}}}'


def test_a_subscriber_that_asks_for_differences_gets_whole_messages(client: Any, name: str) -> None:
    sent = [{"n": number, "words": WORDS * 30} for number in range(4)]
    for channels in ([name], [name, f"{name}.*"]):
        with client.subscribe(*channels, delta=True) as messages:
            for data in sent:
                client.publish(name, data)
            assert [next(messages).data for _ in sent] == sent
            last = messages.last_id
        client.publish(name, sent[1])
        with client.subscribe(*channels, delta=True, last_id=last) as messages:
            assert next(messages).data == sent[1]


def test_a_difference_that_does_not_fit_leads_to_a_whole_message(make_client: Any) -> None:
    def event(number: int, kind: str, data: str) -> str:
        return f"id: 1-{number}\nevent: {kind}\ndata: {data}\n\n"

    def delta(number: int, base: str) -> str:
        return event(number, "delta", json.dumps({"channel": "a", "from": base, "delta": DELTAS[number]}))

    streams = [
        "retry: 1\n" + event(0, "begin", "{}") + event(1, "message", shown(1)) + delta(2, "1-1") + delta(3, "1-1"),
        "retry: 1\n" + event(2, "begin", "{}") + event(3, "message", shown(3)),
    ]
    requests: list[tuple[str, str | None]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append((self.path, self.headers["Last-Event-ID"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(streams[min(len(requests), 2) - 1].encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with make_client(f"http://127.0.0.1:{server.server_port}").subscribe("a", delta=True) as messages:
            got = [next(messages) for _ in range(3)]
        server.shutdown()
    assert [(message.id, message.data["n"]) for message in got] == [("1-1", 1), ("1-2", 2), ("1-3", 3)]
    path = "/v1/channels/a/stream?delta=fossil"
    assert requests[:2] == [(path, None), (path, "1-2")]


def test_a_difference_is_applied_to_its_base_and_to_no_other_text() -> None:
    assert galley.apply_delta(shown(1), DELTAS[2]) == shown(2)
    assert galley.apply_delta("", "2\n2:xy1tUG00;") == "xy"
    cut = ["", "1G", "1G\n1G@0,", "1G\n~~~~~:x0;"]
    for delta in (*cut, "1G\n1G@0;0;", "1G\n~~~~~@~~~~~,0;", "1\n2:ab0;", "1\n1!a0;", "0\n1;"):
        with pytest.raises(galley.DeltaError):
            galley.apply_delta(shown(1), delta)
    with pytest.raises(galley.DeltaError, match="checksum"):
        galley.apply_delta(shown(1).replace("T00", "T01"), DELTAS[2])


def test_members_of_a_channel_are_seen_as_they_join_and_leave(client: Any, name: str) -> None:
    events: list[galley.PresenceEvent] = []
    with client.subscribe(name, on_presence=events.append) as watcher:
        with client.subscribe(name, f"{name}.hall", member="ada", info={"name": "Ada"}):
            there = client.members(name)
            assert [(member["member"], member["info"]) for member in there] == [("ada", {"name": "Ada"})]
            # Events of presence have no order with messages
            while len(events) < 2:
                client.publish(name, "more")
                next(watcher)
    assert [(event.type, event.channel) for event in events[:2]] == [("members", name), ("join", name)]
    assert (events[0].members, events[1].members[0]["member"]) == ([], "ada")
    with pytest.raises(galley.GalleyError) as refused:
        next(client.subscribe(name, join=True))
    assert refused.value.status == 400


def test_messages_that_are_not_kept_are_a_gap(client: Any, name: str) -> None:
    client.publish(name, "kept")
    gaps: list[galley.Gap] = []
    with client.subscribe(name, last_id="1-1", on_gap=gaps.append) as messages:
        assert next(messages).data == "kept"
    assert [(gap.channel, gap.after) for gap in gaps] == [(name, "1-1")]


def test_a_refused_subscription_says_why(client: Any) -> None:
    with pytest.raises(GalleyError) as refused:
        next(client.subscribe("not a channel"))
    assert (refused.value.status, refused.value.code) == (400, "invalid_request")


def test_a_subscriber_misses_nothing_while_its_gateway_restarts(
    make_client: Any, gateway: Gateway, redis_url: str, name: str
) -> None:
    doomed = Gateway(gateway._program, redis_url)
    publisher = galley.Client(gateway.url)
    try:
        with make_client(doomed.url).subscribe(name) as messages:
            publisher.publish(name, 1)
            assert next(messages).data == 1
            doomed.kill()
            publisher.publish(name, 2)
            doomed.start()
            publisher.publish(name, 3)
            assert [next(messages).data, next(messages).data] == [2, 3]
    finally:
        doomed.kill()


def test_many_tasks_enqueue_and_wait_at_once(gateway: Gateway, name: str, start: Any) -> None:
    worker = Worker(queues=[name], concurrency=4)
    worker.job("double")(lambda ctx, n: n * 2)
    start(worker)

    async def enqueue() -> list[int]:
        async with galley.AsyncClient() as client:
            jobs = await asyncio.gather(*[client.enqueue("double", n, queue=name) for n in range(300)])
            return await asyncio.gather(*[client.result(new["id"]) for new in jobs])

    assert asyncio.run(enqueue()) == [n * 2 for n in range(300)]


def test_a_header_that_cannot_be_sent_is_an_error_at_once(client: Any, name: str) -> None:
    for bad in ("\u017e", "a\r\nb"):
        with pytest.raises(ValueError):
            client.enqueue("a", queue=name, idempotency_key=bad)


def test_a_key_of_several_lines_is_refused() -> None:
    with pytest.raises(ValueError, match="one line"):
        galley.AsyncClient("http://127.0.0.1:1", key="glk_a\n")


def test_a_wait_for_a_message_may_be_cancelled_and_taken_up_again(gateway: Gateway, name: str) -> None:
    async def follow() -> list[Any]:
        async with galley.AsyncClient() as client, client.subscribe(name) as messages:
            waiting = asyncio.ensure_future(messages.__anext__())
            await client.publish(name, 1)
            got = [(await waiting).data]
            waiting = asyncio.ensure_future(messages.__anext__())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await client.publish(name, 2)
            return [*got, (await messages.__anext__()).data]

    assert asyncio.run(follow()) == [1, 2]


def test_a_subscription_is_ended_by_another_thread(gateway: Gateway, name: str) -> None:
    messages = galley.Client().subscribe(name)
    messages.open()
    closer = threading.Thread(target=messages.close)
    closer.start()
    assert list(messages) == []
    closer.join()
