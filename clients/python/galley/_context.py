"""A running attempt, as its handler sees it."""

from __future__ import annotations

import asyncio
import contextvars
import datetime
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ._call import Headers, Patience
from ._checkpoint import Saved
from ._errors import GalleyError, Unavailable
from ._outcome import valid
from ._output import OutputWriter
from ._wait import Waits, approval_of, approval_signal

if TYPE_CHECKING:
    from ._http import Connection
    from ._types import Approval, Job, Signal

#: Characters of a logged line that are sent; the gateway keeps ``jobs.log_line_bytes``.
MAX_LINE = 16_000
#: For how many seconds a checkpoint or output is sent while the gateway is away.
SAVE_PATIENCE_S = 30.0

T = TypeVar("T")

log = logging.getLogger("galley")


class Cancellation(threading.Event):
    """An event that also calls back."""

    def __init__(self) -> None:
        super().__init__()
        self._callbacks: list[Callable[[], None]] = []
        self._guard = threading.Lock()

    def set(self) -> None:
        with self._guard:
            super().set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def call_when_set(self, callback: Callable[[], None]) -> None:
        """Calls it once: now if the event is set already."""
        with self._guard:
            if not self.is_set():
                self._callbacks.append(callback)
                return
        callback()


class Context:
    """A running attempt, as its handler sees it."""

    def __init__(self, job: Job, lease: float, connect: Callable[[], Connection] | None, worker_id: str) -> None:
        self.job = job
        self.id: str = job["id"]
        #: 1 for the first one.
        self.attempt: int = job["attempt"]
        #: Proves whose attempt it is: a stale one can change nothing.
        self.token: str = job.get("token", "")
        #: The trace to continue (W3C Trace Context), for your own spans and for ``Client.enqueue``; none without one.
        self.traceparent: str | None = job.get("traceparent")
        #: The rest of it.
        self.tracestate: str | None = job.get("tracestate")
        self.baggage: str | None = job.get("baggage")
        #: Results of the jobs before it in its workflow.
        self.parent_results: list[Any] = job.get("parent_results", [])
        timeout_ms = job.get("timeout_ms")
        #: When the job's ``timeout_ms`` is over, as ``time.time()`` has it; none without one.
        self.deadline: float | None = None if timeout_ms is None else time.time() + timeout_ms / 1000
        #: Set when nobody wants the result any more: cancelled, timed out, given to another, or this worker ends.
        self.cancelled = Cancellation()
        self._lease_until = time.monotonic() + lease
        self._is_given_up = False
        self._connect, self._worker_id = connect, worker_id
        self._saved = Saved(job.get("checkpoint"), self._send_checkpoint)
        self._waits = Waits(job, self._saved)
        self._output = OutputWriter(self._send_output)

    def _trace(self) -> Headers:
        trace = {"traceparent": self.traceparent, "tracestate": self.tracestate, "baggage": self.baggage}
        return tuple((name, value) for name, value in trace.items() if value)

    def _abandon(self) -> None:
        self._is_given_up = True
        self.cancelled.set()

    def progress(self, progress: float, message: str | None = None) -> None:
        """Notes how far the job has come, 0 to 1. That it cannot be noted is no reason to fail."""
        body: dict[str, Any] = {"progress": progress, "token": self.token, "worker_id": self._worker_id}
        if message is not None:
            body["data"] = {"message": valid(message)}
        self._note(f"/ojs/v1/jobs/{self.id}/progress", body)

    def log(self, message: str, level: str = "info") -> None:
        """Logs a line for people: ``GET /ojs/v1/jobs/{id}/logs`` shows it. That it cannot be noted is no reason to
        fail."""
        at = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        line = {"message": valid(str(message))[:MAX_LINE], "level": level, "at": at}
        body = {"job_id": self.id, "token": self.token, "worker_id": self._worker_id, "lines": [line]}
        self._note("/ojs/v1/workers/log", body)

    @property
    def state(self) -> Any:
        """What ``checkpoint`` saved last, in this attempt or an earlier one; None if nothing was saved."""
        return self._saved.state

    def checkpoint(self, state: Any) -> None:
        """Saves from where the next attempt goes on, if there is one: it finds it in ``state``. Each call replaces what the
        one before saved. With the results of the job's steps it may have 1,048,576 bytes as JSON; it is deleted when the
        job completes. That it cannot be saved is an error."""
        self._saved.save(state)

    def step(self, name: str, run: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Runs a step of the job and saves its result; an attempt that comes later gets the saved result, and ``run`` is
        not called. Each step needs a name of its own, and its result is what JSON makes of it.

        If the worker dies after the step and before its result is saved, the step runs again: make its effect idempotent
        with ``id`` and the name."""
        if not self._saved.has(name):
            with self._saved.running(name):
                self._saved.save_step(name, run(*args, **kwargs))
        result: T = self._saved.result(name)
        return result

    async def step_async(self, name: str, run: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """``step`` for asyncio: ``run`` is asynchronous, and the loop goes on while its result is saved."""
        if not self._saved.has(name):
            with self._saved.running(name):
                done = await run(*args, **kwargs)
                await asyncio.to_thread(self._saved.save_step, name, done)
        result: T = self._saved.result(name)
        return result

    def wait_for_signal(self, name: str, timeout: float | None = None, *, step: str | None = None) -> Signal | None:
        """Waits until somebody sends the job a signal of that name (``Client.signal``), one that came before included; None
        if there is none for ``timeout`` seconds. ``signal["data"]`` is what it brought.

        While it waits, the job is scheduled and holds no worker: this raises ``Waiting``, which must reach the worker, and a
        later attempt gets here again. That spends no attempt of the retry policy. Everything before it must be a ``step``, or do
        no harm when it runs again. To wait for several signals of one name, give each wait a ``step`` of its own.
        """
        step = name if step is None else step
        is_saved, signal = self._waits.find(step, name, timeout)
        if not is_saved:
            self._waits.save(step, signal)
        return signal

    async def wait_for_signal_async(
        self, name: str, timeout: float | None = None, *, step: str | None = None
    ) -> Signal | None:
        """``wait_for_signal`` for asyncio: the loop goes on while the signal is saved."""
        step = name if step is None else step
        is_saved, signal = self._waits.find(step, name, timeout)
        if not is_saved:
            await asyncio.to_thread(self._waits.save, step, signal)
        return signal

    def wait_for_approval(self, subject: str = "", timeout: float | None = None) -> Approval | None:
        """Waits for a person who approves or rejects: ``galley jobs approve``, the dashboard, or a signal
        ``approval.<subject>`` with ``{"approved": True}``. None if nobody has decided for ``timeout`` seconds."""
        return approval_of(self.wait_for_signal(approval_signal(subject), timeout))

    async def wait_for_approval_async(self, subject: str = "", timeout: float | None = None) -> Approval | None:
        """``wait_for_approval`` for asyncio."""
        return approval_of(await self.wait_for_signal_async(approval_signal(subject), timeout))

    def sleep(self, name: str, seconds: float) -> None:
        """Sleeps for that long, counted from the first attempt that gets here, without holding a worker: see
        ``wait_for_signal``. Each sleep needs a name of its own."""
        is_saved, _ = self._waits.find(name, None, seconds)
        if not is_saved:
            self._waits.save(name, None)

    async def sleep_async(self, name: str, seconds: float) -> None:
        """``sleep`` for asyncio: the loop goes on while it is saved that the time is over."""
        is_saved, _ = self._waits.find(name, None, seconds)
        if not is_saved:
            await asyncio.to_thread(self._waits.save, name, None)

    def stream(self, chunk: Any) -> None:
        """Adds a chunk to the job's output, such as a word of an answer: ``Client.output`` reads it while the job runs, and
        for an hour. It has at most 65,536 bytes as JSON; the newest 10,000 chunks and four mebibytes are kept. That it
        cannot be sent is no reason to fail."""
        self._output.add(chunk)

    async def stream_async(self, chunk: Any) -> None:
        """``stream`` for asyncio: the loop goes on while too much waits to be sent."""
        if not self._output.add(chunk, may_wait=False):
            await asyncio.to_thread(self._output.add, chunk)

    async def checkpoint_async(self, state: Any) -> None:
        """``checkpoint`` for asyncio: the loop goes on meanwhile."""
        await asyncio.to_thread(self.checkpoint, state)

    async def progress_async(self, progress: float, message: str | None = None) -> None:
        """``progress`` for asyncio: the loop goes on meanwhile."""
        await asyncio.to_thread(self.progress, progress, message)

    async def log_async(self, message: str, level: str = "info") -> None:
        """``log`` for asyncio: the loop goes on meanwhile."""
        await asyncio.to_thread(self.log, message, level)

    def _send_checkpoint(self, checkpoint: dict[str, Any]) -> int:
        """Saves a checkpoint and gives its number. Sent again it is the same, because it has that number."""
        if self._connect is None:
            self.job["checkpoint"] = {"state": checkpoint["state"], "sequence": checkpoint["sequence"], "created_at": ""}
            return int(checkpoint["sequence"])
        return int(self._deliver("checkpoint", checkpoint)["sequence"])

    def _send_output(self, chunks: dict[str, Any]) -> None:
        if self._connect is not None:
            self._deliver("output", chunks)

    def _deliver(self, what: str, body: dict[str, Any]) -> Any:
        """Sends what must arrive, and may be sent again: for a while also while the gateway is away."""
        assert self._connect is not None
        body = {**body, "token": self.token, "worker_id": self._worker_id}
        patience = Patience(SAVE_PATIENCE_S)
        while True:
            try:
                return self._connect().call("POST", f"/ojs/v1/jobs/{self.id}/{what}", body, headers=self._trace())
            except Unavailable as error:
                if self.cancelled.wait(patience.pause_after(error)):
                    raise
            except GalleyError as error:
                if error.status in (404, 409):
                    self.cancelled.set()
                raise

    def _note(self, path: str, body: dict[str, Any]) -> None:
        if self._connect is None:
            return
        try:
            self._connect().call("POST", path, body, headers=self._trace())
        except Unavailable as error:
            log.debug("%s of job %s not noted: %s", path.rpartition("/")[2], self.id, error)
        except GalleyError as error:
            if error.status not in (404, 409):
                raise
            self.cancelled.set()


#: The attempt whose handler runs in this thread or task.
handled: contextvars.ContextVar[Context | None] = contextvars.ContextVar("galley_handled", default=None)


def current() -> Context:
    """The attempt whose handler calls this: for progress, logs, cancellation and what to be idempotent with."""
    context = handled.get()
    if context is None:
        raise RuntimeError("only a handler of a job has a context")
    return context
