"""RQ: lists and sorted sets of ids, a hash for each job, pickled or JSON."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator
from typing import Any

from ._found import DAMAGED, Found, Left, Place, State, Unreadable, left, list_members, zset_members
from ._values import from_json, milliseconds_of, plain, seconds_text, time_of, unpickled


class Rq:
    """A queue of RQ."""

    def __init__(self, redis: Any, queue: str, prefix: str | None) -> None:
        self._redis, self._queue, self._prefix = redis, queue, prefix or "rq"

    def read(self) -> Iterator[Found | Left]:
        key = f"{self._prefix}:queue:{self._queue}"
        for id in list_members(self._redis, key, "head"):
            yield from self._job("waiting", Place("head", key, id))
        states: list[tuple[State, str]] = [("scheduled", "scheduled"), ("dead", "failed")]
        for state, registry in states:
            key = f"{self._prefix}:{registry}:{self._queue}"
            for id, score in zset_members(self._redis, key):
                yield from self._job(state, Place("zset", key, id, score))
        for id, _ in zset_members(self._redis, f"{self._prefix}:deferred:{self._queue}"):
            yield Left(id.decode(), "waits for other jobs: RQ starts it when they have ended")

    def notes(self) -> list[str]:
        running = self._redis.zcard(f"{self._prefix}:wip:{self._queue}")
        return [f"{running} jobs run: let RQ's workers finish them"] if running else []

    def _job(self, state: State, place: Place) -> Iterator[Found | Left]:
        id = place.member.decode("utf-8", "replace")
        fields: dict[bytes, bytes] = self._redis.hgetall(f"{self._prefix}:job:{id}")
        # RQ skips ids without a job too
        if b"data" not in fields:
            return
        try:
            yield self._found(state, place, id, fields)
        except DAMAGED as error:
            yield left(id, error)

    def _found(self, state: State, place: Place, id: str, fields: dict[bytes, bytes]) -> Found:
        name, instance, args, kwargs = _call(fields[b"data"])
        if instance is not None:
            raise Unreadable("it is a method of an object")
        if int(fields.get(b"repeats_left") or 0) > 0:
            raise Unreadable("it repeats itself: make a cron entry of it")
        options: dict[str, Any] = {}
        timeout = fields.get(b"timeout", b"").decode()
        if timeout.isdigit() and int(timeout) > 0:
            options["timeout_ms"] = int(timeout) * 1000
        if state == "scheduled":
            options["scheduled_at"] = time_of(place.score * 1000)
        if b"retries_left" in fields:
            options["retry"] = {"max_attempts": int(fields[b"retries_left"]) + 1}
            intervals = from_json(fields.get(b"retry_intervals") or b"[]", "its retry intervals")
            if intervals and intervals[0] > 0:
                options["retry"] |= {"initial_interval": seconds_text(intervals[0])}
                options["retry"] |= {"backoff_strategy": "constant"} if len(set(intervals)) == 1 else {}
        if meta := fields.get(b"meta"):
            options["meta"] = plain(_loads(meta))
        created = milliseconds_of(fields.get(b"created_at", b"").decode())
        return Found(id, state, place, name, plain(args), plain(kwargs), options, created, self._error(id, fields))

    def _error(self, id: str, fields: dict[bytes, bytes]) -> str | None:
        """The last line of the traceback: in the newest result, or in the job itself with older versions."""
        for _, result in self._redis.xrevrange(f"{self._prefix}:results:{id}", count=1):
            if text := result.get(b"exc_string"):
                return _last_line(text)
        text = fields.get(b"exc_info")
        return _last_line(text) if text else None


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompress(data)
    except zlib.error:
        return data


def _loads(data: bytes) -> Any:
    # Every pickle since protocol 2 begins so, and no JSON does
    return unpickled(data) if data[:1] == b"\x80" else from_json(data, "it")


def _call(data: bytes) -> tuple[str, Any, Any, Any]:
    call = _loads(_inflated(data))
    if not isinstance(call, (list, tuple)) or len(call) != 4:
        raise Unreadable("it is no call")
    name, instance, args, kwargs = call
    return str(name), instance, args, kwargs


def _last_line(text: bytes) -> str | None:
    try:
        data = zlib.decompress(base64.b64decode(text))
    except (ValueError, zlib.error):
        data = _inflated(text)
    lines = data.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else None
