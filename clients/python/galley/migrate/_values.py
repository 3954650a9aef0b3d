"""Arguments, times and names of other systems as Galley has them."""

from __future__ import annotations

import datetime
import decimal
import io
import json
import math
import pickle
import re
import uuid
from typing import Any

from ._found import Unreadable

TYPE = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z][a-z0-9_-]*)*")
QUEUE = re.compile(r"[a-z0-9][a-z0-9.-]*")

#: All that a pickle may name: reading one must not run code of others.
_PLAIN = {
    ("builtins", name): getattr(__import__("builtins"), name) for name in ("set", "frozenset", "bytearray", "complex")
} | {
    ("datetime", "datetime"): datetime.datetime,
    ("datetime", "date"): datetime.date,
    ("datetime", "time"): datetime.time,
    ("datetime", "timedelta"): datetime.timedelta,
    ("datetime", "timezone"): datetime.timezone,
    ("decimal", "Decimal"): decimal.Decimal,
    ("uuid", "UUID"): uuid.UUID,
    ("uuid", "SafeUUID"): uuid.SafeUUID,
    ("collections", "OrderedDict"): dict,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN:
            raise Unreadable(f"its pickle has a {module}.{name}, and only plain values can become JSON")
        return _PLAIN[module, name]


def unpickled(data: bytes) -> Any:
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"its pickle cannot be read: {error}") from None


def from_json(data: bytes | str, what: str) -> Any:
    try:
        return json.loads(data, parse_constant=_refuse_number)
    except ValueError:
        raise Unreadable(f"{what} is no JSON") from None


def _refuse_number(name: str) -> Any:
    raise Unreadable(f"an argument is {name}, which is no JSON")


def plain(value: Any) -> Any:
    """A value as JSON has it: times, decimals and UUIDs become text, tuples and sets become lists."""
    if isinstance(value, float) and not math.isfinite(value):
        _refuse_number(str(value))
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [plain(item) for item in sorted(value, key=repr)]
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, (decimal.Decimal, uuid.UUID)):
        return str(value)
    raise Unreadable(f"an argument is a {type(value).__name__}, which is no JSON")


def time_of(milliseconds: float) -> str:
    """Milliseconds since 1970 as RFC 3339."""
    at = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.timezone.utc)
    return at.isoformat(timespec="milliseconds")


def milliseconds_of(text: str | None) -> int | None:
    """RFC 3339 as milliseconds since 1970. Without a time zone it is UTC."""
    if not text:
        return None
    try:
        at = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=datetime.timezone.utc)
    return int(at.timestamp() * 1000)


def seconds_text(seconds: float) -> str:
    """A duration as options have it."""
    return f"PT{max(0.001, seconds):.3f}S"


def type_of(name: str) -> str:
    """The job type for the name of a function or class: ``Shop::MailJob`` is ``shop.mail_job``."""
    if TYPE.fullmatch(name):
        return name
    text = name.replace("::", ".").replace("/", ".").replace(":", ".").replace(" ", "-")
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", text).lower()
    if not TYPE.fullmatch(text):
        raise Unreadable(f"{name!r} is no job type: say --type {name}=...")
    return text


def queue_of(name: str) -> str:
    """The queue for the name of one: ``low_priority`` is ``low-priority``."""
    text = re.sub(r"[_:/ ]", "-", name.lower())
    if not QUEUE.fullmatch(text):
        raise ValueError(f"{name!r} is no name of a queue in Galley: say --to")
    return text
