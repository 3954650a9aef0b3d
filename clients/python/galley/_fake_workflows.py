"""Workflows of the test modes: which job starts when another one ended."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

from ._types import Job

_ENDED = ("completed", "cancelled", "discarded", "failed")
_LISTS = ("steps", "jobs", "callbacks")

Store = Callable[[dict[str, Any]], Job]
Register = Callable[["FakeWorkflow"], None]


class FakeWorkflow:
    """A chain, a group, a batch or a DAG. Its jobs exist from the beginning; those that must wait are ``waiting``."""

    def __init__(
        self,
        body: dict[str, Any],
        store: Store,
        register: Register,
        outer: _Member | None = None,
    ) -> None:
        self.id = outer.id if outer else str(uuid.uuid4())
        self.kind, self._name = str(body["type"]), body.get("name")
        self.is_cancelled = False
        self._store, self._register, self.outer = store, register, outer
        register(self)
        steps = body.get("steps") or body.get("jobs") or []
        is_dag = self.kind == "dag"
        names = {new["id"]: number for number, new in enumerate(steps)} if is_dag else {}
        self._names = list(names)
        self.members: list[_Member] = []
        for number, new in enumerate(steps):
            before = list(range(number)) if self.kind == "chain" else [names[id] for id in new.get("depends_on", [])]
            source = new.get("for_each")
            if source is not None:
                source = names[source] if is_dag else number - 1
            new = {name: value for name, value in new.items() if name not in ("id", "depends_on", "for_each")}
            self.members.append(_Member(self, number, new, before, source))
        # The callbacks come after the members
        self.callbacks = {
            event: _Member(self, len(steps) + offset, new, list(range(len(steps))), None)
            for offset, (event, new) in enumerate(body.get("callbacks", {}).items())
        }

    def stored(self, new: dict[str, Any]) -> Any:
        """A job that waits for its turn."""
        job: Any = self._store({**new.get("options", {}), **new})
        job["workflow_id"] = self.id
        # What it starts as when its turn comes
        job["_starts_as"], job["state"] = job["state"], "waiting"
        return job

    def nested(self, body: dict[str, Any], member: _Member) -> FakeWorkflow:
        """The workflow that a member is."""
        return FakeWorkflow(body, self._store, self._register, member)

    def advance(self) -> list[Job]:
        """The jobs that start now, here and in the workflow that this one is a member of."""
        due = self.advance_alone()
        if self.outer is not None and self.state in _ENDED:
            due += self.outer.workflow.advance()
        return due

    def advance_alone(self) -> list[Job]:
        due: list[Job] = []
        has_changed = not self.is_cancelled
        while has_changed:
            has_changed = False
            for member in filter(_Member.waits, self.members):
                before = [self.members[number] for number in member.before]
                if any(one.state in _ENDED and one.state != "completed" for one in before):
                    # What depends on it does not start either
                    member.cancel()
                elif all(one.state == "completed" for one in before):
                    due += member.start(self._results_for(member))
                else:
                    continue
                has_changed = True
        if not self.is_cancelled and all(member.state in _ENDED for member in self.members):
            results = [member.result for member in self.members]
            wanted = ["on_complete", "on_success" if self._has_succeeded() else "on_failure"]
            for event, callback in self.callbacks.items():
                if not callback.waits():
                    continue
                if event in wanted:
                    due += callback.start(results)
                else:
                    callback.cancel()
        return due

    def _results_for(self, member: _Member) -> list[Any]:
        if not member.before:
            # What the member would get as a job that this workflow is
            return self.outer.results if self.outer is not None else []
        # Each job of an array has its element
        return [self.members[number].result for number in member.before if number != member.source]

    def _has_succeeded(self) -> bool:
        return all(member.state == "completed" for member in self.members)

    @property
    def state(self) -> str:
        if self.is_cancelled:
            return "cancelled"
        if any(member.state not in _ENDED for member in [*self.members, *self.callbacks.values()]):
            return "running"
        is_bad = any(callback.state in ("discarded", "failed") for callback in self.callbacks.values())
        return "completed" if self._has_succeeded() and not is_bad else "failed"

    @property
    def result(self) -> Any:
        """Its result as a member of another workflow."""
        results = [member.result for member in self.members]
        if self.kind == "chain":
            return results[-1]
        return dict(zip(self._names, results, strict=True)) if self.kind == "dag" else results

    def cancel(self) -> None:
        self.is_cancelled = True
        for member in [*self.members, *self.callbacks.values()]:
            member.cancel()

    def shown(self) -> dict[str, Any]:
        """As the gateway shows it."""
        counts = {
            f"jobs_{name}": sum(member.state in states for member in self.members)
            for name, states in (
                ("completed", ["completed"]),
                ("failed", ["discarded", "failed"]),
                ("cancelled", ["cancelled"]),
            )
        }
        shown: dict[str, Any] = {
            "id": self.id,
            "type": self.kind,
            "state": self.state,
            "jobs_total": len(self.members),
            **counts,
            "members": [{"index": index, **member.shown()} for index, member in enumerate(self.members)],
        }
        if self.outer is not None:
            shown |= {"parent_workflow_id": self.outer.workflow.id, "parent_workflow_index": self.outer.index}
        if self.callbacks:
            shown["callbacks"] = [{"on": event, **callback.shown()} for event, callback in self.callbacks.items()]
        return shown


class _Member:
    """A job of a workflow, or a workflow in it."""

    def __init__(
        self, workflow: FakeWorkflow, index: int, new: dict[str, Any], before: list[int], source: int | None
    ) -> None:
        self.workflow, self.index, self.before, self.source = workflow, index, before, source
        self._new, self._state = new, "waiting"
        self._own_result: Any = None
        self._error: dict[str, str] | None = None
        #: The results that it got.
        self.results: list[Any] = []
        self.job: Any = None
        self._flow: FakeWorkflow | None = None
        self._is_flow = source is not None or any(name in new for name in _LISTS)
        self.id = str(uuid.uuid4())
        if not self._is_flow:
            self.job = workflow.stored(new)
            self.id = self.job["id"]
        elif source is None:
            self._flow = workflow.nested(new, self)

    @property
    def state(self) -> str:
        if self.job is not None:
            return str(self.job["state"])
        return self._flow.state if self._flow is not None and self._state == "started" else self._state

    @property
    def result(self) -> Any:
        if self.job is not None:
            return self.job.get("result")
        return self._flow.result if self._flow is not None and self.state == "completed" else self._own_result

    def waits(self) -> bool:
        return self.state == "waiting"

    def start(self, results: list[Any]) -> list[Job]:
        """The jobs that start with it."""
        self.results = results
        if self.job is not None:
            self.job["state"] = self.job.pop("_starts_as")
            if results:
                self.job["parent_results"] = results
            return [self.job]
        if self.source is not None:
            elements = self.workflow.members[self.source].result
            if not isinstance(elements, list):
                message = f"for_each needs a JSON array as the result of step {self.source}"
                self._state, self._error = "failed", {"code": "not_an_array", "message": message}
                return []
            if not elements:
                self._state, self._own_result = "completed", []
                return []
            jobs = [_with_element(self._new, element) for element in elements]
            self._flow = self.workflow.nested({"type": "group", "jobs": jobs}, self)
        assert self._flow is not None
        self._state = "started"
        return self._flow.advance_alone()

    def cancel(self) -> None:
        if self.state in _ENDED:
            return
        if self.job is not None:
            self.job["state"] = "cancelled"
            return
        self._state = "cancelled"
        if self._flow is not None:
            self._flow.cancel()

    def shown(self) -> dict[str, Any]:
        if self.job is not None:
            return {"id": self.job["id"], "type": self.job["type"], "queue": self.job["queue"], "state": self.state}
        kind = "group" if self.source is not None else self._new["type"]
        shown = {"id": self.id, "type": kind, "workflow": True, "state": self.state}
        if self.source is not None:
            shown["for_each"] = self.source
        if self.state == "completed":
            shown["result"] = self.result
        return shown if self._error is None else {**shown, "error": self._error}


def _with_element(new: dict[str, Any], element: Any) -> dict[str, Any]:
    """A job with an element behind its own arguments, or a workflow each of whose jobs has it there."""
    if not any(name in new for name in _LISTS):
        return {**new, "args": [*new["args"], element]}
    made = dict(new)
    for name in ("steps", "jobs"):
        if name in new:
            made[name] = [_with_element(one, element) for one in new[name]]
    if "callbacks" in new:
        made["callbacks"] = {event: _with_element(one, element) for event, one in new["callbacks"].items()}
    return made
