"""How an attempt ended, as it is sent to the gateway."""

from __future__ import annotations

import traceback
from typing import Any

#: Characters of a traceback that are sent along with a failure.
MAX_STACK = 16_000
#: Codes of what is told instead of a refused outcome.
_REFUSED = ("result_too_large", "result_refused", "failure_refused", "wait_refused")

#: ``acks`` or ``nacks``, and what to send.
Outcome = tuple[str, dict[str, Any]]


def failure(code: str, type: str, message: str, **more: Any) -> Outcome:
    return "nacks", {"error": valid({"code": code, "type": type, "message": message, **more})}


def instead_of_refused(outcome: dict[str, Any], error: dict[str, Any]) -> Outcome | None:
    """What to tell when an outcome is refused for what it says: dropped, its job would wait for its whole lease.

    None when the attempt is not ours any more, or when even this was refused.
    """
    if error.get("code") in ("conflict", "not_found") or outcome.get("error", {}).get("code") in _REFUSED:
        return None
    message = str(error.get("message") or "")
    if "wait" in outcome:
        return failure("wait_refused", "WaitRefused", message, retryable=False)
    if "error" not in outcome:
        is_large = error.get("code") == "payload_too_large"
        code, type = ("result_too_large", "ResultTooLarge") if is_large else ("result_refused", "ResultRefused")
        return failure(code, type, message, retryable=False)
    return failure("failure_refused", "FailureRefused", message, retryable=outcome["error"].get("retryable", True))


def valid(value: Any) -> Any:
    """The value without what UTF-8 cannot carry: ``os.fsdecode`` leaves lone surrogates in names of files."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        return [valid(item) for item in value]
    if isinstance(value, dict):
        return {valid(name): valid(item) for name, item in value.items()}
    return value


def text_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as broken:  # __str__ is the program's, too
        return f"{name_of(error)}, which cannot be shown: {name_of(broken)}"


def name_of(error: BaseException) -> str:
    return type(error).__name__


def current_stack() -> str:
    try:
        return traceback.format_exc()[-MAX_STACK:]
    except BaseException:  # it shows the error, too
        return ""
