"""Jobs and messages as rows of a table in PostgreSQL, written in the transaction of what they are about.
``galley-outbox`` sends them: see docs/outbox.md. Writing needs no package but the driver that the program uses."""

from __future__ import annotations

import inspect
import json
import os
import pathlib
import time
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

from .. import _trace
from .._types import NewJob

__all__ = ["enqueue", "enqueue_statement", "publish", "publish_statement", "schema"]

Statement = tuple[str, tuple[Any, ...]]

_JOB = "INSERT INTO galley_outbox (type, args, options, trace) VALUES (%s, %s, %s, %s)"
_MESSAGE = "INSERT INTO galley_outbox (channel, data, content_type, attributes, trace) VALUES (%s, %s, %s, %s, %s)"


class Executor(Protocol):
    """A connection of psycopg, or a cursor of any driver that writes parameters as ``%s``."""

    def execute(self, query: Any, params: Any, /) -> Any: ...


def schema() -> str:
    """The SQL that makes the table and its trigger, for a migration. It may run twice."""
    return pathlib.Path(__file__).with_name("outbox.sql").read_text(encoding="utf-8")


def enqueue(db: Executor, job: NewJob) -> str:
    """Writes a row that becomes this job when the transaction of ``db`` is committed, and gives the id that the job
    will have. ``task.job(...)`` and ``galley.job(...)`` make one."""
    id = job.get("id") or _new_id()
    _execute(db, enqueue_statement({**job, "id": id}))
    return id


def publish(
    db: Executor,
    channel: str,
    data: Any,
    *,
    content_type: str | None = None,
    attributes: Mapping[str, str] | None = None,
) -> None:
    """Writes a row that becomes this message when the transaction of ``db`` is committed. A ``str`` is text, everything
    else is JSON. ``attributes`` make it a CloudEvent."""
    _execute(db, publish_statement(channel, data, content_type=content_type, attributes=attributes))


def enqueue_statement(job: NewJob) -> Statement:
    """The statement of ``enqueue`` and its parameters, for connections that are asynchronous or belong to a toolkit."""
    options: dict[str, Any] = {**job.get("options", {})}
    options["id"] = job.get("id") or _new_id()
    if "meta" in job:
        options["meta"] = job["meta"]
    return _JOB, (job["type"], _json(job["args"]), _json(options), _json(_traced()))


def publish_statement(
    channel: str,
    data: Any,
    *,
    content_type: str | None = None,
    attributes: Mapping[str, str] | None = None,
) -> Statement:
    """The statement of ``publish`` and its parameters."""
    given = None if attributes is None else _json(dict(attributes))
    return _MESSAGE, (channel, _json(data), content_type, given, _json(_traced()))


def _execute(db: Executor, statement: Statement) -> None:
    done = db.execute(*statement)
    if inspect.isawaitable(done):
        if inspect.iscoroutine(done):
            done.close()
        raise TypeError("the connection is asynchronous: await its execute(*outbox.enqueue_statement(job))")


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _traced() -> dict[str, str]:
    return dict(_trace.outgoing())


def _new_id() -> str:
    """A UUIDv7, as Galley would make it."""
    random = int.from_bytes(os.urandom(10), "big")
    bits = (time.time_ns() // 1_000_000) << 80 | 0x7 << 76 | (random >> 68 & 0xFFF) << 64 | 0x2 << 62
    return str(uuid.UUID(int=bits | random & (1 << 62) - 1))
