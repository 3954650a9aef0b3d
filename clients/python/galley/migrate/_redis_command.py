"""``galley-migrate redis``: see docs/operations.md."""

from __future__ import annotations

import argparse
import sys
from typing import Any
from urllib.parse import urlsplit

from ._redis import Copier, Pass, Refused, connect

DONE, LEFT, WRONG, NO_REDIS = 0, 1, 2, 3
#: More passes copy hardly less: what changes all the time is copied by the last one.
MAX_PASSES = 5


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="galley-migrate redis",
        description="Copies everything that Galley keeps from one Redis to another while Galley runs, then with "
        "--final what has changed since, while it does not. Exit code 0: done; 1: refused, or something was written "
        "meanwhile; 2: the command line is wrong; 3: a Redis is away, run it again.",
        allow_abbrev=False,
    )
    parser.add_argument("--from", dest="source", required=True, metavar="URL", help="redis.url of Galley until now")
    parser.add_argument("--to", dest="target", required=True, metavar="URL", help="redis.url of Galley from then on")
    parser.add_argument("--final", action="store_true", help="Galley is stopped: copy the rest and compare all")
    parser.add_argument("--dry-run", action="store_true", help="count what would be copied, and change nothing")
    parser.add_argument("--replace", action="store_true", help="remove what Galley has at the target already")
    parser.add_argument(
        "--list",
        action="append",
        dest="lists",
        metavar="KEY",
        help="a list that Galley moves into a queue (bridge.list), task:prodcons:queue unless given; repeatable",
    )
    return parser


def copy_redis(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    try:
        from redis.exceptions import ConnectionError, RedisError, TimeoutError
    except ModuleNotFoundError:
        return _fail("needs redis-py: pip install 'galley-jobs[migrate]'", WRONG)
    try:
        copier = Copier(
            connect(options.source),
            connect(options.target),
            _without_credentials(options.source),
            options.lists or ["task:prodcons:queue"],
        )
        if options.dry_run:
            return _show(copier.run(dry=True))
        if options.final and copier.is_running():
            raise Refused("Galley still runs at the source, or ended without a word some seconds ago")
        copier.begin(options.replace)
        return _finish(copier) if options.final else _follow(copier)
    except ValueError as error:
        return _fail(str(error), WRONG)
    except Refused as error:
        return _fail(str(error), LEFT)
    except (ConnectionError, TimeoutError) as error:
        return _fail(f"{error}. The source is as it was: run it again", NO_REDIS)
    except RedisError as error:
        return _fail(f"{error}. The source is as it was", LEFT)


def _without_credentials(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _show(done: Pass) -> int:
    print(f"would copy {done.copied} of {done.keys} keys, would remove {done.removed}")
    return DONE


def _tell(number: int, done: Pass) -> None:
    print(f"pass {number}: {done.keys} keys, {done.copied} copied, {done.removed} removed", flush=True)


def _follow(copier: Copier) -> int:
    before = 0
    for number in range(1, MAX_PASSES + 1):
        done = copier.run()
        _tell(number, done)
        if done.changes == 0 or (number > 1 and done.changes * 2 > before):
            break
        before = done.changes
    print("now stop all of Galley, and run the same command with --final")
    return DONE


def _finish(copier: Copier) -> int:
    _tell(1, copier.run())
    # Looks at every key again, at both
    done = copier.run()
    _tell(2, done)
    if done.changes or copier.is_running():
        return _fail(f"something writes at the source or the target: {done.example}. Stop it and run this again", LEFT)
    copier.end()
    print(f"{done.keys} keys are the same: start Galley with the new redis.url")
    return DONE


def _fail(reason: Any, code: int) -> int:
    print(f"galley-migrate: {reason}", file=sys.stderr)
    return code
