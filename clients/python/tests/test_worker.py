"""Workers: handlers of both kinds, middleware, cancellation, and the command ``galley-worker``."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from conftest import LIMIT_S, Gateway, eventually

import galley
from galley import App, Client, current


def test_asynchronous_handlers_share_a_loop_and_plain_ones_have_threads(
    gateway: Gateway, name: str, start: Any
) -> None:
    app = App()
    here: dict[str, Any] = {}

    async def meet(own: str, other: str) -> str:
        # Each waits for the other: they can end only if both run at once on one loop
        loop = asyncio.get_running_loop()
        here.setdefault(own, asyncio.Event()).set()
        here.setdefault(f"loop {own}", loop)
        await asyncio.wait_for(here.setdefault(other, asyncio.Event()).wait(), LIMIT_S)
        assert here[f"loop {other}"] is loop
        return current().job["type"]

    barrier = threading.Barrier(2)

    @app.task("one", queue=name)
    async def one() -> str:
        return await meet("one", "two")

    @app.task("two", queue=name)
    async def two() -> str:
        return await meet("two", "one")

    @app.task("plain", queue=name)
    def plain() -> str:
        barrier.wait(LIMIT_S)
        return threading.current_thread().name

    assert app.queues == [name]
    start(app.worker(concurrency=4))

    async def enqueue() -> list[str]:
        handles = await asyncio.gather(one.enqueue(), two.enqueue())
        return [await handle.wait() for handle in handles]

    assert asyncio.run(enqueue()) == ["one", "two"]
    assert [job.wait() for job in [plain.enqueue(), plain.enqueue()]] == ["galley-job"] * 2


def test_middleware_runs_around_both_kinds_in_order(gateway: Gateway, name: str, start: Any) -> None:
    app, seen = App(), []

    @app.middleware
    def outer(ctx: galley.Context, call_next: Callable[[], Any]) -> Any:
        seen.append(f"outer {ctx.job['type']}")
        return {"outer": call_next()}

    @app.middleware
    def inner(ctx: galley.Context, call_next: Callable[[], Any]) -> Any:
        seen.append("inner")
        try:
            return call_next()
        except ValueError as error:
            return str(error)

    @app.task("plain", queue=name)
    def plain() -> Any:
        return 1

    @app.task("broken", queue=name)
    async def broken() -> Any:
        raise ValueError("caught outside the loop")

    start(app.worker())
    assert plain.wait() == {"outer": 1}
    assert broken.sync.wait() == {"outer": "caught outside the loop"}
    assert seen == ["outer plain", "inner", "outer broken", "inner"]


def test_a_handler_that_is_cancelled_learns_of_it(gateway: Gateway, name: str, start: Any) -> None:
    app, told = App(), {"plain": threading.Event(), "asyncio": threading.Event()}

    @app.task("plain", queue=name)
    def plain() -> None:
        current().progress(0.1)
        if current().cancelled.wait(LIMIT_S):
            told["plain"].set()

    @app.task("asyncio", queue=name)
    async def asynchronous() -> None:
        await current().progress_async(0.1)
        try:
            await asyncio.Event().wait()
        finally:
            told["asyncio"].set()

    worker = start(app.worker(lease=1))
    for handle in [plain.enqueue(), asynchronous.sync.enqueue()]:
        eventually("it runs", lambda handle=handle: handle.get().get("progress"))
        handle.cancel()
    for kind in told.values():
        assert kind.wait(LIMIT_S)
    eventually("its places are free", lambda: worker._is_idle() or None)


def test_a_handler_that_ends_its_program_fails_alone(gateway: Gateway, name: str, start: Any) -> None:
    app = App()

    @app.task("exit", queue=name, retry={"max_attempts": 1})
    async def leave() -> None:
        raise SystemExit(1)

    @app.task("fine", queue=name)
    async def fine() -> str:
        return "fine"

    start(app.worker())
    with pytest.raises(galley.JobFailed, match="the handler raised SystemExit"):
        leave.sync.wait()
    assert fine.sync.wait() == "fine"


def test_a_handler_says_whether_another_attempt_follows(gateway: Gateway, name: str, start: Any) -> None:
    app = App()

    @app.task("flaky", queue=name)
    async def flaky() -> int:
        if current().attempt == 1:
            raise galley.Retry("not yet", after=0.1)
        return current().attempt

    @app.task("hopeless", queue=name)
    async def hopeless() -> None:
        raise galley.NoRetry("never")

    start(app.worker())
    assert flaky.sync.wait() == 2
    with pytest.raises(galley.JobFailed, match="never") as failed:
        hopeless.sync.wait()
    assert failed.value.job["attempt"] == 1


TASKS = """
import asyncio, pathlib, sys
import galley

app = galley.App()
folder = pathlib.Path(sys.argv[0]).parent

@app.task("short", queue="QUEUE")
async def short() -> str:
    await galley.current().progress_async(0.1)
    while not pathlib.Path("finish").exists():
        await asyncio.sleep(0.01)
    return "short"

@app.task("long", queue="QUEUE")
async def long() -> None:
    await galley.current().progress_async(0.1)
    try:
        await asyncio.Event().wait()
    finally:
        # It may take its time
        await asyncio.sleep(0.2)
        pathlib.Path("cleaned").touch()

@app.task("plain", queue="QUEUE")
def plain(n: int) -> int:
    return n + 1
"""


def command(*arguments: str, folder: pathlib.Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(galley.__file__).parent.parent)}
    words = [sys.executable, "-m", "galley", *arguments]
    return subprocess.Popen(words, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def test_the_command_works_until_sigterm_and_releases_what_does_not_end(
    gateway: Gateway, name: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "tasks.py").write_text(TASKS.replace("QUEUE", name))
    worker = command("tasks:app", "--concurrency", "3", "--grace", "600", folder=tmp_path)
    try:
        client = Client()
        assert client.result(client.enqueue("plain", 1, queue=name)["id"]) == 2
        ids = {type: client.enqueue(type, queue=name)["id"] for type in ("short", "long")}
        for id in ids.values():
            eventually("it runs", lambda id=id: client.get(id).get("progress"))
        worker.send_signal(signal.SIGTERM)
        # It may still end within the grace; a second signal ends that
        (tmp_path / "finish").touch()
        assert client.result(ids["short"], wait=LIMIT_S) == "short"
        worker.send_signal(signal.SIGTERM)
        _, told = worker.communicate(timeout=LIMIT_S)
        assert worker.returncode == 0, told
        back = client.get(ids["long"])
        assert (back["state"], back["attempt"]) == ("available", 0)
        assert (tmp_path / "cleaned").exists()
    finally:
        worker.kill()
        worker.wait()


def test_the_command_starts_again_when_a_source_changes(gateway: Gateway, name: str, tmp_path: pathlib.Path) -> None:
    source = TASKS.replace("QUEUE", name)
    (tmp_path / "tasks.py").write_text(source)
    worker = command("tasks:app", "--reload", folder=tmp_path)
    client = Client()

    def answer() -> Any:
        return client.result(client.enqueue("plain", 1, queue=name)["id"])

    try:
        assert answer() == 2
        (tmp_path / "tasks.py").write_text(source.replace("n + 1", "n + 10"))
        eventually("the new code runs", lambda: answer() == 11 or None)
        worker.terminate()
        worker.communicate(timeout=LIMIT_S)
        assert worker.returncode == 0
    finally:
        worker.terminate()
        worker.wait()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tasks:ap"], "tasks has no galley.App called 'ap': did you mean 'app'?"),
        (["tasks"], "say module:app"),
        (["nothing_here:app"], "No module named 'nothing_here'"),
        (["tasks:app", "--concurrency", "0"], "concurrency and lease must be at least 1"),
        (["tasks:app", "--rel"], "unrecognized arguments: --rel"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], said: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    refused = command(*arguments, folder=tmp_path)
    _, told = refused.communicate(timeout=LIMIT_S)
    assert refused.returncode == 2 and said in told
