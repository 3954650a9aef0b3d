"""Options of jobs: checked by name, and spelled as the gateway reads them."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ._errors import check_names
from ._types import EnqueueOptions, JobOptions, NewJob, Rate, RateLimit, RetryPolicy, Throttle, Unique, When

if TYPE_CHECKING:
    from typing_extensions import Unpack

_TIMES = ("scheduled_at", "delay_until", "expires_at")
_NESTED = {"retry": RetryPolicy, "unique": Unique, "rate_limit": RateLimit}


@functools.cache
def _members(of: type) -> tuple[str, ...]:
    """The names of a TypedDict, those of its bases included."""
    keys: frozenset[str] = of.__required_keys__ | of.__optional_keys__  # type: ignore[attr-defined]
    return tuple(sorted(keys))


JOB_OPTIONS = _members(JobOptions)
ENQUEUE_OPTIONS = _members(EnqueueOptions)


def when(time: When) -> str:
    """A time as the gateway reads it."""
    if isinstance(time, str):
        return time
    if isinstance(time, datetime.datetime):
        if time.tzinfo is None:
            raise ValueError("a time needs a time zone, such as datetime.timezone.utc")
        return time.isoformat()
    seconds = time.total_seconds() if isinstance(time, datetime.timedelta) else float(time)
    # Milliseconds are what the gateway counts in
    return f"+PT{max(0.0, seconds):.3f}S"


def wire_options(what: str, options: Mapping[str, Any], known: Iterable[str] = JOB_OPTIONS) -> dict[str, Any]:
    """The options as members of a job. An unknown name is an error that says which one was perhaps meant."""
    check_names(what, options, known)
    wired = dict(options)
    for name in _TIMES:
        if wired.get(name) is not None:
            wired[name] = when(wired[name])
    for name, of in _NESTED.items():
        if isinstance(wired.get(name), Mapping):
            check_names(name, wired[name], _members(of))
    limit = wired.get("rate_limit")
    if isinstance(limit, Mapping):
        for name, of in (("rate", Rate), ("throttle", Throttle)):
            if isinstance(limit.get(name), Mapping):
                check_names(f"rate_limit.{name}", limit[name], _members(of))
    return wired


def new_job(type: str, args: list[Any], options: Mapping[str, Any]) -> NewJob:
    """A job that is not enqueued yet."""
    members = wire_options("job()", options)
    made: NewJob = {"type": type, "args": args}
    if "id" in members:
        made["id"] = members.pop("id")
    if "meta" in members:
        made["meta"] = members.pop("meta")
    if members:
        made["options"] = members
    return made


def job(type: str, *args: Any, **options: Unpack[JobOptions]) -> NewJob:
    """A job for ``enqueue_many``, workflows and cron."""
    return new_job(type, list(args), options)
