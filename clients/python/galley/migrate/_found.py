"""What a source finds in the Redis of another system."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

State = Literal["waiting", "scheduled", "dead"]
STATES: tuple[State, ...] = ("waiting", "scheduled", "dead")

#: How many entries are read at a time.
PAGE = 1000


@dataclass(frozen=True)
class Place:
    """Where an entry is: in a list whose next one is at its ``head`` or ``tail``, a sorted set or a hash. Those of
    ``copy`` stay."""

    kind: Literal["head", "tail", "zset", "hash", "copy"]
    key: str
    member: bytes
    score: float = 0.0
    #: Of a field of a hash.
    value: bytes = b""


@dataclass(frozen=True)
class Found:
    """A job of another system, as a Galley job has it."""

    id: str
    state: State
    place: Place
    type: str
    args: list[Any]
    kwargs: dict[str, Any] = field(default_factory=dict)
    #: Options of the job: ``scheduled_at``, ``expires_at``, ``timeout_ms``, ``priority``, ``retry``, ``meta``.
    options: dict[str, Any] = field(default_factory=dict)
    #: Milliseconds since 1970, if the other system says it.
    created_ms: int | None = None
    #: The last failure.
    error: str | None = None


@dataclass(frozen=True)
class Left:
    """A job that stays where it is."""

    id: str
    reason: str


class Source(Protocol):
    """A queue of another system."""

    def read(self) -> Iterator[Found | Left]: ...

    def notes(self) -> list[str]:
        """What else a person should know."""
        ...


class Unreadable(Exception):
    """An entry that cannot become a job; says why."""


#: What reading a damaged entry raises: it is left where it is, and the others move.
DAMAGED = (Unreadable, ValueError, TypeError, LookupError, AttributeError, OverflowError, OSError)


def left(id: str, error: Exception) -> Left:
    """An entry that stays, with the reason."""
    return Left(id, str(error) if isinstance(error, Unreadable) else f"it is damaged: {type(error).__name__}: {error}")


def list_members(redis: Any, key: str, oldest: Literal["head", "tail"]) -> list[bytes]:
    """All of a list, the oldest first. Entries that move meanwhile may be missing or twice: the first ones are found by
    the next run, and of the others one is taken."""
    members: list[bytes] = []
    while page := redis.lrange(key, len(members), len(members) + PAGE - 1):
        members += page
    return members if oldest == "head" else members[::-1]


def zset_members(redis: Any, key: str) -> list[tuple[bytes, float]]:
    """All of a sorted set, the lowest score first."""
    members: list[tuple[bytes, float]] = []
    while page := redis.zrange(key, len(members), len(members) + PAGE - 1, withscores=True):
        members += page
    return members
