/** Handlers that take several jobs in one call. */

import { checkNames } from "./names.js";
import type { Context, Handler } from "./worker.js";

export interface ManyOptions {
  /** The most jobs in one call. */
  count: number;
  /** How long the first one waits for more; a second unless given. */
  delayMs?: number;
}

/** One of the jobs in a call. */
export type JobOfMany<A extends unknown[]> = Context & { readonly args: A };

/** Gives a result for each job, or nothing. An `Error` in the list fails its job; one that is thrown fails all of them. */
export type HandlerOfMany<A extends unknown[], R> = (
  jobs: JobOfMany<A>[],
) => Promise<(R | Error)[] | void> | (R | Error)[] | void;

interface Waiting {
  job: JobOfMany<any[]>;
  resolve(result: unknown): void;
  reject(error: unknown): void;
}

export function checkMany(what: string, { count, delayMs = 1000, ...more }: ManyOptions): Required<ManyOptions> {
  checkNames(what, { count, delayMs, ...more }, ["count", "delayMs"]);
  if (!(Number.isInteger(count) && count >= 1 && delayMs >= 0 && delayMs < 2 ** 31)) {
    throw new RangeError("count must be an integer of at least 1, delayMs from 0 to 2147483647");
  }
  return { count, delayMs };
}

/**
 * A handler of one job that waits for others, and calls `handler` once for all of them. Each job is cancelled, settled and
 * retried by itself.
 */
export function gathering(
  handler: HandlerOfMany<any[], unknown>,
  { count, delayMs }: Required<ManyOptions>,
  stopping: AbortSignal,
): Handler<any[], unknown> {
  let waiting: Waiting[] = [];
  let timer: ReturnType<typeof setTimeout> | undefined;
  const call = () => {
    clearTimeout(timer);
    const called = waiting;
    waiting = [];
    if (called.length > 0) void callFor(called, handler);
  };
  stopping.addEventListener("abort", call);
  return (ctx, ...args) =>
    new Promise((resolve, reject) => {
      ctx.signal.throwIfAborted();
      const one: Waiting = { job: { ...ctx, args }, resolve, reject };
      waiting.push(one);
      if (waiting.length >= count || stopping.aborted) return call();
      if (waiting.length === 1) timer = setTimeout(call, delayMs);
      ctx.signal.addEventListener("abort", () => {
        if (!waiting.includes(one)) return;
        waiting = waiting.filter((other) => other !== one);
        if (waiting.length === 0) clearTimeout(timer);
        reject(ctx.signal.reason);
      });
    });
}

async function callFor(called: Waiting[], handler: HandlerOfMany<any[], unknown>): Promise<void> {
  try {
    const results = checked(await handler(called.map(({ job }) => job)), called.length);
    called.forEach(({ resolve, reject }, index) => {
      const result = results[index];
      if (result instanceof Error) reject(result);
      else resolve(result);
    });
  } catch (error) {
    for (const { reject } of called) reject(error);
  }
}

function checked(results: unknown, count: number): unknown[] {
  if (results === undefined || results === null) return [];
  if (Array.isArray(results) && results.length === count) return results;
  const given = Array.isArray(results) ? `${results.length} results` : typeof results;
  throw new TypeError(`a handler of several jobs gives nothing, or an array with one result for each: ${count}, not ${given}`);
}
