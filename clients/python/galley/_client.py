"""A client for threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from . import _calls, _workflows
from ._call import MAX_WAIT_S, Call, Patience, url_and_key
from ._errors import GalleyError, JobFailed, Unavailable
from ._http import Connection
from ._sse import Frame, Subscription, read_chunk, read_job_event, read_message
from ._types import (
    Chunk,
    Cron,
    EnqueueOptions,
    Gap,
    Job,
    JobEvent,
    LogLine,
    Member,
    Message,
    MessageFilter,
    NewJob,
    NewStep,
    PresenceEvent,
    Queue,
    Rate,
    Signal,
    When,
    Workflow,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ._testing import FakeGateway

T = TypeVar("T")


class Client:
    """Enqueues jobs and looks after them, publishes and reads messages. May be used by several threads; each has a
    connection of its own.

    ``key`` is a key of the gateway. ``url`` and ``key`` are ``GALLEY_URL`` and ``GALLEY_KEY`` unless given.
    ``patience`` is for how many seconds a request is sent again while the gateway is away or refuses it for the
    moment.
    """

    def __init__(self, url: str | None = None, patience: float = 10.0, key: str | None = None) -> None:
        self._url, self._key = url_and_key(url, key)
        self._patience = patience
        self._fake: FakeGateway | None = None
        self._local = threading.local()
        self._connection()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection of this thread."""
        self._connection().close()

    # Jobs

    def enqueue(self, type: str, *args: Any, **options: Unpack[EnqueueOptions]) -> Job:
        """Stores a job and gives it, with its ``id``.

        Options are members of the job: ``queue``, ``priority``, ``scheduled_at``, ``timeout_ms``, ``retry``,
        ``unique``, ``rate_limit``, ``meta`` and so on. The request is sent again until it is answered, and makes one
        job however often it came through; an ``idempotency_key`` of your own does the same across programs. Called by
        a handler, it makes the job part of the trace of the handler's job; ``traceparent``, ``tracestate`` and
        ``baggage`` (W3C) say another trace.
        """
        return self._run(_calls.enqueue(type, args, options))

    def schedule(self, when: When, type: str, *args: Any, **options: Unpack[EnqueueOptions]) -> Job:
        """Stores a job that starts at that time, or that many seconds from now."""
        return self._run(_calls.enqueue(type, args, {**options, "scheduled_at": when}))

    def enqueue_many(self, jobs: Sequence[NewJob], *, idempotency_key: str | None = None) -> list[Job]:
        """Stores all of these jobs, or none: ``galley.job(...)`` and ``task.job(...)`` make them."""
        return self._run(_calls.enqueue_many(jobs, idempotency_key))

    def get(self, id: str, wait: float = 0.0) -> Job:
        """The job as it is; with ``wait`` as it is when it ends, or after that many seconds."""
        deadline = time.monotonic() + wait
        while True:
            left = max(0.0, min(deadline - time.monotonic(), MAX_WAIT_S))
            job = self._run(_calls.get(id, left))
            # In the test modes nothing happens meanwhile
            if self._fake or time.monotonic() >= deadline or job["state"] in _calls.ENDED:
                return job

    def result(self, id: str, wait: float = 60.0) -> Any:
        """Waits for a job to end and gives its result.

        Raises ``JobFailed`` when it was discarded or cancelled, ``TimeoutError`` when it is not over by then.
        """
        job = self.get(id, wait)
        if job["state"] == "completed":
            return job.get("result")
        if job["state"] in _calls.ENDED:
            raise JobFailed(job)
        raise TimeoutError(f"job {id} is {job['state']} after {wait} s")

    def cancel(self, id: str) -> Job:
        """Ends a job that is not over. If it runs, its worker is told with the next heartbeat."""
        return self._run(_calls.cancel(id))

    def retry(self, id: str) -> Job:
        """Makes a job available now: a discarded or cancelled one with all its attempts again, a scheduled one
        early."""
        return self._run(_calls.retry(id))

    def activate(self, id: str) -> Job:
        """Makes a job available that was stored with ``pending=True``."""
        return self._run(_calls.activate(id))

    def signal(self, id: str, name: str, data: Any = None, *, signal_id: str | None = None) -> Signal:
        """Sends a job a signal, which resumes it if it waits for one of that name, and is kept for it otherwise. A second one
        with the same ``signal_id`` is the same signal. Refused (409) when the job has ended."""
        return self._run(_calls.signal(id, name, data, signal_id))

    def approve(self, id: str, subject: str = "", *, by: str | None = None, comment: str | None = None) -> Signal:
        """Approves what a job waits for with ``Context.wait_for_approval``."""
        return self._run(_calls.approval(id, subject, True, by, comment))

    def reject(self, id: str, subject: str = "", *, by: str | None = None, comment: str | None = None) -> Signal:
        """Rejects what a job waits for with ``Context.wait_for_approval``."""
        return self._run(_calls.approval(id, subject, False, by, comment))

    def signals(self, id: str) -> list[Signal]:
        """The signals that came for a job, in their order."""
        return self._run(_calls.signals(id))

    def logs(self, id: str) -> list[LogLine]:
        """What the handlers of a job logged, the oldest first."""
        lines: list[LogLine] = []
        after: str | None = None
        while True:
            page, after = self._run(_calls.logs(id, after))
            lines += page
            if after is None:
                return lines

    def events(
        self, id: str, *, last_id: str | None = "0-0-0", patience: float | None = None
    ) -> Subscription[JobEvent]:
        """What happens to a job, such as ``job.progress`` and ``job.log``, until it ends. ``last_id=None``: from now
        on."""
        return self._follow(_calls.job_events(id), last_id, read_job_event, patience)

    def output(self, id: str, *, last_id: str | None = None, patience: float | None = None) -> Subscription[Chunk]:
        """What the handlers of a job streamed, from its begin and as it comes, until the job ends."""
        return self._follow(_calls.job_output(id), last_id, read_chunk, patience)

    # Workflows

    def chain(self, *steps: NewStep, name: str | None = None, idempotency_key: str | None = None) -> Workflow:
        """Starts jobs one after the other; each gets the results before it as ``Context.parent_results``. A step may be a
        workflow (``galley.group`` and the like), or run for each element of a result (``galley.for_each``)."""
        return self._run(_calls.start_workflow(_workflows.chain(*steps, name=name), idempotency_key))

    def group(self, *jobs: NewStep, name: str | None = None, idempotency_key: str | None = None) -> Workflow:
        """Starts jobs at once. The group fails if one of them does."""
        return self._run(_calls.start_workflow(_workflows.group(*jobs, name=name), idempotency_key))

    def batch(
        self,
        *jobs: NewStep,
        on_complete: NewJob | None = None,
        on_success: NewJob | None = None,
        on_failure: NewJob | None = None,
        name: str | None = None,
        idempotency_key: str | None = None,
    ) -> Workflow:
        """Starts jobs at once, and others when all of them have ended, with their results."""
        new = _workflows.batch(
            *jobs, on_complete=on_complete, on_success=on_success, on_failure=on_failure, name=name
        )
        return self._run(_calls.start_workflow(new, idempotency_key))

    def dag(
        self,
        jobs: Mapping[str, NewStep],
        depends_on: Mapping[str, Sequence[str]],
        *,
        name: str | None = None,
        idempotency_key: str | None = None,
    ) -> Workflow:
        """Starts each job when all that it depends on have completed, with their results as ``Context.parent_results``.
        ``depends_on`` has the names of those; a job that it leaves out starts at once."""
        return self._run(_calls.start_workflow(_workflows.dag(jobs, depends_on, name=name), idempotency_key))

    def get_workflow(self, id: str) -> Workflow:
        """A workflow with its jobs."""
        return self._run(_calls.get_workflow(id))

    def cancel_workflow(self, id: str) -> Workflow:
        """Cancels those of its jobs that have not ended."""
        return self._run(_calls.cancel_workflow(id))

    # Cron

    def set_cron(
        self,
        name: str,
        expression: str,
        job: NewJob,
        *,
        timezone: str | None = None,
        overlap_policy: Literal["skip", "allow", "cancel_previous", "enqueue"] | None = None,
        enabled: bool | None = None,
        description: str | None = None,
    ) -> Cron:
        """Enqueues a job on a schedule, such as ``"0 9 * * MON-FRI"``; changes the entry of that name if there is
        one."""
        more = {"timezone": timezone, "overlap_policy": overlap_policy, "enabled": enabled, "description": description}
        return self._run(_calls.set_cron(name, expression, job, **more))

    def get_cron(self, name: str) -> Cron:
        """An entry with its next and last run."""
        return self._run(_calls.get_cron(name))

    def crons(self) -> list[Cron]:
        """All entries by name."""
        found: list[Cron] = []
        after: str | None = None
        while True:
            page, after = self._run(_calls.crons(after))
            found += page
            if after is None:
                return found

    def enable_cron(self, name: str) -> Cron:
        """Lets an entry run again."""
        return self._run(_calls.enable_cron(name, True))

    def disable_cron(self, name: str) -> Cron:
        """Keeps an entry, and lets it enqueue nothing."""
        return self._run(_calls.enable_cron(name, False))

    def trigger_cron(self, name: str) -> Job:
        """Enqueues the job of an entry now, besides its schedule."""
        return self._run(_calls.trigger_cron(name))

    def delete_cron(self, name: str) -> None:
        """Deletes an entry; its jobs stay."""
        return self._run(_calls.delete_cron(name))

    # Queues

    def get_queue(self, name: str) -> Queue:
        """A queue with its counts and limits."""
        return self._run(_calls.get_queue(name))

    def pause_queue(self, name: str) -> None:
        """Lets workers claim none of its jobs. Needs a key with ``admin:write``."""
        return self._run(_calls.steer_queue(name, "pause"))

    def resume_queue(self, name: str) -> None:
        """Ends a pause. Needs a key with ``admin:write``."""
        return self._run(_calls.steer_queue(name, "resume"))

    def limit_queue(
        self,
        name: str,
        *,
        concurrency: int | None = None,
        rate: Rate | None = None,
        priority_aging: str | None = None,
    ) -> Queue:
        """Limits all jobs of a queue; without a limit the settings hold again. Needs a key with ``admin:write``."""
        return self._run(_calls.limit_queue(name, concurrency, rate, priority_aging))

    # Channels

    def publish(
        self,
        channel: str,
        data: Any,
        *,
        content_type: str | None = None,
        attributes: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Publishes a message and gives its id. ``bytes`` and ``str`` are the body as they are, everything else is
        JSON.

        ``attributes`` make it a CloudEvent: ``{"specversion": "1.0", "id": "1", "source": "/shop", "type":
        "order.paid"}``.
        """
        return self._run(_calls.publish(channel, data, content_type, attributes, idempotency_key))

    def publish_many(self, channel: str, messages: Sequence[Any], *, idempotency_key: str | None = None) -> list[str]:
        """Publishes up to 100 messages in order and gives their ids. A ``str`` is text, everything else is JSON."""
        return self._run(_calls.publish_many(channel, messages, idempotency_key))

    def history(
        self, channel: str, *, after: str | None = None, since: str | None = None, limit: int = 100
    ) -> list[Message]:
        """Messages that are kept, the oldest first: after an id, or since a time such as ``"-PT1H"``."""
        return self._run(_calls.history(channel, after, since, limit))

    def members(self, channel: str) -> list[Member]:
        """Who is present on a channel."""
        found, after = self._run(_calls.members(channel, None))
        while after is not None:
            more, after = self._run(_calls.members(channel, after))
            found += more
        return found

    def subscribe(
        self,
        *channels: str,
        last_id: str | None = None,
        since: str | None = None,
        filter: MessageFilter | None = None,
        delta: bool = False,
        join: bool = False,
        member: str | None = None,
        info: Any = None,
        on_presence: Callable[[PresenceEvent], None] | None = None,
        on_gap: Callable[[Gap], None] | None = None,
        patience: float | None = None,
    ) -> Subscription[Message]:
        """Iterates over messages as they are published, in channels and those that match a pattern such as
        ``orders.*``.

        It begins after ``last_id`` (store ``subscription.last_id`` to miss nothing across restarts), else at
        ``since``, else when the first message is asked for. It reconnects to any gateway, for ``patience`` seconds at
        a time (no limit unless given). ``on_gap`` is called for messages that are not kept any more; they are logged
        unless given. With a ``filter`` only messages that match it come. With ``delta`` the
        gateway sends the difference from the message before where that is shorter; the messages that come out are
        whole.

        With ``member`` (``join=True``: the subject of the token) it takes part in the channels, and says ``info`` of
        itself. ``on_presence`` is called with all members of each channel first, then with each that joins, changes
        its info or leaves.
        """
        asked = _calls.presence(join, member, info, on_presence is not None)
        path = _calls.channel_stream(channels, since, filter, delta, asked)
        return self._follow(path, last_id, read_message(on_gap, on_presence, delta), patience)

    def _follow(
        self, path: str, last_id: str | None, read: Callable[[Frame], T | None], patience: float | None
    ) -> Subscription[T]:
        if self._fake is not None:
            raise self._fake.cannot(path)
        return Subscription(lambda: Connection(self._url, self._key), path, last_id, read, patience)

    def _connection(self) -> Connection:
        connection: Connection | None = getattr(self._local, "connection", None)
        # A process that was forked must not share the connection of its parent
        if connection is None or self._local.process != os.getpid():
            connection = self._local.connection = Connection(self._url, self._key)
            self._local.process = os.getpid()
        return connection

    def _run(self, call: Call[T]) -> T:
        if self._fake is not None:
            return call.parse(self._fake.answer(call))
        patience, is_repeated = Patience(call.wait + self._patience), False
        while True:
            try:
                answer = self._connection().call(call.method, call.path, call.body, call.wait, call.headers)
                return call.parse(answer)
            except Unavailable as error:
                is_repeated = True
                time.sleep(patience.pause_after(error))
            except GalleyError as error:
                if not ((is_repeated or error._is_repeat) and error.status == 409 and call.is_done):
                    raise
                path = call.path.removesuffix("/retry").removesuffix("/activate")
                found = call.parse(self._connection().call("GET", path))
                if not call.is_done(found):
                    raise
                return found
