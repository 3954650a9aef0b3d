/** What goes over the wire, as the compiler sees it. */

/**
 * Tasks by their job type, as a type argument of `Client` and `Worker`:
 * `{ "email.send": { args: [to: string, subject?: string]; result: string } }`.
 */
export type TaskMap<Tasks> = { [K in keyof Tasks]: { args: unknown[]; result?: unknown } };

/** Tasks of any type, with any arguments: without a map the compiler checks neither. */
export type AnyTasks = Record<string, { args: any[]; result?: unknown }>;

export type TaskType<Tasks> = keyof Tasks & string;
export type TaskResult<Task> = Task extends { result: infer R } ? R : unknown;

export type State =
  | "available"
  | "scheduled"
  | "pending"
  | "active"
  | "retryable"
  | "completed"
  | "cancelled"
  | "discarded";

/** A failed attempt. */
export interface Failure {
  code?: string;
  type?: string;
  message?: string;
  attempt?: number;
  occurred_at?: string;
  stack?: string;
  output?: string;
  details?: unknown;
}

/** What an attempt saved for the next one. */
export interface Checkpoint {
  state: unknown;
  sequence: number;
  created_at: string;
}

/** What somebody told a job. */
export interface Signal<T = unknown> {
  /** Its number among the signals of the job, from 1. */
  sequence: number;
  name: string;
  /** What tells it from others. */
  id: string;
  sent_at: string;
  data: T;
}

/** What a job waits for in the middle of its work. */
export interface Wait {
  step: string;
  signal?: string;
  since: string;
  until?: string;
  /** Whether the time was over when the attempt started. */
  is_over?: boolean;
}

/** What a person decided. */
export interface Approval {
  approved: boolean;
  by: string | undefined;
  comment: string | undefined;
}

/** A job as the gateway shows it. */
export interface Job<R = unknown> {
  id: string;
  type: string;
  state: State;
  queue: string;
  priority: number;
  attempt: number;
  max_attempts: number;
  created_at: string;
  /** Absent when the job succeeded and was not asked to keep its envelope. */
  args?: unknown[];
  meta?: Record<string, unknown>;
  tags?: string[];
  enqueued_at?: string;
  started_at?: string;
  scheduled_at?: string;
  expires_at?: string;
  next_attempt_at?: string;
  completed_at?: string;
  cancelled_at?: string;
  discarded_at?: string;
  result?: R;
  result_dropped?: string;
  envelope_dropped?: boolean;
  error?: Failure;
  errors?: Failure[];
  progress?: number;
  progress_data?: Record<string, unknown>;
  progress_at?: string;
  /** Only of a job that was fetched. */
  checkpoint?: Checkpoint;
  /** What it waits for in the middle of its work, or goes on from if it was fetched. */
  waiting?: Wait;
  /** Only of a job that was fetched. */
  signals?: Signal[];
  worker_id?: string;
  timeout_ms?: number;
  token?: string;
  traceparent?: string;
  tracestate?: string;
  baggage?: string;
  workflow_id?: string;
  workflow_index?: number;
  parent_results?: unknown[];
}

/** A job that is not enqueued yet, for `enqueueMany`, workflows and cron: `Client.job` makes one. */
export interface NewJob {
  type: string;
  args: unknown[];
  options?: Record<string, unknown>;
  id?: string;
  meta?: Record<string, unknown>;
  /** Of a step of a workflow: `forEach` sets it. */
  for_each?: string;
}

/** A workflow that is a step of another one: `chain`, `group`, `batch` and `dag` make one. */
export interface NewWorkflow {
  type: "chain" | "group" | "batch" | "dag";
  name?: string;
  meta?: Record<string, unknown>;
  steps?: NewStep[];
  jobs?: NewStep[];
  callbacks?: { on_complete?: NewJob; on_success?: NewJob; on_failure?: NewJob };
  for_each?: string;
}

/** The arguments of a job without the last one. */
export type AllButLast<Args extends unknown[]> = Args extends [...infer Rest, unknown] ? Rest : Args;

/** What a workflow runs: a job, or a workflow. */
export type NewStep = NewJob | NewWorkflow;

/** What a handler streamed with `ctx.stream`. */
export interface Chunk<T = unknown> {
  id: string;
  /** With a new attempt the output begins again. */
  attempt: number;
  data: T;
}

/** A line that a handler logged. */
export interface LogLine {
  id: string;
  at: string;
  attempt: number;
  level: "debug" | "info" | "warn" | "error";
  message: string;
  truncated?: boolean;
}

/** A job of a workflow, or a workflow in it; `waiting` until its turn comes. */
export interface WorkflowMember {
  id: string;
  /** The type of the job, or the kind of workflow. */
  type: string;
  state: State | "waiting" | "running" | "failed";
  queue?: string;
  index?: number;
  /** Whether it is a workflow: `getWorkflow` shows it once it has started. */
  workflow?: boolean;
  /** The index of the member for each element of whose result it has a job. */
  for_each?: number;
  result?: unknown;
  error?: { code: string; message: string; job_id?: string };
  /** Of a callback: `on_complete`, `on_success` or `on_failure`. */
  on?: string;
}

/** A chain, a group, a batch or a DAG. */
export interface Workflow {
  id: string;
  type: "chain" | "group" | "batch" | "dag";
  state: "running" | "completed" | "failed" | "cancelled";
  jobs_total?: number;
  jobs_completed?: number;
  jobs_failed?: number;
  jobs_cancelled?: number;
  steps_total?: number;
  steps_completed?: number;
  members?: WorkflowMember[];
  callbacks?: WorkflowMember[];
  /** The workflow that it is a step of. */
  parent_workflow_id?: string;
  parent_workflow_index?: number;
  created_at?: string;
  completed_at?: string;
}

/** A job on a schedule. */
export interface Cron {
  name: string;
  expression?: string;
  timezone?: string;
  overlap_policy?: "skip" | "allow" | "cancel_previous" | "enqueue";
  enabled?: boolean;
  description?: string | null;
  job_template?: Record<string, unknown>;
  next_run_at?: string | null;
  last_run_at?: string | null;
  last_job_id?: string | null;
  run_count?: number;
  skipped_count?: number;
  missed_count?: number;
}

/** A queue with its counts. */
export interface Queue {
  name: string;
  paused?: boolean;
  closed?: boolean;
  available?: number;
  active?: number;
  waiting?: number;
  pending?: number;
  dead?: number;
  completed?: number;
  discarded?: number;
  cancelled?: number;
  retried?: number;
  partitions?: number;
  limits?: Record<string, unknown>;
}

/** A message of a channel. */
export interface Message<T = unknown> {
  /** Its position; null if a client of plain Redis published it. */
  id: string | null;
  channel: string;
  time: string;
  /** JSON where the content type says so, text otherwise, a `Uint8Array` where it is no text. */
  data: T;
  contentType: string | undefined;
  /** Of a CloudEvent. */
  attributes: Record<string, unknown>;
}

type Scalar = string | number | boolean | null;
type Bound = "gt" | "gte" | "lt" | "lte";

/** What a value must be: equal, one of several, a text with a prefix, there at all, or a number within bounds. */
export type FilterCondition =
  | Scalar
  | { any_of: Scalar[] }
  | { prefix: string }
  | { exists: boolean }
  | { [bound in Bound]?: number };

/** Which messages a subscriber gets: all conditions must hold. */
export interface MessageFilter {
  /** By the name of an attribute of a CloudEvent. */
  attributes?: Record<string, FilterCondition>;
  /** By a JSON pointer into the data, such as `/order/total`. */
  data?: Record<string, FilterCondition>;
}

/** Messages of a channel that are not kept any more. */
export interface Gap {
  channel: string;
  /** The last position before them. */
  after: string | undefined;
  /** The first message after them. */
  to: string | undefined;
  /** How many, if Galley knows it. */
  count: number | undefined;
}

/** A member of a channel. */
export interface Member {
  member: string;
  /** When it joined. */
  since: string;
  /** What it says of itself. */
  info?: unknown;
}

/** Who is present on a channel: all members, or one that joined, changed its info or left. */
export type PresenceEvent =
  | { type: "members"; channel: string; members: Member[] }
  | ({ type: "join" | "update" | "leave"; channel: string } & Member);

/** What happened to a job, such as `job.progress`. */
export interface JobEvent {
  id: string;
  type: string;
  time: string;
  data: Record<string, unknown>;
}
