"""Celery: two forked processes, a prefetch of 128 for short tasks as its guide to optimising says, results in Redis."""

from celery import Celery
from peer_common import ARGUMENT, URL, jobs, measure

app = Celery("celery_peer", broker=URL, backend=URL)
app.conf.update(worker_prefetch_multiplier=128, broker_pool_limit=10, worker_send_task_events=False, result_expires=86400)


@app.task(name="noop")
def noop(_argument):
    return None


def enqueue():
    # One producer, so that no message opens a connection
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(jobs()):
            noop.apply_async((ARGUMENT,), producer=producer)


if __name__ == "__main__":
    measure(enqueue)
