"""For development: runs the worker as a process of its own, and again whenever a source file changes."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
from types import FrameType

#: How often files are looked at.
EVERY_S = 0.3


def _changes() -> dict[str, int]:
    """When each source file below this folder changed. Hidden folders and environments are left out."""
    found = {}
    for folder, folders, files in os.walk("."):
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__", "node_modules"))]
        if "pyvenv.cfg" in files:
            folders.clear()
            continue
        for name in files:
            if name.endswith(".py"):
                path = pathlib.Path(folder, name)
                try:
                    found[str(path)] = path.stat().st_mtime_ns
                except OSError:
                    # It is gone already
                    continue
    return found


def run_reloading(arguments: list[str]) -> int:
    """Runs ``python -m galley`` with these arguments until SIGTERM or Ctrl-C."""
    stopped = threading.Event()
    process: subprocess.Popen[bytes] | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()
        if process is not None:
            process.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    while not stopped.is_set():
        before = _changes()
        # In a group of its own: Ctrl-C comes by way of this process
        process = subprocess.Popen([sys.executable, "-m", "galley", *arguments], start_new_session=True)
        while not stopped.wait(EVERY_S) and _changes() == before:
            pass
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait()
    return 0
