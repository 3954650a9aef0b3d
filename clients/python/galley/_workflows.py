"""Workflows that are not started yet: what ``Client.chain`` and the like start, and steps of other workflows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from ._types import NewJob, NewStep, NewWorkflow


def chain(*steps: NewStep, name: str | None = None) -> NewWorkflow:
    """Jobs and workflows one after the other. As a step it has the result of its last step."""
    return _named({"type": "chain", "steps": list(steps)}, name)


def group(*jobs: NewStep, name: str | None = None) -> NewWorkflow:
    """Jobs and workflows at once. As a step it has the list of their results."""
    return _named({"type": "group", "jobs": list(jobs)}, name)


def batch(
    *jobs: NewStep,
    on_complete: NewJob | None = None,
    on_success: NewJob | None = None,
    on_failure: NewJob | None = None,
    name: str | None = None,
) -> NewWorkflow:
    """Jobs and workflows at once, and other jobs when all of them have ended, with their results."""
    callbacks = {"on_complete": on_complete, "on_success": on_success, "on_failure": on_failure}
    given = {event: callback for event, callback in callbacks.items() if callback is not None}
    return _named({"type": "batch", "jobs": list(jobs), "callbacks": given}, name)


def dag(
    jobs: Mapping[str, NewStep], depends_on: Mapping[str, Sequence[str]], *, name: str | None = None
) -> NewWorkflow:
    """Jobs and workflows, each after those that it depends on. As a step it has a dict of their results by name."""
    for step in [*depends_on, *(before for step in depends_on.values() for before in step)]:
        if step not in jobs:
            raise ValueError(f"depends_on names {step!r}, which is none of the jobs: {', '.join(jobs)}")
    steps: list[Any] = []
    for step, job in jobs.items():
        before, source = list(depends_on.get(step, ())), job.get("for_each")
        if source is not None and source not in jobs:
            raise ValueError(f"{step!r} is for each element of {source!r}, which is none of the jobs: {', '.join(jobs)}")
        if source is not None and source not in before:
            before.insert(0, source)
        steps.append({**job, "id": step, "depends_on": before})
    return _named({"type": "dag", "steps": steps}, name)


def for_each(step: NewStep, of: str = "previous") -> NewStep:
    """A step that runs once for each element of the list that another step returned: in a chain the one before it, in a DAG
    the one called ``of``. Each of its jobs has the element as its last argument. Its result is the list of theirs."""
    return cast("NewStep", {**step, "for_each": of})


def _named(members: dict[str, Any], name: str | None) -> NewWorkflow:
    return cast("NewWorkflow", members if name is None else {**members, "name": name})
