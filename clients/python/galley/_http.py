"""Requests for threads: one keep-alive connection each."""

from __future__ import annotations

import http.client
import socket
from typing import Any
from urllib.parse import urlsplit

from ._call import ANSWER_S, STREAM_SILENCE_S, Headers, encode, read_answer
from ._errors import GalleyError, Unavailable


class Connection:
    """One keep-alive connection, made anew when it is gone. For one thread at a time."""

    def __init__(self, url: str, key: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url must be like http://host:port, got {url!r}")
        self._make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._is_plain = parts.scheme == "http"
        self._host, self._port, self._prefix = parts.hostname, parts.port, parts.path.rstrip("/")
        self._authorization = {"Authorization": f"Bearer {key}"} if key else {}
        self._http: http.client.HTTPConnection | None = None
        self._hung_up = False

    def call(self, method: str, path: str, body: Any = None, wait: float = 0.0, headers: Headers = ()) -> Any:
        """Sends a request and gives the JSON of the answer; ``wait`` is how long the answer may take on purpose."""
        data = encode(body)
        is_reused = self._http is not None
        try:
            response = self._send(method, path, data, wait + ANSWER_S, headers)
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            # A connection that lay idle may have been closed at the other end: that says nothing about the gateway
            if not is_reused or self._hung_up or isinstance(error, socket.timeout):
                raise Unavailable(f"the gateway cannot be reached: {error!r}") from error
            try:
                return self.call(method, path, body, wait, headers)
            except GalleyError as refused:
                refused._is_repeat = True
                raise
        if response.will_close:
            self.close()
        return read_answer(response.status, answer, response.getheader("Retry-After"))

    def stream(self, path: str, headers: Headers = ()) -> http.client.HTTPResponse:
        """Opens a stream, which is read until it ends or this connection is closed."""
        try:
            response = self._send("GET", path, None, STREAM_SILENCE_S, (("Accept", "text/event-stream"), *headers))
            if response.status != 200:
                read_answer(response.status, response.read(), response.getheader("Retry-After"))
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Unavailable(f"the gateway cannot be reached: {error!r}") from error
        return response

    def _send(
        self, method: str, path: str, data: bytes | None, timeout: float, headers: Headers
    ) -> http.client.HTTPResponse:
        if self._http is None:
            self._http = self._make(self._host, self._port, timeout=timeout)
            self._http.connect()
            self._http.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._hung_up:
            raise ConnectionAbortedError("hung up")
        self._http.sock.settimeout(timeout)
        all_headers = {"Content-Type": "application/json", **self._authorization, **dict(headers)}
        self._http.request(method, self._prefix + path, body=data, headers=all_headers)
        return self._http.getresponse()

    def hang_up(self) -> None:
        """Ends a wait from another thread. An answer that is on its way still arrives."""
        self._hung_up = True
        connection = self._http
        if connection is not None and connection.sock is not None:
            try:
                connection.sock.shutdown(socket.SHUT_WR if self._is_plain else socket.SHUT_RDWR)
            except OSError:
                pass

    def abort(self) -> None:
        """Ends a stream from another thread."""
        self._hung_up = True
        connection = self._http
        if connection is not None and connection.sock is not None:
            try:
                connection.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        connection, self._http = self._http, None
        if connection is not None:
            connection.close()
