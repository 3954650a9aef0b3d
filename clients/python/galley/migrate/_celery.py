"""Celery with Redis as its broker: lists of messages, JSON or pickled."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

from ._found import DAMAGED, Found, Left, Place, Unreadable, left, list_members
from ._values import from_json, milliseconds_of, plain, time_of, unpickled

#: Between a queue and a priority in the name of its list.
_SEPARATOR = "\x06\x16"


class Celery:
    """A queue of Celery: a list for each step of priority."""

    def __init__(self, redis: Any, queue: str, prefix: str | None, with_unacked: bool = False) -> None:
        self._redis, self._queue, self._prefix, self._with_unacked = redis, queue, prefix or "", with_unacked

    def read(self) -> Iterator[Found | Left]:
        for step in range(10):
            key = f"{self._prefix}{self._queue}" + (f"{_SEPARATOR}{step}" if step else "")
            for message in list_members(self._redis, key, "tail"):
                yield from _job(Place("tail", key, message), message)
        if self._with_unacked:
            for tag, text, entry in self._unacked():
                place = Place("hash", f"{self._prefix}unacked", tag, value=text)
                yield from _job(place, json.dumps(entry[0]).encode())
        yield from self._dead()

    def notes(self) -> list[str]:
        held = sum(1 for _ in self._unacked())
        if not held or self._with_unacked:
            return []
        return [
            f"{held} are with workers, which hold tasks with an ETA too: stop Celery's workers, then they are back "
            "and can be moved. If the workers were killed: --unacked"
        ]

    def _unacked(self) -> Iterator[tuple[bytes, bytes, list[Any]]]:
        for tag, text in self._redis.hscan_iter(f"{self._prefix}unacked"):
            try:
                entry = from_json(text, "an unacked entry")
            except Unreadable:
                # Nothing says to which queue it belongs
                continue
            if isinstance(entry, list) and len(entry) == 3 and entry[2] == self._queue:
                yield tag, text, entry

    def _dead(self) -> Iterator[Found | Left]:
        """Failures of which the result backend has name and arguments: with ``result_extended``."""
        for key in self._redis.scan_iter(match=f"{self._prefix}celery-task-meta-*", count=1000):
            try:
                result = from_json(self._redis.get(key) or b"{}", "a result")
            except Unreadable:
                continue
            if result.get("status") != "FAILURE" or result.get("queue") != self._queue or not result.get("name"):
                continue
            id, place = str(result["task_id"]), Place("copy", key.decode(), b"")
            args, kwargs = result.get("args") or [], result.get("kwargs") or {}
            if not isinstance(args, list) or not isinstance(kwargs, dict):
                yield Left(id, "its result has the arguments as text only")
                continue
            failed = result.get("result") or {}
            error = f"{failed.get('exc_type')}: {failed.get('exc_message')}" if isinstance(failed, dict) else None
            done = milliseconds_of(result.get("date_done"))
            yield Found(id, "dead", place, str(result["name"]), args, kwargs, {}, done, error)


def _job(place: Place, message: bytes) -> Iterator[Found | Left]:
    id = "?"
    try:
        envelope = from_json(message, "the message")
        headers, properties = envelope.get("headers") or {}, envelope.get("properties") or {}
        id = str(headers.get("id") or properties.get("correlation_id") or "?")
        yield _found(place, id, envelope, headers, properties)
    except DAMAGED as error:
        yield left(id, error)


def _found(place: Place, id: str, envelope: Any, headers: Any, properties: Any) -> Found:
    if "task" not in headers:
        raise Unreadable("the message is of protocol 1, which Celery 3 sends")
    if headers.get("compression"):
        raise Unreadable("the message is compressed")
    body: Any = envelope["body"]
    data = base64.b64decode(body) if properties.get("body_encoding") == "base64" else str(body).encode()
    content = envelope.get("content-type")
    if content == "application/json":
        call = from_json(data, "the body")
    elif content == "application/x-python-serialize":
        call = unpickled(data)
    else:
        raise Unreadable(f"the body is {content}: JSON and pickles can be read")
    args, kwargs, embed = call
    linked = [name for name in ("chain", "chord", "callbacks", "errbacks") if (embed or {}).get(name)]
    if linked:
        raise Unreadable(f"other tasks hang on it ({', '.join(linked)}): let Celery finish it")
    options: dict[str, Any] = {}
    if eta := milliseconds_of(headers.get("eta")):
        options["scheduled_at"] = time_of(eta)
    if expires := milliseconds_of(headers.get("expires")):
        options["expires_at"] = time_of(expires)
    # Hard and soft
    limit = next((seconds for seconds in headers.get("timelimit") or [] if seconds), None)
    if limit:
        options["timeout_ms"] = int(float(limit) * 1000)
    if priority := int(properties.get("priority") or 0):
        # Lower comes first on Redis
        options["priority"] = -priority
    state = "scheduled" if eta else "waiting"
    return Found(id, state, place, str(headers["task"]), plain(args), plain(kwargs), options)  # type: ignore[arg-type]
