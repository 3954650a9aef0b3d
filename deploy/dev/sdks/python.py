"""Does what the matrix of docs/sdks.md lists with the Open Job Spec's SDK for Python, as it is: python.py [--hook] URL. Prints a line
for each: what, a tab, and ok or what went wrong. --hook: with the hook of that page."""

import asyncio
import sys
import uuid

import httpx
import ojs
from ojs.transport.http import HTTPTransport

URL = sys.argv[-1]
QUEUE = f"py-{uuid.uuid4().hex[:8]}"
LIMIT_S = 20.0


async def until(look):
    """What it gives as soon as it gives something."""
    deadline = asyncio.get_running_loop().time() + LIMIT_S
    while not (found := await look()):
        assert asyncio.get_running_loop().time() < deadline, "waited in vain"
        await asyncio.sleep(0.05)
    return found


def transport():
    if "--hook" not in sys.argv:
        return None

    async def as_json(response):
        if response.headers.get("content-type") == "application/openjobspec+json":
            response.headers["content-type"] = "application/json"

    return HTTPTransport(URL, client=httpx.AsyncClient(base_url=URL, event_hooks={"response": [as_json]}))


async def main() -> None:
    client = ojs.Client(URL, transport=transport())
    worker = ojs.Worker(URL, queues=[QUEUE], poll_interval=0.1, transport=transport())
    failed: set[str] = set()

    @worker.register("sdk.echo")
    async def echo(context):
        return {"echo": context.args}

    @worker.register("sdk.fails_once")
    async def fails_once(context):
        if context.job.id not in failed:
            failed.add(context.job.id)
            raise ValueError("not yet")
        return {"attempt": context.attempt}

    @worker.register("sdk.fails")
    async def fails(context):
        raise ValueError("never")

    async def state(id: str, wanted: str):
        async def look():
            job = await client.get_job(id)
            return job if job.state.value == wanted else None

        return await until(look)

    retry = ojs.RetryPolicy(max_attempts=2, initial_interval="PT0.1S")

    async def enqueue():
        job = await client.enqueue("sdk.parked", [1, {"a": [True, None]}], queue=f"{QUEUE}-parked", tags=["x"], meta={"m": 1})
        assert (job.state.value, job.args, job.meta) == ("available", [1, {"a": [True, None]}], {"m": 1}), job

    async def many():
        jobs = await client.enqueue_batch([ojs.JobRequest("sdk.parked", [n], queue=f"{QUEUE}-parked") for n in range(3)])
        assert [job.args for job in jobs] == [[0], [1], [2]], jobs

    async def look_up():
        job = await client.enqueue("sdk.parked", [1], queue=f"{QUEUE}-parked")
        assert (await client.get_job(job.id)).args == [1]

    async def cancel():
        job = await client.enqueue("sdk.parked", [1], queue=f"{QUEUE}-parked")
        assert (await client.cancel_job(job.id)).state.value == "cancelled"

    async def work():
        job = await client.enqueue("sdk.echo", ["a"], queue=QUEUE)
        assert (await state(job.id, "completed")).result == {"echo": ["a"]}

    async def retried():
        job = await client.enqueue("sdk.fails_once", [], queue=QUEUE, retry=retry)
        assert (await state(job.id, "completed")).result == {"attempt": 2}

    async def discarded():
        job = await client.enqueue("sdk.fails", [], queue=QUEUE, retry=retry)
        found = await state(job.id, "discarded")
        assert found.errors and "never" in found.errors[-1]["message"], found.errors

    async def dead_letter():
        job = await client.enqueue("sdk.fails", [], queue=QUEUE, retry=ojs.RetryPolicy(max_attempts=1))
        await state(job.id, "discarded")
        assert job.id in [dead["id"] for dead in (await client.list_dead_letter_jobs(queue=QUEUE))["jobs"]]
        assert (await client.retry_dead_letter_job(job.id)).state.value == "available"

    async def unique():
        policy = ojs.UniquePolicy(keys=["type", "args"], on_conflict="reject", period="PT1M")
        await client.enqueue("sdk.parked", ["u"], queue=f"{QUEUE}-parked", unique=policy)
        try:
            await client.enqueue("sdk.parked", ["u"], queue=f"{QUEUE}-parked", unique=policy)
        except ojs.DuplicateJobError:
            return
        raise AssertionError("the duplicate was not refused")

    async def workflow(definition):
        made = await client.workflow(definition)

        async def look():
            found = await client.get_workflow(made.id)
            return found if found.state == "completed" else None

        await until(look)

    def jobs(count: int):
        return [ojs.JobRequest("sdk.echo", [n], queue=QUEUE) for n in range(count)]

    async def cron():
        await client.register_cron_job(QUEUE, "0 3 * * *", "sdk.echo", [], queue=QUEUE)
        assert QUEUE in str(await client.list_cron_jobs())
        await client.unregister_cron_job(QUEUE)

    async def queues():
        assert f"{QUEUE}-parked" in [queue.name for queue in await client.list_queues()]
        await client.pause_queue(f"{QUEUE}-parked")
        await client.resume_queue(f"{QUEUE}-parked")
        await client.queue_stats(f"{QUEUE}-parked")

    async def health():
        assert (await client.health())["status"] == "ok"
        assert "ojs" in str(await client.manifest())

    working = asyncio.create_task(worker.start())
    for name, attempt in [
        ("enqueue", enqueue),
        ("enqueue many", many),
        ("look up", look_up),
        ("cancel", cancel),
        ("unique", unique),
        ("work", work),
        ("retry", retried),
        ("discard", discarded),
        ("dead letters", dead_letter),
        ("chain", lambda: workflow(ojs.chain("c", jobs(2)))),
        ("group", lambda: workflow(ojs.group("g", jobs(2)))),
        ("batch", lambda: workflow(ojs.batch("b", jobs(2), on_success=jobs(1)[0]))),
        ("cron", cron),
        ("queues", queues),
        ("health, manifest", health),
    ]:
        try:
            await asyncio.wait_for(attempt(), LIMIT_S)
            said = "ok"
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"{name}\t{said}", flush=True)
    await worker.stop()
    await asyncio.wait({working}, timeout=5)


asyncio.run(main())
