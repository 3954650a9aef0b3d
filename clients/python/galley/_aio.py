"""Requests for asyncio: HTTP/1.1 over its streams, as far as a gateway speaks it."""

from __future__ import annotations

import asyncio
import ssl
import weakref
from typing import Any
from urllib.parse import urlsplit

from ._call import ANSWER_S, STREAM_SILENCE_S, Headers, encode, read_answer
from ._errors import GalleyError, Unavailable

#: Requests at once, besides those that wait for something: more of them would only bring more connections.
MAX_AT_ONCE = 64
#: Connections that are kept open between requests.
MAX_IDLE = 64
MAX_HEADERS = 100
_BROKEN = (OSError, EOFError, ValueError, ssl.SSLError, asyncio.TimeoutError, asyncio.LimitOverrunError)


class _Connection:
    """One connection; a request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.is_reusable = True
        #: Bytes of the body that are still to come: none if it comes in chunks, less than zero if the end is its end.
        self._left: int | None = 0

    async def send(self, head: bytes, data: bytes | None) -> tuple[int, dict[str, str]]:
        """Sends a request and reads the head of the answer."""
        self._writer.write(head + (data or b""))
        await self._writer.drain()
        while True:
            version, status, *_ = (await self._line()).split(" ", 2)
            headers: dict[str, str] = {}
            while line := await self._line():
                name, _, value = line.partition(":")
                headers[name.strip().lower()] = value.strip()
                if len(headers) > MAX_HEADERS:
                    raise ValueError("too many headers")
            # 1xx comes before the answer
            if int(status) >= 200:
                break
        if int(status) in (204, 304):
            self._left = 0
        elif headers.get("transfer-encoding", "").lower() == "chunked":
            self._left = None
        else:
            self._left = int(headers.get("content-length", -1))
        self.is_reusable = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
        return int(status), headers

    async def _line(self) -> str:
        line = await self._reader.readuntil(b"\n")
        return line.decode("latin-1").rstrip("\r\n")

    async def piece(self) -> bytes:
        """The next piece of the body as it arrives, empty at the end."""
        if self._left is None:
            size = int((await self._line()).partition(";")[0], 16)
            piece = await self._reader.readexactly(size)
            # Behind the last one come trailers
            while await self._line() and not size:
                pass
            return piece
        if self._left < 0:
            self.is_reusable = False
            return await self._reader.read(1 << 16)
        piece = await self._reader.readexactly(self._left)
        self._left = 0
        return piece

    async def body(self) -> bytes:
        pieces = []
        while piece := await self.piece():
            pieces.append(piece)
        return b"".join(pieces)

    @property
    def is_open(self) -> bool:
        return self.is_reusable and not self._reader.at_eof() and not self._writer.is_closing()

    def close(self) -> None:
        try:
            self._writer.close()
        except RuntimeError:
            # Its loop is closed already
            pass


class _Pool:
    """The connections of one loop."""

    def __init__(self) -> None:
        self.idle: list[_Connection] = []
        self.places = asyncio.Semaphore(MAX_AT_ONCE)

    def take(self) -> _Connection | None:
        """One that lies idle and is open."""
        while self.idle:
            connection = self.idle.pop()
            if connection.is_open:
                return connection
            connection.close()
        return None

    def give(self, connection: _Connection) -> None:
        if connection.is_open and len(self.idle) < MAX_IDLE:
            self.idle.append(connection)
        else:
            connection.close()


class Stream:
    """An answer that is read as it arrives."""

    def __init__(self, connection: _Connection, status: int) -> None:
        self._connection, self.status = connection, status

    async def read(self) -> bytes:
        """The next piece, empty at the end."""
        try:
            return await asyncio.wait_for(self._connection.piece(), STREAM_SILENCE_S)
        except _BROKEN as error:
            raise Unavailable(f"the stream broke: {error!r}") from error

    def close(self) -> None:
        self._connection.close()


class AsyncTransport:
    """Sends requests, as many at once as there are tasks. Each event loop has connections of its own."""

    def __init__(self, url: str, key: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must be like http://host:port, got {url!r}")
        self._host, self._prefix = parts.hostname, parts.path.rstrip("/")
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._ssl = ssl.create_default_context() if parts.scheme == "https" else None
        self._fixed = f"Host: {parts.netloc.rpartition('@')[2]}\r\n"
        if key:
            if not (key.isascii() and key.isprintable()):
                raise ValueError("the key must be one line of ASCII characters")
            self._fixed += f"Authorization: Bearer {key}\r\n"
        self._pools: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool] = weakref.WeakKeyDictionary()

    async def call(self, method: str, path: str, body: Any = None, wait: float = 0.0, headers: Headers = ()) -> Any:
        """Sends a request and gives the JSON of the answer; ``wait`` is how long the answer may take on purpose."""
        return (await self.ask(method, path, body, wait, headers))[0]

    async def ask(
        self, method: str, path: str, body: Any = None, wait: float = 0.0, headers: Headers = ()
    ) -> tuple[Any, dict[str, str]]:
        """Like ``call``, with the headers of the answer in small letters."""
        pool = self._pool()
        if wait:
            return await self._call(pool, method, path, body, wait, headers)
        async with pool.places:
            return await self._call(pool, method, path, body, wait, headers)

    async def _call(
        self, pool: _Pool, method: str, path: str, body: Any, wait: float, headers: Headers
    ) -> tuple[Any, dict[str, str]]:
        data, is_repeat = encode(body), False
        # Outside of what tells a broken connection: a bad header is no reason to try again
        head = self._head(method, path, data, headers)
        while True:
            connection = pool.take()
            is_reused = connection is not None
            try:
                exchange = self._exchange(pool, connection, head, data)
                status, answer_headers, answer = await asyncio.wait_for(exchange, wait + ANSWER_S)
            except _BROKEN as error:
                # A connection that lay idle may have been closed at the other end: that says nothing about the gateway
                if is_reused and not isinstance(error, asyncio.TimeoutError):
                    is_repeat = True
                    continue
                raise Unavailable(f"the gateway cannot be reached: {error!r}") from error
            try:
                return read_answer(status, answer, answer_headers.get("retry-after")), answer_headers
            except GalleyError as refused:
                refused._is_repeat = is_repeat
                raise

    async def stream(self, path: str, headers: Headers = ()) -> Stream:
        """Opens a stream."""
        head = self._head("GET", path, None, (("Accept", "text/event-stream"), *headers))
        try:
            connection = await asyncio.wait_for(self._connect(), ANSWER_S)
        except _BROKEN as error:
            raise Unavailable(f"the gateway cannot be reached: {error!r}") from error
        try:
            status, answer_headers = await asyncio.wait_for(connection.send(head, None), ANSWER_S)
            if status != 200:
                answer = await asyncio.wait_for(connection.body(), ANSWER_S)
                connection.close()
                read_answer(status, answer, answer_headers.get("retry-after"))
            return Stream(connection, status)
        except _BROKEN as error:
            connection.close()
            raise Unavailable(f"the gateway cannot be reached: {error!r}") from error
        except BaseException:
            connection.close()
            raise

    async def _exchange(
        self, pool: _Pool, connection: _Connection | None, head: bytes, data: bytes | None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = connection or await self._connect()
        try:
            status, headers = await connection.send(head, data)
            answer = await connection.body()
        except BaseException:
            # Also when the task is cancelled: the answer would be taken for that of the next request
            connection.close()
            raise
        pool.give(connection)
        return status, headers, answer

    async def _connect(self) -> _Connection:
        return _Connection(*await asyncio.open_connection(self._host, self._port, ssl=self._ssl))

    def _head(self, method: str, path: str, data: bytes | None, headers: Headers) -> bytes:
        lines = {"Content-Type": "application/json", **dict(headers)}
        if data is not None or method not in ("GET", "DELETE"):
            lines["Content-Length"] = str(len(data or b""))
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        if text.count("\n") != len(lines):
            raise ValueError("a header must be one line")
        return f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._fixed}{text}\r\n".encode("latin-1")

    def _pool(self) -> _Pool:
        return self._pools.setdefault(asyncio.get_running_loop(), _Pool())

    def close(self) -> None:
        """Closes the connections of this loop that lie idle."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        while pool and pool.idle:
            pool.idle.pop().close()
