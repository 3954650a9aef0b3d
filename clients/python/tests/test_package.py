"""The wheel, installed into an empty environment, brings a job's result in under 20 lines."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import venv
import zipfile

from conftest import LIMIT_S, PACKAGE, Gateway, missing

TASKS = """
import galley

app = galley.App()

@app.task("greet", queue="QUEUE")
async def greet(name: str) -> str:
    return f"hello {name}"
"""
PROGRAM = """
import asyncio
from tasks import greet

print(asyncio.run(greet.wait("ada")))
"""


def test_the_wheel_brings_a_result_in_under_20_lines(gateway: Gateway, name: str, tmp_path: pathlib.Path) -> None:
    assert len((TASKS + PROGRAM).split("\n")) < 20
    if subprocess.run([sys.executable, "-c", "import flit_core"], stderr=subprocess.DEVNULL).returncode != 0:
        missing("flit_core is not installed")
    build = "import sys, flit_core.buildapi as build; print(build.build_wheel(sys.argv[1]))"
    run = dict(check=True, stdout=subprocess.PIPE, text=True, timeout=4 * LIMIT_S)
    made = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=PACKAGE, **run)
    wheel = tmp_path / made.stdout.strip()
    assert wheel.name.startswith("galley_jobs-")
    packed = zipfile.ZipFile(wheel).namelist()
    assert {"galley/py.typed", "galley/outbox/outbox.sql"} <= set(packed) and any(
        path.endswith("/LICENSE") for path in packed
    )
    assert (PACKAGE / "LICENSE").read_bytes() == (PACKAGE.parent.parent / "LICENSE").read_bytes()
    assert not [path for path in packed if "test" in path and path != "galley/_testing.py"]

    venv.create(tmp_path / "empty", with_pip=False)
    programs = tmp_path / "empty" / "bin"
    install = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "install", "--quiet", "--no-index"]
    subprocess.run([*install, str(wheel)], **run)
    (tmp_path / "tasks.py").write_text(TASKS.replace("QUEUE", name))
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    worker = subprocess.Popen([programs / "galley-worker", "tasks:app"], cwd=tmp_path, env=environment)
    try:
        printed = subprocess.run([programs / "python", "program.py"], cwd=tmp_path, env=environment, **run)
        assert printed.stdout == "hello ada\n"
    finally:
        worker.terminate()
        assert worker.wait(LIMIT_S) == 0
