"""``galley-migrate rq|celery|bullmq|sidekiq``: see docs/migrate.md. ``redis`` is in docs/operations.md."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from ..__main__ import find_app
from .._client import Client
from .._errors import GalleyError, Unavailable
from ._bullmq import BullMq
from ._celery import Celery
from ._found import STATES, Left, Source, State
from ._move import Choice, Mover, plan
from ._redis_command import copy_redis
from ._rq import Rq
from ._sidekiq import Sidekiq
from ._values import queue_of

DONE, LEFT, WRONG, NO_GATEWAY = 0, 1, 2, 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="galley-migrate",
        description="Makes Galley jobs of what waits, is scheduled or is dead in a queue of another system. The "
        "gateway is GALLEY_URL, the key GALLEY_KEY. Exit code 0: all is moved; 1: some jobs were left where they are; "
        "2: the command line is wrong; 3: Redis or the gateway is away, run it again.",
        allow_abbrev=False,
    )
    parser.add_argument("system", choices=("rq", "celery", "bullmq", "sidekiq"))
    parser.add_argument("--redis", required=True, metavar="URL", help="where the other system is: redis://host:6379/0")
    parser.add_argument("--queue", required=True, help="the queue of the other system")
    parser.add_argument("--dry-run", action="store_true", help="show what would be made, and change nothing")
    parser.add_argument(
        "--to", metavar="QUEUE", help="the queue in Galley; else that of the task, else one of the same name"
    )
    parser.add_argument(
        "--app", metavar="module:app", help="the galley.App with the tasks: it places arguments by name"
    )
    parser.add_argument(
        "--type", action="append", default=[], metavar="OLD=NEW", help="the job type for a name of the other system"
    )
    parser.add_argument("--only", action="append", choices=STATES, help="jobs of this state only; repeatable")
    parser.add_argument(
        "--run-dead", action="store_true", help="run dead jobs again at once; else they are made pending"
    )
    parser.add_argument(
        "--unacked", action="store_true", help="of Celery: take what workers hold too; none may be running"
    )
    parser.add_argument("--prefix", help="of its keys: BullMQ's prefix, Celery's global_keyprefix, redis-namespace's")
    parser.add_argument("--url", help="of the gateway; GALLEY_URL unless given")
    return parser


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["redis"]:
        return copy_redis(arguments[1:])
    options = _parser().parse_args(arguments)
    try:
        redis = _connect(options.redis)
        choice = _choice(options)
        source = _source(redis, options)
    except (ValueError, ModuleNotFoundError) as error:
        print(f"galley-migrate: {error}", file=sys.stderr)
        return WRONG
    try:
        return _show(source, choice) if options.dry_run else _move(redis, Client(options.url), source, choice)
    except (Unavailable, *_redis_errors()) as error:
        print(f"galley-migrate: {error}. Nothing is lost: run it again", file=sys.stderr)
        return NO_GATEWAY
    except GalleyError as error:
        print(f"galley-migrate: {error}. What was taken waits in Redis: run it again", file=sys.stderr)
        return LEFT


def _connect(url: str) -> Any:
    try:
        import redis
    except ModuleNotFoundError:
        raise ModuleNotFoundError("needs redis-py: pip install 'galley-jobs[migrate]'") from None
    return redis.Redis.from_url(url)


def _redis_errors() -> tuple[type[Exception], type[Exception]]:
    from redis.exceptions import ConnectionError, TimeoutError

    return ConnectionError, TimeoutError


def _choice(options: argparse.Namespace) -> Choice:
    types = {}
    for pair in options.type:
        old, equals, new = pair.rpartition("=")
        if not equals or not old or not new:
            raise ValueError(f"say --type OLD=NEW, not {pair!r}")
        types[old] = new
    tasks = None
    to_queue = queue_of(options.to) if options.to else None
    if options.app:
        tasks = {type: _job_of(task) for type, task in find_app(options.app)._tasks.items()}
    elif to_queue is None:
        to_queue = queue_of(options.queue)
    states: frozenset[State] = frozenset(options.only or STATES)
    return Choice(options.system, options.queue, to_queue, states, types, tasks, options.run_dead)


def _job_of(task: Any) -> Any:
    return lambda *args, **kwargs: task.job(args, kwargs)


def _source(redis: Any, options: argparse.Namespace) -> Source:
    if options.unacked and options.system != "celery":
        raise ValueError("--unacked is for celery only")
    if options.system == "celery":
        return Celery(redis, options.queue, options.prefix, options.unacked)
    sources: dict[str, Callable[..., Source]] = {"rq": Rq, "bullmq": BullMq, "sidekiq": Sidekiq}
    return sources[options.system](redis, options.queue, options.prefix)


def _show(source: Source, choice: Choice) -> int:
    counts, left = dict.fromkeys(STATES, 0), []
    for planned in plan(source, choice):
        if isinstance(planned, Left):
            left.append(planned)
            continue
        found, job = planned
        counts[found.state] += 1
        rest = {name: value for name, value in job["options"].items() if name not in ("tags", "queue")}
        queue = job["options"].get("queue", "default")
        words = [found.state, found.id, "->", job["type"], json.dumps(job["args"]), f"in {queue}"]
        print(" ".join([*words, json.dumps(rest)] if rest else words))
    _tell(left, source)
    print(f"would make {_counted(counts)}; would leave {len(left)}")
    return LEFT if left else DONE


def _move(redis: Any, client: Client, source: Source, choice: Choice) -> int:
    report = Mover(redis, client, source, choice).run()
    _tell(report.left, source)
    before = f" ({report.were_there} more were there already)" if report.were_there else ""
    print(f"made {_counted(report.made)}{before}; left {len(report.left)}")
    return LEFT if report.left else DONE


def _counted(counts: dict[State, int]) -> str:
    return ", ".join(f"{counts[state]} {state}" for state in STATES)


def _tell(left: list[Left], source: Source) -> None:
    for job in left:
        print(f"left {job.id}: {job.reason}", file=sys.stderr)
    for note in source.notes():
        print(f"note: {note}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
