"""A client for asyncio, with the methods of the one for threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from . import _calls, _workflows
from ._aio import AsyncTransport
from ._call import MAX_WAIT_S, Call, Patience, url_and_key
from ._errors import GalleyError, JobFailed, Unavailable
from ._sse import AsyncSubscription, Frame, read_chunk, read_job_event, read_message
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


class AsyncClient:
    """Enqueues jobs and looks after them, publishes and reads messages. Any number of tasks may use it at once.

    ``key`` is a key of the gateway. ``url`` and ``key`` are ``GALLEY_URL`` and ``GALLEY_KEY`` unless given.
    ``patience`` is for how many seconds a request is sent again while the gateway is away or refuses it for the
    moment.
    """

    def __init__(self, url: str | None = None, patience: float = 10.0, key: str | None = None) -> None:
        self._url, self._key = url_and_key(url, key)
        self._patience = patience
        self._fake: FakeGateway | None = None
        self._transport = AsyncTransport(self._url, self._key)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections of this loop that lie idle."""
        self._transport.close()

    # Jobs

    async def enqueue(self, type: str, *args: Any, **options: Unpack[EnqueueOptions]) -> Job:
        """Stores a job and gives it, with its ``id``.

        Options are members of the job: ``queue``, ``priority``, ``scheduled_at``, ``timeout_ms``, ``retry``,
        ``unique``, ``rate_limit``, ``meta`` and so on. The request is sent again until it is answered, and makes one
        job however often it came through; an ``idempotency_key`` of your own does the same across programs. Called by
        a handler, it makes the job part of the trace of the handler's job; ``traceparent``, ``tracestate`` and
        ``baggage`` (W3C) say another trace.
        """
        return await self._run(_calls.enqueue(type, args, options))

    async def schedule(self, when: When, type: str, *args: Any, **options: Unpack[EnqueueOptions]) -> Job:
        """Stores a job that starts at that time, or that many seconds from now."""
        return await self._run(_calls.enqueue(type, args, {**options, "scheduled_at": when}))

    async def enqueue_many(self, jobs: Sequence[NewJob], *, idempotency_key: str | None = None) -> list[Job]:
        """Stores all of these jobs, or none: ``galley.job(...)`` and ``task.job(...)`` make them."""
        return await self._run(_calls.enqueue_many(jobs, idempotency_key))

    async def get(self, id: str, wait: float = 0.0) -> Job:
        """The job as it is; with ``wait`` as it is when it ends, or after that many seconds."""
        deadline = time.monotonic() + wait
        while True:
            left = max(0.0, min(deadline - time.monotonic(), MAX_WAIT_S))
            job = await self._run(_calls.get(id, left))
            # In the test modes nothing happens meanwhile
            if self._fake or time.monotonic() >= deadline or job["state"] in _calls.ENDED:
                return job

    async def result(self, id: str, wait: float = 60.0) -> Any:
        """Waits for a job to end and gives its result.

        Raises ``JobFailed`` when it was discarded or cancelled, ``TimeoutError`` when it is not over by then.
        """
        job = await self.get(id, wait)
        if job["state"] == "completed":
            return job.get("result")
        if job["state"] in _calls.ENDED:
            raise JobFailed(job)
        raise TimeoutError(f"job {id} is {job['state']} after {wait} s")

    async def cancel(self, id: str) -> Job:
        """Ends a job that is not over. If it runs, its worker is told with the next heartbeat."""
        return await self._run(_calls.cancel(id))

    async def retry(self, id: str) -> Job:
        """Makes a job available now: a discarded or cancelled one with all its attempts again, a scheduled one
        early."""
        return await self._run(_calls.retry(id))

    async def activate(self, id: str) -> Job:
        """Makes a job available that was stored with ``pending=True``."""
        return await self._run(_calls.activate(id))

    async def signal(self, id: str, name: str, data: Any = None, *, signal_id: str | None = None) -> Signal:
        """Sends a job a signal, which resumes it if it waits for one of that name, and is kept for it otherwise. A second one
        with the same ``signal_id`` is the same signal. Refused (409) when the job has ended."""
        return await self._run(_calls.signal(id, name, data, signal_id))

    async def approve(self, id: str, subject: str = "", *, by: str | None = None, comment: str | None = None) -> Signal:
        """Approves what a job waits for with ``Context.wait_for_approval``."""
        return await self._run(_calls.approval(id, subject, True, by, comment))

    async def reject(self, id: str, subject: str = "", *, by: str | None = None, comment: str | None = None) -> Signal:
        """Rejects what a job waits for with ``Context.wait_for_approval``."""
        return await self._run(_calls.approval(id, subject, False, by, comment))

    async def signals(self, id: str) -> list[Signal]:
        """The signals that came for a job, in their order."""
        return await self._run(_calls.signals(id))

    async def logs(self, id: str) -> list[LogLine]:
        """What the handlers of a job logged, the oldest first."""
        lines: list[LogLine] = []
        after: str | None = None
        while True:
            page, after = await self._run(_calls.logs(id, after))
            lines += page
            if after is None:
                return lines

    def events(
        self, id: str, *, last_id: str | None = "0-0-0", patience: float | None = None
    ) -> AsyncSubscription[JobEvent]:
        """What happens to a job, such as ``job.progress`` and ``job.log``, until it ends. ``last_id=None``: from now
        on."""
        return self._follow(_calls.job_events(id), last_id, read_job_event, patience)

    def output(self, id: str, *, last_id: str | None = None, patience: float | None = None) -> AsyncSubscription[Chunk]:
        """What the handlers of a job streamed, from its begin and as it comes, until the job ends."""
        return self._follow(_calls.job_output(id), last_id, read_chunk, patience)

    # Workflows

    async def chain(self, *steps: NewStep, name: str | None = None, idempotency_key: str | None = None) -> Workflow:
        """Starts jobs one after the other; each gets the results before it as ``Context.parent_results``. A step may be a
        workflow (``galley.group`` and the like), or run for each element of a result (``galley.for_each``)."""
        return await self._run(_calls.start_workflow(_workflows.chain(*steps, name=name), idempotency_key))

    async def group(self, *jobs: NewStep, name: str | None = None, idempotency_key: str | None = None) -> Workflow:
        """Starts jobs at once. The group fails if one of them does."""
        return await self._run(_calls.start_workflow(_workflows.group(*jobs, name=name), idempotency_key))

    async def batch(
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
        return await self._run(_calls.start_workflow(new, idempotency_key))

    async def dag(
        self,
        jobs: Mapping[str, NewStep],
        depends_on: Mapping[str, Sequence[str]],
        *,
        name: str | None = None,
        idempotency_key: str | None = None,
    ) -> Workflow:
        """Starts each job when all that it depends on have completed, with their results as ``Context.parent_results``.
        ``depends_on`` has the names of those; a job that it leaves out starts at once."""
        return await self._run(_calls.start_workflow(_workflows.dag(jobs, depends_on, name=name), idempotency_key))

    async def get_workflow(self, id: str) -> Workflow:
        """A workflow with its jobs."""
        return await self._run(_calls.get_workflow(id))

    async def cancel_workflow(self, id: str) -> Workflow:
        """Cancels those of its jobs that have not ended."""
        return await self._run(_calls.cancel_workflow(id))

    # Cron

    async def set_cron(
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
        return await self._run(_calls.set_cron(name, expression, job, **more))

    async def get_cron(self, name: str) -> Cron:
        """An entry with its next and last run."""
        return await self._run(_calls.get_cron(name))

    async def crons(self) -> list[Cron]:
        """All entries by name."""
        found: list[Cron] = []
        after: str | None = None
        while True:
            page, after = await self._run(_calls.crons(after))
            found += page
            if after is None:
                return found

    async def enable_cron(self, name: str) -> Cron:
        """Lets an entry run again."""
        return await self._run(_calls.enable_cron(name, True))

    async def disable_cron(self, name: str) -> Cron:
        """Keeps an entry, and lets it enqueue nothing."""
        return await self._run(_calls.enable_cron(name, False))

    async def trigger_cron(self, name: str) -> Job:
        """Enqueues the job of an entry now, besides its schedule."""
        return await self._run(_calls.trigger_cron(name))

    async def delete_cron(self, name: str) -> None:
        """Deletes an entry; its jobs stay."""
        return await self._run(_calls.delete_cron(name))

    # Queues

    async def get_queue(self, name: str) -> Queue:
        """A queue with its counts and limits."""
        return await self._run(_calls.get_queue(name))

    async def pause_queue(self, name: str) -> None:
        """Lets workers claim none of its jobs. Needs a key with ``admin:write``."""
        return await self._run(_calls.steer_queue(name, "pause"))

    async def resume_queue(self, name: str) -> None:
        """Ends a pause. Needs a key with ``admin:write``."""
        return await self._run(_calls.steer_queue(name, "resume"))

    async def limit_queue(
        self,
        name: str,
        *,
        concurrency: int | None = None,
        rate: Rate | None = None,
        priority_aging: str | None = None,
    ) -> Queue:
        """Limits all jobs of a queue; without a limit the settings hold again. Needs a key with ``admin:write``."""
        return await self._run(_calls.limit_queue(name, concurrency, rate, priority_aging))

    # Channels

    async def publish(
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
        return await self._run(_calls.publish(channel, data, content_type, attributes, idempotency_key))

    async def publish_many(
        self, channel: str, messages: Sequence[Any], *, idempotency_key: str | None = None
    ) -> list[str]:
        """Publishes up to 100 messages in order and gives their ids. A ``str`` is text, everything else is JSON."""
        return await self._run(_calls.publish_many(channel, messages, idempotency_key))

    async def history(
        self, channel: str, *, after: str | None = None, since: str | None = None, limit: int = 100
    ) -> list[Message]:
        """Messages that are kept, the oldest first: after an id, or since a time such as ``"-PT1H"``."""
        return await self._run(_calls.history(channel, after, since, limit))

    async def members(self, channel: str) -> list[Member]:
        """Who is present on a channel."""
        found, after = await self._run(_calls.members(channel, None))
        while after is not None:
            more, after = await self._run(_calls.members(channel, after))
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
    ) -> AsyncSubscription[Message]:
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
    ) -> AsyncSubscription[T]:
        if self._fake is not None:
            raise self._fake.cannot(path)
        return AsyncSubscription(self._transport, path, last_id, read, patience)

    async def _run(self, call: Call[T]) -> T:
        if self._fake is not None:
            return call.parse(await self._fake.answer_async(call))
        patience, is_repeated = Patience(call.wait + self._patience), False
        while True:
            try:
                answer, headers = await self._transport.ask(call.method, call.path, call.body, call.wait, call.headers)
                if call.must_be_confirmed and headers.get("galley-durability") == "unconfirmed":
                    raise Unavailable("it is stored, but on too few replicas yet", 202, "unconfirmed")
                return call.parse(answer)
            except Unavailable as error:
                is_repeated = True
                await asyncio.sleep(patience.pause_after(error))
            except GalleyError as error:
                if not ((is_repeated or error._is_repeat) and error.status == 409 and call.is_done):
                    raise
                path = call.path.removesuffix("/retry").removesuffix("/activate")
                found = call.parse(await self._transport.call("GET", path))
                if not call.is_done(found):
                    raise
                return found
