"""What the programs here share: they store jobs and print how long that took."""

import os
import sys
import time

URL = os.environ["PEER_REDIS_URL"]
ARGUMENT = "x" * 200


def jobs():
    return int(sys.argv[2])


def measure(enqueue):
    began = time.perf_counter()
    enqueue()
    print(f"enqueued {jobs()} {time.perf_counter() - began}", flush=True)
