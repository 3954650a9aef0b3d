"""Rows of a table in PostgreSQL become jobs and messages once, whatever is killed."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from conftest import LIMIT_S, Gateway, eventually
from outbox_kit import Postgres, Relays
from test_repeats import Proxy, proxy

import galley
from galley import _calls, outbox

# A fixture
__all__ = ["proxy"]


def test_rows_of_a_commit_become_jobs_and_messages_and_those_of_a_rollback_do_not(
    relays: Relays, plain: galley.Client, name: str
) -> None:
    db = relays.db
    with pytest.raises(KeyError), db.transaction():
        relays.write(name, "rolled back")
        outbox.publish(db, name, "rolled back")
        raise KeyError
    with db.transaction():
        id = relays.write(name, "ada", priority=3, meta={"tenant": "a"})
        outbox.publish(db, name, {"order": 7})
        outbox.publish(db, name, "text")
        event = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.paid"}
        outbox.publish(db, name, {"order": 8}, attributes=event)
        assert relays.run("--once") == (0, ""), "nothing is committed yet"
        with pytest.raises(galley.GalleyError):
            plain.get(id)
    # As a program in another language writes it
    options = json.dumps({"queue": name})
    db.execute("INSERT INTO galley_outbox (type, args, options) VALUES ('a.c', '[1]', %s)", (options,))
    assert relays.run("--once") == (0, "")
    job = plain.get(id)
    assert (job["type"], job["queue"], job["priority"], job["meta"]) == ("a.b", name, 3, {"tenant": "a"})
    assert plain.get_queue(name)["available"] == 2
    messages = plain.history(name)
    assert [message.data for message in messages] == [{"order": 7}, "text", {"order": 8}]
    assert relays.rows() == []


def test_a_relay_that_is_killed_between_sending_and_deleting_makes_one_job(
    relays: Relays, plain: galley.Client, proxy: Proxy, name: str
) -> None:
    for write in (lambda: relays.write(name), lambda: outbox.publish(relays.db, name, "once")):
        # Each of them, because a request whose answer does not come is sent again
        proxy.plan, before = ["hold"] * 10, len(proxy.requests)
        proxy.is_holding.clear()
        write()
        relay = relays.start("--url", proxy.url)
        assert proxy.is_holding.wait(LIMIT_S)
        relay.kill()
        relay.wait()
        proxy.plan = []
        assert len(relays.rows()) == 1
        # PostgreSQL sees that the killed one is gone, and unlocks the row
        relays.start("--url", proxy.url, "--poll", "0.1")
        relays.wait_until_empty()
        # A request that takes too long is sent once more, and one without a key asks whether the gateway lives
        keys = [key for request in proxy.requests[before:] if (key := request["Idempotency-Key"])]
        assert len(keys) >= 2 and len(set(keys)) == 1
        relays.started[-1].kill()
        relays.started[-1].wait()
    assert plain.get_queue(name)["available"] == 1
    assert [message.data for message in plain.history(name)] == ["once"]


def test_relays_share_the_rows_and_pass_over_those_of_others(
    relays: Relays, plain: galley.Client, postgres: Postgres, name: str
) -> None:
    import psycopg

    count = 150
    for number in range(count):
        relays.write(name, number)
    with psycopg.connect(postgres.url) as other:
        # As a relay does that is slow with the first row
        [first] = other.execute("SELECT id FROM galley_outbox ORDER BY id LIMIT 1 FOR UPDATE").fetchone() or ()
        relays.wait_until_listening(0)
        both = [relays.start("--batch", "7", "--poll", "0.1") for _ in range(2)]
        eventually("all others are sent", lambda: True if relays.rows() == [(first,)] else None)
    relays.wait_until_empty()
    relays.wait_until_listening(2)
    for relay in both:
        relay.send_signal(signal.SIGTERM)
        assert relay.wait(LIMIT_S) == 0
    assert plain.get_queue(name)["available"] == count


def test_a_relay_hears_of_new_rows(relays: Relays, name: str) -> None:
    relays.wait_until_listening(0)
    # It looks by itself after half an hour
    relay = relays.start("--poll", "3600")
    relays.wait_until_listening(1)
    relays.write(name)
    relays.wait_until_empty()
    relay.send_signal(signal.SIGTERM)
    assert relay.wait(LIMIT_S) == 0


def test_a_row_that_galley_refuses_is_marked_and_holds_up_no_other(
    relays: Relays, plain: galley.Client, name: str
) -> None:
    db = relays.db
    bad = "INSERT INTO galley_outbox (type, args, options, channel, data, content_type) VALUES (%s, %s, %s, %s, %s, %s)"
    deep = "[" * 1500 + "]" * 1500
    rows = {
        "the queue": ("a.b", "[]", '{"queue": "_"}', None, None, None),
        "an option": ("a.b", "[]", json.dumps({"queue": name, "retry": {"max_attempts": -1}}), None, None, None),
        "deep": ("a.b", deep, "{}", None, None, None),
        "no number": ("a.b", "[1e999]", "{}", None, None, None),
        "a header": (None, "[]", "{}", name, "1", "text/plain\nx: y"),
        "no UTF-8": (None, "[]", "{}", name, '"SECRET \\ud800"', None),
        "large": ("a.b", json.dumps(["x" * 2_000_000]), "{}", None, None, None),
    }
    for row in rows.values():
        db.execute(bad, row)
    good = relays.write(name)
    code, said = relays.run("--once", "--batch", "2")
    assert code == 1 and "SECRET" not in said and plain.get(good)["state"] == "available"
    found = relays.rows("refused_at IS NOT NULL, error, attempts")
    assert len(found) == len(rows), found
    for (is_refused, error, attempts), what in zip(found, rows, strict=True):
        assert (is_refused, attempts) == (True, 1) and error and "SECRET" not in error, f"{what}: {error}"
    code, said = relays.run("--check")
    assert code == 1 and said.splitlines()[-1].startswith(f"waiting 0, refused {len(rows)}"), said
    # Mended, it goes
    db.execute("DELETE FROM galley_outbox WHERE id > (SELECT min(id) FROM galley_outbox)")
    queue = json.dumps({"queue": name})
    db.execute("UPDATE galley_outbox SET options = %s, refused_at = NULL, error = NULL", (queue,))
    assert relays.run("--once")[0] == 0
    assert relays.rows() == [] and plain.get_queue(name)["available"] == 2


def test_a_row_whose_queue_takes_nothing_now_waits_and_holds_up_no_other(
    relays: Relays, plain: galley.Client, gateway: Gateway, name: str
) -> None:
    plain._run(_calls.steer_queue(name, "drain"))
    impatient = galley.Client(gateway.url, patience=0)

    def is_closed() -> bool | None:
        try:
            plain.cancel(impatient.enqueue("a.b", queue=name)["id"])
        except galley.Unavailable as error:
            return error.code == "queue_closed" or None
        return None

    eventually("the gateway knows that the queue is closed", is_closed)
    relays.write(name)
    other = relays.write(f"{name}-open")
    assert relays.run("--once")[0] == 1 and plain.get(other)["state"] == "available"
    [(is_refused, error, is_later)] = relays.rows("refused_at IS NOT NULL, error, due_at > created_at")
    assert (is_refused, is_later) == (False, True) and "queue_closed" in error
    plain.resume_queue(name)
    relays.start("--poll", "0.1")
    relays.wait_until_empty()
    assert plain.get_queue(name)["available"] == 1


def test_a_gateway_and_a_database_that_are_away_are_waited_for(
    relays: Relays, plain: galley.Client, proxy: Proxy, postgres: Postgres, name: str
) -> None:
    import psycopg

    proxy.is_away = True
    relays.write(name)
    assert relays.run("--once", "--url", proxy.url)[0] == 3
    relay = relays.start("--url", proxy.url, "--poll", "0.1")
    before = len(proxy.requests)
    eventually("it tries again and again", lambda: True if len(proxy.requests) > before + 4 else None)
    assert relays.rows("attempts, refused_at") == [(0, None)]
    proxy.is_away = False
    relays.wait_until_empty()
    postgres.kill()
    try:
        assert relays.run("--once")[0] == 3
    finally:
        postgres.start()
    assert relay.poll() is None
    relays.db = psycopg.connect(postgres.url, autocommit=True)
    relays.write(name)
    relays.wait_until_empty()
    assert plain.get_queue(name)["available"] == 2


def test_sigterm_ends_a_relay_though_the_gateway_is_silent(relays: Relays, proxy: Proxy, name: str) -> None:
    proxy.plan = ["hold"] * 10
    relays.write(name)
    relay = relays.start("--url", proxy.url, "--grace", "0.1")
    assert proxy.is_holding.wait(LIMIT_S)
    relay.send_signal(signal.SIGTERM)
    assert relay.wait(LIMIT_S) == 0
    assert not proxy.released.is_set() and len(relays.rows()) == 1


def test_the_trace_of_the_writer_goes_on(relays: Relays, plain: galley.Client, name: str) -> None:
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    id = relays.write(name)
    relays.db.execute("UPDATE galley_outbox SET trace = %s", (json.dumps(trace),))
    assert relays.run("--once")[0] == 0
    assert str(plain.get(id)["traceparent"]).startswith("00-0af7651916cd43dd8448eb211c80319c-")


def test_an_asynchronous_connection_is_told_how(relays: Relays) -> None:
    class Asynchronous:
        async def execute(self, query: Any, params: Any, /) -> None: ...

    with pytest.raises(TypeError, match="enqueue_statement"):
        outbox.enqueue(Asynchronous(), galley.job("a.b"))
