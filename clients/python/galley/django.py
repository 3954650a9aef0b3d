"""For Django: jobs that belong to the transaction, and that a rollback makes none of."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from . import outbox as _outbox
from ._app import AsyncTask, Calls, _Definition
from ._types import NewJob

P = ParamSpec("P")
T = TypeVar("T")


class InTransaction(Generic[P, T]):
    """The call of a task that belongs to the transaction."""

    def __init__(self, definition: _Definition, write: Callable[[NewJob], T]) -> None:
        self._definition, self._write = definition, write

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """A job with these arguments when the transaction is committed. Arguments that do not fit are an error now."""
        return self._write(self._definition.job(args, kwargs))


def on_commit(task: Calls[P, Any] | AsyncTask[P, Any], *, using: str | None = None) -> InTransaction[P, None]:
    """``on_commit(send).enqueue(to="ada")`` enqueues after the commit of the database ``using``, or now outside a
    transaction. If the process dies in between, the job is lost: ``outbox`` loses none."""
    app = task._definition.app

    def write(job: NewJob) -> None:
        options: dict[str, Any] = {**job.get("options", {})}
        options.update((name, job[name]) for name in ("id", "meta") if name in job)

        def send() -> None:
            app.client.enqueue(job["type"], *job["args"], **options)

        importlib.import_module("django.db.transaction").on_commit(send, using=using)

    return InTransaction(task._definition, write)


def outbox(task: Calls[P, Any] | AsyncTask[P, Any], *, using: str | None = None) -> InTransaction[P, str]:
    """``outbox(send).enqueue(to="ada")`` writes a row in the transaction of the database ``using``, a PostgreSQL, and
    gives the id that the job will have; ``galley-outbox`` sends it. See docs/outbox.md."""

    def write(job: NewJob) -> str:
        db: Any = importlib.import_module("django.db")
        connection = db.connections[using or db.DEFAULT_DB_ALIAS]
        if connection.vendor != "postgresql":
            raise TypeError(f"the outbox needs PostgreSQL, and the database is {connection.vendor}")
        with connection.cursor() as cursor:
            return _outbox.enqueue(cursor, job)

    return InTransaction(task._definition, write)
