#!/usr/bin/env python3
"""Measures what the dashboard costs with 1,000 queues and a million jobs: docs/dashboard.md has the results.

usage: deploy/dev/dashboard-cost.py [FOLDER OF THE PROGRAMS, target/dist unless given] [filled-redis, which cargo builds else]
"""

import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

QUEUES = 1000
COMPLETED, DISCARDED = 980, 20
VISITS, VIEWERS, SECONDS = 300, 50, 40

def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(url, **headers):
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)


def follow(url, stop):
    with get(url, Accept="text/event-stream") as stream:
        while not stop.is_set() and stream.read1(65536):
            pass


def cpu_seconds(process):
    words = open(f"/proc/{process.pid}/stat", encoding="ascii").read().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def main():
    programs = sys.argv[1] if len(sys.argv) > 1 else "target/dist"
    redis_port, port = free_port(), free_port()
    base, folder = f"http://127.0.0.1:{port}", tempfile.mkdtemp()

    def redis(*words, text=None):
        command = ["redis-cli", "-p", str(redis_port), *words]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout.strip()

    def commands_run():
        lines = re.findall(r"cmdstat_(\S+?):calls=(\d+)", redis("INFO", "commandstats"))
        return sum(int(calls) for name, calls in lines if name not in ("info", "config|resetstat"))

    server = subprocess.Popen(
        ["redis-server", "--port", str(redis_port), "--save", "", "--dir", folder], stdout=subprocess.DEVNULL
    )
    environment = {
        **os.environ,
        "GALLEY__REDIS__URL": f"redis://127.0.0.1:{redis_port}",
        "GALLEY__GATEWAY__LISTEN": f"127.0.0.1:{port}",
        "GALLEY__LOG__LEVEL": "warn",
    }
    time.sleep(1)
    gateway = subprocess.Popen([f"{programs}/gateway"], env=environment, stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                get(f"{base}/health/ready").close()
                break
            except OSError:
                time.sleep(0.1)
        fill = sys.argv[2:3] or ["cargo", "run", "--quiet", "--package", "testkit", "--bin", "filled-redis", "--"]
        url, counts = f"redis://127.0.0.1:{redis_port}/0", (QUEUES, COMPLETED, DISCARDED)
        subprocess.run([*fill, url, *map(str, counts)], check=True)
        print(f"{QUEUES} queues, {QUEUES * (COMPLETED + DISCARDED)} jobs, {redis('DBSIZE')} keys")
        measure(base, gateway, commands_run)
    finally:
        gateway.terminate()
        server.terminate()


def measure(base, gateway, commands_run):
    html = "text/html"
    times = []
    for visit in range(VISITS):
        with get(base + "/", Accept=html) as answer:
            times.append(float(answer.headers["server-timing"].split("dur=")[1]))
            page = answer.read()
        # Now and then after so long that the page looks at Redis itself
        time.sleep(1.7 if visit % 15 == 0 else 0.01)
    assets = set(re.findall(rb"/ui/assets/[\w.-]+", page))
    size = len(page) + sum(len(get(base + path.decode()).read()) for path in assets)
    print(f"home page: first {times[0]:.1f} ms, median {statistics.median(times[1:]):.1f} ms, "
          f"longest {max(times[1:]):.1f} ms of server time in {VISITS} visits")
    print(f"first visit: {size / 1000:.1f} kB in {1 + len(assets)} requests, not compressed")
    for path in ("/ui/jobs", "/ui/queues", "/ui/dead-letters", "/ui/jobs?q=state%3Adiscarded"):
        with get(base + path, Accept=html) as answer:
            print(f"{path}: {float(answer.headers['server-timing'].split('dur=')[1]):.1f} ms")
    for viewers in (0, 1, VIEWERS):
        stop = threading.Event()
        for _ in range(viewers):
            threading.Thread(target=follow, args=(f"{base}/ui/live?page=overview", stop), daemon=True).start()
        time.sleep(3)
        cpu, commands, began = cpu_seconds(gateway), commands_run(), time.monotonic()
        time.sleep(SECONDS)
        elapsed = time.monotonic() - began
        print(f"{viewers} viewers: {(cpu_seconds(gateway) - cpu) / elapsed * 100:.2f} % of a core, "
              f"{(commands_run() - commands) / elapsed:.1f} Redis commands a second")
        stop.set()


main()
