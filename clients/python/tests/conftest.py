"""A real gateway on a real Redis for the tests, and one way to call both clients.

GALLEY_TEST_BINARIES is the folder of the gateway, else ``target/debug`` of the repository; GALLEY_TEST_REDIS_SERVER
is the program of Redis, else ``redis-server``.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import pathlib
import shutil
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

import galley

if TYPE_CHECKING:
    from outbox_kit import Postgres, Relays

PACKAGE = pathlib.Path(__file__).resolve().parent.parent
LIMIT_S = 30.0

T = TypeVar("T")


def eventually(what: str, look: Callable[[], T | None]) -> T:
    """Waits until there is something."""
    deadline = time.monotonic() + LIMIT_S
    while (found := look()) is None:
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)
    return found


def missing(what: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what}: CI=true makes this an error")
    pytest.skip(what)


class Gateway:
    """A process, which may be killed and started again at the same address."""

    def __init__(self, program: pathlib.Path, redis_url: str) -> None:
        self._program, self._redis_url = program, redis_url
        self.address = "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        variables = {
            "GALLEY__REDIS__URL": self._redis_url,
            "GALLEY__GATEWAY__LISTEN": self.address,
            "GALLEY__LOG__FORMAT": "json",
            "GALLEY__MAINTENANCE__SWEEP_MS": "100",
            # A Redis that stands still for a moment is not away
            "GALLEY__REDIS__CONNECT_TIMEOUT_MS": "20000",
            "GALLEY__REDIS__RESPONSE_TIMEOUT_MS": "20000",
        }
        environment = {**os.environ, **variables}
        self._process = subprocess.Popen([self._program], env=environment, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        for line in self._process.stdout:
            told = json.loads(line)
            if str(told.get("event", "")).endswith(".listening"):
                self.address = told["address"]
                break
        else:
            pytest.fail("the gateway does not start")
        threading.Thread(target=self._process.stdout.read, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = os.environ.get("GALLEY_TEST_REDIS_SERVER") or shutil.which("redis-server")
    if program is None:
        missing("there is no redis-server")
    folder = str(tmp_path_factory.mktemp("redis"))
    # The port is free until somebody else takes it in the moment between: then another one
    for _ in range(10):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        process = subprocess.Popen([str(program), *options], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        if any("Ready to accept connections" in line for line in process.stdout):
            break
        process.wait()
    else:
        pytest.fail("Redis does not start")
    threading.Thread(target=process.stdout.read, daemon=True).start()
    yield f"redis://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture(scope="session")
def gateway(redis_url: str) -> Iterator[Gateway]:
    folder = os.environ.get("GALLEY_TEST_BINARIES")
    program = pathlib.Path(folder or PACKAGE.parent.parent / "target" / "debug") / "gateway"
    if not program.exists():
        missing(f"{program} is not built")
    process = Gateway(program, redis_url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GALLEY_URL", process.url)
        patch.delenv("GALLEY_KEY", raising=False)
        yield process
    process.kill()


class Blocking:
    """An asynchronous object as one that blocks, so that a test is written once for both clients."""

    def __init__(self, of: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._of, self._loop = of, loop

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._of, name)
        return self._blocking(found) if callable(found) else found

    def _blocking(self, call: Any) -> Any:
        def blocking(*args: Any, **kwargs: Any) -> Any:
            answer = call(*args, **kwargs)
            if inspect.isawaitable(answer):
                return self._loop.run_until_complete(answer)
            return Blocking(answer, self._loop) if isinstance(answer, galley.AsyncSubscription) else answer

        return blocking

    def __iter__(self) -> Blocking:
        return self

    def __next__(self) -> Any:
        try:
            return self._loop.run_until_complete(self._of.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Blocking:
        self._loop.run_until_complete(self._of.__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.run_until_complete(self._of.__aexit__(*error))


@pytest.fixture(params=["threads", "asyncio"])
def make_client(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes a client of each kind."""
    if request.param == "threads":
        yield galley.Client
        return
    loop = asyncio.new_event_loop()
    yield lambda *args, **kwargs: Blocking(galley.AsyncClient(*args, **kwargs), loop)
    loop.close()


@pytest.fixture
def client(gateway: Gateway, make_client: Callable[..., Any]) -> Any:
    return make_client(gateway.url)


@pytest.fixture
def plain(gateway: Gateway) -> galley.Client:
    """For a test that looks by itself at what the gateway has."""
    return galley.Client(gateway.url)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One for all modules: fixtures that are imported into a module are made for each."""
    from outbox_kit import running_postgres

    with running_postgres() as server:
        yield server


@pytest.fixture
def relays(postgres: Postgres, gateway: Gateway, tmp_path: pathlib.Path) -> Iterator[Relays]:
    from outbox_kit import Relays

    relays = Relays(postgres, tmp_path)
    try:
        yield relays
    finally:
        relays.stop()


@pytest.fixture
def name() -> str:
    """A name for a queue, a channel or the like that no other test has."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def start(gateway: Gateway) -> Iterator[Callable[[galley.Worker], galley.Worker]]:
    """Starts workers in threads, and stops them at the end."""
    started: list[tuple[galley.Worker, threading.Thread]] = []

    def start(worker: galley.Worker) -> galley.Worker:
        thread = threading.Thread(target=worker.run, daemon=True)
        thread.start()
        started.append((worker, thread))
        return worker

    yield start
    for worker, _ in started:
        worker.stop()
        worker.stop()
    for _, thread in started:
        thread.join(LIMIT_S)
        assert not thread.is_alive(), "the worker does not end"
