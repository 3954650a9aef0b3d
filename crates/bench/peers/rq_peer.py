"""RQ: enqueue_many; two SimpleWorkers, which skip the fork for each job; results are kept."""

from peer_common import ARGUMENT, URL, jobs, measure
from redis import Redis
from rq import Queue


def noop(_argument):
    return None


def enqueue():
    import rq_peer

    queue = Queue("bench", connection=Redis.from_url(URL))
    prepared = [Queue.prepare_data(rq_peer.noop, (ARGUMENT,), result_ttl=86400) for _ in range(jobs())]
    for start in range(0, len(prepared), 1000):
        queue.enqueue_many(prepared[start : start + 1000])


if __name__ == "__main__":
    measure(enqueue)
