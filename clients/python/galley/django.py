"""For Django: jobs that are enqueued when the transaction is committed, and not at all when it is rolled back."""

from __future__ import annotations

import importlib
from typing import Any, Generic, ParamSpec

from ._app import AsyncTask, Calls, _Definition

P = ParamSpec("P")


class OnCommit(Generic[P]):
    """The call of a task that waits for the transaction."""

    def __init__(self, definition: _Definition, using: str | None) -> None:
        self._definition, self._using = definition, using

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Enqueues a job after the commit, or now outside a transaction. Arguments that do not fit are an error now."""
        definition = self._definition
        values = definition.args(args, kwargs)

        def send() -> None:
            definition.app.client.enqueue(definition.type, *values, **definition.options)

        importlib.import_module("django.db.transaction").on_commit(send, using=self._using)


def on_commit(task: Calls[P, Any] | AsyncTask[P, Any], *, using: str | None = None) -> OnCommit[P]:
    """``on_commit(send).enqueue(to="ada")`` inside a transaction of the database ``using``."""
    return OnCommit(task._definition, using)
