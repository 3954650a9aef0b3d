"""A gateway in memory, for tests of programs that enqueue jobs: no server, no worker, no waiting."""

from __future__ import annotations

import asyncio
import contextvars
import datetime
import inspect
import json
import threading
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ._call import Call
from ._context import Context, handled
from ._errors import GalleyError, NoRetry, Waiting
from ._fake_workflows import FakeWorkflow
from ._outcome import name_of, text_of
from ._types import Job

if TYPE_CHECKING:
    from ._app import App

#: Attempts of a job whose policy does not say how many.
DEFAULT_ATTEMPTS = 3


class FakeGateway:
    """What an app enqueued and published, kept in memory.

    It knows jobs, many at once, look-ups, cancelling, retrying, workflows and publishing. An attempt that fails is
    followed by the next one at once. Delays do not count: ``drain`` runs scheduled jobs too.
    """

    def __init__(self, app: App, is_inline: bool) -> None:
        self._app, self._is_inline = app, is_inline
        self._before: FakeGateway | None = None
        self._jobs: dict[str, Job] = {}
        self._workflows: dict[str, FakeWorkflow] = {}
        #: Channel and data of each published message.
        self.messages: list[tuple[str, Any]] = []

    def __enter__(self) -> FakeGateway:
        self._before, self._app._fake = self._app._fake, self
        self._app._both()
        return self

    def __exit__(self, *_: object) -> None:
        self._app._fake = self._before
        self._app._both()

    @property
    def jobs(self) -> list[Job]:
        """All jobs in the order in which they were enqueued."""
        return list(self._jobs.values())

    def enqueued(self, type: str, *, args: Sequence[Any] | None = None, queue: str | None = None) -> list[Job]:
        """The jobs of a type, with these arguments and in this queue if given."""
        wanted = None if args is None else _through_json(list(args))
        return [
            job
            for job in self._jobs.values()
            if job["type"] == type
            and (wanted is None or job.get("args") == wanted)
            and (queue is None or job["queue"] == queue)
        ]

    def assert_enqueued(
        self, type: str, *, args: Sequence[Any] | None = None, queue: str | None = None, count: int | None = None
    ) -> None:
        """Fails unless such a job was enqueued, or exactly that many."""
        found = self.enqueued(type, args=args, queue=queue)
        if not found if count is None else len(found) != count:
            seen = ", ".join(f"{job['type']}{job.get('args')} in {job['queue']}" for job in self.jobs) or "nothing"
            expected = "a job" if count is None else f"{count} jobs"
            raise AssertionError(f"expected {expected} {type} with args={args} queue={queue}; enqueued: {seen}")

    def assert_not_enqueued(self, type: str, *, args: Sequence[Any] | None = None, queue: str | None = None) -> None:
        """Fails if such a job was enqueued."""
        self.assert_enqueued(type, args=args, queue=queue, count=0)

    def drain(self) -> list[Job]:
        """Runs the jobs that wait, and those that they enqueue, until none waits. Gives those that ran."""
        ran: list[Job] = _run_apart(self.drain_async)
        return ran

    async def drain_async(self) -> list[Job]:
        """``drain`` for asyncio: handlers that are ``async def`` run on this loop."""
        ran = []
        while job := next(filter(_is_ready, self._jobs.values()), None):
            await self._run(job)
            ran.append(job)
        return ran

    # What clients call

    def answer(self, call: Call[Any]) -> Any:
        answer, new = self._answered(call)
        if self._is_inline and new:
            _run_apart(lambda: self._run_all(new))
        return answer

    async def answer_async(self, call: Call[Any]) -> Any:
        answer, new = self._answered(call)
        if self._is_inline:
            await self._run_all(new)
        return answer

    def cannot(self, what: str) -> NotImplementedError:
        return NotImplementedError(f"the test mode has no {what}: test that with a gateway")

    def _answered(self, call: Call[Any]) -> tuple[Any, list[Job]]:
        parts = [unquote(part) for part in urlsplit(call.path).path.strip("/").split("/")]
        if (call.method, parts) == ("POST", ["ojs", "v1", "jobs"]):
            job = self._store(call.body)
            return {"job": job}, [job]
        if (call.method, parts) == ("POST", ["ojs", "v1", "jobs", "batch"]):
            jobs = [self._store({**new.get("options", {}), **new}) for new in call.body["jobs"]]
            return {"jobs": jobs}, jobs
        if parts[:3] == ["ojs", "v1", "workflows"]:
            return self._workflow(call, *parts[3:])
        if parts[:2] == ["v1", "channels"] and call.method == "POST":
            return self._publish(parts[2], call), []
        if parts[:3] == ["ojs", "v1", "jobs"] and len(parts) == 4:
            job = self._found(parts[3])
            if call.method == "DELETE":
                _require(job, "available", "scheduled", "pending")
                job["state"] = "cancelled"
                return {"job": job}, self._follow_ups(job)
            return {"job": job}, []
        if parts[:3] == ["ojs", "v1", "jobs"] and parts[4:] == ["retry"]:
            job = self._found(parts[3])
            _require(job, "discarded", "cancelled", "scheduled")
            job["state"], job["attempt"] = "available", 0
            return {"job": job}, [job]
        if parts[:3] == ["ojs", "v1", "jobs"] and parts[4:] == ["signals"]:
            return self._signal(self._found(parts[3]), call)
        raise self.cannot(f"{call.method} {call.path}")

    def end_wait(self, id: str) -> None:
        """Lets the time be over for which a job waits: the next ``drain`` goes on with it."""
        job = self._found(id)
        if job["state"] != "scheduled" or "waiting" not in job:
            raise ValueError(f"job {id} is {job['state']} and does not wait")
        job["state"], job["waiting"]["is_over"] = "available", True

    def _signal(self, job: Job, call: Call[Any]) -> tuple[Any, list[Job]]:
        signals = job.setdefault("signals", [])
        if call.method == "GET":
            return {"items": signals, "next": None}, []
        if job["state"] in ("completed", "discarded", "cancelled"):
            raise GalleyError(409, "conflict", f"job {job['id']} is {job['state']}")
        new = _through_json(call.body)
        known = next((signal for signal in signals if signal["id"] == new["id"]), None)
        if known is not None:
            return {"signal": known, "resumed": False}, []
        signal: Any = {"sequence": len(signals) + 1, "sent_at": _now(), **new}
        signals.append(signal)
        resumed = job["state"] == "scheduled" and job.get("waiting", {}).get("signal") == signal["name"]
        if resumed:
            job["state"] = "available"
        return {"signal": signal, "resumed": resumed}, [job] if resumed else []

    def _store(self, body: dict[str, Any]) -> Job:
        members = _through_json(body)
        members.pop("options", None)
        state = "pending" if members.get("pending") else "scheduled" if members.get("scheduled_at") else "available"
        id = str(members.pop("id", None) or uuid.uuid4())
        attempts = int((members.get("retry") or {}).get("max_attempts", DEFAULT_ATTEMPTS)) or 1
        now = _now()
        job: Any = {"queue": "default", "priority": 0, **members, "id": id, "state": state, "attempt": 0}
        job |= {"max_attempts": attempts, "created_at": now}
        self._jobs[id] = job
        stored: Job = job
        return stored

    def _workflow(self, call: Call[Any], id: str | None = None) -> tuple[Any, list[Job]]:
        if id is None:
            workflow = FakeWorkflow(_through_json(call.body), self._store, self._register)
            started = workflow.advance()
            return {"workflow": workflow.shown()}, started
        if id not in self._workflows:
            raise GalleyError(404, "not_found", f"no workflow {id}")
        workflow = self._workflows[id]
        due: list[Job] = []
        if call.method == "DELETE":
            workflow.cancel()
            # It may be a step of another one
            due = workflow.advance()
        return {"workflow": workflow.shown()}, due

    def _register(self, workflow: FakeWorkflow) -> None:
        self._workflows[workflow.id] = workflow

    def _follow_ups(self, job: Job) -> list[Job]:
        workflow = self._workflows.get(job.get("workflow_id", ""))
        return workflow.advance() if workflow else []

    def _publish(self, channel: str, call: Call[Any]) -> Any:
        if isinstance(call.body, bytes):
            kind = dict(call.headers).get("Content-Type", "")
            text = call.body.decode("utf-8", "surrogateescape")
            data = json.loads(text) if kind == "application/json" else text if kind.startswith("text/") else call.body
            self.messages.append((channel, data))
            return {"id": f"1-{len(self.messages)}"}
        results = []
        for item in call.body:
            self.messages.append((channel, _through_json(item["data"])))
            results.append({"status": 201, "id": f"1-{len(self.messages)}"})
        return {"results": results}

    def _found(self, id: str) -> Job:
        if id not in self._jobs:
            raise GalleyError(404, "not_found", f"no job {id}")
        return self._jobs[id]

    # Running

    async def _run_all(self, jobs: list[Job]) -> None:
        # Those that a job of a workflow starts come behind
        for job in (waiting := list(jobs)):
            if _is_ready(job):
                waiting += await self._run(job)

    async def _run(self, job: Job) -> list[Job]:
        """Runs a job to its end, and gives those that start then."""
        task = self._app._tasks.get(job["type"])
        if task is None:
            raise LookupError(f"the app has no task for jobs of type {job['type']}")
        errors = job.setdefault("errors", [])
        while True:
            job["state"], job["attempt"] = "active", job["attempt"] + 1
            context = Context(job, 3600.0, None, "test")
            before = handled.set(context)
            try:
                job["result"] = _through_json(await self._called(task.run, context))
                job["state"] = "completed"
                job.pop("checkpoint", None)
                job.pop("waiting", None)
                return self._follow_ups(job)
            except Waiting as waiting:
                job["attempt"] -= 1
                if not _goes_on(job, waiting):
                    job["state"] = "scheduled"
                    return []
            except Exception as error:
                errors.append({"type": name_of(error), "message": text_of(error), "attempt": job["attempt"]})
                if isinstance(error, NoRetry) or job["attempt"] >= job["max_attempts"]:
                    job["state"] = "discarded"
                    return self._follow_ups(job)
            finally:
                handled.reset(before)
                context._output.finish()

    async def _called(self, run: Callable[[Sequence[Any]], Any], context: Context) -> Any:
        args = context.job.get("args", [])
        if not self._app._middleware:
            result = run(args)
            return await result if inspect.isawaitable(result) else result

        # A middleware is a plain function: what it is around runs in a loop of its own
        def innermost() -> Any:
            result = run(args)
            return _run_apart(lambda: result) if inspect.isawaitable(result) else result

        call: Callable[[], Any] = innermost
        for around in reversed(self._app._middleware):
            call = _around(around, context, call)
        return call()


def _around(around: Callable[..., Any], context: Context, call: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: around(context, call)


def _is_ready(job: Job) -> bool:
    return job["state"] == "available" or (job["state"] == "scheduled" and "waiting" not in job)


def _goes_on(job: Job, waiting: Waiting) -> bool:
    """Notes what a job waits for; whether that is there. Sleeping takes no time."""
    request = waiting._request
    signal = request.get("signal")
    wait: Any = {"step": request["step"], "since": _now(), "is_over": signal is None}
    if signal is not None:
        wait["signal"] = signal
    job["waiting"] = wait
    came = (other["sequence"] for other in job.get("signals", []) if other["name"] == signal)
    return signal is None or any(sequence not in request["received"] for sequence in came)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds")


def _require(job: Job, *states: str) -> None:
    if job["state"] not in states:
        raise GalleyError(409, "conflict", f"the job is {job['state']}, and must be {' or '.join(states)}")


def _through_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


def _run_apart(make: Callable[[], Awaitable[Any]]) -> Any:
    """Runs something asynchronous to its end, also where a loop runs already: in a thread with a loop of its own."""

    async def run() -> Any:
        return await make()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(run())
    ended: list[Any] = []

    def work() -> None:
        try:
            ended.append((asyncio.run(run()), None))
        except BaseException as error:
            ended.append((None, error))

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
    thread.start()
    thread.join()
    result, error = ended[0]
    if error is not None:
        raise error
    return result
