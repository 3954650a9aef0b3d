"""Sends the rows of ``galley_outbox``.

A row is locked while it is sent, and deleted in the same transaction. So no two relays send it at once, and a relay
that is killed leaves it to the next one, which sends it with the same key.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from .._async_client import AsyncClient
from .._call import pauses
from ._row import COLUMNS, MAX_ERROR, Away, Done, Outcome, Postponed, Refused, Row, send

log = logging.getLogger("galley.outbox")

#: Longest time until a row that was postponed is tried again.
MAX_POSTPONED_S = 60.0
#: How long the database may take to record what was sent when the relay stops.
RECORD_S = 5.0
#: A connection that is dead is found out.
_ALIVE: dict[str, Any] = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}

TAKE = f"""
SELECT {COLUMNS} FROM galley_outbox WHERE refused_at IS NULL AND due_at <= clock_timestamp()
ORDER BY due_at, id LIMIT %s FOR UPDATE SKIP LOCKED
"""
DELETE = "DELETE FROM galley_outbox WHERE id = ANY(%s)"
REFUSE = "UPDATE galley_outbox SET refused_at = clock_timestamp(), attempts = attempts + 1, error = %s WHERE id = %s"
# At least what the gateway asks for, and longer each time, with jitter
POSTPONE = """
UPDATE galley_outbox SET attempts = attempts + 1, error = %s,
due_at = clock_timestamp() + make_interval(secs => %s + random() * least(%s, power(2, least(attempts, 10))))
WHERE id = %s
"""


async def connect(database: str) -> psycopg.AsyncConnection[TupleRow]:
    more = {**_ALIVE, "fallback_application_name": "galley-outbox"}
    return await psycopg.AsyncConnection.connect(database, autocommit=True, **more)


class Relay:
    """Sends rows until it is stopped."""

    def __init__(
        self, client: AsyncClient, database: str, *, batch: int, concurrency: int, poll: float, grace: float
    ) -> None:
        self._client, self._database = client, database
        self._batch, self._poll, self._grace = batch, poll, grace
        self._slots = asyncio.Semaphore(concurrency)
        self._news = asyncio.Event()
        self._is_stopped = False
        self._is_sending = False
        self._grace_is_over = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        #: Between attempts to reach the database. Begins anew when it has done something
        self._pause = pauses()

    async def run(self) -> None:
        """Sends rows until ``stop`` is called. Raises ``psycopg.ProgrammingError`` if the table is not as it should
        be."""
        self._main = asyncio.ensure_future(self._run())
        with contextlib.suppress(asyncio.CancelledError):
            await self._main

    def stop(self) -> None:
        """Takes no more rows. Requests on their way have ``grace`` seconds; a second call ends them at once."""
        if self._main is None or self._is_stopped:
            self._grace_is_over.set()
            return
        self._is_stopped = True
        if not self._is_sending:
            self._main.cancel()
            return
        loop = asyncio.get_running_loop()
        loop.call_later(self._grace, self._grace_is_over.set)
        loop.call_later(self._grace + RECORD_S, self._main.cancel)

    async def once(self) -> str | None:
        """Sends what waits now. Gives why the rest must wait if the gateway is away."""
        async with await connect(self._database) as db:
            while True:
                found, away = await self._relay_batch(db)
                if away is not None or found == 0:
                    return away

    async def _run(self) -> None:
        listener = asyncio.create_task(self._listen())
        try:
            while not self._is_stopped:
                try:
                    async with await connect(self._database) as db:
                        await self._relay_from(db)
                except psycopg.ProgrammingError:
                    raise
                except psycopg.Error as error:
                    log.warning("the database is away: %s", _line(str(error)))
                    await asyncio.sleep(self._pause())
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)

    async def _relay_from(self, db: psycopg.AsyncConnection[TupleRow]) -> None:
        pause: Callable[[], float] = pauses()
        while not self._is_stopped:
            self._news.clear()
            found, away = await self._relay_batch(db)
            self._pause = pauses()
            if away is not None and not self._is_stopped:
                log.warning("the gateway takes nothing: %s", _line(away))
                await asyncio.sleep(pause())
                continue
            pause = pauses()
            if found < self._batch and not self._is_stopped:
                # Relays that started together do not look together
                wait = self._poll * random.uniform(0.5, 1.0)
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._news.wait(), wait)

    async def _listen(self) -> None:
        """Tells of new rows. While it cannot, polling finds them."""
        pause = pauses()
        while True:
            try:
                async with await connect(self._database) as db:
                    await db.execute("LISTEN galley_outbox")
                    pause = pauses()
                    # For rows that came before
                    self._news.set()
                    async for _ in db.notifies():
                        self._news.set()
            except psycopg.Error as error:
                log.debug("not listening: %s", _line(str(error)))
            await asyncio.sleep(pause())

    async def _relay_batch(self, db: psycopg.AsyncConnection[TupleRow]) -> tuple[int, str | None]:
        """How many rows there were, and why the gateway took none if it is away."""
        with self._sending():
            async with db.transaction():
                cursor = await db.execute(TAKE, (self._batch,))
                rows = [Row(*columns) for columns in await cursor.fetchall()]
                outcomes = await self._send_all(rows)
                await self._record(db, outcomes)
        away = next((outcome.error for _, outcome in outcomes if isinstance(outcome, Away)), None)
        return len(rows), away

    @contextlib.contextmanager
    def _sending(self) -> Iterator[None]:
        self._is_sending = True
        try:
            yield
        finally:
            self._is_sending = False

    async def _send_all(self, rows: list[Row]) -> list[tuple[Row, Outcome]]:
        outcomes: list[tuple[Row, Outcome]] = []
        is_away = False

        async def send_in_order(rows: list[Row]) -> None:
            nonlocal is_away
            for row in rows:
                async with self._slots:
                    if is_away or self._is_stopped:
                        return
                    outcome = await send(self._client, row)
                outcomes.append((row, outcome))
                is_away = is_away or isinstance(outcome, Away)
                if not isinstance(outcome, Done | Refused):
                    return

        # Messages of a channel one after the other
        by_channel: dict[str | int, list[Row]] = {}
        for row in rows:
            by_channel.setdefault(row.channel or row.id, []).append(row)
        tasks = [asyncio.create_task(send_in_order(group)) for group in by_channel.values()]
        over = asyncio.create_task(self._grace_is_over.wait())
        waiting: set[asyncio.Task[None]] = set(tasks)
        while waiting and not over.done():
            await asyncio.wait({*waiting, over}, return_when=asyncio.FIRST_COMPLETED)
            waiting = {task for task in waiting if not task.done()}
        for task in (*waiting, over):
            task.cancel()
        ended = await asyncio.gather(*tasks, over, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error
        return outcomes

    async def _record(self, db: psycopg.AsyncConnection[TupleRow], outcomes: list[tuple[Row, Outcome]]) -> None:
        done = [row.id for row, outcome in outcomes if isinstance(outcome, Done)]
        if done:
            await db.execute(DELETE, (done,))
        for row, outcome in outcomes:
            if isinstance(outcome, Refused):
                error = _line(outcome.error)
                log.error("row %s is refused: %s", row.id, error)
                await db.execute(REFUSE, (error, row.id))
            elif isinstance(outcome, Postponed):
                error = _line(outcome.error)
                log.warning("row %s must wait: %s", row.id, error)
                wait = min(outcome.retry_after, MAX_POSTPONED_S)
                await db.execute(POSTPONE, (error, wait, MAX_POSTPONED_S, row.id))


def _line(error: str) -> str:
    """As PostgreSQL and a log take it."""
    text = " ".join(error.replace("\0", " ").split())
    return text.encode("utf-8", "replace").decode()[:MAX_ERROR]
