"""Galley from Python: enqueue jobs and work on them, publish and read messages; for threads and for asyncio."""

from ._app import App, AsyncCalls, AsyncHandle, AsyncTask, Calls, Handle, Task
from ._async_client import AsyncClient
from ._client import Client
from ._context import Context, current
from ._delta import apply_delta
from ._errors import DeltaError, GalleyError, JobFailed, NoRetry, Retry, Unavailable, Waiting
from ._options import job
from ._sse import AsyncSubscription, Subscription
from ._testing import FakeGateway
from ._types import (
    Approval,
    Checkpoint,
    Chunk,
    Cron,
    EnqueueOptions,
    Failure,
    Gap,
    Job,
    JobEvent,
    JobOptions,
    LogLine,
    Member,
    Message,
    MessageFilter,
    NewJob,
    PresenceEvent,
    Queue,
    Rate,
    RateLimit,
    RetryPolicy,
    Signal,
    State,
    Throttle,
    Unique,
    Wait,
    When,
    Workflow,
    WorkflowMember,
)
from ._worker import Worker

__version__ = "0.2.0"

__all__ = [
    "App",
    "Approval",
    "AsyncCalls",
    "AsyncClient",
    "AsyncHandle",
    "AsyncSubscription",
    "AsyncTask",
    "Calls",
    "Checkpoint",
    "Chunk",
    "Client",
    "Context",
    "Cron",
    "DeltaError",
    "EnqueueOptions",
    "Failure",
    "FakeGateway",
    "GalleyError",
    "Gap",
    "Handle",
    "Job",
    "JobEvent",
    "JobFailed",
    "JobOptions",
    "LogLine",
    "Member",
    "Message",
    "MessageFilter",
    "NewJob",
    "NoRetry",
    "PresenceEvent",
    "Queue",
    "Rate",
    "RateLimit",
    "Retry",
    "RetryPolicy",
    "Signal",
    "State",
    "Subscription",
    "Task",
    "Throttle",
    "Unavailable",
    "Unique",
    "Wait",
    "Waiting",
    "When",
    "Worker",
    "Workflow",
    "WorkflowMember",
    "apply_delta",
    "current",
    "job",
]
