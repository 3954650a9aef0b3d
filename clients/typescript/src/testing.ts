/** A gateway in memory, for tests of programs that enqueue jobs: no server, no waiting. */

import { GalleyError } from "./errors.js";
import { FakeWorkflows } from "./fakeWorkflows.js";
import type { Call, Sender, Stream } from "./http.js";
import { checkNames } from "./names.js";
import type { AnyTasks, Job, LogLine, NewJob, NewWorkflow, TaskMap, TaskResult, TaskType } from "./types.js";
import { uuid } from "./uuid.js";
import type { Worker } from "./worker.js";

/** Attempts of a job whose policy does not say how many. */
const DEFAULT_ATTEMPTS = 3;

/** Which jobs a test means. */
export interface EnqueuedFilter<Args> {
  args?: Args;
  queue?: string;
}

/**
 * What a client enqueued and published, kept in memory: `Client.fake` and `Client.inline` make one.
 *
 * It knows jobs, many at once, look-ups, logs, cancelling, retrying, workflows and publishing. An attempt that fails is followed by the
 * next one at once. Delays do not count: `drain` runs scheduled jobs too.
 */
export class FakeGateway<Tasks extends TaskMap<Tasks> = AnyTasks> implements Sender {
  /** Channel and data of each published message. */
  readonly messages: { channel: string; data: unknown }[] = [];
  private readonly stored = new Map<string, Job>();
  private readonly lines = new Map<string, LogLine[]>();
  private readonly workflows = new FakeWorkflows((job) => this.store(job));

  /** @internal */
  constructor(
    private readonly worker: Worker<Tasks> | undefined,
    private readonly isInline: boolean,
    /** Gives the client its gateway back. */
    readonly end: () => void,
  ) {}

  /** All jobs in the order in which they were enqueued. */
  get jobs(): Job[] {
    return [...this.stored.values()].map(copied);
  }

  /** The jobs of a type, with these arguments and in this queue if given. */
  enqueued<K extends TaskType<Tasks>>(
    type: K,
    filter: EnqueuedFilter<Tasks[K]["args"]> = {},
  ): Job<TaskResult<Tasks[K]>>[] {
    checkNames("enqueued()", filter, ["args", "queue"]);
    const { args, queue } = filter;
    const isMeant = (job: Job) =>
      job.type === type && (args === undefined || isSame(copied(args), job.args)) && (queue ?? job.queue) === job.queue;
    return this.jobs.filter(isMeant) as Job<TaskResult<Tasks[K]>>[];
  }

  /** Throws unless such a job was enqueued, or exactly `count`. */
  assertEnqueued<K extends TaskType<Tasks>>(
    type: K,
    options: EnqueuedFilter<Tasks[K]["args"]> & { count?: number } = {},
  ): void {
    checkNames("assertEnqueued()", options, ["args", "queue", "count"]);
    const { count, ...filter } = options;
    const found = this.enqueued(type, filter).length;
    if (count === undefined ? found > 0 : found === count) return;
    const seen = this.jobs.map((job) => `${job.type}${JSON.stringify(job.args)} in ${job.queue}`).join(", ");
    const wanted = count === undefined ? "a job" : `${count} jobs`;
    throw new Error(`expected ${wanted} ${type} with ${JSON.stringify(filter)}; enqueued: ${seen || "nothing"}`);
  }

  /** Throws if such a job was enqueued. */
  assertNotEnqueued<K extends TaskType<Tasks>>(type: K, filter: EnqueuedFilter<Tasks[K]["args"]> = {}): void {
    this.assertEnqueued(type, { ...filter, count: 0 });
  }

  /** Runs the jobs that wait, and those that they enqueue, until none waits. Gives those that ran. */
  async drain(): Promise<Job[]> {
    const ran: Job[] = [];
    for (;;) {
      const job = [...this.stored.values()].find(isWaiting);
      if (job === undefined) return ran.map(copied);
      await this.run(job);
      ran.push(job);
    }
  }

  /** What the client calls. */
  async call<T>(call: Call): Promise<T> {
    const { answer, started = [] } = this.answer(call);
    const waiting = this.isInline ? [...started] : [];
    // Those that a job of a workflow starts come behind
    for (const job of waiting) if (isWaiting(job)) waiting.push(...(await this.run(job)));
    return copied(answer) as T;
  }

  /** Refused: nothing is followed. */
  stream(path: string): Promise<Stream> {
    return Promise.reject(cannot(`GET ${path}`));
  }

  private answer(call: Call): { answer: unknown; started?: Job[] } {
    const { method, path } = call;
    const [, ...parts] = path.replace(/\?.*/, "").split("/").map(decodeURIComponent);
    const [first, , resource, id = "", verb] = parts;
    const body = copied(call.body ?? {}) as NewJob & { jobs: NewJob[] };
    if (first === "v1") {
      if (method !== "POST" || resource === undefined) throw cannot(`${method} ${path}`);
      return { answer: this.publish(resource, call) };
    }
    if (resource === "workflows" && verb === undefined) {
      if (id === "" && method === "POST") return this.workflows.start(copied(call.body) as NewWorkflow);
      if (id !== "" && method === "DELETE") return this.workflows.cancel(id);
      if (id !== "") return { answer: this.workflows.show(id) };
    }
    if (resource !== "jobs") throw cannot(`${method} ${path}`);
    if (id === "") {
      const job = this.store(body);
      return { answer: { job }, started: [job] };
    }
    if (id === "batch" && method === "POST") {
      const jobs = body.jobs.map((one) => this.store(one));
      return { answer: { jobs }, started: jobs };
    }
    const job = this.found(id);
    if (verb === "signals") return this.signal(job, call);
    if (verb === "logs") return { answer: { items: this.lines.get(id) ?? [], next: null } };
    if (verb === "retry") return { answer: { job: restarted(job, "discarded", "cancelled", "scheduled") }, started: [job] };
    if (verb === "activate") return { answer: { job: restarted(job, "pending") }, started: [job] };
    if (verb !== undefined) throw cannot(`${method} ${path}`);
    if (method === "DELETE") {
      need(job, "available", "scheduled", "pending");
      job.state = "cancelled";
      return { answer: { job }, started: this.workflows.after(job) };
    }
    return { answer: { job } };
  }

  /** Lets the time be over for which a job waits: the next `drain` goes on with it. */
  endWait(id: string): void {
    const job = this.found(id);
    if (job.state !== "scheduled" || job.waiting === undefined) throw new Error(`job ${id} is ${job.state} and does not wait`);
    job.waiting.is_over = true;
    job.state = "available";
  }

  private signal(job: Job, { method, body }: Call): { answer: unknown; started?: Job[] } {
    const signals = (job.signals ??= []);
    if (method === "GET") return { answer: { items: signals, next: null } };
    need(job, "available", "scheduled", "pending", "active", "retryable");
    const sent = copied(body) as { name: string; data: unknown; id: string };
    const known = signals.find(({ id }) => id === sent.id);
    if (known !== undefined) return { answer: { signal: known, resumed: false } };
    const signal = { sequence: signals.length + 1, sent_at: new Date().toISOString(), ...sent };
    signals.push(signal);
    const resumed = job.state === "scheduled" && job.waiting?.signal === signal.name;
    if (resumed) job.state = "available";
    return { answer: { signal, resumed }, started: resumed ? [job] : [] };
  }

  private store({ options = {}, ...members }: NewJob & { options?: Record<string, unknown> }): Job {
    const { id = uuid(), ...given } = { ...options, ...members } as Partial<Job> & {
      pending?: boolean;
      retry?: { max_attempts?: number };
    };
    const state = given.pending ? "pending" : given.scheduled_at === undefined ? "available" : "scheduled";
    const max_attempts = (given.retry?.max_attempts ?? DEFAULT_ATTEMPTS) || 1;
    const defaults = { queue: "default", priority: 0, created_at: new Date().toISOString() };
    const job = { ...defaults, ...given, id, state, attempt: 0, max_attempts } as Job;
    this.stored.set(id, job);
    return job;
  }

  private publish(channel: string, { body, content, headers = {} }: Call): unknown {
    const add = (data: unknown) => {
      this.messages.push({ channel, data });
      return { status: 201, id: `1-${this.messages.length}` };
    };
    if (content === undefined) return { results: (copied(body) as { data: unknown }[]).map(({ data }) => add(data)) };
    const isJson = headers["content-type"] === "application/json" && typeof content === "string";
    return add(isJson ? JSON.parse(content) : content);
  }

  private found(id: string): Job {
    const job = this.stored.get(id);
    if (job === undefined) throw new GalleyError(404, "not_found", `no job ${id}`);
    return job;
  }

  /** Runs a job to its end. Gives those that start then. */
  private async run(job: Job): Promise<Job[]> {
    const { worker } = this;
    if (worker === undefined) throw new Error("a test mode without a worker runs no jobs");
    const lines = this.lines.get(job.id) ?? [];
    this.lines.set(job.id, lines);
    while (isWaiting(job)) {
      job.state = "active";
      job.attempt += 1;
      const settled = await worker.handleInMemory(job, (level, message) => {
        lines.push({ id: `1-${lines.length}`, at: new Date().toISOString(), attempt: job.attempt, level, message });
      });
      if (settled.kind === "acks") {
        job.result = copied(settled.body.result);
        job.state = "completed";
        delete job.checkpoint;
        delete job.waiting;
      } else if ("wait" in settled.body) {
        // Sleeping takes no time
        const { step, signal, received } = settled.body.wait;
        const came = job.signals?.some((one) => one.name === signal && !received.includes(one.sequence)) ?? false;
        const wait = { step, since: new Date().toISOString(), is_over: signal === undefined };
        job.waiting = signal === undefined ? wait : { ...wait, signal };
        job.attempt -= 1;
        job.state = signal === undefined || came ? "available" : "scheduled";
      } else {
        const { retryable, retry_after_ms: _, ...error } = settled.body.error;
        (job.errors ??= []).push({ ...error, attempt: job.attempt });
        job.state = retryable === false || job.attempt >= job.max_attempts ? "discarded" : "available";
      }
    }
    return this.workflows.after(job);
  }
}

function isWaiting({ state, waiting }: Job): boolean {
  return state === "available" || (state === "scheduled" && waiting === undefined);
}

function restarted(job: Job, ...states: Job["state"][]): Job {
  need(job, ...states);
  return Object.assign(job, { state: "available", attempt: 0 });
}

function need({ state }: Job, ...states: Job["state"][]): void {
  if (states.includes(state)) return;
  throw new GalleyError(409, "conflict", `the job is ${state}, and must be ${states.join(" or ")}`);
}

function cannot(what: string): Error {
  return new Error(`the test mode has no ${what}: test that with a gateway`);
}

/** The value as it is after it went over the wire. */
function copied<T>(value: T): T {
  return value === undefined ? value : (JSON.parse(JSON.stringify(value)) as T);
}

/** Whether two values of JSON are the same. */
function isSame(a: unknown, b: unknown): boolean {
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return a === b;
  const [left, right] = [Object.entries(a), b as Record<string, unknown>];
  if (Array.isArray(a) !== Array.isArray(b) || left.length !== Object.keys(b).length) return false;
  return left.every(([name, value]) => name in right && isSame(value, right[name]));
}
