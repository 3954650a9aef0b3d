"""The event loop of a worker: all of its asynchronous handlers run on it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from collections.abc import Awaitable
from typing import Any

from ._context import Cancellation, log


class HandlerCancelled(Exception):
    """A handler ended because it was cancelled."""


async def _await(awaitable: Awaitable[Any]) -> Any:
    try:
        return await awaitable
    except (KeyboardInterrupt, SystemExit) as error:
        # They would end the loop, and every other handler with it
        raise RuntimeError(f"the handler raised {type(error).__name__}") from error


class LoopThread:
    """A loop in a thread of its own, started when it is first needed."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def run(self, awaitable: Awaitable[Any], cancelled: Cancellation) -> Any:
        """Runs it on the loop, in the context of this thread, and waits. Cancellation cancels its task."""
        loop, context = self._started(), contextvars.copy_context()
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def start() -> None:
            task = loop.create_task(_await(awaitable))
            self._tasks.add(task)
            task.add_done_callback(end)
            cancelled.call_when_set(lambda: cancel(task))

        def cancel(task: asyncio.Task[Any]) -> None:
            loop.call_soon_threadsafe(task.cancel)

        def end(task: asyncio.Task[Any]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                done.set_exception(HandlerCancelled("the handler was cancelled"))
            elif error := task.exception():
                done.set_exception(error)
            else:
                done.set_result(task.result())

        loop.call_soon_threadsafe(start, context=context)
        return done.result()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._guard:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="galley-loop", daemon=True).start()
            return self._loop

    def stop(self, limit: float) -> None:
        """Waits until what was cancelled has cleaned up. Cancelling it once more would end the cleaning."""
        with self._guard:
            loop = self._loop
        if loop is None:
            return

        async def wait_for_all() -> None:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=limit)

        try:
            asyncio.run_coroutine_threadsafe(wait_for_all(), loop).result(limit + 1)
        except concurrent.futures.TimeoutError:
            log.warning("a handler holds the event loop and does not let it end")
