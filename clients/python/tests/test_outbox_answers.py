"""What an answer means for a row: it is refused, it waits, or all wait."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from outbox_kit import Relays
from test_repeats import Proxy, proxy

import galley
from galley import outbox
from galley.outbox._row import Away, Done, Outcome, Refused, Row, send

# A fixture
__all__ = ["proxy"]


@pytest.mark.parametrize("status", [200, 400, 404, 413])
def test_what_answers_must_be_a_gateway(relays: Relays, name: str, status: int) -> None:
    relays.write(name)
    outbox.publish(relays.db, name, 1)
    command = [sys.executable, "-c", OTHER_SERVER, str(status)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout
    try:
        code, said = relays.run("--once", "--url", other.stdout.readline().strip())
    finally:
        other.kill()
        other.wait()
    assert code == 3 and ("no gateway of Galley" if status == 200 else f"({status})") in said
    assert relays.rows("attempts, refused_at") == [(0, None)] * 2


OTHER_SERVER = """
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def do_GET(self):
        self.send_response(int(sys.argv[1]))
        self.end_headers()
        self.wfile.write(b"<h1>hello</h1>")

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
"""


def test_a_row_that_a_proxy_refuses_holds_up_no_other(
    relays: Relays, plain: galley.Client, proxy: Proxy, name: str
) -> None:
    proxy.longest = 10_000
    relays.write(name, "x" * 20_000)
    good = relays.write(name)
    assert relays.run("--once", "--url", proxy.url)[0] == 1
    [(is_refused, error)] = relays.rows("refused_at IS NOT NULL, error")
    assert is_refused and "413" in error and plain.get(good)["state"] == "available"


def test_a_row_whose_channel_cannot_be_holds_up_no_other(relays: Relays, plain: galley.Client, name: str) -> None:
    for wrong in (("", None), (None, "")):
        with pytest.raises(Exception, match="galley_outbox_job_or_message"):
            relays.db.execute("INSERT INTO galley_outbox (type, channel, data) VALUES (%s, %s, '1')", wrong)
    get = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'galley_outbox_job_or_message'"
    [check] = relays.db.execute(get).fetchone() or ()
    relays.db.execute("ALTER TABLE galley_outbox DROP CONSTRAINT galley_outbox_job_or_message")
    try:
        outbox.publish(relays.db, "", 1)
        good = relays.write(name)
        assert relays.run("--once")[0] == 1
        [(channel, attempts, error)] = relays.rows("channel, attempts, error")
    finally:
        relays.db.execute("TRUNCATE galley_outbox")
        relays.db.execute(f"ALTER TABLE galley_outbox ADD CONSTRAINT galley_outbox_job_or_message {check}")
    assert channel == "" and attempts >= 1 and "not_found" in error
    assert plain.get(good)["state"] == "available"


def test_what_is_not_yet_on_a_replica_is_sent_until_it_is(
    relays: Relays, plain: galley.Client, proxy: Proxy, name: str
) -> None:
    proxy.plan = ["unconfirmed", "unconfirmed"]
    relays.write(name)
    outbox.publish(relays.db, name, "once")
    # One at a time: a row that is sent again is not sent at once
    assert relays.run("--once", "--url", proxy.url, "--batch", "1", "--concurrency", "1")[0] in (0, 1)
    relays.start("--url", proxy.url, "--poll", "0.1")
    relays.wait_until_empty()
    keys = [key for request in proxy.requests if (key := request["Idempotency-Key"])]
    assert proxy.plan == [] and len(keys) >= 4 and len(set(keys)) == 2
    assert plain.get_queue(name)["available"] == 1
    assert [message.data for message in plain.history(name)] == ["once"]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"type": "a.b"}, Done),
        ({"type": "other"}, Refused),
        (galley.GalleyError(404, "not_found", "no such job"), Refused),
        (galley.GalleyError(401, "invalid_key", "no such key"), Away),
        (galley.GalleyError(403, "scope_required", "jobs:read"), Away),
        (galley.Unavailable("away"), Away),
    ],
    ids=lambda value: getattr(value, "code", None) or getattr(value, "__name__", None) or value["type"],
)
def test_a_row_stays_until_it_is_known_whose_job_has_its_id(found: Any, expected: type[Outcome]) -> None:
    class Client:
        async def _run(self, call: Any) -> Any:
            raise galley.GalleyError(409, "duplicate", "there is a job with this id")

        async def get(self, id: str) -> Any:
            if isinstance(found, Exception):
                raise found
            return found

    row = Row(1, "key", "a.b", "[]", '{"id": "x"}', None, None, None, None, None)
    assert isinstance(asyncio.run(send(Client(), row)), expected)  # type: ignore[arg-type]
