"""The programs of the README and of the quick start do what these say."""

from __future__ import annotations

import ast
import contextlib
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from conftest import LIMIT_S, PACKAGE, Gateway


def write_programs(document: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Each Python block, in the file that its first line names."""
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n# (\S+\.py)\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == text.count("```python\n") > 0
    for name, program in blocks:
        (folder / name).write_text(program, encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    return write_programs(PACKAGE / "README.md", tmp_path)


def run(folder: pathlib.Path, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=2 * LIMIT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextlib.contextmanager
def running_worker(folder: pathlib.Path, app: str) -> Iterator[None]:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "PYTHONDONTWRITEBYTECODE": "1"}
    with (folder / "worker.log").open("w") as log:
        worker = subprocess.Popen([sys.executable, "-m", "galley", app], cwd=folder, env=environment, stderr=log)
    try:
        yield
    finally:
        worker.terminate()
        assert worker.wait(LIMIT_S) == 0


def test_the_quick_start_prints_what_it_says(gateway: Gateway, tmp_path: pathlib.Path) -> None:
    folder = write_programs(PACKAGE.parents[1] / "docs/quick-start.md", tmp_path)
    with running_worker(folder, "tasks:app"):
        assert run(folder, "main.py") == "hello ada\n"


def test_tasks_the_client_and_channels_do_what_the_readme_says(gateway: Gateway, folder: pathlib.Path) -> None:
    # The module of the middleware imports the app of the tasks
    with running_worker(folder, "middleware:app"):
        assert run(folder, "main.py").splitlines() == ["hello ada!", "hello bob?", "cancelled", "a.png at 80"]
        assert run(folder, "more.py").splitlines() == [
            "['hello ada!', 'hello bob!']",
            "hello carol!",
            "0 9 * * MON-FRI",
        ]
        assert run(folder, "channels.py").splitlines() == ["orders {'order': 7}", "True"]
    assert re.search(r"greet took \d", (folder / "worker.log").read_text())


def test_the_program_that_came_from_celery_runs_and_changes_few_lines(
    gateway: Gateway, name: str, tmp_path: pathlib.Path
) -> None:
    [diff] = re.findall(r"```diff\n(.*?)```", (PACKAGE / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = diff.splitlines()
    assert sum(line.startswith("+") for line in lines) < 30 > sum(line.startswith("-") for line in lines)
    before, after = ("\n".join(line[1:] for line in lines if line[:1] != sign) for sign in "+-")
    ast.parse(before)
    (tmp_path / "celery_shop.py").write_text(after, encoding="utf-8")
    program = """
from celery_shop import app, order_paid, build
with app.fake() as jobs:
    build.delay(7)
    jobs.drain()
    jobs.assert_enqueued("report.build", args=[7])
import threading
worker = app.worker(queues=["mail", "default"])
threading.Thread(target=worker.run, daemon=True).start()
print(order_paid("ada@example.org"))
"""
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    assert run(tmp_path, "program.py") == "14\n"


def test_the_tests_of_the_readme_pass(folder: pathlib.Path) -> None:
    assert "2 passed" in run(folder, "-m", "pytest", "-p", "no:cacheprovider", "test_tasks.py")
