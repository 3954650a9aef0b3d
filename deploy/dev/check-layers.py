#!/usr/bin/env python3
"""Checks which crate may depend on which (`cargo metadata`). Fails on arrows and crates that are not listed here."""

import json
import subprocess
import sys

# Normal and build dependencies. Arrows run down only.
ALLOWED = {
    "galley-common": set(),
    "galley-model": {"galley-common"},
    "galley-delivery": {"galley-common", "galley-model"},
    "galley-store": {"galley-common", "galley-model"},
    "galley-worker": {"galley-common", "galley-model", "galley-delivery", "galley-store"},
    "gateway": {"galley-common", "galley-model", "galley-delivery", "galley-store", "galley-worker"},
    "queue-worker": {"galley-common", "galley-worker"},
    "pubsub-worker": {"galley-common", "galley-model", "galley-delivery", "galley-store", "galley-worker"},
    "cli": {"galley-common", "galley-model", "galley-store"},
    "testkit": set(),
    "e2e": {"testkit", "galley-common", "galley-model", "galley-delivery"},
    "jobs-check": {"testkit", "galley-worker"},
    "bench": {"testkit", "e2e", "jobs-check", "galley-common", "galley-model", "galley-store", "galley-worker"},
    "galley-client": set(),
    "examples": {"galley-worker"},
    "rust-service": {"galley-client", "galley-worker"},
    "fuzz": {"galley-common", "galley-model", "galley-store"},
    "state-model": set(),
}
# Dependencies of tests, besides the normal ones and testkit.
ALLOWED_IN_TESTS = {"e2e": {"galley-delivery", "galley-client", "galley-store", "galley-worker"}}
REDIS_CLIENTS = {"redis", "deadpool-redis"}
KNOW_REDIS = {"galley-store", "testkit"}
# What a crate without IO must not bring along.
IO_CRATES = {"tokio", "actix-web", "hyper", "reqwest", "redis", "mio", "socket2", "tonic"}
PURE = "galley-model"


def cargo(*arguments):
    return subprocess.run(["cargo", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


def problems_of(package, members):
    name = package["name"]
    if name not in ALLOWED:
        yield f"{name}: not listed in deploy/dev/check-layers.py: say there what it may depend on"
        return
    for dependency in package["dependencies"]:
        target, kind = dependency["name"], dependency["kind"] or "normal"
        if target in REDIS_CLIENTS and name not in KNOW_REDIS:
            yield f"{name} -> {target} ({kind}): only {' and '.join(sorted(KNOW_REDIS))} know Redis"
        if target not in members or target in ALLOWED[name]:
            continue
        if kind == "dev" and (target == "testkit" or target in ALLOWED_IN_TESTS.get(name, ())):
            continue
        allowed = ", ".join(sorted(ALLOWED[name])) or "no crate of the workspace"
        yield f"{name} -> {target} ({kind}): {name} may depend on {allowed}"


def problems():
    packages = json.loads(cargo("metadata", "--format-version", "1", "--no-deps", "--locked"))["packages"]
    members = {package["name"] for package in packages}
    for package in packages:
        yield from problems_of(package, members)
    for name in sorted(set(ALLOWED) - members):
        yield f"{name}: listed in deploy/dev/check-layers.py, but not in the workspace"
    if PURE in members:
        tree = cargo("tree", "--package", PURE, "--edges", "normal", "--prefix", "none", "--locked")
        names = {line.split()[0] for line in tree.splitlines() if line.strip()}
        for name in sorted(names & IO_CRATES):
            yield f"{PURE} brings {name} along: `cargo tree -p {PURE} -e normal -i {name}` shows by which way"


failed = False
# One at a time: a circle, which is a problem found here, makes `cargo tree` fail
for problem in problems():
    print(problem, flush=True)
    failed = True
sys.exit(failed)
