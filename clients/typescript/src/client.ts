/** Enqueueing jobs and looking after them. */

import { JobFailed, Unavailable } from "./errors.js";
import { type Call, Gateway, handled, type Job, pauses, sleep, traceOf } from "./http.js";
import { uuid } from "./uuid.js";

/** Longest single wait that is asked of the gateway; it allows a minute by default (`gateway.max_wait_ms`). */
const MAX_WAIT_MS = 20_000;

/** Members of a job besides its type and args. */
export interface JobOptions {
  queue?: string;
  priority?: number;
  scheduled_at?: string;
  timeout_ms?: number;
  retry?: Record<string, unknown>;
  unique?: Record<string, unknown>;
  meta?: Record<string, unknown>;
  /** Makes the job part of this trace (W3C Trace Context). Otherwise it is part of the trace of the handler that calls this. */
  traceparent?: string | undefined;
  tracestate?: string | undefined;
  baggage?: string | undefined;
  [member: string]: unknown;
}

export class Client {
  private readonly gateway: Gateway;
  private readonly patienceMs: number;

  /** `key` is `GALLEY_KEY` unless given. `patienceMs` is for how long a request is sent again while the gateway is away. */
  constructor(url?: string, options: { patienceMs?: number; key?: string } = {}) {
    this.gateway = new Gateway(url, options.key);
    this.patienceMs = options.patienceMs ?? 10_000;
  }

  /** Stores a job. However often the request came through, it makes one. */
  async enqueue(type: string, args: unknown[], { traceparent, tracestate, baggage, ...options }: JobOptions = {}): Promise<Job> {
    const given = traceOf({ traceparent, tracestate, baggage });
    const trace = Object.keys(given).length > 0 ? given : (handled?.getStore() ?? {});
    const headers = { "idempotency-key": uuid(), ...trace };
    const body = { ...options, type, args };
    const answer = await this.call<{ job: Job }>({ method: "POST", path: "/ojs/v1/jobs", body, headers });
    return answer.job;
  }

  /** The job as it is; with `waitMs` as it is when it ends, or after that time. */
  async get(id: string, { waitMs = 0 }: { waitMs?: number } = {}): Promise<Job> {
    const deadline = Date.now() + waitMs;
    for (;;) {
      const left = Math.max(0, Math.min(deadline - Date.now(), MAX_WAIT_MS));
      const path = `/ojs/v1/jobs/${encodeURIComponent(id)}${left > 0 ? `?wait_ms=${left}` : ""}`;
      const { job } = await this.call<{ job: Job }>({ method: "GET", path, waitMs: left });
      if (Date.now() >= deadline || ["completed", "cancelled", "discarded"].includes(job.state)) return job;
    }
  }

  /** Waits for a job to end and gives its result; throws `JobFailed` when it was discarded or cancelled. */
  async result<T = unknown>(id: string, { waitMs = 60_000 }: { waitMs?: number } = {}): Promise<T> {
    const job = await this.get(id, { waitMs });
    if (job.state === "completed") return job.result as T;
    if (job.state === "cancelled" || job.state === "discarded") throw new JobFailed(job);
    throw new Error(`job ${id} is ${job.state} after ${waitMs} ms`);
  }

  /** Ends a job that is not over. If it runs, its worker is told with the next heartbeat. */
  async cancel(id: string): Promise<Job> {
    const path = `/ojs/v1/jobs/${encodeURIComponent(id)}`;
    return (await this.call<{ job: Job }>({ method: "DELETE", path })).job;
  }

  private async call<T>(call: Call): Promise<T> {
    const deadline = Date.now() + (call.waitMs ?? 0) + this.patienceMs;
    const pause = pauses();
    for (;;) {
      try {
        return await this.gateway.call<T>(call);
      } catch (error) {
        const ms = pause();
        if (!(error instanceof Unavailable) || Date.now() + ms > deadline) throw error;
        await sleep(ms);
      }
    }
  }
}
