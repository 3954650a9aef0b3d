"""``galley-outbox``: see docs/outbox.md."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys

from .._async_client import AsyncClient
from . import schema

DONE, REFUSED, WRONG, AWAY = 0, 1, 2, 3
_NO_CONNINFO = (
    "the address of the database is wrong: postgresql://user:password@host/name, without a driver, and with special "
    "characters of the password as %40 and the like"
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="galley-outbox",
        description="Sends the rows of the table galley_outbox in PostgreSQL to Galley, as jobs and messages, until "
        "SIGTERM or Ctrl-C. The gateway is GALLEY_URL, the key GALLEY_KEY. Exit code 0: done; 1: some rows were not "
        "taken; 2: the command line, the table or a right is wrong; 3: the database or the gateway is away.",
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--sql", action="store_true", help="print the SQL that makes the table, and end")
    what.add_argument("--check", action="store_true", help="say whether all is as it should be and what waits, and end")
    what.add_argument("--once", action="store_true", help="send what waits now, and end")
    parser.add_argument(
        "--database", metavar="URL", help="postgresql://...; else DATABASE_URL, else PGHOST and the like as for psql"
    )
    parser.add_argument("--batch", type=_count, default=100, help="rows of a transaction (100)")
    parser.add_argument("--concurrency", type=_count, default=8, help="requests at once (8)")
    parser.add_argument("--poll", type=_seconds, default=5.0, help="seconds between looks without a notification (5)")
    parser.add_argument("--grace", type=_seconds, default=10.0, help="seconds for running requests on SIGTERM (10)")
    parser.add_argument("--url", help="of the gateway; GALLEY_URL unless given")
    return parser


def _count(text: str) -> int:
    if not 1 <= (value := int(text)) <= 1000:
        raise ValueError
    return value


def _seconds(text: str) -> float:
    if not 0 < (value := float(text)) <= 3600:
        raise ValueError
    return value


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.sql:
        print(schema(), end="")
        return DONE
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        import psycopg
    except ImportError as error:
        print(f"galley-outbox: needs psycopg 3 ({error}): pip install 'galley-jobs[postgres]'", file=sys.stderr)
        return WRONG
    database = options.database or os.environ.get("DATABASE_URL") or ""
    if not _is_conninfo(database):
        # What libpq says of it may hold the password
        print(f"galley-outbox: {_NO_CONNINFO}", file=sys.stderr)
        return WRONG
    try:
        return asyncio.run(_run(options, database))
    except psycopg.errors.UndefinedTable:
        print("galley-outbox: there is no table galley_outbox: galley-outbox --sql | psql", file=sys.stderr)
        return WRONG
    except (ValueError, psycopg.ProgrammingError) as error:
        print(f"galley-outbox: {error}", file=sys.stderr)
        return WRONG
    except psycopg.Error as error:
        print(f"galley-outbox: the database is away: {error}", file=sys.stderr)
        return AWAY


def _is_conninfo(database: str) -> bool:
    """Whether libpq can read it, and has not taken a part of the password for the port or the host."""
    import psycopg
    from psycopg.conninfo import conninfo_to_dict

    try:
        parts = conninfo_to_dict(database)
    except psycopg.Error:
        return False
    return "@" not in str(parts.get("host") or "")[1:] and not str(parts.get("port") or "0").strip("0123456789,")


async def _run(options: argparse.Namespace, database: str) -> int:
    from ._check import check, has_left
    from ._relay import Relay

    # The relay has pauses of its own
    async with AsyncClient(options.url, patience=0) as client:
        if options.check:
            return await check(client, database)
        relay = Relay(
            client,
            database,
            batch=options.batch,
            concurrency=options.concurrency,
            poll=options.poll,
            grace=options.grace,
        )
        if options.once:
            if (away := await relay.once()) is not None:
                print(f"galley-outbox: the gateway takes nothing: {away}", file=sys.stderr)
                return AWAY
            return REFUSED if await has_left(database) else DONE
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, relay.stop)
        await relay.run()
    return DONE


if __name__ == "__main__":
    sys.exit(main())
