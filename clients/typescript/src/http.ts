/** Requests to a gateway, and pauses between them. */

import { GalleyError, Unavailable } from "./errors.js";

declare const process: { env: Record<string, string | undefined> } | undefined;

/** Time for an answer on top of what is waited for. */
const ANSWER_MS = 10_000;
/** Pauses between attempts to reach the gateway: full jitter up to twice as long each time. */
const FIRST_PAUSE_MS = 100;
const MAX_PAUSE_MS = 5_000;

/** A job as the gateway shows it. */
export interface Job {
  id: string;
  type: string;
  state: "available" | "scheduled" | "pending" | "active" | "retryable" | "completed" | "cancelled" | "discarded";
  queue: string;
  /** Absent when the job succeeded and was not asked to keep its envelope. */
  args?: unknown[];
  attempt: number;
  max_attempts: number;
  result?: unknown;
  error?: Failure;
  errors?: Failure[];
  progress?: number;
  timeout_ms?: number;
  token?: string;
  traceparent?: string;
  tracestate?: string;
  baggage?: string;
  [member: string]: unknown;
}

/** The trace of a job, as headers of requests that belong to it. */
export type Trace = { traceparent?: string; tracestate?: string; baggage?: string };

export function traceOf(job: { [name in keyof Trace]?: string | undefined }): Trace {
  const { traceparent, tracestate, baggage } = job;
  return {
    ...(traceparent === undefined ? {} : { traceparent }),
    ...(tracestate === undefined ? {} : { tracestate }),
    ...(baggage === undefined ? {} : { baggage }),
  };
}

interface Handled {
  run<R>(trace: Trace, work: () => R): R;
  getStore(): Trace | undefined;
}

/** The trace of the job whose handler calls, also after an `await`; nothing where the runtime does not say. */
export const handled: Handled | undefined = (() => {
  type Runtime = { getBuiltinModule?: (name: string) => { AsyncLocalStorage: new () => Handled } | undefined };
  const runtime = typeof process === "undefined" ? undefined : (process as unknown as Runtime);
  const hooks = runtime?.getBuiltinModule?.("node:async_hooks");
  return hooks === undefined ? undefined : new hooks.AsyncLocalStorage();
})();

export interface Failure {
  code?: string;
  type?: string;
  message?: string;
  [member: string]: unknown;
}

export interface Call {
  method: string;
  path: string;
  body?: unknown;
  /** How long the answer may take on purpose. */
  waitMs?: number;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

export class Gateway {
  private readonly url: string;
  private readonly authorization: Record<string, string>;

  constructor(url?: string, key?: string) {
    const environment = typeof process === "undefined" ? {} : process.env;
    this.url = (url ?? (environment["GALLEY_URL"] || "http://127.0.0.1:8080")).replace(/\/+$/, "");
    const usedKey = key ?? environment["GALLEY_KEY"];
    this.authorization = usedKey ? { authorization: `Bearer ${usedKey}` } : {};
    // Complains about what is no URL
    new URL(this.url);
  }

  async call<T>({ method, path, body, waitMs = 0, headers = {}, signal }: Call): Promise<T> {
    // undefined is no JSON: JSON.stringify leaves it out, and says nothing of it
    const request: RequestInit = { method, headers: { "content-type": "application/json", ...this.authorization, ...headers } };
    if (body !== undefined) request.body = JSON.stringify(body, isReport(path) ? (_, value) => wellFormed(value) : undefined);
    const limit = new AbortController();
    const timer = setTimeout(() => limit.abort(new Error("no answer in time")), waitMs + ANSWER_MS);
    const hangUp = () => limit.abort(signal?.reason);
    signal?.addEventListener("abort", hangUp, { once: true });
    if (signal?.aborted) hangUp();
    try {
      const response = await fetch(this.url + path, { ...request, signal: limit.signal });
      return read<T>(response.status, await response.text());
    } catch (error) {
      if (error instanceof GalleyError) throw error;
      const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
      throw new Unavailable(`the gateway cannot be reached: ${String(cause)}`);
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", hangUp);
    }
  }
}

/** Whether a request reports how a job does: it must arrive, whatever the text in it. */
function isReport(path: string): boolean {
  return path.startsWith("/ojs/v1/workers/") || path.endsWith("/progress");
}

/** The value without lone surrogates, which `slice` leaves and UTF-8 cannot carry. */
function wellFormed(value: unknown): unknown {
  if (typeof value !== "string") return value;
  return value.replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "\ufffd");
}

function read<T>(status: number, text: string): T {
  let content: unknown = {};
  try {
    content = text === "" ? {} : JSON.parse(text);
  } catch {
    // Whatever stands in between answered: the status says enough
  }
  if (status < 400) return content as T;
  const error = (content as { error?: { code?: string; message?: string; retryable?: boolean } }).error ?? {};
  const { code = "unknown", message = `answered with ${status}` } = error;
  if (status >= 500 || status === 408 || status === 429) throw new Unavailable(message, status, code);
  throw new GalleyError(status, code, message, error.retryable === true);
}

/** Growing pauses with jitter. */
export function pauses(): () => number {
  let longest = FIRST_PAUSE_MS;
  return () => {
    longest = Math.min(longest * 2, MAX_PAUSE_MS);
    return Math.random() * longest;
  };
}

/** Waits that long, or until the signal. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve();
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", done, { once: true });
  });
}
