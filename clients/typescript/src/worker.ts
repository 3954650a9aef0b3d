/**
 * Working on jobs.
 *
 * A job is asked for only when there is room for it. Heartbeats keep alive what is held; the answer to a result brings
 * the next job along; how a job ended is told until the gateway has heard it. Only the gateway knows whether a job was
 * given to somebody else.
 */

import { Saved, type SendCheckpoint } from "./checkpoint.js";
import { GalleyError, Unavailable } from "./errors.js";
import { Gateway, Patience, pauses, sleep } from "./http.js";
import { checkMany, gathering, type HandlerOfMany, type ManyOptions } from "./many.js";
import { checkNames } from "./names.js";
import { OutputWriter, type SendOutput } from "./output.js";
import { failure, insteadOfRefused, type Settled, thrownBy } from "./settled.js";
import { handled, inSpan, traceOf } from "./trace.js";
import type { AnyTasks, Approval, Failure, Job, LogLine, Signal, TaskMap, TaskResult, TaskType } from "./types.js";
import { uuid } from "./uuid.js";
import { type SignalWaitOptions, waitsOf } from "./wait.js";

declare const process:
  | { pid: number; on(signal: string, f: () => void): void; off(signal: string, f: () => void): void }
  | undefined;

/**
 * For so long after the end of its lease it is told how an attempt ended: somebody else has the job by then, if anybody
 * can.
 */
const MAX_LATE_MS = 3_600_000;
/** How long a fetch waits for a job. */
const WAIT_MS = 20_000;
/** Jobs fetched, or handed back, in one request. */
const MAX_FETCHED = 100;
/** Ids in one heartbeat. */
const MAX_BEATS = 1000;
/** Longest pause between heartbeats. */
const MAX_BEAT_MS = 10_000;
/** Characters of a logged line that are sent; the gateway keeps `jobs.log_line_bytes`. */
const MAX_LINE = 16_000;
/** For how long a checkpoint or output is sent while the gateway is away. */
const SAVE_PATIENCE_MS = 30_000;

export interface WorkerOptions {
  url?: string;
  /** `GALLEY_KEY` unless given. */
  key?: string;
  queues?: string[];
  /** Jobs at a time. */
  concurrency?: number;
  /** After so long without a sign of life a job is given to somebody else; heartbeats come three times as often. */
  leaseMs?: number;
  /** How long running jobs have to finish when the worker is stopped; then they are handed back, unspent. */
  graceMs?: number;
  id?: string;
}

/** A running attempt, as its handler sees it. */
export interface Context {
  readonly job: Job;
  readonly id: string;
  /** 1 for the first one. */
  readonly attempt: number;
  /** Proves whose attempt it is: a stale one can change nothing. */
  readonly token: string;
  /** The trace to continue (W3C Trace Context), for your own spans and for `Client.enqueue`. */
  readonly traceparent: string | undefined;
  /** The rest of it. */
  readonly tracestate: string | undefined;
  readonly baggage: string | undefined;
  /** The results of the jobs before this one in its workflow. */
  readonly parentResults: unknown[];
  /** When the job's `timeout_ms` is over. */
  readonly deadline: Date | undefined;
  /** Aborted when nobody wants the result: cancelled, timed out, given to another, or this worker ends. */
  readonly signal: AbortSignal;
  /** Notes how far the job has come, 0 to 1. */
  progress(progress: number, message?: string): Promise<void>;
  /** Logs a line for people: `GET /ojs/v1/jobs/{id}/logs` shows it. */
  log(message: string, level?: "debug" | "info" | "warn" | "error"): Promise<void>;
  /**
   * Adds a chunk to the job's output, such as a word of an answer: `Client.output` reads it while the job runs, and for an
   * hour. It has at most 65,536 bytes as JSON; the newest 10,000 chunks and four mebibytes are kept. That it cannot be sent
   * is no reason to fail.
   */
  stream(chunk: unknown): Promise<void>;
  /** What `checkpoint` saved last, in this attempt or an earlier one; nothing if nothing was saved. */
  state<T = unknown>(): T | undefined;
  /**
   * Saves from where the next attempt goes on, if there is one: it finds it in `state()`. Each call replaces what the one
   * before saved. With the results of the job's steps it may have 1,048,576 bytes as JSON; it is deleted when the job
   * completes. That it cannot be saved is an error.
   */
  checkpoint(state: unknown): Promise<void>;
  /**
   * Runs a step of the job and saves its result; an attempt that comes later gets the saved result, and `run` is not
   * called. Each step needs a name of its own, and its result is what JSON makes of it. If the worker dies after the step
   * and before its result is saved, the step runs again: make its effect idempotent with `id` and the name.
   */
  step<T>(name: string, run: () => Promise<T> | T): Promise<T>;
  /**
   * Waits until somebody sends the job a signal of that name (`Client.signal`), one that came before included; nothing if
   * there is none for `timeoutMs`.
   *
   * While it waits, the job is scheduled and holds no worker: this throws `Waiting`, which must reach the worker, and a later
   * attempt gets here again. That spends no attempt of the retry policy. Everything before it must be a `step`, or do no harm
   * when it runs again. To wait for several signals of one name, give each wait a `step` of its own.
   */
  waitForSignal<T = unknown>(name: string, options?: SignalWaitOptions): Promise<Signal<T> | undefined>;
  /**
   * Waits for a person who approves or rejects: `galley jobs approve`, the dashboard, or a signal `approval.<subject>` with
   * `{ approved: true }`. Nothing if nobody has decided for `timeoutMs`.
   */
  waitForApproval(subject?: string, options?: { timeoutMs?: number }): Promise<Approval | undefined>;
  /**
   * Sleeps for that long, counted from the first attempt that gets here, without holding a worker: see `waitForSignal`. Each
   * sleep needs a name of its own.
   */
  sleep(name: string, ms: number): Promise<void>;
}

export type Handler<A extends unknown[], R> = (ctx: Context, ...args: A) => Promise<R> | R;

/**
 * Runs around each attempt. It gives what `next()` gives, or something else in its place; what it throws fails the attempt.
 */
export type Middleware = (ctx: Context, next: () => Promise<unknown>) => Promise<unknown> | unknown;

type Results = { error?: Failure & { retryable?: boolean } }[];

interface Attempt extends Context {
  readonly aborter: AbortController;
  readonly output: OutputWriter;
  leaseUntil: number;
  isGivenUp: boolean;
}

const WORKER_OPTIONS: Record<keyof WorkerOptions, true> = {
  url: true,
  key: true,
  queues: true,
  concurrency: true,
  leaseMs: true,
  graceMs: true,
  id: true,
};

/** `Tasks` says which arguments and which result the jobs of a type have, as for `Client`. */
export class Worker<Tasks extends TaskMap<Tasks> = AnyTasks> {
  readonly id: string;
  private gateway!: Gateway;
  private queues!: string[];
  private concurrency!: number;
  private leaseMs!: number;
  private graceMs!: number;
  private readonly handlers = new Map<string, Handler<any[], unknown>>();
  private readonly handlersOfMany = new Map<string, { handler: HandlerOfMany<any[], unknown>; count: number }>();
  private readonly middleware: Middleware[] = [];
  private readonly active = new Set<Attempt>();
  private readonly stopping = new AbortController();
  private readonly hurry = new AbortController();
  private isQuiet = false;
  /** Called when there is room, when the worker goes on after it was quiet, and when a job is over. */
  private changed: () => void = () => {};

  constructor(private readonly options: WorkerOptions = {}) {
    checkNames("Worker", options, Object.keys(WORKER_OPTIONS));
    this.id = options.id ?? `node-${uuid()}`;
    this.configure({});
  }

  /** Changes options before it runs: those of the command line come before those of the program. @internal */
  configure(instead: WorkerOptions): void {
    const options = { ...this.options, ...instead };
    this.gateway = new Gateway(options.url, options.key);
    this.queues = options.queues ?? ["default"];
    this.concurrency = options.concurrency ?? 1;
    this.leaseMs = options.leaseMs ?? 30_000;
    this.graceMs = options.graceMs ?? 25_000;
    if (!(this.concurrency >= 1 && this.leaseMs >= 1000 && this.graceMs >= 0)) {
      throw new RangeError("concurrency must be at least 1, leaseMs at least 1000, graceMs not negative");
    }
  }

  /** Registers a handler for jobs of a type; it is called with the context and the job's `args`. */
  job<K extends TaskType<Tasks>>(type: K, handler: Handler<Tasks[K]["args"], TaskResult<Tasks[K]>>): this {
    this.handlers.set(type, handler as unknown as Handler<any[], unknown>);
    return this;
  }

  /**
   * Registers a handler that takes several jobs of a type in one call: up to `count`, which come within `delayMs`. Each of
   * them counts for `concurrency`. In test modes a call has one job.
   */
  jobs<K extends TaskType<Tasks>>(
    type: K,
    options: ManyOptions,
    handler: HandlerOfMany<Tasks[K]["args"], TaskResult<Tasks[K]>>,
  ): this {
    const checked = checkMany("jobs()", options);
    const untyped = handler as unknown as HandlerOfMany<any[], unknown>;
    this.handlersOfMany.set(type, { handler: untyped, count: checked.count });
    this.handlers.set(type, gathering(untyped, checked, this.stopping.signal));
    return this;
  }

  /** Registers a function that runs around each attempt, in test modes too; the first one is outermost. */
  use(middleware: Middleware): this {
    this.middleware.push(middleware);
    return this;
  }

  /** Works until SIGTERM, SIGINT, `stop()` or a directive to terminate. */
  async run(): Promise<void> {
    for (const [type, { count }] of this.handlersOfMany) {
      if (count <= this.concurrency) continue;
      const most = `the worker has no more than concurrency: ${this.concurrency} at a time`;
      throw new RangeError(`count: ${count} for jobs of type ${type}: ${most}`);
    }
    const caught = () => this.stop();
    const signals = ["SIGTERM", "SIGINT"];
    if (typeof process !== "undefined") for (const signal of signals) process.on(signal, caught);
    const over = new AbortController();
    const beating = this.beat(over.signal);
    console.info(`galley: worker ${this.id} works on ${this.queues.join(", ")}`);
    await this.fetch();
    const deadline = Date.now() + this.graceMs;
    while (this.active.size > 0 && Date.now() < deadline && !this.hurry.signal.aborted) {
      await this.change(deadline - Date.now());
    }
    await this.handBack();
    over.abort();
    await beating;
    if (typeof process !== "undefined") for (const signal of signals) process.off(signal, caught);
  }

  /** Lets running jobs finish and ends; called twice, it hands them back at once. */
  stop(): void {
    if (this.stopping.signal.aborted) this.hurry.abort();
    this.stopping.abort();
    this.changed();
  }

  /** Runs the handler of a job for a test mode, without a gateway. @internal */
  async handleInMemory(job: Job, log: (level: LogLine["level"], message: string) => void): Promise<Settled> {
    if (!this.handlers.has(job.type)) throw new Error(`the worker has no handler for jobs of type ${job.type}`);
    const attempt = this.attempt(job, async ({ state, sequence }) => {
      job.checkpoint = { state, sequence, created_at: "" };
      return sequence;
    }, async () => {});
    attempt.progress = async (number, message) => {
      job.progress = number;
      if (message !== undefined) job.progress_data = { message };
    };
    attempt.log = async (message, level = "info") => log(level, message);
    const many = this.handlersOfMany.get(job.type)?.handler;
    const alone = many && gathering(many, { count: 1, delayMs: 0 }, this.stopping.signal);
    return this.handle(attempt, alone);
  }

  private change(ms = 2 ** 31 - 1): Promise<void> {
    const changed = new AbortController();
    this.changed = () => changed.abort();
    return sleep(ms, changed.signal);
  }

  private get goesOn(): boolean {
    return !this.isQuiet && !this.stopping.signal.aborted;
  }

  private wanted(count: number, waitMs: number): Record<string, unknown> {
    const { queues, id, leaseMs } = this;
    return { queues, count, worker_id: id, visibility_timeout_ms: leaseMs, wait_ms: waitMs };
  }

  private async fetch(): Promise<void> {
    const { signal } = this.stopping;
    let pause = pauses();
    const warned = new Set<string>();
    while (!signal.aborted) {
      const free = Math.min(this.concurrency - this.active.size, MAX_FETCHED);
      if (free <= 0 || this.isQuiet) {
        await this.change();
        continue;
      }
      try {
        const path = "/ojs/v1/workers/fetch";
        const body = this.wanted(free, WAIT_MS);
        const request = { method: "POST", path, body, waitMs: WAIT_MS, signal } as const;
        const { jobs, warnings = [] } = await this.gateway.call<{ jobs: Job[]; warnings?: string[] }>(request);
        jobs.forEach((job) => this.start(job));
        // Such as a queue with a misspelt name: said once
        for (const warning of warnings.filter((warning) => !warned.has(warning))) {
          warned.add(warning);
          console.warn(`galley: ${warning}`);
        }
        pause = pauses();
      } catch (error) {
        if (signal.aborted) return;
        if (!(error instanceof Unavailable)) console.error("galley: cannot fetch:", error);
        await sleep(pause(), signal);
      }
    }
  }

  private start(job: Job): void {
    const attempt = this.attempt(job);
    // Another attempt of the same job, if it is still busy here, has been given up by the gateway
    for (const other of this.active) if (other.id === attempt.id) giveUp(other);
    this.active.add(attempt);
    void this.work(attempt);
  }

  private attempt(job: Job, keep?: SendCheckpoint, show?: SendOutput): Attempt {
    const aborter = new AbortController();
    const token = job.token ?? "";
    const deadline = job.timeout_ms === undefined ? undefined : new Date(Date.now() + job.timeout_ms);
    const leaseUntil = Date.now() + this.leaseMs;
    const report = async (path: string, body: Record<string, unknown>) => {
      try {
        const request = { method: "POST", path, body: { ...body, token, worker_id: this.id }, headers: traceOf(job) };
        await this.gateway.call(request);
      } catch (error) {
        if (error instanceof Unavailable) return;
        if (!(error instanceof GalleyError && [404, 409].includes(error.status))) throw error;
        aborter.abort(error);
      }
    };
    const progress = (number: number, message?: string) =>
      report(`/ojs/v1/jobs/${job.id}/progress`, { progress: number, ...(message === undefined ? {} : { data: { message } }) });
    const log = (message: string, level = "info") => {
      const line = { message: String(message).slice(0, MAX_LINE), level, at: new Date().toISOString() };
      return report("/ojs/v1/workers/log", { job_id: job.id, lines: [line] });
    };
    const deliver = <T>(what: string, body: object) => this.deliver<T>(job, what, body, aborter);
    const saveHere: SendCheckpoint = async (checkpoint) =>
      (await deliver<{ sequence: number }>("checkpoint", checkpoint)).sequence;
    const saved = new Saved(job.checkpoint, keep ?? saveHere);
    const output = new OutputWriter(show ?? ((chunks) => deliver<void>("output", chunks)));
    const kept = {
      stream: (chunk: unknown) => output.add(chunk),
      state: <T>() => saved.current<T>(),
      checkpoint: (state: unknown) => saved.save(state),
      step: <T>(name: string, run: () => Promise<T> | T) => saved.step(name, run),
      ...waitsOf(job, saved),
    };
    const { id, attempt, traceparent, tracestate, baggage, parent_results: parentResults = [] } = job;
    const trace = { traceparent, tracestate, baggage };
    const seen = { job, id, attempt, token, ...trace, parentResults, deadline, signal: aborter.signal, progress, log };
    return { ...seen, ...kept, output, aborter, leaseUntil, isGivenUp: false };
  }

  /** Sends what must arrive, and may be sent again: for a while also while the gateway is away. */
  private async deliver<T>(job: Job, what: string, content: object, aborter: AbortController): Promise<T> {
    const body = { ...content, token: job.token ?? "", worker_id: this.id };
    const path = `/ojs/v1/jobs/${job.id}/${what}`;
    const patience = new Patience(SAVE_PATIENCE_MS);
    for (;;) {
      try {
        return await this.gateway.call<T>({ method: "POST", path, body, headers: traceOf(job) });
      } catch (error) {
        if (error instanceof GalleyError && [404, 409].includes(error.status)) aborter.abort(error);
        if (!(error instanceof Unavailable)) throw error;
        await sleep(patience.pauseAfter(error), aborter.signal);
        if (aborter.signal.aborted) throw error;
      }
    }
  }

  private async work(attempt: Attempt): Promise<void> {
    const { timeout_ms } = attempt.job;
    const late = () => attempt.aborter.abort(new Error("the job's time is over"));
    const timer = timeout_ms === undefined ? undefined : setTimeout(late, Math.min(timeout_ms, 2 ** 31 - 1));
    const settled = await this.handle(attempt);
    clearTimeout(timer);
    if (settled.kind === "nacks" && "error" in settled.body) {
      const { message, stack } = settled.body.error as { message: string; stack?: string };
      const what = `job ${attempt.id} (${attempt.job.type}) failed in attempt ${attempt.attempt}`;
      console.error(`galley: ${what}: ${message}${stack === undefined ? "" : `\n${stack}`}`);
    }
    const next = await this.settle(attempt, settled);
    this.active.delete(attempt);
    if (next !== undefined) this.start(next);
    this.changed();
  }

  private async handle(attempt: Attempt, handler = this.handlers.get(attempt.job.type)): Promise<Settled> {
    const { type, args = [] } = attempt.job;
    if (handler === undefined) {
      return failure("handler_not_found", "HandlerNotFound", `no handler for jobs of type ${type}`);
    }
    const start = async (): Promise<unknown> => handler(attempt, ...args);
    const around = this.middleware.reduceRight<() => Promise<unknown>>(
      (next, middleware) => async () => middleware(attempt, next),
      start,
    );
    try {
      const { job } = attempt;
      const work = () => inSpan({ job, ...traceOf(attempt) }, around);
      const result = (await (handled === undefined ? work() : handled.run(traceOf(attempt), work))) ?? null;
      // Here, so that what cannot be sent is a failure of the handler
      JSON.stringify(result);
      return { kind: "acks", body: { result } };
    } catch (thrown) {
      return thrownBy(attempt.id, thrown);
    } finally {
      // After its end the attempt may add nothing
      await attempt.output.finish();
    }
  }

  /** Tells how an attempt ended until somebody has heard it; the next job, if there is one. */
  private async settle(attempt: Attempt, settled: Settled): Promise<Job | undefined> {
    const pause = pauses(this.leaseMs / 6);
    // Once a job came along with an answer nothing more is asked for
    let [next, isPassedOn]: [Job | undefined, boolean] = [undefined, false];
    while (!attempt.isGivenUp) {
      if (Date.now() >= attempt.leaseUntil + MAX_LATE_MS) {
        console.error(`galley: the end of job ${attempt.id} could not be told for an hour`);
        break;
      }
      // What cannot be told does not pile up beside what runs
      const fetches = next === undefined && !isPassedOn && this.goesOn && this.active.size < 2 * this.concurrency;
      const { jobs, error } = await this.send(attempt, settled, fetches);
      next ??= jobs[0];
      const instead = error === undefined || error.retryable === true ? undefined : insteadOfRefused(settled, error);
      if (instead !== undefined) {
        settled = instead;
        continue;
      }
      if (error?.retryable !== true) break;
      if (next !== undefined) {
        // It has a lease of its own, and must not wait until this one is told. No more is fetched before one is over
        this.start(next);
        next = undefined;
        isPassedOn = true;
      }
      await sleep(pause());
    }
    return next;
  }

  private async send(attempt: Attempt, { kind, body }: Settled, fetches: boolean): Promise<{ jobs: Job[]; error?: Results[number]["error"] }> {
    const items = { [kind]: [{ job_id: attempt.id, token: attempt.token, ...body }] };
    const headers = traceOf(attempt);
    try {
      if (fetches) {
        type Answer = { jobs: Job[] } & Partial<Record<"acks" | "nacks", Results>>;
        const path = "/ojs/v1/workers/fetch";
        const answer = await this.gateway.call<Answer>({ method: "POST", path, body: { ...this.wanted(1, 0), ...items }, headers });
        return { jobs: answer.jobs, ...(answer[kind]?.[0] ?? {}) };
      }
      const path = `/ojs/v1/workers/${kind === "acks" ? "ack" : "nack"}`;
      const request = { method: "POST", path, body: { ...items, worker_id: this.id }, headers };
      const answer = await this.gateway.call<{ results: Results }>(request);
      return { jobs: [], ...(answer.results[0] ?? {}) };
    } catch (error) {
      if (!(error instanceof GalleyError)) throw error;
      return { jobs: [], error: { code: error.code, message: error.message, retryable: error.retryable } };
    }
  }

  private async beat(over: AbortSignal): Promise<void> {
    const every = Math.min(this.leaseMs / 3, MAX_BEAT_MS);
    let pause = every;
    for (;;) {
      await sleep(pause, over);
      if (over.aborted) return;
      pause = every;
      const held = [...this.active].filter((attempt) => !attempt.isGivenUp);
      for (let start = 0; start === 0 || start < held.length; start += MAX_BEATS) {
        try {
          await this.beatFor(held.slice(start, start + MAX_BEATS));
        } catch {
          pause = Math.min(every, 200 + 800 * Math.random());
        }
      }
    }
  }

  private async beatFor(held: Attempt[]): Promise<void> {
    const sent = Date.now();
    const body = {
      worker_id: this.id,
      active_jobs: held.map(({ id }) => id),
      tokens: Object.fromEntries(held.map(({ id, token }) => [id, token])),
      state: this.stopping.signal.aborted ? "terminate" : this.isQuiet ? "quiet" : "running",
      pid: typeof process === "undefined" ? undefined : process.pid,
      concurrency: this.concurrency,
    };
    let answer: { state?: string; stale_jobs: string[] };
    try {
      answer = await this.gateway.call({ method: "POST", path: "/ojs/v1/workers/heartbeat", body });
    } catch (error) {
      if (!(error instanceof GalleyError && error.status === 409)) throw error;
      answer = { stale_jobs: body.active_jobs };
    }
    for (const attempt of held) {
      if (answer.stale_jobs.includes(attempt.id)) {
        attempt.aborter.abort(new Error("this attempt is not the current one any more"));
      } else {
        attempt.leaseUntil = sent + this.leaseMs;
      }
    }
    if (answer.state === "terminate" && !this.stopping.signal.aborted) this.stop();
    else if (answer.state !== undefined) this.isQuiet = answer.state === "quiet";
    this.changed();
  }

  /** Makes what still runs available again; the attempt is not spent. */
  private async handBack(): Promise<void> {
    const left = [...this.active].filter((attempt) => !attempt.isGivenUp);
    left.forEach(giveUp);
    for (let start = 0; start < left.length; start += MAX_FETCHED) {
      const some = left.slice(start, start + MAX_FETCHED);
      const nacks = some.map(({ id, token }) => ({ job_id: id, token, requeue: true }));
      const deadline = Math.min(...some.map(({ leaseUntil }) => leaseUntil));
      const pause = pauses(this.leaseMs / 6);
      for (;;) {
        try {
          await this.gateway.call({ method: "POST", path: "/ojs/v1/workers/nack", body: { nacks, worker_id: this.id } });
          break;
        } catch (error) {
          if (!(error instanceof Unavailable)) throw error;
          if (Date.now() >= deadline) break;
          await sleep(pause());
        }
      }
    }
  }
}

function giveUp(attempt: Attempt): void {
  attempt.isGivenUp = true;
  attempt.aborter.abort(new Error("this worker does not finish the job"));
}
