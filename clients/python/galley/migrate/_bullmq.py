"""BullMQ: lists and sorted sets of ids, a hash with JSON for each job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from ._found import DAMAGED, Found, Left, Place, State, Unreadable, left, list_members, zset_members
from ._values import from_json, seconds_text, time_of

#: A delayed job's score is its time, and a counter in the lowest bits.
_SCORE_STEPS = 0x1000


class BullMq:
    """A queue of BullMQ."""

    def __init__(self, redis: Any, queue: str, prefix: str | None) -> None:
        self._redis, self._base = redis, f"{prefix or 'bull'}:{queue}"

    def read(self) -> Iterator[Found | Left]:
        for list_ in ("wait", "paused"):
            key = f"{self._base}:{list_}"
            for id in list_members(self._redis, key, "tail"):
                yield from self._job("waiting", Place("tail", key, id))
        sets: list[tuple[State, str]] = [("waiting", "prioritized"), ("scheduled", "delayed"), ("dead", "failed")]
        for state, set_ in sets:
            key = f"{self._base}:{set_}"
            for id, score in zset_members(self._redis, key):
                yield from self._job(state, Place("zset", key, id, score))
        for id, _ in zset_members(self._redis, f"{self._base}:waiting-children"):
            yield Left(id.decode(), "waits for its children: let BullMQ finish the flow")

    def notes(self) -> list[str]:
        running = self._redis.llen(f"{self._base}:active")
        return [f"{running} jobs run: let BullMQ's workers finish them"] if running else []

    def _job(self, state: State, place: Place) -> Iterator[Found | Left]:
        id = place.member.decode("utf-8", "replace")
        fields: dict[bytes, bytes] = self._redis.hgetall(f"{self._base}:{id}")
        # Markers of older versions, and jobs that were removed
        if b"name" not in fields:
            return
        try:
            yield _found(state, place, id, {name.decode(): value.decode() for name, value in fields.items()})
        except DAMAGED as error:
            yield left(id, error)


def _found(state: State, place: Place, id: str, fields: dict[str, str]) -> Found:
    opts = from_json(fields.get("opts") or "{}", "its options")
    if fields.get("rjk") or opts.get("repeat"):
        pattern = (opts.get("repeat") or {}).get("pattern") or (opts.get("repeat") or {}).get("every")
        raise Unreadable(f"it comes from a schedule ({pattern}): make a cron entry of it")
    if fields.get("parentKey"):
        raise Unreadable("it is a child of a flow: let BullMQ finish that")
    options: dict[str, Any] = {}
    if state == "scheduled":
        options["scheduled_at"] = time_of(place.score // _SCORE_STEPS)
    if priority := int(opts.get("priority") or 0):
        # 1 comes before 2, and jobs without a priority before both
        options["priority"] = -min(priority, 100)
    attempts = int(opts.get("attempts") or 0)
    if attempts > 1:
        made = int(fields.get("atm") or fields.get("attemptsMade") or 0)
        options["retry"] = {"max_attempts": attempts if state == "dead" else max(1, attempts - made), **_backoff(opts)}
    error = fields.get("failedReason")
    created = int(fields["timestamp"]) if fields.get("timestamp", "").isdigit() else None
    return Found(id, state, place, fields["name"], [from_json(fields["data"], "its data")], {}, options, created, error)


def _backoff(opts: dict[str, Any]) -> dict[str, Any]:
    backoff = opts.get("backoff")
    if isinstance(backoff, (int, float)):
        backoff = {"type": "fixed", "delay": backoff}
    if not isinstance(backoff, dict) or not backoff.get("delay"):
        return {}
    strategy: Literal["constant", "exponential"] = "exponential" if backoff.get("type") == "exponential" else "constant"
    return {"initial_interval": seconds_text(backoff["delay"] / 1000), "backoff_strategy": strategy}
