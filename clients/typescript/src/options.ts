/** Options of jobs: checked by name, and spelled as the gateway reads them. */

import { checkNames } from "./names.js";
import type { NewJob, State } from "./types.js";

/** A time: of day, in milliseconds from now, or as Galley spells it (`"+PT5M"`). */
export type When = Date | number | string;

/** How often and when a failed attempt is followed by another one. */
export interface RetryPolicy {
  max_attempts?: number;
  initial_interval?: string;
  max_interval?: string;
  backoff_coefficient?: number;
  backoff_strategy?: "exponential" | "linear" | "polynomial" | "constant" | "none";
  jitter?: boolean;
  non_retryable_errors?: string[];
  on_exhaustion?: "discard" | "dead_letter";
}

/** Which jobs of a queue are the same, and what happens to the second one. */
export interface Unique {
  keys?: ("type" | "queue" | "args" | "meta")[];
  /** Instead of `keys` and `args_keys`: dimensions as in `keys`, or members of the arguments. */
  key?: string[];
  args_keys?: string[];
  meta_keys?: string[];
  period?: string;
  states?: State[];
  on_conflict?: "reject" | "ignore" | "replace" | "replace_except_schedule" | "debounce";
  /** Only with `debounce`: how long after its creation the job starts at the latest, such as `"PT1M"`. */
  max_wait?: string;
}

/** How many jobs start in a period. */
export interface Rate {
  limit: number;
  period?: string;
  period_ms?: number;
  burst?: number;
  strict?: boolean;
}

/** How many jobs start in a period, evenly spaced. */
export interface Throttle {
  limit: number;
  period: string;
}

/** A limit that a job shares with the jobs of its queue that have the same key. */
export interface RateLimit {
  key?: string;
  concurrency?: number;
  rate?: Rate;
  throttle?: Throttle;
  max_per_second?: number;
  on_limit?: "wait";
}

/** Members of a job besides its type and args, as they are spelled in its JSON. */
export interface JobOptions {
  queue?: string;
  id?: string;
  priority?: number;
  scheduled_at?: When;
  delay_until?: When;
  expires_at?: When;
  timeout_ms?: number;
  total_timeout_ms?: number;
  visibility_timeout_ms?: number;
  retry?: RetryPolicy;
  unique?: Unique;
  rate_limit?: RateLimit;
  pending?: boolean;
  keep_envelope?: boolean;
  meta?: Record<string, unknown>;
  metadata?: Record<string, unknown>;
  tags?: string[];
}

/** Options of a request that enqueues a job. */
export interface EnqueueOptions extends JobOptions {
  /** Requests with the same key make one job. A random one unless given. */
  idempotencyKey?: string | undefined;
  /** Makes the job part of this trace (W3C Trace Context). Otherwise it is part of the trace of the handler that calls this. */
  traceparent?: string | undefined;
  tracestate?: string | undefined;
  baggage?: string | undefined;
}

/** All names of a type: the compiler refuses one that is missing or too many. */
function names<T>(of: Record<keyof T, true>): readonly string[] {
  return Object.keys(of);
}

const JOB: Record<keyof JobOptions, true> = {
  queue: true,
  id: true,
  priority: true,
  scheduled_at: true,
  delay_until: true,
  expires_at: true,
  timeout_ms: true,
  total_timeout_ms: true,
  visibility_timeout_ms: true,
  retry: true,
  unique: true,
  rate_limit: true,
  pending: true,
  keep_envelope: true,
  meta: true,
  metadata: true,
  tags: true,
};
const REQUEST = { idempotencyKey: true, traceparent: true, tracestate: true, baggage: true } as const;

export const JOB_OPTIONS = names<JobOptions>(JOB);
export const ENQUEUE_OPTIONS = names<EnqueueOptions>({ ...JOB, ...REQUEST });
export const RETRY = names<RetryPolicy>({
  max_attempts: true,
  initial_interval: true,
  max_interval: true,
  backoff_coefficient: true,
  backoff_strategy: true,
  jitter: true,
  non_retryable_errors: true,
  on_exhaustion: true,
});
export const UNIQUE = names<Unique>({
  keys: true,
  key: true,
  args_keys: true,
  meta_keys: true,
  period: true,
  states: true,
  on_conflict: true,
  max_wait: true,
});
export const RATE = names<Rate>({ limit: true, period: true, period_ms: true, burst: true, strict: true });
export const THROTTLE = names<Throttle>({ limit: true, period: true });
export const RATE_LIMIT = names<RateLimit>({
  key: true,
  concurrency: true,
  rate: true,
  throttle: true,
  max_per_second: true,
  on_limit: true,
});

/** A time as the gateway reads it. */
export function spelled(when: When): string {
  if (typeof when === "string") return when;
  if (typeof when === "number") return `+PT${(Math.max(0, when) / 1000).toFixed(3)}S`;
  return when.toISOString();
}

/** The options as members of a job. An unknown name is an error that says which one was perhaps meant. */
export function wireOptions(what: string, options: JobOptions, known = JOB_OPTIONS): Record<string, unknown> {
  checkNames(what, options, known);
  const { retry, unique, rate_limit: limit } = options;
  const nested: [string, object | undefined, readonly string[]][] = [
    ["retry", retry, RETRY],
    ["unique", unique, UNIQUE],
    ["rate_limit", limit, RATE_LIMIT],
    ["rate_limit.rate", limit?.rate, RATE],
    ["rate_limit.throttle", limit?.throttle, THROTTLE],
  ];
  for (const [name, value, members] of nested) {
    if (typeof value === "object" && value !== null) checkNames(name, value, members);
  }
  const wired: Record<string, unknown> = { ...options };
  for (const name of ["scheduled_at", "delay_until", "expires_at"] as const) {
    const when = options[name];
    if (when !== undefined && when !== null) wired[name] = spelled(when);
  }
  return wired;
}

/** A job that is not enqueued yet. */
export function newJob(type: string, args: unknown[], options: JobOptions): NewJob {
  const { id, meta, ...rest } = wireOptions("job()", options) as { id?: string; meta?: Record<string, unknown> };
  return {
    type,
    args,
    ...(id === undefined ? {} : { id }),
    ...(meta === undefined ? {} : { meta }),
    ...(Object.keys(rest).length === 0 ? {} : { options: rest }),
  };
}
