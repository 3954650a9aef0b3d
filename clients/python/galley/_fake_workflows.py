"""Workflows of the test modes: which job starts when another one ended."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from ._types import Job

_ENDED = ("completed", "cancelled", "discarded")


class FakeWorkflow:
    """A chain, a group, a batch or a DAG. Its jobs exist from the beginning; those that must wait are ``waiting``."""

    def __init__(self, body: dict[str, Any], store: Callable[[dict[str, Any]], Job]) -> None:
        self.id, self.kind, self._name = str(uuid.uuid4()), str(body["type"]), body.get("name")
        self.is_cancelled = False
        self.members: list[Job] = []
        self.callbacks: dict[str, Job] = {}
        steps = body.get("steps") or body.get("jobs") or []
        numbers = {new["id"]: number for number, new in enumerate(steps)} if self.kind == "dag" else {}
        # Of each job of a DAG, those that it depends on
        self.depends_on = [[numbers[id] for id in new.get("depends_on", [])] for new in steps]
        for number, new in enumerate(steps):
            waits = self.kind == "chain" and number > 0 or bool(self.depends_on[number])
            job = {name: value for name, value in new.items() if name not in ("id", "depends_on")}
            self.members.append(self._stored(store, job, is_waiting=waits))
        for event, new in body.get("callbacks", {}).items():
            self.callbacks[event] = self._stored(store, new, is_waiting=True)

    def _stored(self, store: Callable[[dict[str, Any]], Job], new: dict[str, Any], is_waiting: bool) -> Job:
        job: Any = store({**new.get("options", {}), **new})
        job["workflow_id"] = self.id
        if is_waiting:
            # What it starts as when its turn comes
            job["_starts_as"], job["state"] = job["state"], "waiting"
        stored: Job = job
        return stored

    def advance(self) -> list[Job]:
        """The jobs that start now."""
        if self.kind == "dag":
            return self._advance_dag()
        results = [job.get("result") for job in self.members if job["state"] in _ENDED]
        is_ended = len(results) == len(self.members)
        if self.kind == "chain":
            if any(job["state"] in ("cancelled", "discarded") for job in self.members):
                self._drop(self.members)
                return []
            return [self._started(job, results) for job in self.members[len(results) : len(results) + 1] if _waits(job)]
        if not is_ended:
            return []
        wanted = ["on_complete", "on_success" if self._has_succeeded() else "on_failure"]
        due = [job for event, job in self.callbacks.items() if event in wanted and _waits(job)]
        self._drop([job for event, job in self.callbacks.items() if event not in wanted])
        return [self._started(job, results) for job in due]

    def _advance_dag(self) -> list[Job]:
        due: list[Job] = []
        has_changed = True
        while has_changed:
            has_changed = False
            for job, before in zip(self.members, self.depends_on, strict=True):
                parents = [self.members[number] for number in before]
                if _waits(job) and any(parent["state"] in ("cancelled", "discarded") for parent in parents):
                    # What depends on it does not start either
                    self._drop([job])
                    has_changed = True
                elif _waits(job) and all(parent["state"] == "completed" for parent in parents):
                    due.append(self._started(job, [parent.get("result") for parent in parents]))
        return due

    def _started(self, job: Any, results: list[Any]) -> Job:
        job["state"], job["parent_results"] = job.pop("_starts_as"), results
        started: Job = job
        return started

    def _drop(self, jobs: list[Job]) -> None:
        for job in jobs:
            if _waits(job):
                job["state"] = "cancelled"

    def _has_succeeded(self) -> bool:
        return all(job["state"] == "completed" for job in self.members)

    def cancel(self) -> None:
        self.is_cancelled = True
        for job in [*self.members, *self.callbacks.values()]:
            if job["state"] not in _ENDED:
                job["state"] = "cancelled"

    def shown(self) -> dict[str, Any]:
        """As the gateway shows it."""
        jobs = [*self.members, *self.callbacks.values()]
        is_ended = all(job["state"] in _ENDED for job in jobs)
        state = "completed" if self._has_succeeded() else "failed"
        counts = {
            f"jobs_{name}": sum(job["state"] == state for job in self.members)
            for name, state in (("completed", "completed"), ("failed", "discarded"), ("cancelled", "cancelled"))
        }
        shown = {
            "id": self.id,
            "type": self.kind,
            "state": "cancelled" if self.is_cancelled else state if is_ended else "running",
            "jobs_total": len(self.members),
            **counts,
            "members": [{"index": index, **_member(job)} for index, job in enumerate(self.members)],
        }
        if self.callbacks:
            shown["callbacks"] = [{"on": event, **_member(job)} for event, job in self.callbacks.items()]
        return shown


def _waits(job: Any) -> bool:
    return bool(job["state"] == "waiting")


def _member(job: Job) -> dict[str, Any]:
    return {"id": job["id"], "type": job["type"], "queue": job["queue"], "state": job["state"]}
