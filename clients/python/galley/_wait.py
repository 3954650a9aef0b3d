"""Waiting in the middle of a job: for a time, for a signal, or for a person's approval.

The attempt ends meanwhile and the next one goes on. What a wait brought is saved as the result of a step, in the form that the
clients for other languages use too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._errors import NoRetry, Waiting

if TYPE_CHECKING:
    from ._checkpoint import Saved
    from ._types import Approval, Job, Signal

#: How the names of the steps begin that are waits.
WAIT_STEP = "galley:wait:"


class Waits:
    """The waits of an attempt."""

    def __init__(self, job: Job, saved: Saved) -> None:
        self._job, self._saved = job, saved

    def find(self, step: str, signal: str | None, timeout: float | None) -> tuple[bool, Signal | None]:
        """Whether the result of the wait is saved already, and the signal. Raises ``Waiting`` when there is none yet."""
        name = WAIT_STEP + step
        if self._saved.has(name):
            return True, self._saved.result(name)["signal"]
        received = []
        for other, result in self._saved.results():
            if other.startswith(WAIT_STEP) and result["signal"] is not None:
                received.append(result["signal"]["sequence"])
        for came in self._job.get("signals", []):
            if came["name"] == signal and came["sequence"] not in received:
                return False, came
        waited = self._job.get("waiting")
        if waited is not None and waited["step"] == step and waited.get("is_over"):
            return False, None
        raise Waiting(self._job["id"], step, signal, timeout, received)

    def save(self, step: str, signal: Signal | None) -> None:
        self._saved.save_step(WAIT_STEP + step, {"signal": signal})


def approval_signal(subject: str) -> str:
    return f"approval.{subject}" if subject else "approval"


def approval_of(signal: Signal | None) -> Approval | None:
    if signal is None:
        return None
    data: Any = signal["data"]
    if not isinstance(data, dict) or not isinstance(data.get("approved"), bool):
        raise NoRetry(f"signal {signal['name']!r} has no {{\"approved\": true}} or false")
    return {"approved": data["approved"], "by": data.get("by"), "comment": data.get("comment")}
