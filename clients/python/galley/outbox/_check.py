"""``galley-outbox --check``: is the table as it should be, may the relay do its work, and what waits?"""

from __future__ import annotations

import sys

from .._async_client import AsyncClient
from .._call import Call
from .._errors import GalleyError, Unavailable
from ._relay import DELETE, TAKE, connect

_COUNTS = """
SELECT count(*) FILTER (WHERE refused_at IS NULL), count(*) FILTER (WHERE refused_at IS NOT NULL),
coalesce(extract(epoch FROM clock_timestamp() - min(created_at) FILTER (WHERE refused_at IS NULL)), 0)::float8
FROM galley_outbox
"""
_UPDATE = "UPDATE galley_outbox SET attempts = 0, due_at = now(), refused_at = NULL, error = NULL WHERE false"
_TRIGGER = """
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'galley_outbox'::regclass AND tgname = 'galley_outbox_notify'
AND tgenabled <> 'D'
"""


async def check(client: AsyncClient, database: str) -> int:
    """The exit code. Changes nothing."""
    async with await connect(database) as db:
        # A missing right is an error here, too
        async with db.transaction():
            await db.execute(TAKE, (1,))
            await db.execute(DELETE, ([],))
            await db.execute(_UPDATE)
        waiting, refused_rows, oldest = await (await db.execute(_COUNTS)).fetchone() or (0, 0, 0.0)
        [has_trigger] = await (await db.execute(_TRIGGER)).fetchone() or (0,)
    print(f"waiting {waiting}, refused {refused_rows}, oldest {oldest:.0f} s")
    if not has_trigger:
        print("note: there is no trigger galley_outbox_notify: rows are found by polling", file=sys.stderr)
    try:
        await _may_write(client, "/ojs/v1/jobs", "jobs:write")
        await _may_write(client, "/v1/channels/%20/messages", "channels:publish")
    except Unavailable as error:
        print(f"galley-outbox: the gateway is away: {error}", file=sys.stderr)
        return 3
    except GalleyError as error:
        print(f"galley-outbox: {error}", file=sys.stderr)
        return 2
    return 1 if refused_rows else 0


async def _may_write(client: AsyncClient, path: str, scope: str) -> None:
    """Sends what no gateway takes: one that lets the key in says that it is wrong."""
    try:
        await client._run(Call("POST", path, lambda answer: answer, {}))
    except GalleyError as error:
        if error.code in ("invalid_request", "invalid_payload"):
            return
        if error.code == "scope_required":
            print(f"note: the key lacks {scope}", file=sys.stderr)
            return
        raise


async def has_left(database: str) -> bool:
    """Whether there are rows that Galley did not take."""
    async with await connect(database) as db:
        found = await db.execute("SELECT 1 FROM galley_outbox WHERE attempts > 0 LIMIT 1")
        return await found.fetchone() is not None
