"""A request as data: the clients differ only in how they send one."""

from __future__ import annotations

import datetime
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar

from ._errors import GalleyError, Unavailable

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8080"
#: Longest single wait that is asked of the gateway; it allows a minute by default (``gateway.max_wait_ms``).
MAX_WAIT_S = 20.0
#: Time for an answer on top of what is waited for.
ANSWER_S = 10.0
#: A stream says at least that often that it lives, unless ``gateway.event_keep_alive_ms`` was raised.
STREAM_SILENCE_S = 60.0
#: Pauses between attempts to reach the gateway: full jitter up to twice as long each time.
FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 5.0

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request and how its answer is read."""

    method: str
    path: str
    parse: Callable[[Any], T]
    #: ``bytes`` are sent as they are, everything else as JSON.
    body: Any = None
    headers: Headers = ()
    #: For how many seconds the gateway may wait before it answers.
    wait: float = 0.0
    #: Whether this answer to a GET of the path shows that the request was done. Asked when a repeated one is refused
    #: with 409: the first may have come through although its answer was lost.
    is_done: Callable[[Any], bool] | None = None
    #: Whether what is stored, but on too few replicas yet (``durability.replicas``), is ``Unavailable``.
    must_be_confirmed: bool = False


def encode(body: Any) -> bytes | None:
    if body is None or isinstance(body, bytes):
        return body
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


def read_answer(status: int, answer: bytes, retry_after: str | None = None) -> Any:
    """The JSON of an answer, or its error."""
    try:
        content = json.loads(answer) if answer else {}
    except ValueError:
        content = {}
    if status < 400:
        return content
    content = content if isinstance(content, dict) else {}
    # The Open Job Spec's shape, else RFC 9457's
    error = content.get("error")
    if not isinstance(error, dict):
        error = {**content, "message": content.get("detail") or f"answered with {status}"}
    code, message = str(error.get("code", "unknown")), str(error.get("message"))
    if status >= 500 or status in (408, 429):
        raise Unavailable(message, status, code, _seconds(retry_after))
    raise GalleyError(status, code, message, bool(error.get("retryable")))


def _seconds(retry_after: str | None) -> float | None:
    """``Retry-After`` in seconds or as a date."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=datetime.timezone.utc)
    return max(0.0, (at - datetime.datetime.now(datetime.timezone.utc)).total_seconds())


def pauses(max_s: float = MAX_PAUSE_S) -> Callable[[], float]:
    """Pauses between attempts, with jitter."""
    longest = FIRST_PAUSE_S

    def pause() -> float:
        nonlocal longest
        longest = min(longest * 2, max_s, MAX_PAUSE_S)
        return random.uniform(0, longest)

    return pause


class Patience:
    """For how long a request is repeated, and what lies between its attempts."""

    def __init__(self, seconds: float) -> None:
        self._deadline, self._pause = time.monotonic() + seconds, pauses()

    def pause_after(self, error: Unavailable) -> float:
        """How many seconds to pause; raises the error when patience is over. ``Retry-After`` is honoured."""
        seconds = self._pause() + (error.retry_after or 0.0)
        if time.monotonic() + seconds > self._deadline:
            raise error
        return seconds


def url_and_key(url: str | None, key: str | None) -> tuple[str, str | None]:
    """What was given, else ``GALLEY_URL`` and ``GALLEY_KEY``."""
    return url or os.environ.get("GALLEY_URL") or DEFAULT_URL, key or os.environ.get("GALLEY_KEY")
