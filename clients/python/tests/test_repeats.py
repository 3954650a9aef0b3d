"""Requests that fail on the way are sent again, and have one effect."""

from __future__ import annotations

import datetime
import email.utils
import http.client
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import LIMIT_S, Gateway, eventually

import galley
from galley._call import Patience, read_answer


class Proxy:
    """Before the gateway. It does with each request what ``plan`` says next: ``pass`` it on, ``lose`` the answer,
    ``hold`` it back until ``released``, ``hang_up`` before it is passed on, say that the gateway is ``busy``, or that
    what it did is ``unconfirmed``; in the end it passes all on. While ``is_away`` it hangs up. It refuses bodies longer
    than ``longest`` in its own words. The gateway gives jobs a lease of ``lease_ms`` whatever the worker asks for."""

    def __init__(self, gateway: Gateway) -> None:
        self.plan: list[str] = []
        self.requests: list[http.client.HTTPMessage] = []
        self.is_away = False
        self.lease_ms: int | None = None
        self.longest = float("inf")
        self.is_holding, self.released = threading.Event(), threading.Event()
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy.requests.append(self.headers)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                what = proxy.plan.pop(0) if proxy.plan else "pass"
                if proxy.is_away or what == "hang_up":
                    self.close_connection = True
                    return
                if what == "busy":
                    self.answer(503, b'{"error": {"code": "backend_error", "message": "away"}}', {"Retry-After": "0"})
                    return
                if len(body) > proxy.longest:
                    self.answer(413, b"<h1>Request Entity Too Large</h1>", {"Content-Type": "text/html"})
                    return
                if proxy.lease_ms is not None and self.path == "/ojs/v1/workers/fetch":
                    body = json.dumps({**json.loads(body), "visibility_timeout_ms": proxy.lease_ms}).encode()
                    self.headers.replace_header("Content-Length", str(len(body)))
                upstream = http.client.HTTPConnection(gateway.address)
                upstream.request(self.command, self.path, body, dict(self.headers))
                response = upstream.getresponse()
                answer = response.read()
                upstream.close()
                if what == "hold":
                    proxy.is_holding.set()
                    proxy.released.wait(LIMIT_S)
                if what in ("lose", "hold"):
                    self.close_connection = True
                    return
                if what == "unconfirmed":
                    self.answer(202, answer, {"Galley-Durability": "unconfirmed"})
                    return
                self.answer(response.status, answer, {})

            def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_DELETE = handle_any

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def proxy(gateway: Gateway) -> Iterator[Proxy]:
    proxy = Proxy(gateway)
    yield proxy
    # A worker that has ended still gives signs of life
    proxy.is_away = True
    proxy.released.set()
    proxy.server.shutdown()
    proxy.server.server_close()


def test_a_job_is_made_once_however_often_its_request_arrives(
    make_client: Callable[..., Any], proxy: Proxy, name: str
) -> None:
    client = make_client(proxy.url, key="glk_1_x")
    proxy.plan = ["lose", "busy", "hang_up", "lose", "pass"]
    # The gateway of the tests needs no key, and refuses none
    job = client.enqueue("a", queue=name)
    # More if the machine is so slow that a request takes too long
    assert proxy.plan == [] and len(proxy.requests) >= 5
    assert len({request["Idempotency-Key"] for request in proxy.requests}) == 1
    assert {request["Authorization"] for request in proxy.requests} == {"Bearer glk_1_x"}
    assert client.get(job["id"])["state"] == "available"
    assert client.get_queue(name)["available"] == 1


@pytest.mark.parametrize("is_fresh", [True, False], ids=["fresh", "reused"])
def test_a_cancelled_job_whose_answer_was_lost_is_cancelled(
    make_client: Callable[..., Any], proxy: Proxy, name: str, is_fresh: bool
) -> None:
    client = make_client(proxy.url)
    job = galley.Client().enqueue("a", queue=name)
    if not is_fresh:
        client.get(job["id"])
    proxy.plan = ["lose", "busy"]
    assert client.cancel(job["id"])["state"] == "cancelled"
    proxy.plan = ["lose"]
    assert client.retry(job["id"])["state"] == "available"


def test_a_gateway_that_stays_away_is_an_error_after_the_patience(
    make_client: Callable[..., Any], proxy: Proxy
) -> None:
    proxy.plan = ["busy"] * 1000
    with pytest.raises(galley.Unavailable) as away:
        make_client(proxy.url, patience=0.3).enqueue("a")
    assert (away.value.status, away.value.code) == (503, "backend_error")
    assert len(proxy.requests) >= 1
    proxy.server.shutdown()
    proxy.server.server_close()
    with pytest.raises(galley.Unavailable):
        make_client(proxy.url, patience=0).enqueue("a")


def test_retry_after_is_honoured_in_seconds_and_as_a_date() -> None:
    def after(value: str | None) -> float | None:
        with pytest.raises(galley.Unavailable) as refused:
            read_answer(429, b"{}", value)
        return refused.value.retry_after

    assert (after("7"), after("0"), after(None), after("soon")) == (7, 0, None, None)
    later = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    at_date = after(email.utils.format_datetime(later, usegmt=True))
    assert at_date is not None and 3000 < at_date <= 3600
    busy = galley.Unavailable("busy", 429, "queue_full", retry_after=7)
    assert 7 <= Patience(60).pause_after(busy) < 17
    with pytest.raises(galley.Unavailable):
        Patience(6).pause_after(busy)


def test_the_problem_details_of_channels_are_read() -> None:
    with pytest.raises(galley.GalleyError, match="no such channel") as refused:
        read_answer(404, b'{"status": 404, "code": "not_found", "detail": "no such channel", "retryable": false}')
    assert (refused.value.status, refused.value.code) == (404, "not_found")


@pytest.mark.parametrize("is_failure", [False, True], ids=["result", "failure"])
def test_how_a_job_ended_is_told_after_the_lease_too(
    plain: galley.Client, proxy: Proxy, name: str, start: Any, is_failure: bool
) -> None:
    # The gateway has given the job to nobody else: the worker cannot know that
    proxy.lease_ms = 3_600_000
    worker, held = galley.Worker(proxy.url, queues=[name], lease=1.0), []

    @worker.job("a")
    def a(ctx: galley.Context) -> str:
        held.append(ctx)
        proxy.is_away = True
        if is_failure:
            raise galley.NoRetry("the end")
        return "the end"

    job = plain.enqueue("a", queue=name)
    start(worker)
    eventually("its lease is over", lambda: (held and time.monotonic() > held[0]._lease_until) or None)
    proxy.is_away = False
    ended = {"state": "active"}

    def is_over() -> bool | None:
        ended.update(plain.get(job["id"]))
        return ended["state"] in ("completed", "discarded") or None

    eventually("it has ended", is_over)
    assert (ended["state"], ended["attempt"]) == ("discarded" if is_failure else "completed", 1)
    assert len(held) == 1


def test_no_job_is_fetched_while_as_many_ends_cannot_be_told(plain: galley.Client, name: str) -> None:
    worker = galley.Worker(queues=[name], concurrency=2)
    plain.enqueue("a", queue=name)
    end = {"job_id": plain.enqueue("b", queue=f"{name}-other")["id"], "token": "0" * 32, "result": 1}
    worker._apart = 2
    assert worker._send("acks", end, ())[0] == []
    worker._apart = 1
    assert [job["type"] for job in worker._send("acks", end, ())[0]] == ["a"]
