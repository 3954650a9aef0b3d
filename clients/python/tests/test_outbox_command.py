"""What ``galley-outbox`` says, the programs of its document, and Django."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import subprocess
import sys
import threading

import pytest
from conftest import LIMIT_S, PACKAGE, Gateway, missing
from outbox_kit import Postgres, Relays

import galley
from galley import outbox
from galley.outbox.__main__ import _parser

DOCUMENT = PACKAGE.parent.parent / "docs" / "outbox.md"


def test_the_check_says_what_is_wrong(relays: Relays, name: str) -> None:
    code, said = relays.run("--check")
    assert (code, said) == (0, "waiting 0, refused 0, oldest 0 s\n")
    relays.write(name)
    relays.db.execute("ALTER TABLE galley_outbox DISABLE TRIGGER galley_outbox_notify")
    try:
        code, said = relays.run("--check")
    finally:
        relays.db.execute("ALTER TABLE galley_outbox ENABLE TRIGGER galley_outbox_notify")
    assert code == 0 and "found by polling" in said and "waiting 1," in said


def test_the_exit_code_says_what_is_wrong(relays: Relays) -> None:
    assert relays.run("--check", "--url", "http://127.0.0.1:1")[0] == 3
    other = relays.variables["DATABASE_URL"].replace("/postgres?", "/template1?")
    assert relays.run("--check", "--database", other) == (
        2,
        "galley-outbox: there is no table galley_outbox: galley-outbox --sql | psql\n",
    )


def test_the_command_line_is_checked_and_the_sql_printed(relays: Relays) -> None:
    assert relays.run("--once", "--check")[0] == 2 and relays.run("--batch", "0")[0] == 2
    assert relays.run("--sql") == (0, outbox.schema())


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://user:SECRET@host/db",
        "postgresql://user:SECRET%zz@host/db",
        "postgresql://user:SECRET/x@host/db",
        "postgresql://user:x@SECRET@host/db",
    ],
)
def test_no_password_is_printed(relays: Relays, url: str) -> None:
    relays.variables["DATABASE_URL"] = url
    code, said = relays.run("--once")
    assert code == 2 and "address of the database is wrong" in said and "SECRET" not in said


def test_the_programs_of_the_document_run(
    relays: Relays, plain: galley.Client, gateway: Gateway, tmp_path: pathlib.Path
) -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    for name, program in re.findall(r"```python\n# (\S+\.py)\n(.*?)```", document, re.DOTALL):
        (tmp_path / name).write_text(program, encoding="utf-8")
    command = [sys.executable, "order.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env=relays.variables, stdout=subprocess.PIPE, text=True, timeout=2 * LIMIT_S, check=True
    )
    for block in re.findall(r"```sql\n(.*?)```", document, re.DOTALL):
        for statement in filter(str.strip, block.split(";\n")):
            if not statement.startswith("GRANT"):
                relays.db.execute(statement)
    assert relays.run("--once") == (0, "")
    worker = galley.Worker(gateway.url, queues=["mail"])
    worker.job("receipt.send")(lambda _, order, to: f"receipt of order {order} for {to}")
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        assert plain.result(done.stdout.strip(), LIMIT_S) == "receipt of order 7 for ada@example.org"
    finally:
        worker.stop()
        worker.stop()
        thread.join(LIMIT_S)
    assert {"order": 7} in [message.data for message in plain.history("orders")]


def test_the_options_and_columns_of_the_document_exist() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    known = {option for action in _parser()._actions for option in action.option_strings} - {"-h", "--help"}
    assert set(re.findall(r"^\| `(--[a-z-]+)` \|", document, re.MULTILINE)) == known
    columns = set(re.findall(r"^    (\w+) ", outbox.schema(), re.MULTILINE)) - {"CONSTRAINT", "FOR"}
    told = re.findall(r"^\| (`[a-z_`, ]+`) \|", document.partition("## Run the relay")[0], re.MULTILINE)
    assert {name for cell in told for name in re.findall(r"\w+", cell)} <= columns


DJANGO = """
import sys
from django.conf import settings
from django.db import connection, transaction

folder, name = sys.argv[1:]
database = {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "USER": "postgres", "HOST": folder}
lite = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
settings.configure(DATABASES={"default": database, "lite": lite})
import django
django.setup()
import galley
from galley.django import on_commit, outbox

app = galley.App()

@app.task("greet", queue=name)
def greet(name: str) -> None: ...

with transaction.atomic():
    print(outbox(greet).enqueue("ada"))
try:
    with transaction.atomic():
        outbox(greet).enqueue("bob")
        raise KeyError
except KeyError:
    pass
for wrong in (lambda: outbox(greet).enqueue(names="ada"), lambda: outbox(greet, using="lite").enqueue("ada")):
    try:
        wrong()
    except TypeError as error:
        print(error)
"""


def test_django_writes_rows(relays: Relays, postgres: Postgres, plain: galley.Client, name: str) -> None:
    if importlib.util.find_spec("django") is None:
        missing("django is not installed")
    command = [sys.executable, "-c", DJANGO, str(postgres.folder), name]
    done = subprocess.run(
        command, env=relays.variables, stdout=subprocess.PIPE, text=True, timeout=2 * LIMIT_S, check=True
    )
    id, misspelt, other = done.stdout.splitlines()
    assert "did you mean 'name'" in misspelt and "sqlite" in other
    assert relays.run("--once") == (0, "")
    assert (plain.get(id)["args"], plain.get_queue(name)["available"]) == (["ada"], 1)
