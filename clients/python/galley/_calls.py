"""Every request that the clients send. Those that make something carry an ``Idempotency-Key``, so all may be
repeated."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote, urlencode

from . import _trace
from ._call import Call, Headers
from ._errors import GalleyError
from ._options import ENQUEUE_OPTIONS, wire_options
from ._sse import message_of
from ._types import (
    Cron,
    Job,
    LogLine,
    Member,
    Message,
    MessageFilter,
    NewJob,
    NewWorkflow,
    Queue,
    Rate,
    Signal,
    Workflow,
)
from ._wait import approval_signal

#: What attributes of CloudEvents may have in headers as it is.
_IN_HEADERS = " !#$&'()*+,-./:;<=>?@[]^_`{|}~"
ENDED = ("completed", "cancelled", "discarded")


def _of(*names: str) -> Any:
    def parse(answer: Any) -> Any:
        for name in names:
            answer = answer[name]
        return answer

    return parse


def _nothing(_: Any) -> None:
    return None


def _path(*parts: str, **query: Any) -> str:
    path = "/" + "/".join(quote(part, safe="") for part in parts)
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given, doseq=True)}" if given else path


def _jobs(*parts: str, **query: Any) -> str:
    return _path("ojs", "v1", *parts, **query)


def once(key: str | None, trace: Mapping[str, str | None] | None = None) -> Headers:
    return (("Idempotency-Key", key or str(uuid.uuid4())), *_trace.outgoing(trace))


def enqueue(type: str, args: Sequence[Any], options: Mapping[str, Any]) -> Call[Job]:
    members = wire_options("enqueue()", options, ENQUEUE_OPTIONS)
    key = members.pop("idempotency_key", None)
    trace = {name: members.pop(name, None) for name in ("traceparent", "tracestate", "baggage")}
    body = {"queue": "default", **members, "type": type, "args": list(args)}
    return Call("POST", "/ojs/v1/jobs", _of("job"), body, once(key, trace))


def enqueue_many(jobs: Sequence[NewJob], key: str | None) -> Call[list[Job]]:
    return Call("POST", "/ojs/v1/jobs/batch", _of("jobs"), {"jobs": list(jobs)}, once(key))


def get(id: str, wait: float = 0.0) -> Call[Job]:
    wait_ms = int(wait * 1000) if wait > 0 else None
    return Call("GET", _jobs("jobs", id, wait_ms=wait_ms), _of("job"), wait=wait)


def cancel(id: str) -> Call[Job]:
    return Call("DELETE", _jobs("jobs", id), _of("job"), is_done=lambda job: job["state"] == "cancelled")


def retry(id: str) -> Call[Job]:
    def is_done(job: Job) -> bool:
        return job["state"] in ("available", "active", "completed")

    return Call("POST", _jobs("jobs", id, "retry"), _of("job"), {}, is_done=is_done)


def activate(id: str) -> Call[Job]:
    def is_done(job: Job) -> bool:
        return job["state"] != "pending"

    return Call("POST", _jobs("jobs", id, "activate"), _of("job"), {}, is_done=is_done)


def logs(id: str, after: str | None) -> Call[tuple[list[LogLine], str | None]]:
    path = _jobs("jobs", id, "logs", after=after, limit=1000)
    return Call("GET", path, lambda page: (page["items"], page["next"]))


def signal(id: str, name: str, data: Any, signal_id: str | None) -> Call[Signal]:
    body = {"name": name, "data": data, "id": signal_id or str(uuid.uuid4())}
    return Call("POST", _jobs("jobs", id, "signals"), _of("signal"), body)


def signals(id: str) -> Call[list[Signal]]:
    return Call("GET", _jobs("jobs", id, "signals"), _of("items"))


def approval(id: str, subject: str, approved: bool, by: str | None, comment: str | None) -> Call[Signal]:
    data = {"approved": approved, "by": by, "comment": comment}
    given = {name: value for name, value in data.items() if value is not None}
    return signal(id, approval_signal(subject), given, None)


def job_output(id: str) -> str:
    return _jobs("jobs", id, "output")


def job_events(id: str) -> str:
    return _jobs("jobs", id, "events")


def start_workflow(workflow: NewWorkflow, key: str | None) -> Call[Workflow]:
    return Call("POST", "/ojs/v1/workflows", _of("workflow"), dict(workflow), once(key))


def get_workflow(id: str) -> Call[Workflow]:
    return Call("GET", _jobs("workflows", id), _of("workflow"))


def cancel_workflow(id: str) -> Call[Workflow]:
    def is_done(workflow: Workflow) -> bool:
        return workflow["state"] == "cancelled"

    return Call("DELETE", _jobs("workflows", id), _of("workflow"), is_done=is_done)


def set_cron(name: str, expression: str, job: NewJob, **members: Any) -> Call[Cron]:
    body = {key: value for key, value in members.items() if value is not None}
    body |= {"name": name, "expression": expression, "job_template": job}
    return Call("POST", "/ojs/v1/cron", _of("cron"), body, once(None))


def get_cron(name: str) -> Call[Cron]:
    return Call("GET", _jobs("cron", name), _of("cron"))


def crons(after: str | None) -> Call[tuple[list[Cron], str | None]]:
    return Call("GET", _jobs("cron", after=after, limit=1000), lambda page: (page["crons"], page.get("next")))


def enable_cron(name: str, is_enabled: bool) -> Call[Cron]:
    return Call("POST", _jobs("cron", name, "enable" if is_enabled else "disable"), _of("cron"), {})


def trigger_cron(name: str) -> Call[Job]:
    return Call("POST", _jobs("cron", name, "trigger"), _of("job"), {}, once(None))


def delete_cron(name: str) -> Call[None]:
    return Call("DELETE", _jobs("cron", name), _nothing)


def get_queue(name: str) -> Call[Queue]:
    return Call("GET", _jobs("queues", name), _of("queue"))


def steer_queue(name: str, verb: Literal["pause", "resume", "drain"]) -> Call[None]:
    return Call("POST", _jobs("queues", name, verb, create="true"), _nothing, {})


def limit_queue(name: str, concurrency: int | None, rate: Rate | None, priority_aging: str | None) -> Call[Queue]:
    limits = {"concurrency": concurrency, "rate": rate, "priority_aging": priority_aging}
    body = {key: value for key, value in limits.items() if value is not None}
    return Call("PUT", _jobs("queues", name, "limits", create="true"), _of("queue"), body)


def publish(
    channel: str,
    data: Any,
    content_type: str | None,
    attributes: Mapping[str, str] | None,
    key: str | None,
    trace: Mapping[str, str | None] | None = None,
) -> Call[str]:
    """The id of the message. Of a CloudEvent the attributes become headers."""
    if isinstance(data, bytes):
        body, kind = data, "application/octet-stream"
    elif isinstance(data, str) and content_type != "application/json":
        body, kind = data.encode(), "text/plain; charset=utf-8"
    else:
        body, kind = _json(data), "application/json"
    events = ((f"ce-{name}", quote(value, safe=_IN_HEADERS)) for name, value in (attributes or {}).items())
    headers = (("Content-Type", content_type or kind), *events, *once(key, trace))
    return Call("POST", _path("v1", "channels", channel, "messages"), _of("id"), body, headers)


def _json(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def publish_many(channel: str, messages: Sequence[Any], key: str | None) -> Call[list[str]]:
    """The ids of the messages; refused if one of them is."""

    def parse(answer: Any) -> list[str]:
        for result in answer["results"]:
            if error := result.get("error"):
                raise GalleyError(result["status"], error["code"], error["message"], bool(error.get("retryable")))
        return [result["id"] for result in answer["results"]]

    items = [{"data": message} for message in messages]
    return Call("POST", _path("v1", "channels", channel, "messages", "batch"), parse, items, once(key))


def history(channel: str, after: str | None, since: str | None, limit: int) -> Call[list[Message]]:
    path = _path("v1", "channels", channel, "messages", after=after, since=since, limit=limit, create="true")
    return Call("GET", path, lambda page: [message_of(item) for item in page["items"]])


def members(channel: str, after: str | None) -> Call[tuple[list[Member], str | None]]:
    def parse(answer: Any) -> tuple[list[Member], str | None]:
        return answer["items"], answer["next"]

    return Call("GET", _path("v1", "channels", channel, "members", limit=1000, after=after), parse)


def presence(join: bool, member: str | None, info: Any, watches: bool) -> dict[str, str | None]:
    """What a stream asks for of who is present."""
    return {
        "presence": "true" if watches else None,
        "join": "true" if join or member is not None else None,
        "member": member,
        "info": None if info is None else json.dumps(info, separators=(",", ":")),
    }


def channel_stream(
    channels: Sequence[str],
    since: str | None,
    filter: MessageFilter | None,
    delta: bool,
    presence: Mapping[str, str | None],
) -> str:
    if not channels:
        raise ValueError("a subscription needs a channel")
    wanted = {
        "since": since,
        "filter": None if filter is None else json.dumps(filter, separators=(",", ":")),
        "delta": "fossil" if delta else None,
        **presence,
    }
    if len(channels) == 1 and "*" not in channels[0]:
        return _path("v1", "channels", channels[0], "stream", **wanted)
    return _path("v1", "stream", channel=list(channels), **wanted)
