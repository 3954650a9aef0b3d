"""What goes over the wire, as the type checker sees it. At run time these are plain dictionaries."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    # The type checker brings it along; nothing needs it at run time
    from typing_extensions import NotRequired

State = Literal["available", "scheduled", "pending", "active", "retryable", "completed", "cancelled", "discarded"]

#: A time: of day with a time zone, from now on, in seconds from now on, or as Galley spells it (``"+PT5M"``).
When = datetime.datetime | datetime.timedelta | float | str


class RetryPolicy(TypedDict, total=False):
    """How often and when a failed attempt is followed by another one."""

    max_attempts: int
    initial_interval: str
    max_interval: str
    backoff_coefficient: float
    backoff_strategy: Literal["exponential", "linear", "polynomial", "constant", "none"]
    jitter: bool
    non_retryable_errors: list[str]
    on_exhaustion: Literal["discard", "dead_letter"]


class Unique(TypedDict, total=False):
    """Which jobs of a queue are the same, and what happens to the second one."""

    keys: list[Literal["type", "queue", "args", "meta"]]
    #: Instead of ``keys`` and ``args_keys``: dimensions as in ``keys``, or members of the arguments.
    key: list[str]
    args_keys: list[str]
    meta_keys: list[str]
    period: str
    states: list[State]
    on_conflict: Literal["reject", "ignore", "replace", "replace_except_schedule", "debounce"]
    #: Only with ``debounce``: how long after its creation the job starts at the latest, such as ``"PT1M"``.
    max_wait: str


class Rate(TypedDict):
    """How many jobs start in a period."""

    limit: int
    period: NotRequired[str]
    period_ms: NotRequired[int]
    burst: NotRequired[int]
    strict: NotRequired[bool]


class Throttle(TypedDict):
    """How many jobs start in a period, evenly spaced."""

    limit: int
    period: str


class RateLimit(TypedDict, total=False):
    """A limit that a job shares with the jobs of its queue that have the same key."""

    key: str
    concurrency: int
    rate: Rate
    throttle: Throttle
    max_per_second: float
    on_limit: Literal["wait"]


class JobOptions(TypedDict, total=False):
    """Members of a job besides its type and arguments; a name that is not here is refused."""

    queue: str
    id: str
    priority: int
    scheduled_at: When
    delay_until: When
    expires_at: When
    timeout_ms: int
    total_timeout_ms: int
    visibility_timeout_ms: int
    retry: RetryPolicy
    unique: Unique
    rate_limit: RateLimit
    pending: bool
    keep_envelope: bool
    meta: dict[str, Any]
    metadata: dict[str, Any]
    tags: list[str]


class EnqueueOptions(JobOptions, total=False):
    """Options of a request that enqueues a job."""

    idempotency_key: str
    traceparent: str | None
    tracestate: str | None
    baggage: str | None


class NewJob(TypedDict):
    """A job that is not enqueued yet: for ``enqueue_many``, workflows and cron. ``galley.job`` and ``task.job`` make
    one."""

    type: str
    args: list[Any]
    options: NotRequired[dict[str, Any]]
    id: NotRequired[str]
    meta: NotRequired[dict[str, Any]]
    #: Of a step of a workflow: ``galley.for_each`` and ``task.each`` set it.
    for_each: NotRequired[str]


class NewWorkflow(TypedDict):
    """A workflow that is a step of another one: ``galley.chain``, ``group``, ``batch`` and ``dag`` make one."""

    type: Literal["chain", "group", "batch", "dag"]
    name: NotRequired[str]
    meta: NotRequired[dict[str, Any]]
    steps: NotRequired[list[Any]]
    jobs: NotRequired[list[Any]]
    callbacks: NotRequired[dict[str, NewJob]]
    for_each: NotRequired[str]


#: What a workflow runs: a job, or a workflow.
NewStep = NewJob | NewWorkflow


class Failure(TypedDict, total=False):
    """A failed attempt."""

    code: str
    type: str
    message: str
    attempt: int
    occurred_at: str
    stack: str
    output: str
    details: Any


class Checkpoint(TypedDict):
    """What an attempt saved for the next one."""

    state: Any
    sequence: int
    created_at: str


class Signal(TypedDict):
    """What somebody told a job."""

    #: Its number among the signals of the job, from 1.
    sequence: int
    name: str
    #: What tells it from others.
    id: str
    sent_at: str
    data: Any


class Wait(TypedDict):
    """What a job waits for in the middle of its work."""

    step: str
    signal: NotRequired[str]
    since: str
    until: NotRequired[str]
    #: Whether the time was over when the attempt started.
    is_over: NotRequired[bool]


class Approval(TypedDict):
    """What a person decided."""

    approved: bool
    by: str | None
    comment: str | None


class Job(TypedDict):
    """A job as the gateway shows it; it also has what the client sent."""

    id: str
    type: str
    state: State
    queue: str
    priority: int
    attempt: int
    max_attempts: int
    created_at: str
    args: NotRequired[list[Any]]
    meta: NotRequired[dict[str, Any]]
    tags: NotRequired[list[str]]
    enqueued_at: NotRequired[str]
    started_at: NotRequired[str]
    scheduled_at: NotRequired[str]
    expires_at: NotRequired[str]
    next_attempt_at: NotRequired[str]
    completed_at: NotRequired[str]
    cancelled_at: NotRequired[str]
    discarded_at: NotRequired[str]
    result: NotRequired[Any]
    result_dropped: NotRequired[str]
    envelope_dropped: NotRequired[bool]
    error: NotRequired[Failure]
    errors: NotRequired[list[Failure]]
    progress: NotRequired[float]
    progress_data: NotRequired[dict[str, Any]]
    progress_at: NotRequired[str]
    #: Only of a job that was fetched.
    checkpoint: NotRequired[Checkpoint]
    #: What the job waits for in the middle of its work, or goes on from if it was fetched.
    waiting: NotRequired[Wait]
    #: Only of a job that was fetched.
    signals: NotRequired[list[Signal]]
    worker_id: NotRequired[str]
    timeout_ms: NotRequired[int]
    token: NotRequired[str]
    traceparent: NotRequired[str]
    tracestate: NotRequired[str]
    baggage: NotRequired[str]
    workflow_id: NotRequired[str]
    workflow_index: NotRequired[int]
    parent_results: NotRequired[list[Any]]


@dataclass(frozen=True)
class Chunk:
    """What a handler streamed with ``Context.stream``."""

    id: str
    #: With a new attempt the output begins again.
    attempt: int
    data: Any


class LogLine(TypedDict):
    """A line that a handler logged."""

    id: str
    at: str
    attempt: int
    level: Literal["debug", "info", "warn", "error"]
    message: str
    truncated: NotRequired[bool]


class WorkflowMember(TypedDict):
    """A job of a workflow, or a workflow in it; ``waiting`` until its turn comes."""

    id: str
    #: The type of the job, or the kind of workflow.
    type: str
    state: State | Literal["waiting", "running", "failed"]
    queue: NotRequired[str]
    index: NotRequired[int]
    #: Whether it is a workflow: ``get_workflow`` shows it once it has started.
    workflow: NotRequired[bool]
    #: The index of the member for each element of whose result it has a job.
    for_each: NotRequired[int]
    result: NotRequired[Any]
    error: NotRequired[dict[str, Any]]
    #: Of a callback: ``on_complete``, ``on_success`` or ``on_failure``.
    on: NotRequired[str]


class Workflow(TypedDict):
    """A chain, a group, a batch or a DAG."""

    id: str
    type: Literal["chain", "group", "batch", "dag"]
    state: Literal["running", "completed", "failed", "cancelled"]
    jobs_total: NotRequired[int]
    jobs_completed: NotRequired[int]
    jobs_failed: NotRequired[int]
    jobs_cancelled: NotRequired[int]
    steps_total: NotRequired[int]
    steps_completed: NotRequired[int]
    members: NotRequired[list[WorkflowMember]]
    callbacks: NotRequired[list[WorkflowMember]]
    #: The workflow that it is a step of.
    parent_workflow_id: NotRequired[str]
    parent_workflow_index: NotRequired[int]
    created_at: NotRequired[str]
    completed_at: NotRequired[str]


class Cron(TypedDict):
    """A job on a schedule."""

    name: str
    expression: NotRequired[str]
    timezone: NotRequired[str]
    overlap_policy: NotRequired[Literal["skip", "allow", "cancel_previous", "enqueue"]]
    enabled: NotRequired[bool]
    description: NotRequired[str | None]
    job_template: NotRequired[dict[str, Any]]
    next_run_at: NotRequired[str | None]
    last_run_at: NotRequired[str | None]
    last_job_id: NotRequired[str | None]
    run_count: NotRequired[int]
    skipped_count: NotRequired[int]
    missed_count: NotRequired[int]


class Queue(TypedDict):
    """A queue with its counts."""

    name: str
    paused: NotRequired[bool]
    closed: NotRequired[bool]
    available: NotRequired[int]
    active: NotRequired[int]
    waiting: NotRequired[int]
    pending: NotRequired[int]
    dead: NotRequired[int]
    completed: NotRequired[int]
    discarded: NotRequired[int]
    cancelled: NotRequired[int]
    retried: NotRequired[int]
    partitions: NotRequired[int]
    limits: NotRequired[dict[str, Any]]


@dataclass(frozen=True)
class Message:
    """A message of a channel."""

    #: Its position; none if a client of plain Redis published it.
    id: str | None
    channel: str
    time: str
    #: JSON where the content type says so, text otherwise, ``bytes`` where it is no text.
    data: Any
    content_type: str | None = None
    #: Of a CloudEvent.
    attributes: dict[str, Any] = field(default_factory=dict)


class MessageFilter(TypedDict, total=False):
    """Which messages a subscriber gets: all conditions must hold. A condition is a value to be equal to,
    ``{"any_of": [...]}``, ``{"prefix": "order."}``, ``{"exists": True}``, or bounds of a number such as
    ``{"gte": 1, "lt": 10}`` (``gt``, ``gte``, ``lt``, ``lte``)."""

    #: By the name of an attribute of a CloudEvent.
    attributes: dict[str, Any]
    #: By a JSON pointer into the data, such as ``/order/total``.
    data: dict[str, Any]


class Member(TypedDict):
    """A member of a channel."""

    member: str
    #: When it joined.
    since: str
    #: What it says of itself.
    info: NotRequired[Any]


@dataclass(frozen=True)
class PresenceEvent:
    """Who is present on a channel: all members, or one that joined, changed its info or left."""

    #: ``members``, ``join``, ``update`` or ``leave``.
    type: Literal["members", "join", "update", "leave"]
    channel: str
    #: All of them, or the one that the event is about.
    members: list[Member]


@dataclass(frozen=True)
class Gap:
    """Messages of a channel that are not kept any more."""

    channel: str
    #: The last position before them.
    after: str | None
    #: The first message after them.
    to: str | None
    #: How many, if Galley knows it.
    count: int | None


@dataclass(frozen=True)
class JobEvent:
    """What happened to a job, such as ``job.progress``."""

    id: str
    type: str
    time: str
    data: dict[str, Any]
