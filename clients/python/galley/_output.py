"""The output of a job: chunks that its handler streams while it runs, on their way to the gateway.

A thread sends what has gathered while the request before was on its way, so a handler does not wait for each chunk. What
cannot be sent is no reason to fail.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

from ._errors import GalleyError, Unavailable
from ._outcome import valid

log = logging.getLogger("galley")

#: Bytes of JSON of a chunk: what the gateway takes.
MAX_CHUNK = 64 << 10
#: Chunks that wait to be sent; then the handler waits.
MAX_WAITING = 256
#: Chunks, and bytes of them, in one request.
MAX_SENT = 100
MAX_SENT_BYTES = 512 << 10


class OutputWriter:
    """Sends the chunks of one attempt in their order. ``send`` sends some, and waits while the gateway is away."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self._changed = threading.Condition()
        self._waiting: list[tuple[Any, int]] = []
        self._sent = 0
        self._thread: threading.Thread | None = None
        self._is_ending = self._is_broken = False

    def add(self, chunk: Any, may_wait: bool = True) -> bool:
        """Adds a chunk; False if there is no room and it must not wait."""
        text = json.dumps(chunk, separators=(",", ":"), allow_nan=False)
        size = len(text.encode())
        if size > MAX_CHUNK:
            raise ValueError(f"a chunk must have at most {MAX_CHUNK} bytes as JSON, got {size}")
        with self._changed:
            if not may_wait and len(self._waiting) >= MAX_WAITING:
                return False
            self._changed.wait_for(lambda: len(self._waiting) < MAX_WAITING or self._is_broken)
            if self._is_broken:
                return True
            self._waiting.append((valid(json.loads(text)), size))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="galley-output", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return True

    def finish(self) -> None:
        """Waits until everything is sent: after the attempt nobody may add to it."""
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_ending)
                if not self._waiting:
                    return
                chunks = self._take()
                self._changed.notify_all()
            try:
                # Sent again, chunks with these numbers are added once
                self._send({"chunks": chunks, "first": self._sent + 1})
                self._sent += len(chunks)
            except GalleyError as error:
                level = logging.DEBUG if isinstance(error, Unavailable) else logging.INFO
                log.log(level, "output is not wanted any more: %s", error)
                with self._changed:
                    self._is_broken = True
                    self._waiting.clear()
                    self._changed.notify_all()
                return

    def _take(self) -> list[Any]:
        count = bytes = 0
        for _, size in self._waiting[:MAX_SENT]:
            if count and bytes + size > MAX_SENT_BYTES:
                break
            count, bytes = count + 1, bytes + size
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return [chunk for chunk, _ in taken]
