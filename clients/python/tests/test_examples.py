"""The example apps: the commands of their READMEs, run as they are but for the ports."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import pathlib
import re
import shutil
import signal
import site
import socket
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import LIMIT_S, PACKAGE, Gateway, eventually, missing

import galley

ROOT = PACKAGE.parent.parent
#: Commands that run until they are stopped.
SERVICES = ("galley-worker ", "python -m flask ")


class Shell:
    """Runs the commands of a README one after the other, in a copy of its folder and an environment of its own."""

    def __init__(self, folder: pathlib.Path, variables: dict[str, str]) -> None:
        self._folder, self._variables = folder, variables
        self._services: list[subprocess.Popen[bytes]] = []

    def run(self, command: str) -> str:
        if command.startswith(SERVICES):
            more = dict(stdout=subprocess.DEVNULL, stderr=(self._folder / "services.log").open("a"))
            self._services.append(subprocess.Popen(["bash", "-c", f"exec {command}"], **self._where, **more))
            return ""
        script = f"set -euo pipefail\n{command}"
        done = subprocess.run(
            ["bash", "-c", script], **self._where, capture_output=True, text=True, timeout=2 * LIMIT_S
        )
        log = self._folder / "services.log"
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}{log.read_text() if log.exists() else ''}"
        return done.stdout

    @property
    def _where(self) -> dict[str, object]:
        return {"cwd": self._folder, "env": self._variables}

    def stop(self) -> None:
        for service in self._services:
            service.send_signal(signal.SIGINT)
        for service in self._services:
            service.wait(LIMIT_S)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def blocks_of(readme: pathlib.Path) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)


def test_the_types_of_the_examples_are_right(tmp_path: pathlib.Path) -> None:
    if subprocess.run([sys.executable, "-c", "import mypy, flask"], stderr=subprocess.DEVNULL).returncode != 0:
        missing("mypy or flask is not installed")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), "shop.py", "tasks.py"]
    environment = {**os.environ, "MYPYPATH": str(PACKAGE)}
    folder = ROOT / "examples" / "flask-shop"
    checked = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.fixture
def shell_of(gateway: Gateway, tmp_path: pathlib.Path) -> Iterator[Callable[[str], Shell]]:
    """Gives a shell for an example, in an environment that sees the packages of this one: nothing is fetched."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    [packages] = (environment / "lib").glob("python*/site-packages")
    (packages / "installed.pth").write_text("\n".join(site.getsitepackages()))
    (tmp_path / "clients").symlink_to(PACKAGE.parent)
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "GALLEY_KEY")}
    programs = f"{environment / 'bin'}:{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    pip = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    variables = {**inherited, **pip, "PATH": programs, "GALLEY_URL": gateway.url, "PACKING_S": "0.01"}
    shells: list[Shell] = []

    def shell_of(name: str) -> Shell:
        folder = tmp_path / "examples" / name
        shutil.copytree(ROOT / "examples" / name, folder)
        shells.append(Shell(folder, variables))
        return shells[-1]

    yield shell_of
    for shell in shells:
        shell.stop()


def test_the_shop_with_flask_does_what_its_readme_says(shell_of: Callable[[str], Shell]) -> None:
    port = free_port()
    install, worker, web, good, bad = blocks_of(ROOT / "examples" / "flask-shop" / "README.md")
    shell = shell_of("flask-shop")
    shell.run(install)
    shell.run(worker)
    shell.run(web.replace("5000", str(port)))

    def answers() -> bool | None:
        try:
            return socket.create_connection(("127.0.0.1", port)).close() is None
        except OSError:
            return None

    eventually("the shop listens", answers)
    good, bad = (command.replace(":5000/", f":{port}/").replace("sleep 1", "sleep 0.05") for command in (good, bad))
    assert "ada@example.org paid 13.50 for tea and cup" in shell.run(good)
    assert "is no address" in shell.run(bad)


def test_the_app_that_came_from_celery_differs_in_under_30_lines_and_gives_the_same_results(
    shell_of: Callable[[str], Shell], gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("celery") is None:
        missing("celery is not installed")
    folder = ROOT / "examples" / "celery-port"
    before, after = ((folder / name).read_text(encoding="utf-8") for name in ("before.py", "after.py"))
    diff = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=100, lineterm=""))[2:]
    changed = [line for line in diff if line[0] in "+-"]
    assert len(changed) < 30
    assert f"differ in\n{len(changed)} lines" in (folder / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"```diff\n(.*?)```", (ROOT / "docs" / "from-celery.md").read_text(encoding="utf-8"), re.DOTALL)
    assert shown[0].splitlines() == [line for line in diff if not line.startswith("@@")]

    # Celery in this process, without a broker
    monkeypatch.syspath_prepend(folder)
    old = importlib.import_module("before")
    old.app.conf.update(task_always_eager=True, result_backend="cache+memory://")
    expected = old.upload("ada", ["sea.jpg", "hill.jpg"]).get(), old.preview("sea.jpg")

    shell = shell_of("celery-port")
    install, worker, program = blocks_of(folder / "README.md")
    shell.run(install)
    shell.run(worker)
    printed = shell.run(program)
    client = galley.Client(gateway.url)
    [album] = eventually("the album", lambda: [job for job in found(client, "photos.publish")] or None)
    assert expected == ("ada shows 800/sea.jpg and 800/hill.jpg", "80/sea.jpg")
    assert (client.result(album["id"]), printed.strip()) == expected
    [asked] = found(client, "photos.ask")
    assert (asked["state"], asked["args"]) == ("scheduled", ["ada", "Do you like it?"])
    assert client.get_cron("sweep")["expression"] == "0 3 * * *"
    client.delete_cron("sweep")


def found(client: galley.Client, type: str) -> list[Any]:
    return client._connection().call("GET", f"/ojs/v1/admin/jobs?type={type}&limit=10")["items"]
