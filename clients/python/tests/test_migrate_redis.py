"""Everything that Galley keeps comes to another Redis, whatever that is, while it runs."""

from __future__ import annotations

import contextlib
import datetime
import os
import pathlib
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Gateway, eventually, missing

import galley
from galley.migrate import _redis
from galley.migrate.__main__ import main

redis = pytest.importorskip("redis")
SLOTS = 16_384

Start = Callable[..., int]


@pytest.fixture
def start(tmp_path: pathlib.Path) -> Iterator[Start]:
    """Starts a server with options, and gives its port."""
    program = os.environ.get("GALLEY_TEST_REDIS_SERVER") or shutil.which("redis-server")
    if program is None:
        missing("there is no redis-server")
    processes: list[subprocess.Popen[str]] = []

    def start(*options: str) -> int:
        # The port is free until somebody else takes it in the moment between: then another one
        for attempt in range(10):
            with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
                port, bus_port = one.getsockname()[1], other.getsockname()[1]
            folder = tmp_path / f"{port}-{attempt}"
            folder.mkdir()
            fixed = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
            fixed += ["--cluster-port", str(bus_port)]
            process = subprocess.Popen([str(program), *fixed, *options], stdout=subprocess.PIPE, text=True)
            processes.append(process)
            assert process.stdout
            if any("Ready to accept connections" in line for line in process.stdout):
                threading.Thread(target=process.stdout.read, daemon=True).start()
                return int(port)
        pytest.fail("Redis does not start")

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def server(start: Start) -> str:
    return f"redis://127.0.0.1:{start()}/5"


@pytest.fixture
def cluster(start: Start) -> str:
    """Three primaries without replicas, none of which counts as down."""
    ports = [start("--cluster-enabled", "yes", "--cluster-node-timeout", "300000") for _ in range(3)]
    nodes = [_redis.connect(f"redis://127.0.0.1:{port}") for port in ports]
    for place, node in enumerate(nodes):
        node.execute_command("CLUSTER SET-CONFIG-EPOCH", place + 1)
        first, last = place * SLOTS // 3, (place + 1) * SLOTS // 3 - 1
        node.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
    for node in nodes:
        for port, other in zip(ports, nodes, strict=True):
            if other is not node:
                bus_port = other.config_get("cluster-port")["cluster-port"]
                node.execute_command("CLUSTER MEET", "127.0.0.1", port, bus_port)
    for node in nodes:
        eventually("the cluster is complete", lambda node=node: _is_complete(node) or None)
    return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)


def _is_complete(node: Any) -> bool:
    info = node.execute_command("CLUSTER INFO")
    text = str(info)
    known = "cluster_known_nodes:3" in text or (isinstance(info, dict) and info.get("cluster_known_nodes") == "3")
    return known and ("cluster_state:ok" in text or (isinstance(info, dict) and info.get("cluster_state") == "ok"))


@pytest.fixture
def source(start: Start) -> str:
    """What Galley may have: every type, TTLs, large values, a group with pending entries, names with hash tags."""
    url = f"redis://127.0.0.1:{start()}/5"
    with _redis.connect(url) as connected:
        client = connected.pipeline(transaction=False)
        for queue in ("mail", "video", "audio"):
            for n in range(50):
                client.xadd(f"galley:{{{queue}}}:s:0", {"t": "email.send", "a": f"[{n}]"})
            client.xgroup_create(f"galley:{{{queue}}}:s:0", "workers", 0)
            client.xreadgroup("workers", "w-30000-a", {f"galley:{{{queue}}}:s:0": ">"}, count=20)
            client.zadd(f"galley:{{{queue}}}:due", {f"job-{n}": n for n in range(200)})
            # Too large to be compact: the order in the payload is that of one server
            client.hset(f"galley:{{{queue}}}:active", mapping={f"0:{n}-0": "x" * 90 for n in range(200)})
            client.sadd(f"galley:{{{queue}}}:waiting_keys", *(f"customer-{n}" for n in range(600)))
            for n in range(80):
                client.set(f"galley:{{{queue}}}:r:{n}", os.urandom(50), px=3_600_000)
        client.xadd("galley:{ch:orders}:m", {"d": b"\x00\xff"}, id="1796022869717-1")
        client.set("galley:epoch", "1796022869717 abc")
        client.lpush("task:prodcons:queue", *range(40))
        client.set("another:program", "1")
        client.set("galley:leader_details", "1")
        client.execute()
    return url


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(source: str, target: str, *options: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["redis", "--from", source, "--to", target, *options])
        return code, *capsys.readouterr()

    return run


def stored(url: str) -> dict[bytes, Any]:
    """What is stored, as its commands show it, and whether it has a TTL."""
    client = _redis.connect(url)
    found = {}
    with contextlib.closing(client):
        for key in client.scan_iter(count=1000):
            found[key] = (_shown(client, key), client.pttl(key) >= 0)
    found.pop(_redis.MARK, None)
    return found


def _shown(client: Any, key: bytes) -> Any:
    kind = client.type(key)
    if kind == b"stream":
        pending = [client.xpending_range(key, group["name"], "-", "+", 1000) for group in client.xinfo_groups(key)]
        for entry in (entry for entries in pending for entry in entries):
            del entry["time_since_delivered"]
        return client.xrange(key), [group["name"] for group in client.xinfo_groups(key)], pending
    read = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"set": client.smembers,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
    }
    return read[kind](key)


def expected(url: str) -> dict[bytes, Any]:
    found = stored(url)
    for stays in (b"another:program", b"galley:leader_details"):
        found.pop(stays, None)
    return found


@pytest.mark.parametrize("kind", ["server", "cluster"])
def test_everything_is_at_the_target_and_the_source_is_as_it_was(
    request: pytest.FixtureRequest, source: str, run: Run, kind: str
) -> None:
    target = request.getfixturevalue(kind)
    before = stored(source)
    code, out, _ = run(source, target, "--dry-run")
    number = len(expected(source))
    assert (code, out) == (0, f"would copy {number} of {number} keys, would remove 0\n")
    assert stored(target) == {}
    code, out, err = run(source, target)
    assert code == 0, err
    assert out.splitlines()[-1] == "now stop all of Galley, and run the same command with --final"
    code, out, err = run(source, target, "--final")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == f"{number} keys are the same: start Galley with the new redis.url"
    assert stored(target) == expected(source)
    assert stored(source) == before
    # Where Galley runs by now
    assert run(source, target)[0] == 1
    assert stored(target) == expected(source)


def test_what_changes_between_passes_is_at_the_target_too(source: str, cluster: str, run: Run) -> None:
    assert run(source, cluster)[0] == 0
    with _redis.connect(source) as client:
        client.xadd("galley:{mail}:s:0", {"t": "late"})
        client.hset("galley:{mail}:active", "0:1-0", "another")
        client.srem("galley:{mail}:waiting_keys", "customer-7")
        client.delete("galley:{video}:due", "galley:{video}:r:7")
        client.persist("galley:{audio}:r:1")
        client.pexpire("galley:{audio}:r:2", 90_000_000)
        client.set("galley:{new}:r:1", "1")
    code, out, err = run(source, cluster, "--final")
    assert (code, err) == (0, "")
    assert out.startswith("pass 1: ") and ", 5 copied, 1 removed\n" in out
    assert stored(cluster) == expected(source)
    with contextlib.closing(_redis.connect(cluster)) as client:
        assert client.pttl("galley:{audio}:r:2") > 80_000_000


def test_a_copy_that_was_interrupted_is_continued(
    source: str, server: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = _redis._pages

    def interrupted(keys: Iterator[bytes]) -> Iterator[list[bytes]]:
        yield next(pages(keys))
        raise redis.exceptions.ConnectionError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(_redis, "_pages", interrupted)
        assert run(source, server)[0] == 3
    assert len(stored(server)) == _redis.PAGE
    code, out, _ = run(source, server)
    assert code == 0
    assert f"{len(expected(source)) - _redis.PAGE} copied" in out.splitlines()[0]
    assert run(source, server, "--final")[0] == 0
    assert stored(server) == expected(source)


def test_a_target_with_other_data_is_left_alone(source: str, server: str, run: Run, start: Start) -> None:
    with _redis.connect(server) as client:
        client.set("galley:{other}:r:1", "1")
    before = stored(server)
    code, _, err = run(source, server)
    assert (code, stored(server)) == (1, before)
    assert "has data of Galley already" in err
    assert run(source, server, "--replace")[0] == 0
    assert stored(server) == expected(source)
    other = f"redis://127.0.0.1:{start()}/5"
    code, _, err = run(other, server)
    assert (code, stored(server)) == (1, expected(source))
    assert f"the target has a part of {source}" in err


def test_the_last_pass_waits_until_galley_is_stopped(source: str, server: str, run: Run) -> None:
    assert run(source, server)[0] == 0
    with _redis.connect(source) as client:
        client.set("galley:leader", "somebody")
        assert run(source, server, "--final")[0] == 1
        client.delete("galley:leader")
    with _redis.connect(server) as client:
        client.set("galley:leader", "somebody")
        code, _, err = run(source, server, "--final")
        assert (code, "Galley runs at the target" in err) == (1, True)
        client.delete("galley:leader")
    assert run(source, server, "--final")[0] == 0


def test_a_key_that_is_still_written_is_named(
    source: str, server: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = _redis.Copier.run

    def run_and_write(copier: _redis.Copier, dry: bool = False) -> _redis.Pass:
        done = once(copier, dry)
        with _redis.connect(source) as client:
            client.xadd("galley:{mail}:s:0", {"t": "late"})
        return done

    monkeypatch.setattr(_redis.Copier, "run", run_and_write)
    code, _, err = run(source, server, "--final")
    assert (code, "galley:{mail}:s:0" in err) == (1, True)


def test_jobs_go_on_at_the_target(start: Start, run: Run, gateway: Gateway) -> None:
    old, new = (f"redis://127.0.0.1:{start()}/5" for _ in range(2))
    first = Gateway(gateway._program, old)
    client = galley.Client(first.url)
    ids = [client.enqueue("email.send", n, queue="mail")["id"] for n in range(30)]
    later = client.schedule(datetime.timedelta(hours=1), "email.send", "later", queue="mail")["id"]
    cancelled = client.enqueue("email.send", queue="mail")["id"]
    client.cancel(cancelled)
    client.publish("orders", {"n": 1})
    assert run(old, new)[0] == 0
    ids.append(client.enqueue("email.send", "during the copy", queue="mail")["id"])
    first.kill()
    with _redis.connect(old) as plain:
        eventually("its lease is over", lambda: None if plain.exists("galley:leader") else True)
    code, _, err = run(old, new, "--final")
    assert (code, err) == (0, "")
    second = Gateway(gateway._program, new)
    try:
        client = galley.Client(second.url)
        assert [client.get(id)["state"] for id in ids] == ["available"] * len(ids)
        assert (client.get(later)["state"], client.get(cancelled)["state"]) == ("scheduled", "cancelled")
        assert [message.data for message in client.history("orders")] == [{"n": 1}]
    finally:
        second.kill()


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "redis+ring://127.0.0.1", "redis+cluster://127.0.0.1:7000/5"])
def test_a_url_that_cannot_be_is_refused(run: Run, server: str, url: str) -> None:
    assert run(server, url)[0] == 2
