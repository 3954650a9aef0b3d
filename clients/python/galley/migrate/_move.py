"""Moves what a source finds: taken out of the other system first, then made in Galley under an id that follows from
it.

Each entry is in one place at any time: where it was, among the ``taken`` ones, or among the ``made`` ones. So a run
that is killed anywhere is continued by the next one, and no worker of the other system gets what became a Galley job.
"""

from __future__ import annotations

import base64
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .._call import Call
from .._client import Client
from .._errors import GalleyError, nearest
from ._found import DAMAGED, STATES, Found, Left, Place, Source, State, Unreadable, left
from ._values import TYPE, type_of

#: Jobs of a request.
BATCH = 100
#: For how long the other system keeps what was moved, to look it up.
KEEP_S = 30 * 86_400

#: KEYS: the place, taken, made. ARGV: its kind, the member, the job's id, the entry. Gives 1 if it is ours now. May run
#: twice: the second time the member is gone.
_TAKE = """
local place, taken, made = KEYS[1], KEYS[2], KEYS[3]
local kind, member, id, entry = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local removed
if kind == 'head' then removed = redis.call('LREM', place, 1, member)
elseif kind == 'tail' then removed = redis.call('LREM', place, -1, member)
elseif kind == 'zset' then removed = redis.call('ZREM', place, member)
elseif kind == 'hash' then removed = redis.call('HDEL', place, member)
else removed = 1 - redis.call('HEXISTS', made, id) end
if removed == 1 then redis.call('HSET', taken, id, entry) end
return removed
"""


@dataclass(frozen=True)
class Choice:
    """How jobs of the other system become Galley jobs."""

    system: str
    from_queue: str
    #: None: that of the task in the app.
    to_queue: str | None
    states: frozenset[State] = frozenset(STATES)
    #: Job types by names of the other system.
    types: dict[str, str] = field(default_factory=dict)
    #: By job type: gives a job with the arguments of the task.
    tasks: dict[str, Callable[..., Any]] | None = None
    #: Whether dead jobs run again at once.
    run_dead: bool = False


@dataclass
class Report:
    """What was done, or would be."""

    made: dict[State, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    #: Made by a run before this one, which did not come to note it.
    were_there: int = 0
    left: list[Left] = field(default_factory=list)


def new_job(found: Found, choice: Choice) -> dict[str, Any]:
    """The job that is made of one."""
    type = choice.types.get(found.type) or type_of(found.type)
    if not TYPE.fullmatch(type):
        raise Unreadable(f"{type!r} is no job type")
    args, options, meta = found.args, {}, {}
    if choice.tasks is not None:
        if type not in choice.tasks:
            raise Unreadable(f"the app has no task {type}{nearest(type, choice.tasks)}")
        try:
            made = choice.tasks[type](*found.args, **found.kwargs)
        except TypeError as error:
            raise Unreadable(str(error)) from None
        args, options = list(made["args"]), dict(made.get("options", {}))
        meta = dict(made.get("meta", {}))
    elif found.kwargs:
        names = ", ".join(found.kwargs)
        raise Unreadable(f"it has arguments by name ({names}): say --app, so that they find their places")
    options |= {name: value for name, value in found.options.items() if name not in ("meta", "tags")}
    if choice.to_queue is not None:
        options["queue"] = choice.to_queue
    meta |= found.options.get("meta", {})
    meta["migrated_from"] = f"{choice.system}:{choice.from_queue}:{found.id}"
    if found.error:
        meta["migrated_error"] = found.error[:1000]
    tags = [*options.get("tags", []), *found.options.get("tags", []), "migrated"]
    if found.state == "dead":
        tags.append("migrated-dead")
        if not choice.run_dead:
            options["pending"] = True
    job = {"id": _id_of(found, choice, args), "type": type, "args": args, "meta": meta}
    return {**job, "options": {**options, "tags": tags}}


def _id_of(found: Found, choice: Choice, args: list[Any]) -> str:
    """A UUIDv7 that follows from the job: its time and a hash. Short ids of other systems repeat, so all of it
    counts."""
    what = [choice.system, choice.from_queue, found.id, found.type, args, found.created_ms, found.options]
    digest = bytearray(hashlib.sha256(json.dumps(what, sort_keys=True).encode()).digest()[:16])
    digest[:6] = (found.created_ms or 1_577_836_800_000).to_bytes(6, "big")
    digest[6] = 0x70 | digest[6] & 0x0F
    digest[8] = 0x80 | digest[8] & 0x3F
    return str(uuid.UUID(bytes=bytes(digest)))


def plan(source: Source, choice: Choice) -> Iterator[tuple[Found, dict[str, Any]] | Left]:
    """What would be made of each, without a change."""
    for found in source.read():
        if isinstance(found, Left):
            yield found
        elif found.state in choice.states:
            try:
                yield found, new_job(found, choice)
            except DAMAGED as error:
                yield left(found.id, error)


class Mover:
    """Moves the jobs of a queue."""

    def __init__(self, redis: Any, client: Client, source: Source, choice: Choice) -> None:
        self._redis, self._client, self._source, self._choice = redis, client, source, choice
        base = f"galley-migrate:{choice.system}:{choice.from_queue}"
        self.taken, self.made = f"{base}:taken", f"{base}:made"
        self._take = redis.register_script(_TAKE)
        self.report = Report()

    def run(self) -> Report:
        """Moves all that is there. Raises ``Unavailable`` when the gateway is away: the next run goes on."""
        self._finish(dict(self._redis.hgetall(self.taken)))
        batch: dict[bytes, bytes] = {}
        for planned in plan(self._source, self._choice):
            if isinstance(planned, Left):
                self.report.left.append(planned)
                continue
            found, job = planned
            id, entry = job["id"].encode(), _entry(found, job)
            keys = [found.place.key, self.taken, self.made]
            if self._take(keys=keys, args=[found.place.kind, found.place.member, id, entry]):
                batch[id] = entry
            if len(batch) == BATCH:
                self._finish(batch)
                batch = {}
        self._finish(batch)
        return self.report

    def _finish(self, entries: dict[bytes, bytes]) -> None:
        """Makes the jobs of what was taken, and notes it."""
        ids = list(entries)
        for start in range(0, len(ids), BATCH):
            part = {id: json.loads(entries[id]) for id in ids[start : start + BATCH]}
            outcomes = self._make([entry["job"] for entry in part.values()])
            for (id, entry), outcome in zip(part.items(), outcomes, strict=True):
                self._note(id, entries[id], entry, outcome.get("error"))

    def _make(self, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The outcome of each job. When a request is refused as a whole, its jobs are sent one by one: they may be too
        large together, or one of them may be malformed."""
        try:
            return self._client._run(_enqueue_each(jobs))
        except GalleyError as error:
            if error.status not in (400, 413):
                raise
            if len(jobs) == 1:
                return [{"error": {"code": error.code, "message": str(error)}}]
        return [outcome for job in jobs for outcome in self._make([job])]

    def _note(self, id: bytes, text: bytes, entry: dict[str, Any], error: dict[str, Any] | None) -> None:
        state: State = entry["state"]
        with self._redis.pipeline(transaction=True) as steps:
            # The refusal names the job that is in the way: this one, or another with the same uniqueness
            is_there = error is not None and error["code"] == "duplicate" and id.decode() in error["message"]
            if error is None or is_there:
                steps.hset(self.made, id, text)
                steps.expire(self.made, KEEP_S)
                self.report.made[state] += error is None
                self.report.were_there += error is not None
            else:
                _restore(steps, entry["place"])
                self.report.left.append(Left(entry["from"], f"{error['code']}: {error['message']}"))
            steps.hdel(self.taken, id)
            steps.execute()


def _entry(found: Found, job: dict[str, Any]) -> bytes:
    """What is needed to go on with an entry that was taken, or to put it back."""
    place = found.place
    where = {"kind": place.kind, "key": place.key, "score": place.score}
    where |= {
        name: base64.b64encode(data).decode() for name, data in (("member", place.member), ("value", place.value))
    }
    return json.dumps({"from": found.id, "state": found.state, "place": where, "job": job}).encode()


def _restore(steps: Any, where: dict[str, Any]) -> None:
    place = Place(**{**where, "member": base64.b64decode(where["member"]), "value": base64.b64decode(where["value"])})
    if place.kind == "head":
        steps.lpush(place.key, place.member)
    elif place.kind == "tail":
        steps.rpush(place.key, place.member)
    elif place.kind == "zset":
        steps.zadd(place.key, {place.member: place.score})
    elif place.kind == "hash":
        steps.hset(place.key, place.member, place.value)


def _enqueue_each(jobs: list[dict[str, Any]]) -> Call[list[dict[str, Any]]]:
    body = {"mode": "per_item", "jobs": jobs}

    def parse(answer: Any) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = answer["results"]
        return results

    return Call("POST", "/ojs/v1/jobs/batch", parse, body)
