"""What can go wrong: with a request, with a job, and what a handler raises to say so."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._types import Failure, Job


class GalleyError(Exception):
    """The gateway refused a request: ``status``, ``code`` and what it says."""

    def __init__(self, status: int, code: str, message: str, retryable: bool = False) -> None:
        super().__init__(f"{code} ({status}): {message}")
        self.status, self.code, self.retryable = status, code, retryable
        #: The request was sent twice, since the connection broke: the first may have been done.
        self._is_repeat = False


class Unavailable(GalleyError):
    """The gateway cannot be reached, or says that it cannot do its work now. It may have done it all the same.

    ``retry_after``: how many seconds it asks to wait.
    """

    def __init__(
        self, message: str, status: int = 503, code: str = "unavailable", retry_after: float | None = None
    ) -> None:
        super().__init__(status, code, message, True)
        self.retry_after = retry_after


class DeltaError(ValueError):
    """A difference is not of the text that it was applied to, or it is damaged."""

    def __init__(self, what: str) -> None:
        super().__init__(f"this difference is not of that text: {what}")


class JobFailed(Exception):
    """A job was discarded or cancelled; ``job`` is all of it."""

    def __init__(self, job: Job) -> None:
        errors: list[Failure] = job.get("errors") or []
        last = errors[-1] if errors else job.get("error")
        message = last.get("message") if last else None
        super().__init__(f"job {job['id']} is {job['state']}: {message or 'no error was recorded'}")
        self.job = job


class Retry(Exception):
    """Raised by a handler: the attempt failed. The next one, if there is one, follows after that many seconds."""

    def __init__(self, message: str = "try again", after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


class NoRetry(Exception):
    """Raised by a handler: the job failed for good."""


class Waiting(BaseException):
    """Raised in a handler by what waits: the attempt ends without failing, and the job goes on when the wait is over.

    No ``Exception``, so that ``except Exception`` does not catch it. What catches it must raise it again.
    """

    def __init__(self, job: str, step: str, signal: str | None, timeout: float | None, received: list[int]) -> None:
        super().__init__(f"the job waits at {step!r}")
        self._job = job
        self._request: dict[str, Any] = {"step": step, "received": received}
        if signal is not None:
            self._request["signal"] = signal
        if timeout is not None:
            self._request["timeout_ms"] = max(0, round(timeout * 1000))


def nearest(name: str, known: Iterable[str]) -> str:
    """``: did you mean 'priority'?``, or nothing if no known name is near."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f": did you mean {found[0]!r}?" if found else ""


def check_names(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuses the first name that is not known, with the nearest one that is."""
    known = list(known)
    for name in given:
        if name not in known:
            raise TypeError(f"{what} has no option {name!r}{nearest(name, known)}")
