"""Handlers that take several jobs in one call."""

from __future__ import annotations

import concurrent.futures
import contextvars
import inspect
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ._context import Cancellation, Context, handled
from ._loop import HandlerCancelled, LoopThread


def check_many(count: int, delay: float) -> None:
    """Raises a ``ValueError`` unless a handler can be called so."""
    if count < 1 or not 0 <= delay < float("inf"):
        raise ValueError("count must be at least 1, delay a number of seconds that is not negative")


class HandlerOfMany:
    """Calls a handler once for up to ``count`` jobs: when it has that many, or ``delay`` seconds after the first one.

    Each job waits in the thread of its own attempt, so that it is cancelled, settled and retried by itself.
    """

    def __init__(
        self,
        handler: Callable[[list[Context]], Any],
        count: int,
        delay: float,
        loop: LoopThread,
        changed: threading.Condition,
        is_stopping: Callable[[], bool],
    ) -> None:
        self._handler, self._count, self._delay, self._loop = handler, count, delay, loop
        # The worker notifies it when it stops: what has gathered is called then, without the delay
        self._changed, self._is_stopping = changed, is_stopping
        # The jobs of the call that comes next, each with where its outcome goes
        self._next: dict[Context, concurrent.futures.Future[Any]] = {}

    def __call__(self, context: Context, *_: Any) -> Any:
        """The outcome of this job, from the call that it is in."""
        outcome: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._changed:
            jobs = self._next
            is_first = not jobs
            jobs[context] = outcome
            if len(jobs) == self._count:
                self._next = {}
                self._changed.notify_all()
        if is_first:
            # In the trace of this job; but no job is the current one
            variables = contextvars.copy_context()
            variables.run(handled.set, None)
            threading.Thread(target=variables.run, args=(self._run, jobs), name="galley-jobs", daemon=True).start()
        context.cancelled.call_when_set(lambda: self._leave(context))
        return outcome.result()

    def _leave(self, context: Context) -> None:
        """Takes out a job that nobody wants any more, unless its call has begun."""
        with self._changed:
            outcome = self._next.pop(context, None)
            if outcome is not None and not self._next:
                # The delay of the next call starts with its own first job
                self._next = {}
                self._changed.notify_all()
        if outcome is not None:
            outcome.set_exception(HandlerCancelled("the job was cancelled before its handler was called"))

    def _run(self, jobs: dict[Context, concurrent.futures.Future[Any]]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._next is not jobs or self._is_stopping(), self._delay)
            if self._next is jobs:
                self._next = {}
        if not jobs:
            return
        try:
            results = self._results(list(jobs))
        except BaseException as error:  # also what ends a thread: the attempts wait for it
            results = [error] * len(jobs)
        for outcome, result in zip(jobs.values(), results, strict=True):
            if isinstance(result, BaseException):
                outcome.set_exception(result)
            else:
                outcome.set_result(result)

    def _results(self, jobs: list[Context]) -> Sequence[Any]:
        results = self._handler(jobs)
        if inspect.isawaitable(results):
            results = self._loop.run(results, _cancelled_with_all(jobs))
        return checked_results(results, len(jobs))


def checked_results(results: Any, count: int) -> Sequence[Any]:
    """A result for each job: what the handler gave, or nothing for each."""
    if results is None:
        return [None] * count
    if not isinstance(results, (list, tuple)) or len(results) != count:
        given = f"{len(results)} results" if isinstance(results, (list, tuple)) else type(results).__name__
        raise TypeError(
            f"a handler of several jobs gives None, or a list with one result for each: {count}, not {given}"
        )
    return results


def _cancelled_with_all(jobs: list[Context]) -> Cancellation:
    """Set when nobody wants any of them any more."""
    cancelled = Cancellation()

    def look() -> None:
        if all(job.cancelled.is_set() for job in jobs):
            cancelled.set()

    for job in jobs:
        job.cancelled.call_when_set(look)
    return cancelled
