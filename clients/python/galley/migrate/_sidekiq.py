"""Sidekiq: lists and sorted sets of JSON, as its wiki describes them, with jobs of ActiveJob."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ._found import DAMAGED, Found, Left, Place, State, Unreadable, left, list_members, zset_members
from ._values import from_json, time_of

#: What Sidekiq retries a job that says ``retry: true``.
_RETRIES = 25


class Sidekiq:
    """A queue of Sidekiq, with what is of it in the sorted sets of all queues."""

    def __init__(self, redis: Any, queue: str, prefix: str | None) -> None:
        self._redis, self._queue = redis, queue
        # The gem redis-namespace puts one before every key
        self._prefix = f"{prefix}:" if prefix else ""

    def read(self) -> Iterator[Found | Left]:
        key = f"{self._prefix}queue:{self._queue}"
        for text in list_members(self._redis, key, "tail"):
            yield from self._job("waiting", Place("tail", key, text))
        sets: list[tuple[State, str]] = [("scheduled", "schedule"), ("scheduled", "retry"), ("dead", "dead")]
        for state, set_ in sets:
            key = f"{self._prefix}{set_}"
            for text, score in zset_members(self._redis, key):
                yield from self._job(state, Place("zset", key, text, score))

    def notes(self) -> list[str]:
        return ["jobs that run are not seen: stop Sidekiq's processes first, they put back what they did not finish"]

    def _job(self, state: State, place: Place) -> Iterator[Found | Left]:
        id = "?"
        try:
            payload = from_json(place.member, "it")
            if payload.get("queue", "default") != self._queue:
                return
            id = str(payload.get("jid", "?"))
            yield _found(state, place, id, payload)
        except DAMAGED as error:
            yield left(id, error)


def _found(state: State, place: Place, id: str, payload: dict[str, Any]) -> Found:
    if payload.get("bid"):
        raise Unreadable("it belongs to a batch: let Sidekiq finish that")
    if payload.get("encrypt"):
        raise Unreadable("its last argument is encrypted")
    name, args = str(payload["class"]), payload.get("args") or []
    if wrapped := payload.get("wrapped"):
        # ActiveJob: the arguments are inside its own
        name, args = str(wrapped), _without_marks(args[0].get("arguments") or [])
    options: dict[str, Any] = {}
    if state == "scheduled":
        options["scheduled_at"] = time_of(place.score * 1000)
    retry = payload.get("retry", True)
    if retry is False or retry == 0:
        options["retry"] = {"max_attempts": 1}
    elif isinstance(payload.get("retry_count"), int) and state != "dead":
        left = (_RETRIES if retry is True else int(retry)) - payload["retry_count"]
        options["retry"] = {"max_attempts": max(1, left)}
    elif retry is not True:
        options["retry"] = {"max_attempts": int(retry) + 1}
    if tags := payload.get("tags"):
        options["tags"] = [str(tag) for tag in tags]
    error = payload.get("error_message")
    text = f"{payload.get('error_class')}: {error}" if error else None
    return Found(id, state, place, name, args, {}, options, _milliseconds(payload.get("created_at")), text)


def _milliseconds(time: Any) -> int | None:
    """Seconds with a fraction, and since version 8 milliseconds."""
    if not isinstance(time, (int, float)):
        return None
    return int(time if time > 100_000_000_000 else time * 1000)


def _without_marks(value: Any) -> Any:
    """Without the members by which ActiveJob knows symbols."""
    if isinstance(value, list):
        return [_without_marks(item) for item in value]
    if isinstance(value, dict):
        marks = ("_aj_symbol_keys", "_aj_ruby2_keywords", "_aj_hash_with_indifferent_access")
        return {name: _without_marks(item) for name, item in value.items() if name not in marks}
    return value
