"""A row as a request, and what an answer means for it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from .. import _calls
from .._async_client import AsyncClient
from .._call import Call, encode
from .._errors import GalleyError, Unavailable

COLUMNS = (
    "id, key::text, type, args::text, options::text, channel, data::text, content_type, attributes::text, trace::text"
)
#: Characters of an error that are kept.
MAX_ERROR = 1000
#: The gateway cannot take this row now, and others perhaps: queues that are full or closed, limits of the key.
_OF_THIS_ROW = ("queue_closed", "memory_budget_used", "unconfirmed")
_STATUS_OF_THIS_ROW = (408, 429, 500)
#: The gateway takes nothing from this relay before somebody mends its key, or its address.
_OF_THE_RELAY = ("key_required", "invalid_key", "invalid_token", "scope_required", "host_not_allowed")
#: What a proxy, or the gateway's server, says of a request that it will never pass on: it is too large or no request.
_NEVER = (400, 413, 414, 431)


@dataclass(frozen=True)
class Done:
    """Galley has it."""


@dataclass(frozen=True)
class Refused:
    """Galley will never take it as it is."""

    error: str


@dataclass(frozen=True)
class Postponed:
    """Galley does not take it now."""

    error: str
    retry_after: float


@dataclass(frozen=True)
class Away:
    """The gateway does its work for nobody now, or not for this relay."""

    error: str


Outcome = Done | Refused | Postponed | Away


@dataclass(frozen=True)
class Row:
    id: int
    key: str
    type: str | None
    args: str
    options: str
    channel: str | None
    data: str | None
    content_type: str | None
    attributes: str | None
    trace: str | None

    def call(self) -> Call[Any]:
        """Its request. Raises what ``UNFIT`` names if it can be none."""
        trace = {name: value for name, value in json.loads(self.trace or "{}").items() if _fits_a_header(value)}
        if self.type is not None:
            body = {"queue": "default", **json.loads(self.options), "type": self.type, "args": json.loads(self.args)}
            headers = _calls.once(self.key, trace)
            call = Call("POST", "/ojs/v1/jobs", lambda answer: answer["job"]["id"], encode(body), headers)
            return replace(call, must_be_confirmed=True)
        if self.content_type is not None and not _fits_a_header(self.content_type):
            raise ValueError("content_type must be one line of ASCII characters")
        attributes = json.loads(self.attributes or "{}")
        for name in attributes:
            if not re.fullmatch(r"[a-z0-9]+", name):
                raise ValueError(f"the attribute {name!r} must be of small letters and digits")
        data = json.loads(self.data or "null")
        call = _calls.publish(str(self.channel), data, self.content_type, attributes, self.key, trace)
        return replace(call, must_be_confirmed=True)

    def job_id(self) -> str | None:
        """The id that the row gives its job."""
        id = json.loads(self.options).get("id") if self.type is not None else None
        return id if isinstance(id, str) else None


#: What a row that is no request raises.
UNFIT = (TypeError, ValueError, AttributeError, RecursionError)


def _fits_a_header(value: object) -> bool:
    return isinstance(value, str) and value != "" and value.isascii() and value.isprintable()


async def send(client: AsyncClient, row: Row) -> Outcome:
    """Sends a row once."""
    try:
        call = row.call()
    except UNFIT as error:
        # Its repr may hold all that could not be written
        return Refused(f"the row is no request: {type(error).__name__}: {error}")
    try:
        await client._run(call)
    except (KeyError, TypeError):
        # Only a gateway knows the id of what it made: nothing else may make the row go
        return Away("what answers is no gateway of Galley")
    except Unavailable as error:
        is_its_own = error.status in _STATUS_OF_THIS_ROW or error.code in _OF_THIS_ROW
        if is_its_own or (error.code == "unavailable" and await _is_gateway(client)):
            return Postponed(str(error), error.retry_after or 0.0)
        return Away(str(error))
    except GalleyError as error:
        return await _meaning(client, row, error)
    return Done()


async def _meaning(client: AsyncClient, row: Row, error: GalleyError) -> Outcome:
    """What an error that is no ``Unavailable`` means for a row."""
    if error.code in _OF_THE_RELAY:
        return Away(str(error))
    # A proxy, or a server of another kind, has no code. An address that is wrong is wrong for all rows
    if error.code in ("unknown", "not_found"):
        if not await _is_gateway(client):
            return Away(str(error))
        if error.code == "unknown" and error.status in _NEVER:
            return Refused(str(error))
        return Postponed(str(error), 0.0)
    if error.code == "duplicate":
        try:
            return Done() if await _is_there(client, row) else Refused(str(error))
        except GalleyError as asked:
            return Away(str(asked))
    return Refused(str(error))


async def _is_gateway(client: AsyncClient) -> bool:
    """Whether a gateway answers at the address: then what a request got is its own fault."""
    try:
        return await client._run(Call("GET", "/ojs/manifest", lambda answer: "capabilities" in answer))
    except Unavailable:
        return False
    except GalleyError as error:
        return error.code not in ("unknown", "not_found")
    except TypeError:
        return False


async def _is_there(client: AsyncClient, row: Row) -> bool:
    """Whether the job is one that this row made, before its key was forgotten. Raises if the gateway does not say."""
    if (id := row.job_id()) is None:
        return False
    try:
        return (await client.get(id))["type"] == row.type
    except Unavailable:
        raise
    except GalleyError as error:
        if error.status in (401, 403) or error.code == "unknown":
            raise
        return False
