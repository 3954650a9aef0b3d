"""The web programs of the README enqueue jobs."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import PACKAGE, missing

#: A module of each, the programs of the README that use it.
NEEDED = ("fastapi", "httpx", "flask", "django")


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in NEEDED:
        if importlib.util.find_spec(module) is None:
            missing(f"{module} is not installed")
    readme = (PACKAGE / "README.md").read_text(encoding="utf-8")
    for name, program in re.findall(r"```python\n# (\S+\.py)\n(.*?)```", readme, re.DOTALL):
        (tmp_path / name).write_text(program, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for module in [name for name in sys.modules if name == "tasks" or name.endswith("_shop")]:
        del sys.modules[module]


def test_a_request_to_fastapi_or_flask_enqueues_a_job(folder: None) -> None:
    from starlette.testclient import TestClient

    app = importlib.import_module("tasks").app
    fastapi, flask = (importlib.import_module(f"{name}_shop").web for name in ("fastapi", "flask"))
    with app.fake() as jobs:
        made = [
            TestClient(fastapi).post("/greetings/ada").json(),
            flask.test_client().post("/greetings/bob").get_json(),
        ]
        assert [answer["job"] for answer in made] == [job["id"] for job in jobs.jobs]
        assert [job.get("args") for job in jobs.jobs] == [["ada"], ["bob"]]


def test_a_job_of_django_is_enqueued_at_the_commit_and_not_after_a_rollback(folder: None) -> None:
    from django.conf import settings

    if not settings.configured:
        database = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
        settings.configure(DATABASES={"default": database}, ALLOWED_HOSTS=["*"])
        importlib.import_module("django").setup()
    from django.db import transaction
    from django.test import RequestFactory

    from galley.django import on_commit

    tasks: Any = importlib.import_module("tasks")
    create = importlib.import_module("django_shop").create
    with tasks.app.fake() as jobs:
        with transaction.atomic():
            assert create(RequestFactory().post("/"), "ada").status_code == 202
            assert jobs.jobs == []
        jobs.assert_enqueued("greet", args=["ada"], queue="greetings", count=1)
        with pytest.raises(KeyError), transaction.atomic():
            on_commit(tasks.greet).enqueue("bob")
            raise KeyError("rolled back")
        on_commit(tasks.resize).enqueue("a.png", width=80)
        assert [job["type"] for job in jobs.jobs] == ["greet", "resize"]
        with pytest.raises(TypeError, match="did you mean 'name'"), transaction.atomic():
            on_commit(tasks.greet).enqueue(names="ada")
