/**
 * Galley from TypeScript: enqueue jobs, and work on them. Nothing but the global `fetch`; Node 18 or newer.
 *
 * Jobs run at least once: `ctx.id` and `ctx.attempt` are there to be idempotent with.
 */

export { Client, type JobOptions } from "./client.js";
export { GalleyError, JobFailed, NoRetry, Retry, Unavailable } from "./errors.js";
export type { Job } from "./http.js";
export { type Context, type Handler, Worker, type WorkerOptions } from "./worker.js";
