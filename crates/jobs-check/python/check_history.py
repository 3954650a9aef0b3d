"""What handlers in Python write down: lines of JSON, synced to the disk before anybody goes on."""

import json
import os
import pathlib
import secrets
import time


def append(folder: str, file: str, name: str, event: dict) -> None:
    line = json.dumps({"at": int(time.monotonic() * 1000), "by": name, **event})
    descriptor = os.open(pathlib.Path(folder) / f"{file}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, line.encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def run(folder: str, file: str, name: str, id: str, attempt: int, args: list, cron: str | None = None) -> dict | None:
    """Runs a job; its result, or None if it fails, as planned."""
    key, behaviour = args[0], args[1]
    number = secrets.token_hex(8)
    started = {"event": "started", "run": number, "id": id, "key": key, "attempt": attempt}
    append(folder, file, name, started | ({"cron": cron} if cron else {}))
    time.sleep(behaviour["run_ms"] / 1000)
    is_redriven = not behaviour["fails_until_redriven"] or (pathlib.Path(folder) / f"redriven-{key}").exists()
    is_success = attempt > behaviour["failures"] and is_redriven
    append(folder, file, name, {"event": "finished", "run": number, "is_success": is_success})
    return {"run": number} if is_success else None
