"""taskiq: Redis streams, two processes on uvloop, 100 tasks at a time in each, results in Redis."""

import asyncio

from peer_common import ARGUMENT, URL, jobs, measure
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

CONCURRENCY = 100

broker = RedisStreamBroker(url=URL, xread_count=CONCURRENCY).with_result_backend(
    RedisAsyncResultBackend(redis_url=URL, result_ex_time=86400)
)


@broker.task(task_name="noop")
async def noop(_argument: str) -> None:
    return None


async def send_all():
    for start in range(0, jobs(), CONCURRENCY):
        await asyncio.gather(*(noop.kiq(ARGUMENT) for _ in range(start, min(start + CONCURRENCY, jobs()))))


async def enqueue():
    await broker.startup()
    await send_all()
    await broker.shutdown()


if __name__ == "__main__":
    measure(lambda: asyncio.run(enqueue()))
