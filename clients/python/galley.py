"""Galley from Python: enqueue jobs, and work on them. One file, standard library only, Python 3.9 or newer.

A worker asks for a job only when a thread is free for it, keeps what it holds alive with heartbeats, and tells how each
job ended until the gateway has heard it or the lease is over. Jobs run at least once: ``ctx.id`` and ``ctx.attempt`` are
there to be idempotent with.
"""

from __future__ import annotations

import contextvars
import datetime
import http.client
import json
import logging
import os
import queue
import random
import signal
import socket
import threading
import time
import traceback
import uuid
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple, TypeVar
from urllib.parse import quote, urlsplit

__all__ = ["Client", "Context", "GalleyError", "JobFailed", "NoRetry", "Retry", "Unavailable", "Worker"]

DEFAULT_URL = "http://127.0.0.1:8080"
#: Longest single wait that is asked of the gateway; it allows a minute by default (``gateway.max_wait_ms``).
MAX_WAIT_S = 20.0
#: Time for an answer on top of what is waited for.
ANSWER_S = 10.0
#: Jobs fetched in one request.
MAX_FETCHED = 100
#: Ids in one heartbeat.
MAX_BEATS = 1000
#: Characters of a traceback that are sent along with a failure.
MAX_STACK = 16_000
#: Characters of a logged line that are sent; the gateway keeps ``jobs.log_line_bytes``.
MAX_LINE = 16_000
#: Pauses between attempts to reach the gateway: full jitter up to twice as long each time.
FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 5.0

log = logging.getLogger("galley")

Job = Dict[str, Any]
Handler = Callable[..., Any]
H = TypeVar("H", bound=Handler)


class GalleyError(Exception):
    """The gateway refused a request: ``status``, ``code`` and what it says."""

    def __init__(self, status: int, code: str, message: str, retryable: bool = False) -> None:
        super().__init__(f"{code} ({status}): {message}")
        self.status, self.code, self.retryable = status, code, retryable


class Unavailable(GalleyError):
    """The gateway cannot be reached, or says that it cannot do its work now. It may have done it all the same."""

    def __init__(self, message: str, status: int = 503, code: str = "unavailable") -> None:
        super().__init__(status, code, message, True)


class JobFailed(Exception):
    """A job was discarded or cancelled; ``job`` is all of it."""

    def __init__(self, job: Job) -> None:
        error = (job.get("errors") or [job.get("error") or {}])[-1] or {}
        super().__init__(f"job {job['id']} is {job['state']}: {error.get('message') or 'no error was recorded'}")
        self.job = job


class Retry(Exception):
    """Raised by a handler: the attempt failed. The next one, if there is one, follows after that many seconds."""

    def __init__(self, message: str = "try again", after: Optional[float] = None) -> None:
        super().__init__(message)
        self.after = after


class NoRetry(Exception):
    """Raised by a handler: the job failed for good."""


class _Connection:
    """One keep-alive connection, made anew when it is gone. For one thread at a time."""

    def __init__(self, url: str, key: Optional[str]) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must be like http://host:port, got {url!r}")
        self._make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._is_plain = parts.scheme == "http"
        self._host, self._port, self._prefix = parts.hostname, parts.port, parts.path.rstrip("/")
        self._authorization = {"Authorization": f"Bearer {key}"} if key else {}
        self._http: Optional[http.client.HTTPConnection] = None
        self._hung_up = False

    def call(self, method: str, path: str, body: Any = None, wait: float = 0.0, headers: Sequence[Tuple[str, str]] = ()) -> Any:
        """Sends a request and gives the JSON of the answer; ``wait`` is how long the answer may take on purpose."""
        data = None if body is None else json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
        is_reused = self._http is not None
        try:
            status, answer = self._exchange(method, path, data, wait + ANSWER_S, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            # A connection that lay idle may have been closed at the other end: that says nothing about the gateway
            if not is_reused or self._hung_up or isinstance(error, socket.timeout):
                raise Unavailable(f"the gateway cannot be reached: {error!r}") from error
            return self.call(method, path, body, wait, headers)
        return _read(status, answer)

    def _exchange(
        self, method: str, path: str, data: Optional[bytes], timeout: float, headers: Sequence[Tuple[str, str]]
    ) -> Tuple[int, bytes]:
        if self._http is None:
            self._http = self._make(self._host, self._port, timeout=timeout)
            self._http.connect()
            self._http.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._hung_up:
            raise ConnectionAbortedError("hung up")
        self._http.sock.settimeout(timeout)
        all_headers = {"Content-Type": "application/json", **self._authorization, **dict(headers)}
        self._http.request(method, self._prefix + path, body=data, headers=all_headers)
        response = self._http.getresponse()
        answer = response.read()
        if response.will_close:
            self.close()
        return response.status, answer

    def hang_up(self) -> None:
        """Ends a wait from another thread. An answer that is on its way still arrives."""
        self._hung_up = True
        connection = self._http
        if connection is not None and connection.sock is not None:
            try:
                connection.sock.shutdown(socket.SHUT_WR if self._is_plain else socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        connection, self._http = self._http, None
        if connection is not None:
            connection.close()


def _read(status: int, answer: bytes) -> Any:
    try:
        content = json.loads(answer) if answer else {}
    except ValueError:
        content = {}
    if status < 400:
        return content
    error = content.get("error") if isinstance(content, dict) else None
    error = error if isinstance(error, dict) else {}
    code, message = error.get("code", "unknown"), error.get("message", f"answered with {status}")
    if status >= 500 or status in (408, 429):
        raise Unavailable(message, status, code)
    raise GalleyError(status, code, message, bool(error.get("retryable")))


def _pauses() -> Callable[[], float]:
    longest = FIRST_PAUSE_S

    def pause() -> float:
        nonlocal longest
        longest = min(longest * 2, MAX_PAUSE_S)
        return random.uniform(0, longest)

    return pause


class Client:
    """Enqueues jobs and looks after them. May be used by several threads; each has a connection of its own.

    ``key`` is a key of the gateway, ``GALLEY_KEY`` unless given. ``patience`` is for how many seconds a request is sent
    again while the gateway is away.
    """

    def __init__(self, url: Optional[str] = None, patience: float = 10.0, key: Optional[str] = None) -> None:
        self._url = url or os.environ.get("GALLEY_URL") or DEFAULT_URL
        self._key = key or os.environ.get("GALLEY_KEY")
        self._patience = patience
        self._local = threading.local()
        self._connection()

    def enqueue(
        self,
        type: str,
        *args: Any,
        queue: str = "default",
        traceparent: Optional[str] = None,
        tracestate: Optional[str] = None,
        baggage: Optional[str] = None,
        **options: Any,
    ) -> Job:
        """Stores a job and gives it, with its ``id``.

        Options are members of the job: ``priority``, ``scheduled_at``, ``timeout_ms``, ``retry``, ``unique``, ``meta`` and
        so on. The request is sent again until it is answered, and makes one job however often it came through.
        Called by a handler, in its thread, it makes the job part of the trace of the handler's job. ``traceparent``,
        ``tracestate`` and ``baggage`` (W3C) say another trace.
        """
        body = {**options, "type": type, "args": list(args), "queue": queue}
        handled = _handled.get()
        trace = {"traceparent": traceparent, "tracestate": tracestate, "baggage": baggage}
        given = [(name, value) for name, value in trace.items() if value]
        headers = [("Idempotency-Key", str(uuid.uuid4()))] + (given or (handled._trace() if handled else []))
        return self._call("POST", "/ojs/v1/jobs", body, headers=headers)["job"]

    def get(self, id: str, wait: float = 0.0) -> Job:
        """The job as it is; with ``wait`` as it is when it ends, or after that many seconds."""
        deadline = time.monotonic() + wait
        while True:
            left = max(0.0, min(deadline - time.monotonic(), MAX_WAIT_S))
            query = f"?wait_ms={int(left * 1000)}" if left else ""
            job = self._call("GET", f"/ojs/v1/jobs/{quote(id, safe='')}{query}", wait=left)["job"]
            if time.monotonic() >= deadline or job["state"] in ("completed", "cancelled", "discarded"):
                return job

    def result(self, id: str, wait: float = 60.0) -> Any:
        """Waits for a job to end and gives its result.

        Raises ``JobFailed`` when it was discarded or cancelled, ``TimeoutError`` when it is not over by then.
        """
        job = self.get(id, wait)
        if job["state"] == "completed":
            return job.get("result")
        if job["state"] in ("cancelled", "discarded"):
            raise JobFailed(job)
        raise TimeoutError(f"job {id} is {job['state']} after {wait} s")

    def cancel(self, id: str) -> Job:
        """Ends a job that is not over. If it runs, its worker is told with the next heartbeat."""
        return self._call("DELETE", f"/ojs/v1/jobs/{quote(id, safe='')}")["job"]

    def _connection(self) -> _Connection:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = _Connection(self._url, self._key)
        return connection

    def _call(self, method: str, path: str, body: Any = None, wait: float = 0.0, headers: Sequence[Tuple[str, str]] = ()) -> Any:
        deadline, pause = time.monotonic() + wait + self._patience, _pauses()
        while True:
            try:
                return self._connection().call(method, path, body, wait, headers)
            except Unavailable:
                seconds = pause()
                if time.monotonic() + seconds > deadline:
                    raise
                time.sleep(seconds)


class Context:
    """A running attempt, as its handler sees it."""

    def __init__(self, job: Job, lease: float, connect: Callable[[], _Connection], worker_id: str) -> None:
        self.job = job
        self.id: str = job["id"]
        #: 1 for the first one.
        self.attempt: int = job["attempt"]
        #: Proves whose attempt it is: a stale one can change nothing.
        self.token: str = job["token"]
        #: The trace to continue (W3C Trace Context), for your own spans and for ``Client.enqueue``; none without one.
        self.traceparent: Optional[str] = job.get("traceparent")
        #: The rest of it.
        self.tracestate: Optional[str] = job.get("tracestate")
        self.baggage: Optional[str] = job.get("baggage")
        timeout_ms = job.get("timeout_ms")
        #: When the job's ``timeout_ms`` is over, as ``time.time()`` has it; none without one.
        self.deadline: Optional[float] = None if timeout_ms is None else time.time() + timeout_ms / 1000
        #: Set when nobody wants the result any more: cancelled, timed out, given to another, or this worker ends.
        self.cancelled = threading.Event()
        self._lease_until = time.monotonic() + lease
        self._is_given_up = False
        self._connect, self._worker_id = connect, worker_id

    def _trace(self) -> List[Tuple[str, str]]:
        trace = {"traceparent": self.traceparent, "tracestate": self.tracestate, "baggage": self.baggage}
        return [(name, value) for name, value in trace.items() if value]

    def _abandon(self) -> None:
        self._is_given_up = True
        self.cancelled.set()

    def progress(self, progress: float, message: Optional[str] = None) -> None:
        """Notes how far the job has come, 0 to 1. That it cannot be noted is no reason to fail."""
        body: Dict[str, Any] = {"progress": progress, "token": self.token, "worker_id": self._worker_id}
        if message is not None:
            body["data"] = {"message": _valid(message)}
        try:
            self._connect().call("POST", f"/ojs/v1/jobs/{self.id}/progress", body, headers=self._trace())
        except Unavailable as error:
            log.debug("progress of job %s not noted: %s", self.id, error)
        except GalleyError as error:
            if error.status not in (404, 409):
                raise
            self.cancelled.set()


    def log(self, message: str, level: str = "info") -> None:
        """Logs a line for people: ``GET /ojs/v1/jobs/{id}/logs`` shows it. That it cannot be noted is no reason to fail."""
        at = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")
        line = {"message": _valid(str(message))[:MAX_LINE], "level": level, "at": at}
        body = {"job_id": self.id, "token": self.token, "worker_id": self._worker_id, "lines": [line]}
        try:
            self._connect().call("POST", "/ojs/v1/workers/log", body, headers=self._trace())
        except Unavailable as error:
            log.debug("line of job %s not noted: %s", self.id, error)
        except GalleyError as error:
            if error.status not in (404, 409):
                raise
            self.cancelled.set()


#: The attempt whose handler runs in this thread.
_handled: "contextvars.ContextVar[Optional[Context]]" = contextvars.ContextVar("galley_handled", default=None)


class Worker:
    """Works on jobs of some queues, ``concurrency`` at a time, each in a thread.

    ``lease``: after that many seconds without a sign of life a job is given to somebody else; heartbeats come three times as
    often. ``grace``: how many seconds running jobs have to finish on SIGTERM; then they are handed back, unspent.
    """

    def __init__(
        self,
        url: Optional[str] = None,
        queues: Sequence[str] = ("default",),
        concurrency: int = 1,
        lease: float = 30.0,
        grace: float = 25.0,
        worker_id: Optional[str] = None,
        key: Optional[str] = None,
    ) -> None:
        if concurrency < 1 or lease < 1 or grace < 0:
            raise ValueError("concurrency and lease must be at least 1, grace not negative")
        self.id = worker_id or f"{socket.gethostname()[:64]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._url = url or os.environ.get("GALLEY_URL") or DEFAULT_URL
        self._key = key or os.environ.get("GALLEY_KEY")
        self._queues, self._concurrency, self._lease, self._grace = list(queues), concurrency, lease, grace
        self._handlers: Dict[str, Handler] = {}
        self._local = threading.local()
        self._fetching = _Connection(self._url, self._key)
        self._inbox: "queue.SimpleQueue[Context]" = queue.SimpleQueue()
        # Everything below is changed under this condition
        self._changed = threading.Condition()
        self._free = concurrency
        # By token: an attempt may still be busy here when the next one of its job is given to us
        self._active: Dict[str, Context] = {}
        self._is_quiet = False
        self._stops = 0

    def job(self, type: str) -> Callable[[H], H]:
        """Registers a handler for jobs of a type; it is called with the context and the job's ``args``."""

        def register(handler: H) -> H:
            self._handlers[type] = handler
            return handler

        return register

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

    def _catch_signals(self) -> List[Tuple[int, Any]]:
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

    def _is_idle(self) -> bool:
        return not self._active

    def _connection(self) -> _Connection:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = _Connection(self._url, self._key)
        return connection

    # Fetching: the permit first, then the job

    def _fetch(self) -> None:
        pause = _pauses()
        warned: Set[str] = set()
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
                pause = _pauses()
            except GalleyError as error:
                if self._stops == 0:
                    level = logging.INFO if isinstance(error, Unavailable) else logging.ERROR
                    log.log(level, "cannot fetch: %s", error)
                    self._until(lambda: self._stops > 0, pause())
                continue
            with self._changed:
                self._free -= len(jobs)
            for job in jobs:
                self._inbox.put(self._start(job))

    def _wanted(self, count: int, wait: float) -> Dict[str, Any]:
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
        following: Optional[Context] = None
        while True:
            context = following or self._inbox.get()
            kind, outcome = self._attempt(context)
            if kind == "nacks":
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

    def _attempt(self, context: Context) -> Tuple[str, Dict[str, Any]]:
        """Runs the handler; ``acks`` or ``nacks`` and what to send."""
        handler = self._handlers.get(context.job["type"])
        if handler is None:
            return _failure("handler_not_found", "HandlerNotFound", f"no handler for jobs of type {context.job['type']}")
        before = _handled.set(context)
        try:
            result = handler(context, *context.job.get("args", ()))
            # Here, so that what cannot be sent is a failure of the handler
            return "acks", {"result": _valid(json.loads(json.dumps(result, allow_nan=False)))}
        except Retry as error:
            after = {} if error.after is None else {"retry_after_ms": max(0, int(error.after * 1000))}
            return _failure("handler_error", "Retry", _text(error), retryable=True, **after)
        except NoRetry as error:
            name = _name(error.__cause__ or error)
            return _failure("handler_error", name, _text(error), retryable=False, stack=_stack())
        except BaseException as error:  # a handler that calls sys.exit has failed, and its thread lives on
            return _failure("handler_error", _name(error), _text(error), stack=_stack())
        finally:
            _handled.reset(before)

    def _settle(self, context: Context, kind: str, outcome: Dict[str, Any]) -> Optional[Job]:
        """Tells how an attempt ended until somebody has heard it or the lease is over; the next job, if there is one."""
        pause = _pauses()
        while not context._is_given_up and time.monotonic() < context._lease_until:
            item = {"job_id": context.id, "token": context.token, **outcome}
            try:
                jobs, error = self._send(kind, item, context._trace())
            except GalleyError as refused:
                jobs, error = [], {"code": refused.code, "message": str(refused), "retryable": refused.retryable}
            if error is None or not error.get("retryable"):
                instead = None if error is None else _instead_of_refused(outcome, error)
                if instead is not None:
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
                threading.Thread(target=self._send_apart, args=(context, kind, outcome), daemon=True).start()
                return jobs[0]
            time.sleep(pause())
        return None

    def _send_apart(self, context: Context, kind: str, outcome: Dict[str, Any]) -> None:
        item, pause = {"job_id": context.id, "token": context.token, **outcome}, _pauses()
        while not context._is_given_up and time.monotonic() < context._lease_until:
            try:
                body = {kind: [item], "worker_id": self.id}
                answer = self._connection().call("POST", f"/ojs/v1/workers/{kind[:-1]}", body, headers=context._trace())
                error = answer["results"][0].get("error") or {}
            except GalleyError as refused:
                error = {"code": refused.code, "message": str(refused), "retryable": refused.retryable}
            if not error.get("retryable"):
                instead = _instead_of_refused(outcome, error) if error else None
                if instead is None:
                    return
                log.error("the end of job %s is refused: %s", context.id, error.get("message"))
                kind, outcome = instead
                item = {"job_id": context.id, "token": context.token, **outcome}
                continue
            time.sleep(pause())

    def _send(
        self, kind: str, item: Dict[str, Any], trace: Sequence[Tuple[str, str]]
    ) -> Tuple[List[Job], Optional[Dict[str, Any]]]:
        with self._changed:
            goes_on = self._stops == 0 and not self._is_quiet
        if goes_on:
            body = {**self._wanted(1, 0), kind: [item]}
            answer = self._connection().call("POST", "/ojs/v1/workers/fetch", body, headers=trace)
            return answer["jobs"], answer[kind][0].get("error")
        body = {kind: [item], "worker_id": self.id}
        answer = self._connection().call("POST", f"/ojs/v1/workers/{kind[:-1]}", body, headers=trace)
        return [], answer["results"][0].get("error")

    # Signs of life

    def _beat(self) -> None:
        connection, every = _Connection(self._url, self._key), min(self._lease / 3, 10.0)
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

    def _beat_for(self, connection: _Connection, active: List[Context]) -> None:
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
            pause, deadline = _pauses(), min(context._lease_until for context in some)
            while time.monotonic() < deadline:
                try:
                    self._connection().call("POST", "/ojs/v1/workers/nack", {"nacks": nacks, "worker_id": self.id})
                    log.info("handed %d jobs back", len(some))
                    break
                except Unavailable:
                    time.sleep(pause())


def _failure(code: str, type: str, message: str, **more: Any) -> Tuple[str, Dict[str, Any]]:
    return "nacks", {"error": _valid({"code": code, "type": type, "message": message, **more})}


def _instead_of_refused(outcome: Dict[str, Any], error: Dict[str, Any]) -> Optional[Tuple[str, Dict[str, Any]]]:
    """What to tell when an outcome is refused for what it says: dropped, its job would wait for its whole lease.

    None when the attempt is not ours any more, or when even this was refused.
    """
    if error.get("code") in ("conflict", "not_found") or outcome.get("error", {}).get("code") in _REFUSED:
        return None
    message = str(error.get("message") or "")
    if "error" not in outcome:
        is_large = error.get("code") == "payload_too_large"
        code, type = ("result_too_large", "ResultTooLarge") if is_large else ("result_refused", "ResultRefused")
        return _failure(code, type, message, retryable=False)
    return _failure("failure_refused", "FailureRefused", message, retryable=outcome["error"].get("retryable", True))


#: Codes of what is told instead of a refused outcome.
_REFUSED = ("result_too_large", "result_refused", "failure_refused")


def _valid(value: Any) -> Any:
    """The value without what UTF-8 cannot carry: ``os.fsdecode`` leaves lone surrogates in names of files."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [_valid(item) for item in value]
    if isinstance(value, dict):
        return {_valid(name): _valid(item) for name, item in value.items()}
    return value


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as broken:  # __str__ is the program's, too
        return f"{_name(error)}, which cannot be shown: {_name(broken)}"


def _log_somewhere() -> None:
    """Shows what the worker logs on stderr, unless the program has set up logging itself."""
    if log.hasHandlers():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def _name(error: BaseException) -> str:
    return type(error).__name__


def _stack() -> str:
    try:
        return traceback.format_exc()[-MAX_STACK:]
    except BaseException:  # it shows the error, too
        return ""
