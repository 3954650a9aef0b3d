"""Copies everything that Galley keeps from one Redis to another: one server, Sentinel or Cluster."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

#: How many keys are read in one round trip.
PAGE = 200
#: A large key takes a while.
TIMEOUT_S = 60.0
#: TTLs that differ by less were read at two moments.
TTL_SLACK_MS = 1000
#: Says at the target where its keys come from, and whether all of them are there.
MARK = b"galley-migrate:redis"
LEADER = b"galley:leader"
#: What processes say about themselves, for seconds: those that start at the target say it anew.
NOT_COPIED = (
    LEADER,
    b"galley:leader_details",
    b"galley:readers",
    b"galley:readers:",
    b"galley:confirmation:",
    b"galley:health_check",
    b"galley:usage:",
)


class Refused(Exception):
    """What would destroy something, or what was done in the wrong order."""


@dataclass
class Pass:
    """What one look at all keys did."""

    keys: int = 0
    copied: int = 0
    removed: int = 0
    #: One of the keys that were copied or removed.
    example: str = ""

    @property
    def changes(self) -> int:
        return self.copied + self.removed


def connect(url: str) -> Any:
    """A client of the servers that a URL names, as `redis.url` of Galley has them."""
    # Its types do not say all
    redis: Any = importlib.import_module("redis")
    cluster: Any = importlib.import_module("redis.cluster")
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    if scheme not in ("redis", "rediss") or kind not in ("", "sentinel", "cluster"):
        raise ValueError(f"{parts.scheme}:// is unknown: say redis://, redis+sentinel:// or redis+cluster://")
    if not kind:
        return redis.Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
    credentials, _, addresses = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    options: dict[str, Any] = {
        "ssl": scheme == "rediss",
        "socket_timeout": TIMEOUT_S,
        "socket_connect_timeout": TIMEOUT_S,
    }
    if credentials:
        options |= {"username": unquote(user) or None, "password": unquote(password)}
    hosts = [_address(address, 26379 if kind == "sentinel" else 6379) for address in addresses.split(",")]
    if kind == "cluster":
        if parts.path not in ("", "/", "/0"):
            raise ValueError("a cluster has database 0 only: leave it out of the URL")
        return cluster.RedisCluster(startup_nodes=[cluster.ClusterNode(host, port) for host, port in hosts], **options)
    name, _, database = parts.path.strip("/").partition("/")
    sentinel = redis.Sentinel(hosts, sentinel_kwargs={"ssl": options["ssl"]})
    return sentinel.master_for(name, db=int(database or 0), **options)


def _address(text: str, default_port: int) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):
        return text.strip("[]"), default_port
    return host.strip("[]"), int(port)


class Copier:
    """Makes the target what the source is, pass by pass. A pass that is interrupted is repeated by the next one."""

    def __init__(self, source: Any, target: Any, origin: str, lists: Iterable[str]) -> None:
        self._source, self._target, self._origin = source, target, origin.encode()
        self._lists = [name.encode() for name in lists]

    def begin(self, replace: bool) -> None:
        """Refuses a target with other data, and marks one without."""
        mark = self._target.hgetall(MARK)
        if self._target.exists(LEADER):
            raise Refused("Galley runs at the target: stop it there first")
        if not replace:
            if mark.get(b"state") == b"complete":
                raise Refused("everything is there already; --replace makes the target again what the source is")
            if mark and mark.get(b"from") != self._origin:
                raise Refused(f"the target has a part of {mark[b'from'].decode()}; --replace removes it")
            if not mark and next(self._keys(self._target), None) is not None:
                raise Refused("the target has data of Galley already; --replace removes them")
        self._target.hset(MARK, mapping={"from": self._origin, "state": "begun"})

    def is_running(self) -> bool:
        """Whether a process of Galley leads at the source, or led some seconds ago."""
        return bool(self._source.exists(LEADER))

    def end(self) -> None:
        self._target.hset(MARK, "state", "complete")

    def run(self, dry: bool = False) -> Pass:
        """Copies what differs, and removes what is gone."""
        done = Pass()
        for keys in _pages(self._keys(self._source)):
            self._copy(keys, done, dry)
        for keys in _pages(self._keys(self._target)):
            self._remove(keys, done, dry)
        return done

    def _keys(self, redis: Any) -> Iterator[bytes]:
        """Every key that is copied; one that is there all the time at least once."""
        found = redis.scan_iter(match="galley:*", count=1000)
        yield from (key for key in found if not _stays(key))
        yield from (name for name in self._lists if redis.exists(name))

    def _copy(self, keys: list[bytes], done: Pass, dry: bool) -> None:
        here, there = _read(self._source, keys), _read(self._target, keys)
        pipeline = _plain_pipeline(self._target)
        queued = 0
        for key, (payload, ttl), (old_payload, old_ttl) in zip(keys, here, there, strict=True):
            # It ended since it was seen
            if payload is None:
                continue
            done.keys += 1
            if old_payload is not None and self._is_same(key, payload, old_payload) and (ttl < 0) == (old_ttl < 0):
                if abs(ttl - old_ttl) > TTL_SLACK_MS:
                    pipeline.pexpire(key, max(ttl, 1))
                    queued += 1
                continue
            done.copied += 1
            done.example = key.decode(errors="replace")
            pipeline.restore(key, max(ttl, 1) if ttl >= 0 else 0, payload, replace=True)
            queued += 1
        if queued and not dry:
            pipeline.execute()

    def _is_same(self, key: bytes, payload: bytes, old_payload: bytes) -> bool:
        """The payload of a large hash or set depends on the server: then its content decides."""
        return payload == old_payload or _content(self._source, key) == _content(self._target, key)

    def _remove(self, keys: list[bytes], done: Pass, dry: bool) -> None:
        pipeline = _plain_pipeline(self._source)
        for key in keys:
            pipeline.exists(key)
        gone = [key for key, exists in zip(keys, pipeline.execute(), strict=True) if not exists]
        for key, (payload, ttl) in zip(gone, _read(self._target, gone), strict=True):
            if payload is None:
                continue
            # One with a TTL ends by itself: nobody removed it
            if ttl < 0:
                done.removed += 1
                done.example = key.decode(errors="replace")
            if not dry:
                self._target.delete(key)


def _stays(key: bytes) -> bool:
    return any(key == name or (name.endswith(b":") and key.startswith(name)) for name in NOT_COPIED)


def _pages(keys: Iterator[bytes]) -> Iterator[list[bytes]]:
    page: dict[bytes, None] = {}
    for key in keys:
        page[key] = None
        if len(page) == PAGE:
            yield list(page)
            page = {}
    if page:
        yield list(page)


def _plain_pipeline(redis: Any) -> Any:
    return redis.pipeline(transaction=False)


def _read(redis: Any, keys: list[bytes]) -> list[tuple[bytes | None, int]]:
    """Payload and TTL of each key, -1 if it has none."""
    if not keys:
        return []
    pipeline = _plain_pipeline(redis)
    for key in keys:
        pipeline.dump(key)
        pipeline.pttl(key)
    answers = pipeline.execute()
    return list(zip(answers[::2], answers[1::2], strict=True))


def _content(redis: Any, key: bytes) -> Any:
    """What a hash or a set holds, in no order. Of every other type the payload is the content."""
    kind = redis.type(key)
    if kind == b"hash":
        return redis.hgetall(key)
    if kind == b"set":
        return redis.smembers(key)
    return redis.dump(key)
