"""dramatiq: two processes with eight threads each, results in Redis."""

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from peer_common import ARGUMENT, URL, jobs, measure

broker = RedisBroker(url=URL)
broker.add_middleware(Results(backend=RedisBackend(url=URL), store_results=True, result_ttl=86_400_000))
dramatiq.set_broker(broker)


# It warns of results without a value, so there is one
@dramatiq.actor(actor_name="noop")
def noop(_argument):
    return 0


def enqueue():
    for _ in range(jobs()):
        noop.send(ARGUMENT)


if __name__ == "__main__":
    measure(enqueue)
