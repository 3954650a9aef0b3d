"""The type checker accepts the package, and refuses what is misspelt."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
from conftest import PACKAGE, missing

import galley

SAMPLE = """
import galley

app = galley.App()

@app.task("email.send", queue="mail")
async def send(to: str, subject: str = "hello") -> int:
    return len(to + subject)

@app.task("add")
def add(a: int, b: int) -> int:
    return a + b

async def right(client: galley.AsyncClient) -> None:
    reveal_type(await send.wait(to="ada"))  # says "int"
    reveal_type(add.enqueue(1, b=2).wait())  # says "int"
    reveal_type(await (await add.aio.enqueue(1, 2)).wait())  # says "int"
    reveal_type(add(1, 2))  # says "int"
    reveal_type(await send("ada"))  # says "int"
    await send.schedule(60, "ada")
    send.with_options(priority=3).sync.enqueue("ada")
    await client.enqueue("x", 1, unique={"keys": ["args"]}, retry={"max_attempts": 3})
    await client.chain(send.job("ada"), galley.job("x", queue="mail"))
    await client.chain(send.job("ada"), galley.for_each(galley.group(send.job("bob"))), send.each(), name="n")
    async for message in client.subscribe("orders"):
        reveal_type(message.id)  # says "str | None"

async def wrong(client: galley.AsyncClient) -> None:
    await send.enqueue(too="ada")  # refused: Unexpected keyword argument "too"
    await send.enqueue(7)  # refused: expected "str"
    await send.enqueue()  # refused: Missing positional argument "to"
    send.enqueue("ada")  # refused: must be used
    add.enqueue(1, "2")  # refused: expected "int"
    add.with_options(priorty=3)  # refused: Unexpected keyword argument "priorty"
    await client.enqueue("x", qeue="a")  # refused: Unexpected keyword argument "qeue"
    await client.enqueue("x", retry={"max_atempts": 1})  # refused: Extra key "max_atempts"
    galley.job("x", timeout_ms="1")  # refused: expected "int"
    await client.chain("x")  # refused: expected "NewJob | NewWorkflow"
    galley.Client().enqueue("x")["stat"]  # refused: has no key "stat"
"""


def mypy(*arguments: str, folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    if subprocess.run([sys.executable, "-c", "import mypy"], stderr=subprocess.DEVNULL).returncode != 0:
        missing("mypy is not installed")
    environment = {**os.environ, "MYPYPATH": str(PACKAGE)}
    words = [
        sys.executable,
        "-m",
        "mypy",
        "--cache-dir",
        os.environ.get("GALLEY_TEST_MYPY_CACHE", str(folder / "cache")),
    ]
    return subprocess.run([*words, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("version", ["3.10"])
def test_the_package_is_strict_and_a_misspelt_argument_is_refused(tmp_path: pathlib.Path, version: str) -> None:
    sample = tmp_path / "sample.py"
    sample.write_text(SAMPLE)
    checked = mypy("--strict", "--python-version", version, str(PACKAGE / "galley"), "sample.py", folder=tmp_path)
    said: dict[int, list[str]] = {}
    for line in checked.stdout.splitlines():
        place, _, message = line.partition(": ")
        file, _, number = place.partition(":")
        if file == "sample.py":
            said.setdefault(int(number), []).append(message)
        else:
            assert line.startswith(("Found ", "Success")), checked.stdout
    for number, line in enumerate(SAMPLE.splitlines(), 1):
        _, says, revealed = line.partition("# says ")
        _, refused, reason = line.partition("# refused: ")
        found = "\n".join(said.pop(number, []))
        if says:
            assert f"Revealed type is {revealed.strip()}".replace("builtins.", "") in found.replace("builtins.", ""), (
                found
            )
        elif refused:
            assert "error: " in found and reason in found, f"{line}\n{found}"
        else:
            assert not found, f"{line}\n{found}"
    assert not said


def test_the_options_are_those_of_the_gateway() -> None:
    described = json.loads((PACKAGE.parent.parent / "crates/gateway/openapi.json").read_text(encoding="utf-8"))
    schemas = described["components"]["schemas"]

    def names(of: type) -> set[str]:
        return set(of.__required_keys__ | of.__optional_keys__)

    assert names(galley.JobOptions) == set(schemas["NewJob"]["properties"]) - {"type", "args", "options"}
    for of, schema in [
        (galley.RetryPolicy, schemas["RetryPolicy"]),
        (galley.Unique, schemas["Unique"]),
        (galley.RateLimit, schemas["RateLimit"]),
        (galley.Rate, schemas["RateLimit"]["properties"]["rate"]),
        (galley.Throttle, schemas["RateLimit"]["properties"]["throttle"]),
    ]:
        assert names(of) == set(schema["properties"]), f"{of.__name__} in galley/_types.py and openapi.json differ"
    for of, schema in [
        (galley.Job, "Job"),
        (galley.Workflow, "Workflow"),
        (galley.Cron, "Cron"),
        (galley.Queue, "Queue"),
    ]:
        assert names(of) <= set(schemas[schema]["properties"]) | set(schemas["NewJob"]["properties"]) | {"token"}
