"""PostgreSQL and the command for the tests of the outbox. They need PostgreSQL's server programs, as Debian's
``postgresql`` has them; GALLEY_TEST_POSTGRES is their folder."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from conftest import LIMIT_S, PACKAGE, eventually, missing

import galley
from galley import outbox


def _programs() -> pathlib.Path | None:
    """The folder of the newest PostgreSQL."""
    if given := os.environ.get("GALLEY_TEST_POSTGRES"):
        return pathlib.Path(given)
    if found := sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])):
        return found[-1].parent
    found_initdb = shutil.which("initdb")
    return pathlib.Path(found_initdb).resolve().parent if found_initdb else None


class Postgres:
    """A server that listens on a socket in a folder of its own. PostgreSQL does not run as root."""

    def __init__(self, programs: pathlib.Path) -> None:
        self._programs = programs
        # The path of a socket is short, and another user must reach it
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="galley-pg-", dir="/tmp"))
        self.url = f"postgresql://postgres@/postgres?host={self.folder}"
        self._as: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        if os.getuid() == 0:
            import pwd

            names = {entry.pw_name: entry for entry in pwd.getpwall()}
            user = names.get("postgres") or names["nobody"]
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        words = ["-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
        assert self._run("initdb", *words).wait(4 * LIMIT_S) == 0, self._log()
        self.start()

    def _run(self, program: str, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            more = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "cwd": self.folder, **self._as}
            self._process = subprocess.Popen([str(self._programs / program), *words], **more)
        return self._process

    def _log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        import psycopg

        options = ("listen_addresses=", f"unix_socket_directories={self.folder}", "fsync=off")
        words = [word for option in options for word in ("-c", option)]
        process = self._run("postgres", "-D", "data", *words)

        def answers() -> bool | None:
            assert process.poll() is None, self._log()
            try:
                psycopg.connect(self.url).close()
            except psycopg.OperationalError:
                return None
            return True

        eventually("PostgreSQL answers", answers)

    def kill(self) -> None:
        if self._process is None:
            return
        # It ends its own processes with SIGQUIT, and leaves them behind with SIGKILL
        self._process.send_signal(signal.SIGQUIT)
        try:
            self._process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server with the table."""
    programs = _programs()
    if programs is None or not (programs / "postgres").exists():
        missing("there is no PostgreSQL server (Debian's postgresql)")
    if importlib.util.find_spec("psycopg") is None:
        missing("psycopg is not installed")
    import psycopg

    server = Postgres(programs)  # type: ignore[arg-type]
    try:
        server.make()
        with psycopg.connect(server.url) as db:
            # Twice: as a migration that is repeated
            db.execute(outbox.schema())
            db.execute(outbox.schema())
        yield server
    finally:
        try:
            server.kill()
        finally:
            shutil.rmtree(server.folder, ignore_errors=True)


class Relays:
    """The command, and the table."""

    def __init__(self, postgres: Postgres, folder: pathlib.Path) -> None:
        import psycopg

        self._folder = folder
        self.variables = {**os.environ, "PYTHONPATH": str(PACKAGE), "PYTHONDONTWRITEBYTECODE": "1"}
        self.variables |= {"DATABASE_URL": postgres.url}
        self.started: list[subprocess.Popen[bytes]] = []
        self.db = psycopg.connect(postgres.url, autocommit=True)
        self.db.execute("TRUNCATE galley_outbox")

    def run(self, *words: str) -> tuple[int, str]:
        """Runs it to its end: the exit code and what it wrote."""
        command = [sys.executable, "-m", "galley.outbox", *words]
        more = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "timeout": 2 * LIMIT_S, "text": True}
        done = subprocess.run(command, env=self.variables, **more)  # type: ignore[call-overload]
        return done.returncode, done.stdout

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "galley.outbox", *words]
        with (self._folder / "relays.log").open("ab") as log:
            self.started.append(subprocess.Popen(command, env=self.variables, stderr=log))
        return self.started[-1]

    def wait_until_listening(self, count: int) -> None:
        """Until that many relays are ready, also for SIGTERM; PostgreSQL forgets one that was killed a moment later."""
        ready = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND query LIKE %s"
        words = ("galley-outbox", "LISTEN%")
        eventually(
            f"{count} relays listen", lambda: True if self.db.execute(ready, words).fetchone() == (count,) else None
        )

    def write(self, name: str, *args: Any, **options: Any) -> str:
        return outbox.enqueue(self.db, galley.job("a.b", *args, queue=name, **options))

    def rows(self, columns: str = "id") -> list[Any]:
        return self.db.execute(f"SELECT {columns} FROM galley_outbox ORDER BY id").fetchall()

    def wait_until_empty(self) -> None:
        eventually("the rows are sent", lambda: None if self.rows() else True)

    def stop(self) -> None:
        for relay in self.started:
            relay.kill()
        for relay in self.started:
            relay.wait()
        self.db.close()
