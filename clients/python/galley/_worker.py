"""A worker: asks for a job only when a thread is free for it, keeps what it holds alive with heartbeats, and tells how
each job ended until the gateway has heard it. Only the gateway knows whether a job was given to somebody else.

Jobs run at least once: ``Context.id`` and ``Context.attempt`` are there to be idempotent with.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import queue
import random
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ._call import ANSWER_S, MAX_WAIT_S, Headers, pauses, url_and_key
from ._context import Context, handled, log
from ._errors import GalleyError, NoRetry, Retry, Unavailable, Waiting
from ._http import Connection
from ._loop import HandlerCancelled, LoopThread
from ._many import HandlerOfMany, check_many
from ._outcome import Outcome, current_stack, failure, instead_of_refused, name_of, text_of, valid
from ._trace import attempt_span
from ._types import Job

#: For so long after the end of its lease it is told how an attempt ended: somebody else has the job by then, if anybody
#: can.
MAX_LATE_S = 3600.0
#: Jobs fetched in one request.
MAX_FETCHED = 100
#: Ids in one heartbeat.
MAX_BEATS = 1000
#: What asynchronous handlers that were cancelled have to clean up.
CLEAN_UP_S = 5.0

Handler = Callable[..., Any]
#: Runs around each attempt: ``call_next()`` runs what is inside and gives its result.
Middleware = Callable[[Context, Callable[[], Any]], Any]
H = TypeVar("H", bound=Handler)
M = TypeVar("M", bound=Middleware)


class Worker:
    """Works on jobs of some queues, ``concurrency`` at a time. Each has a thread; ``async def`` handlers run on one
    loop.

    ``lease``: after that many seconds without a sign of life a job is given to somebody else; heartbeats come three
    times as often. ``grace``: how many seconds running jobs have to finish on SIGTERM; then they are handed back,
    unspent.
    """

    def __init__(
        self,
        url: str | None = None,
        queues: Sequence[str] = ("default",),
        concurrency: int = 1,
        lease: float = 30.0,
        grace: float = 25.0,
        worker_id: str | None = None,
        key: str | None = None,
        middleware: Sequence[Middleware] = (),
    ) -> None:
        if concurrency < 1 or lease < 1 or grace < 0:
            raise ValueError("concurrency and lease must be at least 1, grace not negative")
        self.id = worker_id or f"{socket.gethostname()[:64]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._url, self._key = url_and_key(url, key)
        self._queues, self._concurrency, self._lease, self._grace = list(queues), concurrency, lease, grace
        self._handlers: dict[str, Handler] = {}
        self._middleware = list(middleware)
        self._loop = LoopThread()
        self._local = threading.local()
        self._fetching = Connection(self._url, self._key)
        self._inbox: queue.SimpleQueue[Context] = queue.SimpleQueue()
        # Everything below is changed under this condition
        self._changed = threading.Condition()
        self._free = concurrency
        # By token: an attempt may still be busy here when the next one of its job is given to us
        self._active: dict[str, Context] = {}
        # How many ends of attempts are told beside what runs
        self._apart = 0
        self._is_quiet = False
        self._stops = 0

    def job(self, type: str) -> Callable[[H], H]:
        """Registers a handler for jobs of a type; it is called with the context and the job's ``args``."""

        def register(handler: H) -> H:
            self._handlers[type] = handler
            return handler

        return register

    def jobs(self, type: str, *, count: int, delay: float = 1.0) -> Callable[[H], H]:
        """Registers a handler that takes several jobs of a type in one call: up to ``count``, which come within
        ``delay`` seconds.

        It is called with a list of contexts and gives a list with a result for each, or None. An exception in the list
        fails its job; one that is raised fails all of them. Each job counts for ``concurrency``.
        """
        check_many(count, delay)
        if count > self._concurrency:
            raise ValueError(
                f"count={count} for jobs of type {type}: the worker has no more than concurrency={self._concurrency} at"
                " a time"
            )

        def register(handler: H) -> H:
            self._handlers[type] = HandlerOfMany(handler, count, delay, self._loop, self._changed, self._is_stopping)
            return handler

        return register

    def middleware(self, around: M) -> M:
        """Registers a function that runs around each attempt, the first one outermost. It is called with the context
        and ``call_next``, in the thread of the attempt, around ``async def`` handlers too."""
        self._middleware.append(around)
        return around

    def run(self) -> None:
        """Works until SIGTERM, SIGINT, ``stop()`` or a directive to terminate."""
        targets = [("fetch", self._fetch), ("beat", self._beat), *[("job", self._work)] * self._concurrency]
        threads = [threading.Thread(target=target, name=f"galley-{name}", daemon=True) for name, target in targets]
        for thread in threads:
            thread.start()
        before = self._catch_signals()
        _log_somewhere()
        log.info("worker %s works on %s for %s", self.id, ", ".join(self._queues), self._url_shown())
        try:
            self._until(lambda: self._stops > 0)
            with self._changed:
                self._changed.notify_all()
            self._fetching.hang_up()
            # An answer that was on its way may have brought jobs
            threads[0].join(ANSWER_S)
            # In slices: a signal is handled by this thread, between two of them
            self._until(lambda: self._is_idle() or self._stops > 1, self._grace)
            self._release()
            self._loop.stop(CLEAN_UP_S)
        finally:
            for number, handler in before:
                signal.signal(number, handler)
        log.info("worker %s stopped", self.id)

    def _url_shown(self) -> str:
        # It may hold a password
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    def stop(self) -> None:
        """Lets running jobs finish and ends; called twice, it hands them back at once."""
        with self._changed:
            self._stops += 1
            self._changed.notify_all()

    def _catch_signals(self) -> list[tuple[int, Any]]:
        if threading.current_thread() is not threading.main_thread():
            return []

        def caught(number: int, frame: Any) -> None:
            # Takes no lock: this thread may hold it
            self._stops += 1

        return [(number, signal.signal(number, caught)) for number in (signal.SIGTERM, signal.SIGINT)]

    def _until(self, is_so: Callable[[], bool], limit: float = float("inf")) -> None:
        deadline = time.monotonic() + limit
        with self._changed:
            while not is_so() and time.monotonic() < deadline:
                self._changed.wait(min(0.1, max(0.0, deadline - time.monotonic())))

    def _is_stopping(self) -> bool:
        return self._stops > 0

    def _is_idle(self) -> bool:
        return not self._active and self._apart == 0

    def _connection(self) -> Connection:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = Connection(self._url, self._key)
        return connection

    # Fetching: the permit first, then the job

    def _fetch(self) -> None:
        pause = pauses()
        warned: set[str] = set()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stops > 0 or (self._free > 0 and not self._is_quiet))
                if self._stops > 0:
                    return
                free = self._free
            try:
                body = self._wanted(free, MAX_WAIT_S)
                answer = self._fetching.call("POST", "/ojs/v1/workers/fetch", body, MAX_WAIT_S)
                jobs = answer["jobs"]
                for warning in answer.get("warnings", []):
                    # Such as a queue with a misspelt name: said once
                    if warning not in warned:
                        warned.add(warning)
                        log.warning("%s", warning)
                pause = pauses()
            except GalleyError as error:
                if self._stops == 0:
                    level = logging.INFO if isinstance(error, Unavailable) else logging.ERROR
                    log.log(level, "cannot fetch: %s", error)
                    asked = error.retry_after if isinstance(error, Unavailable) else None
                    self._until(lambda: self._stops > 0, pause() + (asked or 0.0))
                continue
            with self._changed:
                self._free -= len(jobs)
            for job in jobs:
                self._inbox.put(self._start(job))

    def _wanted(self, count: int, wait: float) -> dict[str, Any]:
        return {
            "queues": self._queues,
            "count": min(count, MAX_FETCHED),
            "worker_id": self.id,
            "visibility_timeout_ms": int(self._lease * 1000),
            "wait_ms": int(wait * 1000),
        }

    def _start(self, job: Job) -> Context:
        context = Context(job, self._lease, self._connection, self.id)
        with self._changed:
            for other in self._active.values():
                if other.id == context.id:
                    other._abandon()
            self._active[context.token] = context
        return context

    # Working: a thread goes on with the next job as long as the answer to its result brings one

    def _work(self) -> None:
        following: Context | None = None
        while True:
            context = following or self._inbox.get()
            kind, outcome = self._attempt(context)
            if kind == "nacks" and "error" in outcome:
                error = outcome["error"]
                stack = "\n" + error["stack"] if error.get("stack") else ""
                what = (context.id, context.job["type"], context.attempt, error["message"], stack)
                log.warning("job %s (%s) failed in attempt %s: %s%s", *what)
            job = self._settle(context, kind, outcome)
            following = None if job is None else self._start(job)
            with self._changed:
                del self._active[context.token]
                if following is None:
                    self._free += 1
                self._changed.notify_all()

    def _attempt(self, context: Context) -> Outcome:
        """Runs the handler; ``acks`` or ``nacks`` and what to send."""
        handler = self._handlers.get(context.job["type"])
        if handler is None:
            return failure("handler_not_found", "HandlerNotFound", f"no handler for jobs of type {context.job['type']}")
        before = handled.set(context)
        try:
            result = self._call(handler, context)
            # Here, so that what cannot be sent is a failure of the handler
            return "acks", {"result": valid(json.loads(json.dumps(result, allow_nan=False)))}
        except Waiting as waiting:
            if waiting._job == context.id:
                return "nacks", {"wait": valid(waiting._request)}
            # Of several jobs in one call: the exception is for the place of its job in the list
            return failure("handler_error", "Waiting", f"another job of the call waits: {waiting}")
        except Retry as error:
            after = {} if error.after is None else {"retry_after_ms": max(0, int(error.after * 1000))}
            return failure("handler_error", "Retry", text_of(error), retryable=True, **after)
        except NoRetry as error:
            name = name_of(error.__cause__ or error)
            return failure("handler_error", name, text_of(error), retryable=False, stack=current_stack())
        except HandlerCancelled as error:
            is_late = context.deadline is not None and time.time() >= context.deadline
            return failure("timeout" if is_late else "cancelled", name_of(error), text_of(error))
        except BaseException as error:  # a handler that calls sys.exit has failed, and its thread lives on
            return failure("handler_error", name_of(error), text_of(error), stack=current_stack())
        finally:
            handled.reset(before)
            # After its end the attempt may add nothing
            context._output.finish()

    def _call(self, handler: Handler, context: Context) -> Any:
        def innermost() -> Any:
            result = handler(context, *context.job.get("args", ()))
            return self._loop.run(result, context.cancelled) if inspect.isawaitable(result) else result

        call: Callable[[], Any] = innermost
        for around in reversed(self._middleware):
            call = functools.partial(around, context, call)
        with attempt_span(context):
            return call()

    def _settle(self, context: Context, kind: str, outcome: dict[str, Any]) -> Job | None:
        """Tells how an attempt ended until somebody has heard it; the next job, if there is one."""
        pause = pauses(self._lease / 6)
        while self._may_tell(context):
            item = {"job_id": context.id, "token": context.token, **outcome}
            try:
                jobs, error = self._send(kind, item, context._trace())
            except GalleyError as refused:
                jobs, error = [], {"code": refused.code, "message": str(refused), "retryable": refused.retryable}
            if error is None or not error.get("retryable"):
                instead = None if error is None else instead_of_refused(outcome, error)
                if error is not None and instead is not None:
                    log.error("the end of job %s is refused: %s", context.id, error.get("message"))
                    kind, outcome = instead
                    if not jobs:
                        continue
                    self._send_apart(context, kind, outcome)
                elif error is not None:
                    log.info("the end of job %s is not wanted: %s", context.id, error.get("message"))
                return jobs[0] if jobs else None
            log.info("the end of job %s cannot be told yet: %s", context.id, error.get("message"))
            if jobs:
                # Nothing else can be sent on with this result: a thread of its own tells it
                with self._changed:
                    self._apart += 1
                threading.Thread(target=self._tell_apart, args=(context, kind, outcome), daemon=True).start()
                return jobs[0]
            time.sleep(pause())
        return None

    def _may_tell(self, context: Context) -> bool:
        if context._is_given_up:
            return False
        if time.monotonic() < context._lease_until + MAX_LATE_S:
            return True
        log.error("the end of job %s could not be told for an hour", context.id)
        return False

    def _tell_apart(self, context: Context, kind: str, outcome: dict[str, Any]) -> None:
        try:
            self._send_apart(context, kind, outcome)
        finally:
            with self._changed:
                self._apart -= 1
                self._changed.notify_all()

    def _send_apart(self, context: Context, kind: str, outcome: dict[str, Any]) -> None:
        item, pause = {"job_id": context.id, "token": context.token, **outcome}, pauses(self._lease / 6)
        while self._may_tell(context):
            try:
                body = {kind: [item], "worker_id": self.id}
                answer = self._connection().call("POST", f"/ojs/v1/workers/{kind[:-1]}", body, headers=context._trace())
                error = answer["results"][0].get("error") or {}
            except GalleyError as refused:
                error = {"code": refused.code, "message": str(refused), "retryable": refused.retryable}
            if not error.get("retryable"):
                instead = instead_of_refused(outcome, error) if error else None
                if instead is None:
                    return
                log.error("the end of job %s is refused: %s", context.id, error.get("message"))
                kind, outcome = instead
                item = {"job_id": context.id, "token": context.token, **outcome}
                continue
            time.sleep(pause())

    def _send(self, kind: str, item: dict[str, Any], trace: Headers) -> tuple[list[Job], dict[str, Any] | None]:
        with self._changed:
            # What cannot be told does not pile up
            goes_on = self._stops == 0 and not self._is_quiet and self._apart < self._concurrency
        if goes_on:
            body = {**self._wanted(1, 0), kind: [item]}
            answer = self._connection().call("POST", "/ojs/v1/workers/fetch", body, headers=trace)
            return answer["jobs"], answer[kind][0].get("error")
        body = {kind: [item], "worker_id": self.id}
        answer = self._connection().call("POST", f"/ojs/v1/workers/{kind[:-1]}", body, headers=trace)
        return [], answer["results"][0].get("error")

    # Signs of life

    def _beat(self) -> None:
        connection, every = Connection(self._url, self._key), min(self._lease / 3, 10.0)
        next_beat = time.monotonic() + every
        while True:
            # In between deadlines are looked at
            time.sleep(max(0.0, min(next_beat - time.monotonic(), 0.1)))
            with self._changed:
                active = [context for context in self._active.values() if not context._is_given_up]
            for context in active:
                if context.deadline is not None and time.time() >= context.deadline:
                    context.cancelled.set()
            if time.monotonic() < next_beat:
                continue
            next_beat = time.monotonic() + every
            for start in range(0, max(1, len(active)), MAX_BEATS):
                try:
                    self._beat_for(connection, active[start : start + MAX_BEATS])
                except GalleyError as error:
                    log.info("no sign of life was given: %s", error)
                    next_beat = time.monotonic() + min(every, random.uniform(0.2, 1.0))

    def _beat_for(self, connection: Connection, active: list[Context]) -> None:
        sent = time.monotonic()
        body = {
            "worker_id": self.id,
            "active_jobs": [context.id for context in active],
            "tokens": {context.id: context.token for context in active},
            "state": "terminate" if self._stops else "quiet" if self._is_quiet else "running",
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "concurrency": self._concurrency,
        }
        try:
            answer = connection.call("POST", "/ojs/v1/workers/heartbeat", body)
        except GalleyError as error:
            if error.status != 409:
                raise
            answer = {"stale_jobs": body["active_jobs"]}
        stale = set(answer["stale_jobs"])
        for context in active:
            if context.id in stale:
                context.cancelled.set()
            else:
                context._lease_until = sent + self._lease
        with self._changed:
            if answer.get("state") == "terminate" and self._stops == 0:
                self._stops = 1
            elif "state" in answer:
                self._is_quiet = answer["state"] == "quiet"
            self._changed.notify_all()

    def _release(self) -> None:
        """Makes what still runs available again; the attempt is not spent."""
        with self._changed:
            left = [context for context in self._active.values() if not context._is_given_up]
            for context in left:
                context._abandon()
        for start in range(0, len(left), MAX_FETCHED):
            some = left[start : start + MAX_FETCHED]
            nacks = [{"job_id": context.id, "token": context.token, "requeue": True} for context in some]
            pause, deadline = pauses(self._lease / 6), min(context._lease_until for context in some)
            while True:
                try:
                    self._connection().call("POST", "/ojs/v1/workers/nack", {"nacks": nacks, "worker_id": self.id})
                    log.info("handed %d jobs back", len(some))
                    break
                except Unavailable:
                    if time.monotonic() >= deadline:
                        break
                    time.sleep(pause())


def _log_somewhere() -> None:
    """Shows what the worker logs on stderr, unless the program has set up logging itself."""
    if log.hasHandlers():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
