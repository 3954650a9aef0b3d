"""Typed tasks: a function, its job type, and the calls that enqueue it with the function's own arguments."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast, overload

from ._async_client import AsyncClient
from ._client import Client
from ._context import Context, current
from ._errors import nearest
from ._many import check_many, checked_results
from ._options import new_job, wire_options
from ._testing import FakeGateway
from ._types import Job, JobOptions, LogLine, NewJob, When
from ._worker import M, Middleware, Worker

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

P = ParamSpec("P")
R = TypeVar("R")

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class _Definition:
    """A task without its types."""

    def __init__(self, app: App, type: str, handler: Callable[..., Any], options: Mapping[str, Any]) -> None:
        self.app, self.type, self.handler, self.options = app, type, handler, dict(options)
        self._signature = inspect.signature(handler)
        parameters = self._signature.parameters.values()
        kinds = {parameter.kind for parameter in parameters}
        if inspect.Parameter.VAR_KEYWORD in kinds:
            raise TypeError(f"the task {type} takes **arguments: a job has a list of arguments, so name them")
        if {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.KEYWORD_ONLY} <= kinds:
            raise TypeError(f"the task {type} has *arguments and keyword-only ones: a job has one list of arguments")

    def with_options(self, options: Mapping[str, Any]) -> Self:
        wire_options("with_options()", options)
        other = copy.copy(self)
        other.options = {**self.options, **options}
        return other

    def args(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """Arguments as the list of a job: in the order of the signature, up to the last one that is given."""
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            unknown = [name for name in kwargs if name not in self._signature.parameters]
            hint = nearest(unknown[0], self._signature.parameters) if unknown else ""
            raise TypeError(f"{self.type}: {error}{hint}") from None
        given: list[Any] = []
        missing: list[Any] = []
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                given += [*(missing if bound.arguments.get(name) else []), *bound.arguments.get(name, ())]
            elif name in bound.arguments:
                given += [*missing, bound.arguments[name]]
                missing = []
            else:
                missing.append(parameter.default)
        return given

    def run(self, args: Sequence[Any]) -> Any:
        """Calls the handler with the list of arguments of a job."""
        named: dict[str, Any] = {}
        for value, parameter in zip(args, self._signature.parameters.values(), strict=False):
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                named[parameter.name] = value
        return self.handler(*args[: len(args) - len(named)], **named)

    def job(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NewJob:
        return new_job(self.type, self.args(args, kwargs), self.options)

    def each(self, args: tuple[Any, ...], of: str) -> NewJob:
        # With an element, so that too many arguments are noticed
        made = new_job(self.type, self.args((*args, None), {})[:-1], self.options)
        made["for_each"] = of
        return made

    def register(self, worker: Worker) -> None:
        """Makes it the handler of a worker."""
        worker.job(self.type)(lambda _, *args: self.run(args))


class _ManyDefinition(_Definition):
    """A task whose handler takes several jobs in one call."""

    def __init__(
        self, app: App, type: str, handler: Callable[..., Any], options: Mapping[str, Any], count: int, delay: float
    ) -> None:
        super().__init__(app, type, handler, options)
        self.count, self.delay = count, delay

    def args(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        if kwargs:
            raise TypeError(f"{self.type}: its jobs have a list of arguments; {', '.join(kwargs)} cannot be named")
        return list(args)

    def run(self, args: Sequence[Any]) -> Any:
        """Calls the handler with one job: the one that runs here."""
        results = self.handler([current()])
        return self._one_awaited(results) if inspect.isawaitable(results) else _one(results)

    async def _one_awaited(self, results: Awaitable[Any]) -> Any:
        return _one(await results)

    def register(self, worker: Worker) -> None:
        worker.jobs(self.type, count=self.count, delay=self.delay)(self.handler)


def _one(results: Any) -> Any:
    result = checked_results(results, 1)[0]
    if isinstance(result, BaseException):
        raise result
    return result


class Handle(Generic[R]):
    """A job that was enqueued."""

    def __init__(self, client: Client, job: Job) -> None:
        self._client, self.job, self.id = client, job, job["id"]

    def wait(self, seconds: float = 60.0) -> R:
        """The result. Raises ``JobFailed`` or ``TimeoutError``."""
        return cast(R, self._client.result(self.id, seconds))

    def get(self) -> Job:
        """The job as it is now."""
        return self._client.get(self.id)

    def cancel(self) -> Job:
        """Ends the job."""
        return self._client.cancel(self.id)

    def retry(self) -> Job:
        """Makes the job available now."""
        return self._client.retry(self.id)

    def logs(self) -> list[LogLine]:
        """What its handler logged."""
        return self._client.logs(self.id)


class AsyncHandle(Generic[R]):
    """A job that was enqueued, for asyncio."""

    def __init__(self, client: AsyncClient, job: Job) -> None:
        self._client, self.job, self.id = client, job, job["id"]

    async def wait(self, seconds: float = 60.0) -> R:
        """The result. Raises ``JobFailed`` or ``TimeoutError``."""
        return cast(R, await self._client.result(self.id, seconds))

    async def get(self) -> Job:
        """The job as it is now."""
        return await self._client.get(self.id)

    async def cancel(self) -> Job:
        """Ends the job."""
        return await self._client.cancel(self.id)

    async def retry(self) -> Job:
        """Makes the job available now."""
        return await self._client.retry(self.id)

    async def logs(self) -> list[LogLine]:
        """What its handler logged."""
        return await self._client.logs(self.id)


class Calls(Generic[P, R]):
    """The calls of a task for threads."""

    def __init__(self, definition: _Definition) -> None:
        self._definition = definition

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Enqueues a job with these arguments."""
        return self._send(self._definition.args(args, kwargs))

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """The same as ``enqueue``, by the name that Celery gave it."""
        return self._send(self._definition.args(args, kwargs))

    def schedule(self, when: When, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Enqueues a job that starts at that time, or that many seconds from now."""
        return self._send(self._definition.args(args, kwargs), scheduled_at=when)

    def wait(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Enqueues a job and waits for its result, up to a minute."""
        return self.enqueue(*args, **kwargs).wait()

    def job(self, *args: P.args, **kwargs: P.kwargs) -> NewJob:
        """A job with these arguments for ``enqueue_many``, workflows and cron."""
        return self._definition.job(args, kwargs)

    def each(self, *args: Any, of: str = "previous") -> NewJob:
        """A step of a workflow with a job for each element of the list that another step returned: in a chain the one
        before it, in a DAG the one called ``of``. The element is the argument after these."""
        return self._definition.each(args, of)

    def _send(self, args: list[Any], **more: Any) -> Handle[R]:
        client = self._definition.app.client
        options: dict[str, Any] = {**self._definition.options, **more}
        return Handle(client, client.enqueue(self._definition.type, *args, **options))


class AsyncCalls(Generic[P, R]):
    """The calls of a task for asyncio."""

    def __init__(self, definition: _Definition) -> None:
        self._definition = definition

    async def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> AsyncHandle[R]:
        """Enqueues a job with these arguments."""
        return await self._send(self._definition.args(args, kwargs))

    async def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncHandle[R]:
        """The same as ``enqueue``, by the name that Celery gave it."""
        return await self._send(self._definition.args(args, kwargs))

    async def schedule(self, when: When, /, *args: P.args, **kwargs: P.kwargs) -> AsyncHandle[R]:
        """Enqueues a job that starts at that time, or that many seconds from now."""
        return await self._send(self._definition.args(args, kwargs), scheduled_at=when)

    async def wait(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Enqueues a job and waits for its result, up to a minute."""
        return await (await self.enqueue(*args, **kwargs)).wait()

    def job(self, *args: P.args, **kwargs: P.kwargs) -> NewJob:
        """A job with these arguments for ``enqueue_many``, workflows and cron."""
        return self._definition.job(args, kwargs)

    def each(self, *args: Any, of: str = "previous") -> NewJob:
        """A step of a workflow with a job for each element of the list that another step returned: in a chain the one
        before it, in a DAG the one called ``of``. The element is the argument after these."""
        return self._definition.each(args, of)

    async def _send(self, args: list[Any], **more: Any) -> AsyncHandle[R]:
        client = self._definition.app.async_client
        options: dict[str, Any] = {**self._definition.options, **more}
        return AsyncHandle(client, await client.enqueue(self._definition.type, *args, **options))


class Task(Calls[P, R]):
    """A task whose handler is a plain function. Its calls are for threads, those of ``aio`` for asyncio."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the handler here and now."""
        return cast(R, self._definition.handler(*args, **kwargs))

    @property
    def aio(self) -> AsyncCalls[P, R]:
        """The same calls for asyncio."""
        return AsyncCalls(self._definition)

    def with_options(self, **options: Unpack[JobOptions]) -> Task[P, R]:
        """The task with other options of its jobs, such as ``priority`` or ``unique``."""
        return Task(self._definition.with_options(options))


class AsyncTask(AsyncCalls[P, R]):
    """A task whose handler is an ``async def``. Its calls are for asyncio, those of ``sync`` for threads."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Runs the handler here and now."""
        return cast("Coroutine[Any, Any, R]", self._definition.handler(*args, **kwargs))

    @property
    def sync(self) -> Calls[P, R]:
        """The same calls for threads."""
        return Calls(self._definition)

    def with_options(self, **options: Unpack[JobOptions]) -> AsyncTask[P, R]:
        """The task with other options of its jobs, such as ``priority`` or ``unique``."""
        return AsyncTask(self._definition.with_options(options))


class _Decorator:
    def __init__(self, app: App, type: str, options: Mapping[str, Any]) -> None:
        self._app, self._type, self._options = app, type, options

    # The first one that fits counts: R of the second can be a coroutine, too
    @overload
    def __call__(self, handler: Callable[P, Coroutine[Any, Any, R]]) -> AsyncTask[P, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, handler: Callable[P, R]) -> Task[P, R]: ...

    def __call__(self, handler: Callable[..., Any]) -> Any:
        definition = _Definition(self._app, self._type, handler, self._options)
        self._app._add(definition)
        task: Any = (AsyncTask if inspect.iscoroutinefunction(handler) else Task)(definition)
        functools.update_wrapper(task, handler)
        return task


class App:
    """The tasks of a program, and how it reaches the gateway. ``url`` and ``key`` are ``GALLEY_URL`` and ``GALLEY_KEY``
    unless given; nothing connects before it is needed."""

    def __init__(self, url: str | None = None, *, patience: float = 10.0, key: str | None = None) -> None:
        self._url, self._patience, self._key = url, patience, key
        self._tasks: dict[str, _Definition] = {}
        self._middleware: list[Middleware] = []
        self._fake: FakeGateway | None = None
        self._clients: tuple[Client, AsyncClient] | None = None

    def task(self, type: str, **options: Unpack[JobOptions]) -> _Decorator:
        """Makes a function a task for jobs of a type; the options are those of its jobs, such as ``queue``."""
        wire_options("task()", options)
        return _Decorator(self, type, options)

    def task_of_many(
        self, type: str, *, count: int, delay: float = 1.0, **options: Unpack[JobOptions]
    ) -> Callable[[Callable[[list[Context]], Any]], Task[..., Any]]:
        """Makes a function that takes several jobs in one call a task: up to ``count``, which come within ``delay``
        seconds. A worker needs a ``concurrency`` of ``count`` at least.

        The function is called with a list of contexts and gives a list with a result for each, or None. An exception in
        the list fails its job; one that is raised fails all of them. In test modes each call has one job.
        """
        check_many(count, delay)
        wire_options("task_of_many()", options)

        def define(handler: Callable[[list[Context]], Any]) -> Task[..., Any]:
            definition = _ManyDefinition(self, type, handler, options, count, delay)
            self._add(definition)
            task: Task[..., Any] = Task(definition)
            functools.update_wrapper(task, handler)
            return task

        return define

    def middleware(self, around: M) -> M:
        """Registers a function that runs around each attempt, the first one outermost: it is called with the context
        and ``call_next``, and gives what ``call_next()`` gives. It runs in a thread, around ``async def`` handlers
        too."""
        self._middleware.append(around)
        return around

    def _add(self, definition: _Definition) -> None:
        if definition.type in self._tasks:
            raise ValueError(f"there is a task for {definition.type} already")
        self._tasks[definition.type] = definition

    @property
    def client(self) -> Client:
        """For threads."""
        return self._both()[0]

    @property
    def async_client(self) -> AsyncClient:
        """For asyncio."""
        return self._both()[1]

    def _both(self) -> tuple[Client, AsyncClient]:
        if self._clients is None:
            more: dict[str, Any] = {"patience": self._patience, "key": self._key}
            self._clients = Client(self._url, **more), AsyncClient(self._url, **more)
        for client in self._clients:
            client._fake = self._fake
        return self._clients

    @property
    def queues(self) -> list[str]:
        """The queues of its tasks."""
        return sorted({str(task.options.get("queue", "default")) for task in self._tasks.values()}) or ["default"]

    def worker(
        self,
        *,
        queues: Sequence[str] | None = None,
        concurrency: int = 4,
        lease: float = 30.0,
        grace: float = 25.0,
        worker_id: str | None = None,
    ) -> Worker:
        """A worker for its tasks; ``galley-worker module:app`` runs one. ``queues`` are those of the tasks unless
        given."""
        worker = Worker(
            self._url,
            self.queues if queues is None else queues,
            concurrency,
            lease,
            grace,
            worker_id,
            self._key,
            self._middleware,
        )
        for task in self._tasks.values():
            task.register(worker)
        return worker

    def fake(self) -> FakeGateway:
        """For tests: inside ``with app.fake() as jobs`` jobs are kept in memory and nothing runs until
        ``jobs.drain()``."""
        return FakeGateway(self, is_inline=False)

    def inline(self) -> FakeGateway:
        """For tests: inside ``with app.inline()`` a job runs when it is enqueued, in this process."""
        return FakeGateway(self, is_inline=True)
