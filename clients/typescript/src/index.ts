/**
 * Galley from TypeScript: enqueue jobs, and work on them. Nothing but the global `fetch`; Node 18 or newer.
 *
 * Jobs run at least once: `ctx.id` and `ctx.attempt` are there to be idempotent with.
 */

export {
  type BatchOptions,
  Client,
  type ClientOptions,
  type CronOptions,
  type FollowOptions,
  type PublishOptions,
  type SubscribeOptions,
  type WaitOptions,
  type WorkflowOptions,
} from "./client.js";
export { applyDelta } from "./delta.js";
export { DeltaError, GalleyError, JobFailed, NoRetry, Retry, Unavailable, Waiting } from "./errors.js";
export type {
  EnqueueOptions,
  JobOptions,
  Rate,
  RateLimit,
  RetryPolicy,
  Throttle,
  Unique,
  When,
} from "./options.js";
export type { HandlerOfMany, JobOfMany, ManyOptions } from "./many.js";
export { Subscription } from "./subscription.js";
export { type EnqueuedFilter, FakeGateway } from "./testing.js";
export type {
  AnyTasks,
  Approval,
  Checkpoint,
  Chunk,
  Cron,
  Failure,
  FilterCondition,
  Gap,
  Job,
  JobEvent,
  LogLine,
  Member,
  Message,
  MessageFilter,
  NewJob,
  NewStep,
  NewWorkflow,
  PresenceEvent,
  Queue,
  Signal,
  State,
  TaskMap,
  TaskResult,
  TaskType,
  Wait,
  Workflow,
  WorkflowMember,
} from "./types.js";
export type { SignalWaitOptions } from "./wait.js";
export { type Context, type Handler, type Middleware, Worker, type WorkerOptions } from "./worker.js";
export { batch, type BatchCallbacks, chain, dag, forEach, group } from "./workflows.js";
