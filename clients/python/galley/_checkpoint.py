"""What an attempt saves for the next one: the state of its handler, and the results of its steps.

Both are one checkpoint, which is the state alone until there is a step, and then ``{"galley:steps": {name: result},
"state": ...}``. The clients for other languages write the same.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ._errors import GalleyError, NoRetry
from ._outcome import valid

if TYPE_CHECKING:
    from ._types import Checkpoint

#: The member of a checkpoint that has the results of steps.
STEPS = "galley:steps"


class Saved:
    """The checkpoint as this attempt knows it. ``send`` saves one, and gives its number."""

    def __init__(self, checkpoint: Checkpoint | None, send: Callable[[dict[str, Any]], int]) -> None:
        self._send = send
        # One save at a time: each has everything that the one before had
        self._guard = threading.Lock()
        # Never held while something is sent: loops take it too
        self._names = threading.Lock()
        self._sequence = checkpoint["sequence"] if checkpoint else 0
        stored = checkpoint["state"] if checkpoint else None
        self._steps: dict[str, Any] = {}
        if isinstance(stored, dict) and isinstance(stored.get(STEPS), dict):
            self._steps, stored = dict(stored[STEPS]), stored.get("state")
        self._state: Any = stored
        self._running: set[str] = set()

    @property
    def state(self) -> Any:
        return self._state

    def save(self, state: Any) -> None:
        with self._guard:
            state = through_json(state)
            self._store(state, self._steps)
            self._state = state

    def _store(self, state: Any, steps: dict[str, Any]) -> None:
        body = {STEPS: steps, "state": state} if steps else state
        self._sequence = self._send({"state": body, "sequence": self._sequence + 1})

    @contextlib.contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Refuses a step whose name is in use."""
        with self._names:
            if name in self._running:
                raise NoRetry(f"step {name!r} runs already: give each step a name of its own")
            self._running.add(name)
        try:
            yield
        finally:
            with self._names:
                self._running.discard(name)

    def has(self, name: str) -> bool:
        return name in self._steps

    def result(self, name: str) -> Any:
        return self._steps[name]

    def results(self) -> list[tuple[str, Any]]:
        return list(self._steps.items())

    def save_step(self, name: str, result: Any) -> Any:
        """The result as the attempts after this one get it."""
        if inspect.isawaitable(result):
            if inspect.iscoroutine(result):
                result.close()
            raise TypeError(f"step {name!r} is asynchronous: await step_async() in its place")
        with self._guard:
            result = through_json(result)
            steps = {**self._steps, name: result}
            try:
                self._store(self._state, steps)
            except GalleyError as error:
                if error.status != 413:
                    raise
                raise NoRetry(f"the result of step {name!r} is too large: {error}") from error
            self._steps = steps
        return result


def through_json(value: Any) -> Any:
    """The value as it is after it was stored."""
    return valid(json.loads(json.dumps(value, allow_nan=False)))
