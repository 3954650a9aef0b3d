"""Event streams: parsing, and following them across lost connections by the last id that was seen."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ._aio import AsyncTransport, Stream
from ._call import Headers, Patience
from ._delta import apply_delta
from ._errors import DeltaError, GalleyError, Unavailable
from ._http import Connection
from ._types import Chunk, Gap, JobEvent, Message, PresenceEvent

log = logging.getLogger("galley")

E = TypeVar("E")

_PRESENCE = ("members", "join", "update", "leave")
_LAST = ("job.completed", "job.discarded", "job.cancelled", "job.forgotten")


@dataclass
class Frame:
    """An event of a stream."""

    name: str = "message"
    data: str = ""
    #: The id with which a client that saw this event continues.
    id: str | None = None


@dataclass
class Parser:
    """Splits what arrives into events."""

    last_id: str | None = None
    retry_s: float = 1.0
    _rest: bytes = b""
    _lines: list[tuple[str, str]] = field(default_factory=list)

    def feed(self, piece: bytes) -> list[Frame]:
        text = self._rest + piece
        # A CR at the end may be half of a line's end
        held = text[-1:] if text.endswith(b"\r") else b""
        lines = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + held
        frames = []
        for line in lines:
            if line:
                self._take(line.decode("utf-8", "replace"))
            elif frame := self._frame():
                frames.append(frame)
        return frames

    def _take(self, line: str) -> None:
        name, _, value = line.partition(":")
        self._lines.append((name, value[1:] if value.startswith(" ") else value))

    def _frame(self) -> Frame | None:
        lines, self._lines = self._lines, []
        frame, data = Frame(), []
        for name, value in lines:
            if name == "event":
                frame.name = value
            elif name == "data":
                data.append(value)
            elif name == "id":
                self.last_id = value
            elif name == "retry" and value.isdigit():
                self.retry_s = int(value) / 1000
        frame.data, frame.id = "\n".join(data), self.last_id
        return frame if data else None


class _Follower(Generic[E]):
    """What the streams of both kinds share."""

    def __init__(
        self, path: str, last_id: str | None, read: Callable[[Frame], E | None], patience: float | None
    ) -> None:
        self._path, self._read = path, read
        self._patience = float("inf") if patience is None else patience
        #: The id to resume with: of the last event that was handed out, or of where the stream began.
        self.last_id = last_id
        self._parser = Parser()
        self._frames: deque[Frame] = deque()
        self._has_begun = self._is_over = False
        self._waiting: Patience | None = None
        #: Why the next connection is needed although this one lives.
        self._misfit: Unavailable | None = None

    def _check_fit(self) -> None:
        misfit, self._misfit = self._misfit, None
        if misfit is not None:
            raise misfit

    def _headers(self) -> Headers:
        # Events behind the last one that was handed out come again, and so does one that came half
        self._parser = Parser(self.last_id, self._parser.retry_s)
        self._frames.clear()
        return (("Last-Event-ID", self.last_id),) if self.last_id else ()

    def _pause_after(self, error: Unavailable | None) -> float:
        if error is None:
            # The gateway ended the stream: all of its clients should not come back at once
            return random.uniform(0, self._parser.retry_s)
        log.info("the stream is interrupted: %s", error)
        self._waiting = self._waiting or Patience(self._patience)
        return self._waiting.pause_after(error)

    def _take(self, piece: bytes) -> None:
        frames = self._parser.feed(piece)
        if frames:
            self._has_begun, self._waiting = True, None
        if frames and frames[0].name == "begin":
            self.last_id = frames.pop(0).id
        self._frames.extend(frames)

    def _next_event(self) -> E | None:
        """The next event that arrived, if there is one."""
        while self._frames:
            frame = self._frames.popleft()
            before, self.last_id = self.last_id, frame.id
            if frame.name == "access_ended":
                message = json.loads(frame.data).get("message", "the access has ended")
                raise GalleyError(401, "invalid_key", str(message))
            if frame.name == "end":
                self._is_over = True
                return None
            try:
                event = self._read(frame)
            except DeltaError as error:
                log.warning("the subscription resumes with a whole message: %s", error)
                self.last_id, self._misfit = before, Unavailable(str(error))
                return None
            if event is not None:
                # A job that ended has no more events; the gateway would say so to a client that comes back
                self._is_over = isinstance(event, JobEvent) and event.type in _LAST
                return event
        return None


class Subscription(_Follower[E]):
    """An iterator of what happens, which survives lost connections and restarts of gateways. For one thread at a time;
    ``close`` may be called by another."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        path: str,
        last_id: str | None,
        read: Callable[[Frame], E | None],
        patience: float | None,
    ) -> None:
        super().__init__(path, last_id, read, patience)
        self._connect = connect
        self._connection: Connection | None = None
        self._response: http.client.HTTPResponse | None = None

    def __iter__(self) -> Iterator[E]:
        return self

    def __next__(self) -> E:
        while not self._is_over:
            event = self._next_event()
            if event is not None:
                return event
            self._advance()
        self._drop()
        raise StopIteration

    def open(self) -> None:
        """Connects, so that nothing is missed from now on. Otherwise the first event that is asked for does it."""
        while not self._is_over and not self._has_begun:
            self._advance()

    def _advance(self) -> None:
        """Connects if need be, and reads what comes next."""
        broke: Unavailable | None = None
        try:
            self._check_fit()
            if self._response is None:
                self._connection = self._connect()
                self._response = self._connection.stream(self._path, self._headers())
                if self._response.status == 204:
                    self._is_over = True
                    return
            if piece := _read_piece(self._response):
                self._take(piece)
                return
        except Unavailable as error:
            broke = error
        except BaseException:
            self._drop()
            raise
        self._drop()
        if not self._is_over:
            time.sleep(self._pause_after(broke))

    def __enter__(self) -> Subscription[E]:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._drop()

    def close(self) -> None:
        """Ends the iteration."""
        self._is_over = True
        if self._connection is not None:
            self._connection.abort()

    def _drop(self) -> None:
        connection, self._connection, self._response = self._connection, None, None
        if connection is not None:
            connection.close()


def _read_piece(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(1 << 16)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Unavailable(f"the stream broke: {error!r}") from error


class AsyncSubscription(_Follower[E]):
    """An asynchronous iterator of what happens, which survives lost connections and restarts of gateways. A wait for
    the next event may be cancelled: the one after it goes on where the last event was."""

    def __init__(
        self,
        transport: AsyncTransport,
        path: str,
        last_id: str | None,
        read: Callable[[Frame], E | None],
        patience: float | None,
    ) -> None:
        super().__init__(path, last_id, read, patience)
        self._transport = transport
        self._stream: Stream | None = None

    def __aiter__(self) -> AsyncIterator[E]:
        return self

    async def __anext__(self) -> E:
        while not self._is_over:
            event = self._next_event()
            if event is not None:
                return event
            await self._advance()
        self._drop()
        raise StopAsyncIteration

    async def open(self) -> None:
        """Connects, so that nothing is missed from now on. Otherwise the first event that is asked for does it."""
        while not self._is_over and not self._has_begun:
            await self._advance()

    async def _advance(self) -> None:
        """Connects if need be, and reads what comes next."""
        broke: Unavailable | None = None
        try:
            self._check_fit()
            if self._stream is None:
                self._stream = await self._transport.stream(self._path, self._headers())
                if self._stream.status == 204:
                    self._is_over = True
                    return
            if piece := await self._stream.read():
                self._take(piece)
                return
        except Unavailable as error:
            broke = error
        except BaseException:
            self._drop()
            raise
        self._drop()
        if not self._is_over:
            await asyncio.sleep(self._pause_after(broke))

    async def __aenter__(self) -> AsyncSubscription[E]:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the iteration."""
        self._is_over = True
        self._drop()

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()


def read_message(
    on_gap: Callable[[Gap], None] | None, on_presence: Callable[[PresenceEvent], None] | None, has_deltas: bool
) -> Callable[[Frame], Message | None]:
    """Reads the events of channels."""
    #: The id and the text of the last message of each channel: the next one may come as its difference.
    bases: dict[str, tuple[str, str]] = {}

    def read_whole(text: str) -> Message:
        message = message_of(json.loads(text))
        if has_deltas and message.id is not None:
            bases[message.channel] = message.id, text
        return message

    def read(frame: Frame) -> Message | None:
        if frame.name in _PRESENCE and on_presence is not None:
            on_presence(_presence_of(frame.name, json.loads(frame.data)))
        if frame.name == "gap":
            told = json.loads(frame.data)
            gap = Gap(told.get("channel", ""), told.get("from"), told.get("to"), told.get("count"))
            if on_gap is None:
                log.warning("%s messages of %s are missing after %s", gap.count or "some", gap.channel, gap.after)
            else:
                on_gap(gap)
        elif frame.name == "left_out":
            log.warning("a channel is left out of the stream: %s", frame.data)
        elif frame.name == "message":
            return read_whole(frame.data)
        elif frame.name == "delta":
            told = json.loads(frame.data)
            base_id, base = bases.get(told["channel"], (None, ""))
            if base_id != told["from"]:
                raise DeltaError("the message before is another one")
            return read_whole(apply_delta(base, told["delta"]))
        return None

    return read


def _presence_of(name: Any, shown: dict[str, Any]) -> PresenceEvent:
    channel = shown.pop("channel")
    members: Any = shown["members"] if name == "members" else [shown]
    return PresenceEvent(name, channel, members)


def message_of(shown: dict[str, Any]) -> Message:
    encoded = shown.get("data_base64")
    data = shown.get("data") if encoded is None else base64.b64decode(encoded)
    attributes = shown.get("attributes") or {}
    return Message(shown.get("id"), shown["channel"], shown["time"], data, shown.get("content_type"), attributes)


def read_job_event(frame: Frame) -> JobEvent | None:
    """Reads the events of jobs."""
    if not frame.name.startswith(("job.", "cron.")):
        return None
    shown = json.loads(frame.data)
    return JobEvent(frame.id or "", frame.name, shown.get("time", ""), shown.get("data", {}))


def read_chunk(frame: Frame) -> Chunk | None:
    """Reads the output of a job."""
    if frame.name == "gap":
        log.warning("chunks of a job are missing: %s", frame.data)
    if frame.name != "chunk":
        return None
    shown = json.loads(frame.data)
    return Chunk(frame.id or "", shown["attempt"], shown["chunk"])
