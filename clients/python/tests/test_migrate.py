"""What waits in other systems becomes Galley jobs, once each. RQ, Celery and BullMQ make the jobs themselves; those of
Sidekiq are as its wiki describes them."""

from __future__ import annotations

import ast
import datetime
import importlib
import importlib.util
import json
import os
import pathlib
import pickle
import re
import shlex
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import LIMIT_S, PACKAGE, Gateway, eventually, missing

import galley
from galley.migrate import _move
from galley.migrate.__main__ import _parser, main

SYSTEMS = ("rq", "celery", "bullmq", "sidekiq")
#: The app that the jobs move to.
APP = """
import galley

app = galley.App()


@app.task("mail.send", queue="QUEUE")
def send(to: str, subject: str = "hello", *, at: str | None = None) -> str:
    return f"{subject} to {to} at {at}"
"""
#: The functions of the old program.
OLD = """
def send(to, subject="hello", at=None):
    if to == "nobody":
        raise KeyError("no such person")


class Person:
    pass
"""


class Migration:
    """The Redis of another system, and the command."""

    def __init__(self, redis: Any, url: str, client: galley.Client, capsys: pytest.CaptureFixture[str]) -> None:
        self.redis, self.url, self.client, self._capsys = redis, url, client, capsys

    def run(self, system: str, queue: str, *options: str) -> tuple[int, list[str], list[str]]:
        """The exit code, and the lines of both outputs."""
        self._capsys.readouterr()
        code = main([system, "--redis", self.url, "--queue", queue, *options])
        out, err = self._capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    def jobs(self, migrated_from: str) -> dict[str, Any]:
        """Jobs in Galley by where they came from."""
        found: dict[str, Any] = {}
        after = ""
        while True:
            path = f"/ojs/v1/admin/jobs?tag=migrated&limit=200{after}"
            page = self.client._connection().call("GET", path)
            for job in page["items"]:
                origin = job["meta"]["migrated_from"]
                if origin.startswith(migrated_from):
                    assert origin not in found, "a job was made twice"
                    found[origin] = job
            if page["next"] is None:
                return found
            after = f"&after={page['next']}"

    def snapshot(self) -> dict[bytes, bytes]:
        return {key: self.redis.dump(key) for key in self.redis.scan_iter()}


@pytest.fixture
def migration(gateway: Gateway, redis_url: str, capsys: pytest.CaptureFixture[str]) -> Iterator[Migration]:
    for module in ("redis", "rq", "celery"):
        if importlib.util.find_spec(module) is None:
            missing(f"{module} is not installed")
    import redis

    # Galley has the first database
    url = f"{redis_url}/1"
    with redis.Redis.from_url(url) as connection:
        connection.flushdb()
        yield Migration(connection, url, galley.Client(gateway.url), capsys)


@pytest.fixture
def modules(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[Any]:
    """Both programs in a folder; gives the app of the new one."""
    (tmp_path / f"new_{name}.py").write_text(APP.replace("QUEUE", name))
    (tmp_path / "old_shop.py").write_text(OLD)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield importlib.import_module(f"new_{name}").app


def results(app: galley.App, start: Callable[[galley.Worker], galley.Worker], jobs: list[Any]) -> list[Any]:
    start(app.worker())
    return [app.client.result(job["id"], LIMIT_S) for job in jobs]


def test_jobs_of_rq_move(
    migration: Migration, modules: galley.App, name: str, start: Callable[[galley.Worker], galley.Worker]
) -> None:
    import old_shop
    from rq import Queue, Retry, SimpleWorker

    queue = Queue(name, connection=migration.redis)
    dead = queue.enqueue(old_shop.send, "nobody")
    SimpleWorker([queue], connection=migration.redis).work(burst=True, logging_level="CRITICAL")
    at = datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)
    first = queue.enqueue("old_shop.send", "ada", subject="hi", at=at, job_timeout=60, meta={"tenant": "a"})
    retried = queue.enqueue("old_shop.send", "bob", retry=Retry(max=4, interval=30))
    json_queue = Queue(name, connection=migration.redis, serializer="json")
    written = json_queue.enqueue("old_shop.send", "carol")
    later = queue.enqueue_in(datetime.timedelta(hours=1), "old_shop.send", "dave")
    [(_, due)] = migration.redis.zrange(f"rq:scheduled:{name}", 0, -1, withscores=True)
    waits = queue.enqueue("old_shop.send", "eve", depends_on=first)
    foreign = queue.enqueue("old_shop.send", old_shop.Person())

    words = ("rq", name, "--app", f"new_{name}:app", "--type", "old_shop.send=mail.send")
    before = migration.snapshot()
    code, out, err = migration.run(*words, "--dry-run")
    assert (code, migration.snapshot(), migration.jobs(f"rq:{name}:")) == (1, before, {})
    assert out[-1] == "would make 3 waiting, 1 scheduled, 1 dead; would leave 2"
    assert f'waiting {first.id} -> mail.send ["ada", "hi", "2026-01-02T00:00:00+00:00"] in {name}' in out[0]
    assert any(waits.id in line and "waits for other jobs" in line for line in err)
    assert any(foreign.id in line and "old_shop.Person" in line for line in err)

    code, out, _ = migration.run(*words)
    assert (code, out) == (1, ["made 3 waiting, 1 scheduled, 1 dead; left 2"])
    jobs = {id.rpartition(":")[2]: job for id, job in migration.jobs(f"rq:{name}:").items()}
    assert set(jobs) == {job.id for job in (dead, first, retried, written, later)}
    assert (jobs[first.id]["timeout_ms"], jobs[first.id]["meta"]["tenant"]) == (60_000, "a")
    assert jobs[retried.id]["max_attempts"] == 5
    assert jobs[later.id]["state"] == "scheduled"
    assert abs(milliseconds(jobs[later.id]["scheduled_at"]) / 1000 - due) < 1
    assert (jobs[dead.id]["state"], jobs[dead.id]["meta"]["migrated_error"]) == (
        "pending",
        "KeyError: 'no such person'",
    )
    # Nothing is left for RQ but what it must finish itself
    assert queue.job_ids == [foreign.id]

    modules.client.activate(jobs[dead.id]["id"])
    done = results(modules, start, [jobs[job.id] for job in (first, retried, written, dead)])
    assert done == [
        "hi to ada at 2026-01-02T00:00:00+00:00",
        "hello to bob at None",
        "hello to carol at None",
        "hello to nobody at None",
    ]
    code, out, _ = migration.run(*words)
    assert out == ["made 0 waiting, 0 scheduled, 0 dead; left 2"]


def milliseconds(time: str) -> float:
    return datetime.datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp() * 1000


def test_a_pickle_runs_nothing(migration: Migration, name: str, tmp_path: pathlib.Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "made"),))

    data = zlib.compress(pickle.dumps(("a.b", None, (Evil(),), {})))
    migration.redis.hset("rq:job:evil", mapping={"data": data})
    migration.redis.rpush(f"rq:queue:{name}", "evil")
    code, out, err = migration.run("rq", name)
    assert (code, out) == (1, ["made 0 waiting, 0 scheduled, 0 dead; left 1"])
    assert "only plain values" in err[0] and not (tmp_path / "made").exists()


def test_jobs_of_celery_move(
    migration: Migration, modules: galley.App, name: str, start: Callable[[galley.Worker], galley.Worker]
) -> None:
    from celery import Celery, chain
    from celery.contrib.testing.worker import start_worker

    old = Celery("shop", broker=migration.url, backend=migration.url, task_default_queue=name, result_extended=True)
    old.conf.update(accept_content=["json", "pickle"], worker_hijack_root_logger=False)

    @old.task(name="mail.send")
    def send(to: str, subject: str = "hello", at: Any = None) -> None:
        raise KeyError("no such person")

    with start_worker(old, perform_ping_check=False, pool="solo", loglevel="CRITICAL", shutdown_timeout=LIMIT_S):
        dead = send.delay("nobody")
        held = send.apply_async(("carol",), countdown=3600)
        eventually("the failure", lambda: True if dead.state == "FAILURE" else None)
        eventually("the worker holds it", lambda: True if migration.redis.hlen("unacked") else None)
        code, out, err = migration.run("celery", name, "--dry-run", "--only", "scheduled")
        assert (code, out) == (0, ["would make 0 waiting, 0 scheduled, 0 dead; would leave 0"])
        assert err[0].startswith("note: 1 are with workers")
        taken = migration.run("celery", name, "--dry-run", "--unacked", "--only", "scheduled")
        assert taken[1][-1] == "would make 0 waiting, 1 scheduled, 0 dead; would leave 0"
    # A worker that stops gives it back
    first = send.delay("ada", subject="hi")
    pickled = send.apply_async(("bob",), {"at": datetime.date(2026, 1, 2)}, serializer="pickle", priority=6)
    linked = chain(send.si("x"), send.si("y")).delay()
    del linked

    words = ("celery", name, "--app", f"new_{name}:app")
    before = migration.snapshot()
    code, out, err = migration.run(*words, "--dry-run")
    assert (code, migration.snapshot()) == (1, before)
    assert out[-1] == "would make 2 waiting, 1 scheduled, 1 dead; would leave 1"
    assert any("other tasks hang on it (chain)" in line for line in err)
    assert migration.run(*words)[:2] == (1, ["made 2 waiting, 1 scheduled, 1 dead; left 1"])
    jobs = {id.rpartition(":")[2]: job for id, job in migration.jobs(f"celery:{name}:").items()}
    assert set(jobs) == {dead.id, held.id, first.id, pickled.id}
    assert [jobs[job.id]["state"] for job in (held, dead)] == ["scheduled", "pending"]
    assert jobs[dead.id]["meta"]["migrated_error"] == "KeyError: ['no such person']"
    assert jobs[pickled.id]["priority"] == -6
    done = results(modules, start, [jobs[first.id], jobs[pickled.id]])
    assert done == ["hi to ada at None", "hello to bob at 2026-01-02"]
    # The result of the failure stays for its reader, and is not made again
    assert migration.run(*words)[1] == ["made 0 waiting, 0 scheduled, 0 dead; left 1"]


BULLMQ = """
import { FlowProducer, Queue, Worker } from "bullmq";
import IORedis from "ioredis";
const [url, name] = process.argv.slice(2);
const connection = new IORedis(url, { maxRetriesPerRequest: null });
const queue = new Queue(name, { connection });
const worker = new Worker(name, async () => { throw new Error("no such person"); }, { connection });
const dead = queue.add("sendMail", { to: "nobody" }, { jobId: "dead" });
await new Promise((resolve) => worker.on("failed", resolve));
await worker.close();
await queue.add("sendMail", { to: "ada" }, { jobId: "first" });
await queue.add("sendMail", { to: "bob" }, { jobId: "second", priority: 7 });
const backoff = { type: "exponential", delay: 2000 };
await queue.add("sendMail", { to: "carol" }, { jobId: "later", delay: 3_600_000, attempts: 5, backoff });
await queue.upsertJobScheduler("nightly", { pattern: "0 3 * * *" }, { name: "sweep", data: {} });
const flow = new FlowProducer({ connection });
const child = { name: "child", queueName: name, data: {}, opts: { jobId: "child" } };
await flow.add({ name: "parent", queueName: name, data: {}, opts: { jobId: "parent" }, children: [child] });
console.log(Date.now() + 3_600_000);
await queue.close();
await flow.close();
connection.disconnect();
"""


def test_jobs_of_bullmq_move(
    migration: Migration, name: str, tmp_path: pathlib.Path, start: Callable[[galley.Worker], galley.Worker]
) -> None:
    folder = os.environ.get("GALLEY_TEST_NODE_FOLDER")
    if folder is None:
        missing("GALLEY_TEST_NODE_FOLDER is not set")
    (tmp_path / "node_modules").symlink_to(pathlib.Path(str(folder)) / "node_modules")
    (tmp_path / "jobs.mjs").write_text(BULLMQ)
    command = ["node", "jobs.mjs", migration.url, name]
    due = int(subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=4 * LIMIT_S).stdout)

    before = migration.snapshot()
    code, out, err = migration.run("bullmq", name, "--dry-run")
    assert (code, migration.snapshot()) == (1, before)
    assert out[-1] == "would make 2 waiting, 1 scheduled, 1 dead; would leave 3"
    assert 'waiting first -> send_mail [{"to": "ada"}]' in out[0]
    reasons = {line.split()[1].rstrip(":").split(":")[0]: line for line in err}
    assert "child of a flow" in reasons["child"] and "its children" in reasons["parent"]
    assert "comes from a schedule (0 3 * * *)" in reasons["repeat"]

    assert migration.run("bullmq", name)[:2] == (1, ["made 2 waiting, 1 scheduled, 1 dead; left 3"])
    jobs = {id.rpartition(":")[2]: job for id, job in migration.jobs(f"bullmq:{name}:").items()}
    assert {id: job["state"] for id, job in jobs.items()} == {
        "first": "available",
        "second": "available",
        "later": "scheduled",
        "dead": "pending",
    }
    assert (jobs["second"]["priority"], jobs["later"]["max_attempts"]) == (-7, 5)
    assert abs(milliseconds(jobs["later"]["scheduled_at"]) - due) < 60_000
    assert jobs["dead"]["meta"]["migrated_error"] == "no such person"
    worker = galley.Worker(queues=[name])
    worker.job("send_mail")(lambda _, data: f"sent to {data['to']}")
    start(worker)
    assert migration.client.result(jobs["first"]["id"], LIMIT_S) == "sent to ada"
    assert migration.run("bullmq", name)[1] == ["made 0 waiting, 0 scheduled, 0 dead; left 3"]


def test_jobs_of_sidekiq_move(migration: Migration, name: str) -> None:
    now = time.time()
    job = {"class": "Shop::MailJob", "queue": name, "retry": True, "created_at": now, "args": ["ada", 7]}
    inside = {"job_class": "SmsJob", "arguments": [{"to": "bob", "_aj_symbol_keys": ["to"]}]}
    wrapper = {"class": "ActiveJob::QueueAdapters::SidekiqAdapter::JobWrapper", "wrapped": "SmsJob", "args": [inside]}
    failed = {"error_class": "KeyError", "error_message": "no such person", "failed_at": now}
    push: Callable[[dict[str, Any]], str] = json.dumps
    lists = migration.redis
    lists.lpush(f"queue:{name}", push({**job, "jid": "first"}))
    lists.lpush(f"queue:{name}", push({**job, **wrapper, "jid": "active", "created_at": int(now * 1000)}))
    lists.lpush(f"queue:{name}", push({**job, "jid": "batch", "bid": "b1"}))
    lists.lpush(f"queue:{name}", push({**job, "jid": "once", "retry": False}))
    lists.zadd("schedule", {push({**job, "jid": "later"}): now + 3600, push({**job, "jid": "x", "queue": "o"}): 1})
    lists.zadd("retry", {push({**job, **failed, "jid": "again", "retry": 5, "retry_count": 2}): now + 60})
    lists.zadd("dead", {push({**job, **failed, "jid": "dead"}): now})

    before = migration.snapshot()
    code, out, err = migration.run("sidekiq", name, "--dry-run")
    assert (code, migration.snapshot()) == (1, before)
    assert out[-1] == "would make 3 waiting, 2 scheduled, 1 dead; would leave 1"
    assert [line.split()[:2] for line in out[:3]] == [["waiting", "first"], ["waiting", "active"], ["waiting", "once"]]
    assert "belongs to a batch" in err[0]
    assert migration.run("sidekiq", name)[:2] == (1, ["made 3 waiting, 2 scheduled, 1 dead; left 1"])
    jobs = {id.rpartition(":")[2]: job for id, job in migration.jobs(f"sidekiq:{name}:").items()}
    assert {id: (job["type"], job["state"], job["args"]) for id, job in jobs.items()} == {
        "first": ("shop.mail_job", "available", ["ada", 7]),
        "active": ("sms_job", "available", [{"to": "bob"}]),
        "once": ("shop.mail_job", "available", ["ada", 7]),
        "later": ("shop.mail_job", "scheduled", ["ada", 7]),
        "again": ("shop.mail_job", "scheduled", ["ada", 7]),
        "dead": ("shop.mail_job", "pending", ["ada", 7]),
    }
    assert [jobs[id]["max_attempts"] for id in ("once", "again")] == [1, 3]
    assert jobs["dead"]["meta"]["migrated_error"] == "KeyError: no such person"
    # That of the other queue and that of the batch are where they were
    assert (lists.zcard("schedule"), lists.llen(f"queue:{name}"), lists.zcard("dead")) == (1, 1, 0)


def fill(migration: Migration, name: str, count: int) -> None:
    for number in range(count):
        payload = {"class": "a.b", "queue": name, "jid": str(number), "args": [number], "retry": True}
        migration.redis.lpush(f"queue:{name}", json.dumps(payload))


@pytest.mark.parametrize("where", ["before the request", "before it is noted"])
def test_a_run_that_ends_anywhere_is_continued(
    migration: Migration, name: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 2 * _move.BATCH + 50
    fill(migration, name, count)

    class Killed(BaseException):
        pass

    with monkeypatch.context() as patch:
        calls = 0
        patched: Any = _move.Mover
        attribute = "_make" if where == "before the request" else "_note"
        original = getattr(patched, attribute)

        def killed(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == (2 if attribute == "_make" else _move.BATCH + 30):
                raise Killed
            return original(*args)

        patch.setattr(patched, attribute, killed)
        with pytest.raises(Killed):
            migration.run("sidekiq", name)
    assert migration.redis.hlen(f"galley-migrate:sidekiq:{name}:taken") > 0
    code, out, _ = migration.run("sidekiq", name)
    were_there = 0 if attribute == "_make" else _move.BATCH - 29
    made = count - (_move.BATCH if attribute == "_make" else 2 * _move.BATCH)
    more = f" ({were_there} more were there already)" if were_there else ""
    assert (code, out) == (0, [f"made {made} waiting, 0 scheduled, 0 dead{more}; left 0"])
    jobs = migration.jobs(f"sidekiq:{name}:")
    assert sorted(job["args"][0] for job in jobs.values()) == list(range(count))
    assert migration.redis.hlen(f"galley-migrate:sidekiq:{name}:taken") == 0


def test_a_job_goes_to_one_side_while_the_other_system_works(migration: Migration, name: str) -> None:
    fill(migration, name, 300)
    old: list[int] = []

    def work() -> None:
        while (payload := migration.redis.rpop(f"queue:{name}")) is not None:
            old.append(json.loads(payload)["args"][0])

    worker = threading.Thread(target=work)
    worker.start()
    assert migration.run("sidekiq", name)[0] == 0
    worker.join(LIMIT_S)
    moved = [job["args"][0] for job in migration.jobs(f"sidekiq:{name}:").values()]
    assert sorted([*old, *moved]) == list(range(300))


def test_what_the_gateway_refuses_returns_to_where_it_was(migration: Migration, name: str) -> None:
    jobs = [{"class": "a.b", "queue": name, "jid": f"{n}", "args": [n]} for n in range(2)]
    bad = {"class": "a.b", "queue": name, "jid": "bad", "args": [], "retry": 10**9}
    large = {"class": "a.b", "queue": name, "jid": "large", "args": ["x" * 9_000_000]}
    for job in (jobs[0], bad, large, jobs[1]):
        migration.redis.lpush(f"queue:{name}", json.dumps(job))
    code, out, err = migration.run("sidekiq", name)
    assert (code, out) == (1, ["made 2 waiting, 0 scheduled, 0 dead; left 2"])
    assert [line.split(":")[0] for line in err[:2]] == ["left bad", "left large"]
    assert {json.loads(text)["jid"] for text in migration.redis.lrange(f"queue:{name}", 0, -1)} == {"bad", "large"}


def test_what_is_damaged_stays_and_the_others_move(migration: Migration, name: str) -> None:
    deep: Any = 1
    for _ in range(80):
        deep = [deep]
    good = {"class": "a.b", "queue": name, "jid": "good", "args": [1], "retry": True}
    damaged = {
        "nan": {**good, "args": [float("nan")]},
        "deep": {**good, "args": [deep]},
        "no class": {"queue": name, "jid": "no class"},
        "empty": {**good, "wrapped": "a.b", "args": []},
        "odd": {**good, "retry": [1]},
    }
    for id, payload in damaged.items():
        migration.redis.lpush(f"queue:{name}", json.dumps({**payload, "jid": id}))
    for text in ("[1]", "{", json.dumps(good)):
        migration.redis.lpush(f"queue:{name}", text)
    migration.redis.zadd("schedule", {json.dumps({**good, "jid": "far"}): 1e300})
    for made in (1, 0):
        code, out, err = migration.run("sidekiq", name)
        assert (code, out) == (1, [f"made {made} waiting, 0 scheduled, 0 dead; left 8"])
        assert sum(line.startswith("left ") for line in err) == 8, err
    assert migration.redis.llen(f"queue:{name}") == 7 and migration.redis.zcard("schedule") == 1
    assert migration.redis.hlen(f"galley-migrate:sidekiq:{name}:taken") == 0
    migration.redis.flushdb()


def test_celerys_damaged_messages_stay(migration: Migration, name: str) -> None:
    head = {"task": "a.b", "id": "1"}
    properties = {"body_encoding": "base64"}
    for body in ("!", "W10=", "WzFd"):
        message = {"headers": head, "properties": properties, "content-type": "application/json", "body": body}
        migration.redis.lpush(name, json.dumps(message))
    migration.redis.hset("unacked", "tag", "no JSON")
    code, out, err = migration.run("celery", name)
    assert (code, out) == (1, ["made 0 waiting, 0 scheduled, 0 dead; left 3"]), err
    assert migration.redis.llen(name) == 3
    migration.redis.flushdb()


def test_a_job_that_another_one_is_in_the_way_of_stays(migration: Migration, name: str, tmp_path: pathlib.Path) -> None:
    client = migration.client
    holder = client.enqueue("a.b", 1, queue=name, unique={"keys": ["type"]})
    job: dict[str, Any] = {"id": "019539a4-b68c-7def-8000-1a2b3c4d5e6f", "type": "a.b", "args": [2]}
    job["options"] = {"queue": name, "unique": {"keys": ["type"]}}
    mover = _move.Mover(migration.redis, client, None, _move.Choice("sidekiq", name, None))  # type: ignore[arg-type]
    place = {"kind": "tail", "key": f"queue:{name}", "score": 0, "member": "eA==", "value": ""}
    entry = json.dumps({"from": "one", "state": "waiting", "place": place, "job": job}).encode()
    mover._finish({job["id"].encode(): entry})
    assert mover.report.were_there == 0 and holder["id"] in mover.report.left[0].reason
    assert migration.redis.rpop(f"queue:{name}") == b"x", "it is back"


def test_the_command_says_what_is_wrong(migration: Migration, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert migration.run("rq", name, "--type", "x")[0] == 2
    assert migration.run("rq", name, "--unacked")[2] == ["galley-migrate: --unacked is for celery only"]
    assert migration.run("rq", "_")[0] == 2
    fill(migration, name, 3)
    monkeypatch.setattr(galley.Client, "__init__", _impatient(galley.Client.__init__))
    code, _, err = migration.run("sidekiq", name, "--url", "http://127.0.0.1:1")
    assert code == 3 and err[0].endswith("run it again")
    assert migration.run("sidekiq", name)[1] == ["made 3 waiting, 0 scheduled, 0 dead; left 0"]


def _impatient(original: Callable[..., None]) -> Callable[..., None]:
    return lambda self, url=None: original(self, url, 0.1)


def test_the_commands_and_options_of_the_document_exist() -> None:
    document = (PACKAGE.parent.parent / "docs" / "migrate.md").read_text(encoding="utf-8")
    commands = re.findall(r"^galley-migrate (.*)$", document, re.MULTILINE)
    assert {_parser().parse_args(shlex.split(command)).system for command in commands} == set(SYSTEMS)
    known = {option for action in _parser()._actions for option in action.option_strings} - {"-h", "--help"}
    assert set(re.findall(r"^\| `(--[a-z-]+)` \|", document, re.MULTILINE)) == known


def test_the_program_of_the_page_about_rq_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (PACKAGE.parent.parent / "docs" / "from-rq.md").read_text(encoding="utf-8")
    [diff] = re.findall(r"```diff\n(.*?)```", page, re.DOTALL)
    before, after = ("\n".join(line[1:] for line in diff.splitlines() if line[:1] != sign) for sign in "+-")
    ast.parse(before)
    program: dict[str, Any] = {"__name__": "shop"}
    exec(after, program)
    with program["app"].inline():
        assert program["order_paid"]("ada") == "thanks for ada"
    with program["app"].fake() as jobs:
        with pytest.raises(TimeoutError):
            program["order_paid"]("ada")
        jobs.assert_enqueued("email.send", args=["ada", "how was it?"], queue="mail", count=1)
