"""Requests that fail on the way are sent again, and have one effect."""

from __future__ import annotations

import datetime
import email.utils
import http.client
import http.server
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import LIMIT_S, Gateway

import galley
from galley._call import Patience, read_answer


class Proxy:
    """Before the gateway. It does with each request what ``plan`` says next: ``pass`` it on, ``lose`` the answer,
    ``hold`` it back until ``released``, ``hang_up`` before it is passed on, say that the gateway is ``busy``, or that
    what it did is ``unconfirmed``; in the end it passes all on. While ``is_away`` it hangs up. It refuses bodies longer
    than ``longest`` in its own words."""

    def __init__(self, gateway: Gateway) -> None:
        self.plan: list[str] = []
        self.requests: list[http.client.HTTPMessage] = []
        self.is_away = False
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
    assert len(proxy.requests) == 5
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
