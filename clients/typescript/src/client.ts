/** Enqueueing jobs and looking after them, publishing messages and reading them. */

import { GalleyError, JobFailed, Unavailable } from "./errors.js";
import { type Call, Gateway, Patience, type Sender, sleep } from "./http.js";
import { checkNames } from "./names.js";
import {
  ENQUEUE_OPTIONS,
  type EnqueueOptions,
  type JobOptions,
  newJob,
  RATE,
  type Rate,
  type When,
  wireOptions,
} from "./options.js";
import {
  isLastOfJob,
  messageOf,
  messageReader,
  readChunk,
  readJobEvent,
  type ShownMessage,
  Subscription,
} from "./subscription.js";
import { FakeGateway } from "./testing.js";
import type {
  AllButLast,
  AnyTasks,
  Chunk,
  Cron,
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
  TaskMap,
  TaskResult,
  TaskType,
  Workflow,
} from "./types.js";
import { outgoing, type Trace, traceOf } from "./trace.js";
import { uuid } from "./uuid.js";
import { approvalSignal } from "./wait.js";
import type { Worker } from "./worker.js";
import * as workflows from "./workflows.js";

/** A request with this header has one effect however often it arrives. */
const ONCE = "idempotency-key";
const TRACE: (keyof Trace)[] = ["traceparent", "tracestate", "baggage"];
/** Longest single wait that is asked of the gateway; it allows a minute by default (`gateway.max_wait_ms`). */
const MAX_WAIT_MS = 20_000;
/** Characters of attributes of CloudEvents that a header may not have as they are. */
const NOT_IN_HEADERS = /[^ !#$&'()*+,\-./0-9:;<=>?@A-Z[\]^_`a-z{|}~]/gu;

export interface ClientOptions {
  /** `GALLEY_KEY` unless given. */
  key?: string;
  /** For how long a request is sent again while the gateway is away or refuses it for the moment; 10 s unless given. */
  patienceMs?: number;
}

export interface WaitOptions {
  waitMs?: number;
}

export interface WorkflowOptions {
  name?: string;
  idempotencyKey?: string;
}

export interface BatchOptions extends WorkflowOptions, workflows.BatchCallbacks {}

export interface CronOptions {
  timezone?: string;
  overlapPolicy?: NonNullable<Cron["overlap_policy"]>;
  enabled?: boolean;
  description?: string;
}

export interface PublishOptions {
  contentType?: string;
  /** Make it a CloudEvent: `{ specversion: "1.0", id: "1", source: "/shop", type: "order.paid" }`. */
  attributes?: Record<string, string>;
  idempotencyKey?: string;
}

export interface FollowOptions {
  /** Begins after this id. */
  lastId?: string;
  /** For how long at a time it tries to reach a gateway; without end unless given. */
  patienceMs?: number;
  /** Ends the iteration. */
  signal?: AbortSignal;
}

export interface SubscribeOptions extends FollowOptions {
  /** Begins at this time, such as `"-PT1H"`, where there is no `lastId`. */
  since?: string;
  /** Only messages that match: `{ attributes: { type: { prefix: "order." } }, data: { "/total": { gte: 100 } } }`. */
  filter?: MessageFilter;
  /** The gateway sends the difference from the message before where that is shorter. The messages that come out are whole. */
  delta?: boolean;
  /** Takes part in the channels: as this member, or with a token that has a subject as that one (`true`). */
  join?: true | { member?: string; info?: unknown };
  /** Called with all members of each channel first, then with each that joins, changes its info or leaves. */
  onPresence?: (event: PresenceEvent) => void;
  /** Called for messages that are not kept any more; they are logged unless given. */
  onGap?: (gap: Gap) => void;
}

type Id = string | { id: string };

const CLIENT_OPTIONS = ["key", "patienceMs"];
const FOLLOW_OPTIONS = ["lastId", "patienceMs", "signal"];

/** A request of the client and how its answer is read. */
interface Request<A, T> extends Call {
  of: (answer: A) => T;
  /**
   * Whether this answer to a GET of the path shows that the request was done. Asked when a repeated one is refused with
   * 409: the first may have come through although its answer was lost.
   */
  isDone?: (found: T) => boolean;
}

/** `Tasks` says which arguments and which result the jobs of a type have: `new Client<{ "email.send": { args: [to: string]; result: string } }>()`. */
export class Client<Tasks extends TaskMap<Tasks> = AnyTasks> {
  private sender: Sender;
  private readonly patienceMs: number;

  /** `url` is `GALLEY_URL` unless given. */
  constructor(url?: string, options: ClientOptions = {}) {
    checkNames("Client", options, CLIENT_OPTIONS);
    this.sender = new Gateway(url, options.key);
    this.patienceMs = options.patienceMs ?? 10_000;
  }

  // Jobs

  /**
   * Stores a job and gives it, with its `id`. The request is sent again until it is answered, and makes one job however
   * often it came through. Called by a handler, it makes the job part of the trace of the handler's job.
   */
  enqueue<K extends TaskType<Tasks>>(
    type: K,
    args: Tasks[K]["args"],
    options: EnqueueOptions = {},
  ): Promise<Job<TaskResult<Tasks[K]>>> {
    return this.store("enqueue()", type, args, options);
  }

  /** Stores a job that starts at that time, or that many milliseconds from now. */
  schedule<K extends TaskType<Tasks>>(
    when: When,
    type: K,
    args: Tasks[K]["args"],
    options: Omit<EnqueueOptions, "scheduled_at"> = {},
  ): Promise<Job<TaskResult<Tasks[K]>>> {
    return this.store("schedule()", type, args, { ...options, scheduled_at: when });
  }

  /** Enqueues a job and waits for its result, up to a minute. */
  async wait<K extends TaskType<Tasks>>(
    type: K,
    args: Tasks[K]["args"],
    options: EnqueueOptions = {},
  ): Promise<TaskResult<Tasks[K]>> {
    return this.result(await this.enqueue(type, args, options));
  }

  /** A job for `enqueueMany`, workflows and cron. */
  job<K extends TaskType<Tasks>>(type: K, args: Tasks[K]["args"], options: JobOptions = {}): NewJob {
    return newJob(type, args, options);
  }

  /**
   * A step of a workflow with a job for each element of the array that another step returned: in a chain the one before it, in a
   * DAG the one called `of`. The element is the argument after these.
   */
  each<K extends TaskType<Tasks>>(
    type: K,
    args: AllButLast<Tasks[K]["args"]>,
    { of = "previous", ...options }: JobOptions & { of?: string } = {},
  ): NewJob {
    return { ...newJob(type, args, options), for_each: of };
  }

  /** Stores all of these jobs, or none. */
  enqueueMany(jobs: NewJob[], options: { idempotencyKey?: string } = {}): Promise<Job[]> {
    checkNames("enqueueMany()", options, ["idempotencyKey"]);
    const headers = once(options.idempotencyKey);
    return this.run({ method: "POST", path: "/ojs/v1/jobs/batch", body: { jobs }, headers, of: (a: { jobs: Job[] }) => a.jobs });
  }

  /** The job as it is; with `waitMs` as it is when it ends, or after that time. */
  async get<R = unknown>(job: Job<R> | Id, options: WaitOptions = {}): Promise<Job<R>> {
    checkNames("get()", options, ["waitMs"]);
    const deadline = Date.now() + (options.waitMs ?? 0);
    for (;;) {
      const left = Math.max(0, Math.min(deadline - Date.now(), MAX_WAIT_MS));
      const path = jobs(["jobs", idOf(job)], { wait_ms: left > 0 ? left : undefined });
      const found = await this.run({ method: "GET", path, waitMs: left, of: (a: { job: Job<R> }) => a.job });
      // In the test modes nothing happens meanwhile
      if (Date.now() >= deadline || isEnded(found) || this.sender instanceof FakeGateway) return found;
    }
  }

  /**
   * Waits for a job to end and gives its result, for a minute unless `waitMs` says otherwise; throws `JobFailed` when it
   * was discarded or cancelled.
   */
  async result<R = unknown>(job: Job<R> | Id, options: WaitOptions = {}): Promise<R> {
    checkNames("result()", options, ["waitMs"]);
    const { waitMs = 60_000 } = options;
    const found = await this.get<R>(job, { waitMs });
    if (found.state === "completed") return found.result as R;
    if (isEnded(found)) throw new JobFailed(found);
    throw new Error(`job ${found.id} is ${found.state} after ${waitMs} ms`);
  }

  /** Ends a job that is not over. If it runs, its worker is told with the next heartbeat. */
  cancel(job: Id): Promise<Job> {
    const isDone = ({ state }: Job) => state === "cancelled";
    return this.run({ method: "DELETE", path: jobs(["jobs", idOf(job)]), of: (a: { job: Job }) => a.job, isDone });
  }

  /** Makes a job available now: a discarded or cancelled one with all its attempts again, a scheduled one early. */
  retry(job: Id): Promise<Job> {
    const isDone = ({ state }: Job) => ["available", "active", "completed"].includes(state);
    const path = jobs(["jobs", idOf(job), "retry"]);
    return this.run({ method: "POST", path, body: {}, of: (a: { job: Job }) => a.job, isDone });
  }

  /** Makes a job available that was stored with `pending: true`. */
  activate(job: Id): Promise<Job> {
    const isDone = ({ state }: Job) => state !== "pending";
    const path = jobs(["jobs", idOf(job), "activate"]);
    return this.run({ method: "POST", path, body: {}, of: (a: { job: Job }) => a.job, isDone });
  }

  /**
   * Sends a job a signal, which resumes it if it waits for one of that name, and is kept for it otherwise. A second one with the
   * same `id` is the same signal. Refused (409) when the job has ended.
   */
  signal<T = unknown>(job: Id, name: string, data: T | null = null, options: { id?: string } = {}): Promise<Signal<T>> {
    checkNames("signal()", options, ["id"]);
    const body = { name, data, id: options.id ?? uuid() };
    const path = jobs(["jobs", idOf(job), "signals"]);
    return this.run({ method: "POST", path, body, of: (a: { signal: Signal<T> }) => a.signal });
  }

  /** Approves what a job waits for with `ctx.waitForApproval`. */
  approve(job: Id, subject = "", decision: { by?: string; comment?: string } = {}): Promise<Signal> {
    checkNames("approve()", decision, ["by", "comment"]);
    return this.signal(job, approvalSignal(subject), { approved: true, ...decision });
  }

  /** Rejects what a job waits for with `ctx.waitForApproval`. */
  reject(job: Id, subject = "", decision: { by?: string; comment?: string } = {}): Promise<Signal> {
    checkNames("reject()", decision, ["by", "comment"]);
    return this.signal(job, approvalSignal(subject), { approved: false, ...decision });
  }

  /** The signals that came for a job, in their order. */
  signals(job: Id): Promise<Signal[]> {
    const path = jobs(["jobs", idOf(job), "signals"]);
    return this.run({ method: "GET", path, of: (a: { items: Signal[] }) => a.items });
  }

  /** What the handlers of a job logged, the oldest first. */
  async logs(job: Id): Promise<LogLine[]> {
    const lines: LogLine[] = [];
    type Page = { items: LogLine[]; next: string | null };
    for (let after: string | null | undefined; ; ) {
      const path = jobs(["jobs", idOf(job), "logs"], { after, limit: 1000 });
      const page: Page = await this.run({ method: "GET", path, of: (answer: Page) => answer });
      lines.push(...page.items);
      after = page.next;
      if (after === null) return lines;
    }
  }

  /** What happens to a job, such as `job.progress` and `job.log`, until it ends; from its begin unless `lastId` is given. */
  events(job: Id, options: FollowOptions = {}): Subscription<JobEvent> {
    checkNames("events()", options, FOLLOW_OPTIONS);
    const { lastId = "0-0-0", patienceMs, signal } = options;
    const path = jobs(["jobs", idOf(job), "events"]);
    return new Subscription(this.sender, { path, lastId, read: readJobEvent, isLast: isLastOfJob, patienceMs, signal });
  }

  /** What the handlers of a job streamed, from its begin and as it comes, until the job ends. */
  output<T = unknown>(job: Id, options: FollowOptions = {}): Subscription<Chunk<T>> {
    checkNames("output()", options, FOLLOW_OPTIONS);
    const { lastId, patienceMs, signal } = options;
    const path = jobs(["jobs", idOf(job), "output"]);
    return new Subscription<Chunk<T>>(this.sender, { path, lastId, read: readChunk, patienceMs, signal });
  }

  // Workflows

  /**
   * Starts jobs one after the other; each gets the results before it as `ctx.parentResults`. A step may be a workflow
   * (`group([...])` and the like), or run for each element of a result (`forEach`).
   */
  chain(steps: NewStep[], options: WorkflowOptions = {}): Promise<Workflow> {
    checkNames("chain()", options, ["name", "idempotencyKey"]);
    return this.startWorkflow(workflows.chain(steps), options);
  }

  /** Starts jobs at once. The group fails if one of them does. */
  group(jobs: NewStep[], options: WorkflowOptions = {}): Promise<Workflow> {
    checkNames("group()", options, ["name", "idempotencyKey"]);
    return this.startWorkflow(workflows.group(jobs), options);
  }

  /** Starts jobs at once, and others when all of them have ended, with their results. */
  batch(jobs: NewStep[], options: BatchOptions = {}): Promise<Workflow> {
    checkNames("batch()", options, ["onComplete", "onSuccess", "onFailure", "name", "idempotencyKey"]);
    const { onComplete, onSuccess, onFailure } = options;
    return this.startWorkflow(workflows.batch(jobs, { onComplete, onSuccess, onFailure }), options);
  }

  /**
   * Starts each job when all that it depends on have completed, with their results as `ctx.parentResults`. `dependsOn` has
   * the names of those; a job that it leaves out starts at once.
   */
  dag<Name extends string>(
    jobs: Record<Name, NewStep>,
    dependsOn: Partial<Record<NoInfer<Name>, NoInfer<Name>[]>>,
    options: WorkflowOptions = {},
  ): Promise<Workflow> {
    checkNames("dag()", options, ["name", "idempotencyKey"]);
    return this.startWorkflow(workflows.dag(jobs, dependsOn), options);
  }

  /** A workflow with its jobs. */
  getWorkflow(workflow: Id): Promise<Workflow> {
    return this.run({ method: "GET", path: jobs(["workflows", idOf(workflow)]), of: workflowOf });
  }

  /** Cancels those of its jobs that have not ended. */
  cancelWorkflow(workflow: Id): Promise<Workflow> {
    const isDone = ({ state }: Workflow) => state === "cancelled";
    return this.run({ method: "DELETE", path: jobs(["workflows", idOf(workflow)]), of: workflowOf, isDone });
  }

  // Cron

  /** Enqueues a job on a schedule, such as `"0 9 * * MON-FRI"`; changes the entry of that name if there is one. */
  setCron(name: string, expression: string, job: NewJob, options: CronOptions = {}): Promise<Cron> {
    checkNames("setCron()", options, ["timezone", "overlapPolicy", "enabled", "description"]);
    const { overlapPolicy, ...more } = options;
    const body = { ...more, overlap_policy: overlapPolicy, name, expression, job_template: job };
    return this.run({ method: "POST", path: jobs(["cron"]), body, headers: once(), of: cronOf });
  }

  /** An entry with its next and last run. */
  getCron(name: string): Promise<Cron> {
    return this.run({ method: "GET", path: jobs(["cron", name]), of: cronOf });
  }

  /** All entries by name. */
  async crons(): Promise<Cron[]> {
    const crons: Cron[] = [];
    type Page = { crons: Cron[]; next?: string | null };
    for (let after: string | null | undefined; ; ) {
      const path = jobs(["cron"], { after, limit: 1000 });
      const page: Page = await this.run({ method: "GET", path, of: (answer: Page) => answer });
      crons.push(...page.crons);
      after = page.next;
      if (after === null || after === undefined) return crons;
    }
  }

  /** Lets an entry run again. */
  enableCron(name: string): Promise<Cron> {
    return this.run({ method: "POST", path: jobs(["cron", name, "enable"]), body: {}, of: cronOf });
  }

  /** Keeps an entry, and lets it enqueue nothing. */
  disableCron(name: string): Promise<Cron> {
    return this.run({ method: "POST", path: jobs(["cron", name, "disable"]), body: {}, of: cronOf });
  }

  /** Enqueues the job of an entry now, besides its schedule. */
  triggerCron(name: string): Promise<Job> {
    const path = jobs(["cron", name, "trigger"]);
    return this.run({ method: "POST", path, body: {}, headers: once(), of: (a: { job: Job }) => a.job });
  }

  /** Deletes an entry; its jobs stay. */
  deleteCron(name: string): Promise<void> {
    return this.run({ method: "DELETE", path: jobs(["cron", name]), of: nothing });
  }

  // Queues

  /** A queue with its counts and limits. */
  getQueue(name: string): Promise<Queue> {
    return this.run({ method: "GET", path: jobs(["queues", name]), of: queueOf });
  }

  /** Lets workers claim none of its jobs. Needs a key with `admin:write`. */
  pauseQueue(name: string): Promise<void> {
    const path = jobs(["queues", name, "pause"], { create: true });
    return this.run({ method: "POST", path, body: {}, of: nothing });
  }

  /** Ends a pause. Needs a key with `admin:write`. */
  resumeQueue(name: string): Promise<void> {
    const path = jobs(["queues", name, "resume"], { create: true });
    return this.run({ method: "POST", path, body: {}, of: nothing });
  }

  /** Limits all jobs of a queue; without a limit the settings hold again. Needs a key with `admin:write`. */
  limitQueue(name: string, limits: { concurrency?: number; rate?: Rate; priority_aging?: string }): Promise<Queue> {
    checkNames("limitQueue()", limits, ["concurrency", "rate", "priority_aging"]);
    if (limits.rate !== undefined) checkNames("rate", limits.rate, RATE);
    const path = jobs(["queues", name, "limits"], { create: true });
    return this.run({ method: "PUT", path, body: limits, of: queueOf });
  }

  // Channels

  /** Publishes a message and gives its id. A `string` or a `Uint8Array` is the body as it is, everything else is JSON. */
  publish(channel: string, data: unknown, options: PublishOptions = {}): Promise<string> {
    checkNames("publish()", options, ["contentType", "attributes", "idempotencyKey"]);
    const { contentType, attributes = {}, idempotencyKey } = options;
    const [content, kind] = contentOf(data, contentType);
    const headers: Record<string, string> = { "content-type": contentType ?? kind, ...once(idempotencyKey) };
    for (const [name, value] of Object.entries(attributes)) {
      headers[`ce-${name}`] = value.replace(NOT_IN_HEADERS, encodeURIComponent);
    }
    const path = pathOf(["v1", "channels", channel, "messages"]);
    return this.run({ method: "POST", path, content, headers, of: (a: { id: string }) => a.id });
  }

  /** Publishes up to 100 messages in order and gives their ids. A `string` is text, everything else is JSON. */
  publishMany(channel: string, messages: unknown[], options: { idempotencyKey?: string } = {}): Promise<string[]> {
    checkNames("publishMany()", options, ["idempotencyKey"]);
    type Refused = { code: string; message: string; retryable?: boolean };
    type Answer = { results: { id: string; status: number; error?: Refused }[] };
    const of = ({ results }: Answer) => {
      for (const { status, error } of results) {
        if (error !== undefined) throw new GalleyError(status, error.code, error.message, error.retryable === true);
      }
      return results.map(({ id }) => id);
    };
    const path = pathOf(["v1", "channels", channel, "messages", "batch"]);
    const body = messages.map((data) => ({ data }));
    return this.run({ method: "POST", path, body, headers: once(options.idempotencyKey), of });
  }

  /** Messages that are kept, the oldest first: after an id, or since a time such as `"-PT1H"`. */
  history<T = unknown>(
    channel: string,
    options: { after?: string; since?: string; limit?: number } = {},
  ): Promise<Message<T>[]> {
    checkNames("history()", options, ["after", "since", "limit"]);
    const path = pathOf(["v1", "channels", channel, "messages"], { limit: 100, ...options, create: true });
    const of = ({ items }: { items: ShownMessage[] }) => items.map((item) => messageOf<T>(item));
    return this.run({ method: "GET", path, of });
  }

  /** Who is present on a channel. */
  async members(channel: string): Promise<Member[]> {
    type Page = { items: Member[]; next: string | null };
    const all: Member[] = [];
    for (let after: string | null | undefined; after !== null; ) {
      const path = pathOf(["v1", "channels", channel, "members"], { limit: 1000, after });
      const page: Page = await this.run({ method: "GET", path, of: (answer: Page) => answer });
      all.push(...page.items);
      after = page.next;
    }
    return all;
  }

  /**
   * Iterates over messages as they are published, in channels and those that match a pattern such as `orders.*`.
   *
   * It begins after `lastId` (store `subscription.lastId` to miss nothing across restarts), else at `since`, else when
   * the first message is asked for. It reconnects to any gateway.
   */
  subscribe<T = unknown>(channels: string | string[], options: SubscribeOptions = {}): Subscription<Message<T>> {
    checkNames("subscribe()", options, [...FOLLOW_OPTIONS, "since", "filter", "delta", "join", "onPresence", "onGap"]);
    const { lastId, since, onGap, patienceMs, signal } = options;
    const { delta = false, join, onPresence } = options;
    if (typeof join === "object") checkNames("join", join, ["member", "info"]);
    const { member, info } = join === true ? {} : (join ?? {});
    const query = {
      since,
      filter: options.filter && JSON.stringify(options.filter),
      delta: delta ? "fossil" : undefined,
      presence: onPresence && true,
      join: join && true,
      member,
      info: info === undefined ? undefined : JSON.stringify(info),
    };
    const names = typeof channels === "string" ? [channels] : channels;
    const [first] = names;
    if (first === undefined) throw new TypeError("a subscription needs a channel");
    const isOne = names.length === 1 && !first.includes("*");
    const path = isOne
      ? pathOf(["v1", "channels", first, "stream"], query)
      : pathOf(["v1", "stream"], { channel: names, ...query });
    const read = messageReader<T>(onGap, onPresence, delta);
    return new Subscription(this.sender, { path, lastId, read, patienceMs, signal });
  }

  // Test modes

  /** For tests: until `end()` jobs are kept in memory, and nothing runs before `drain()`, which calls the worker's handlers. */
  fake(worker?: Worker<Tasks>): FakeGateway<Tasks> {
    return this.standIn(worker, false);
  }

  /** For tests: until `end()` a job runs when it is enqueued, in this process, by a handler of the worker. */
  inline(worker: Worker<Tasks>): FakeGateway<Tasks> {
    return this.standIn(worker, true);
  }

  private standIn(worker: Worker<Tasks> | undefined, isInline: boolean): FakeGateway<Tasks> {
    const before = this.sender;
    const fake = new FakeGateway<Tasks>(worker, isInline, () => {
      this.sender = before;
    });
    this.sender = fake;
    return fake;
  }

  private store<R>(what: string, type: string, args: unknown[], options: EnqueueOptions): Promise<Job<R>> {
    const members = wireOptions(what, options, ENQUEUE_OPTIONS) as EnqueueOptions;
    const { idempotencyKey, traceparent, tracestate, baggage, ...rest } = members;
    const headers = once(idempotencyKey, { traceparent, tracestate, baggage });
    const body = { ...rest, type, args };
    return this.run({ method: "POST", path: jobs(["jobs"]), body, headers, of: (a: { job: Job<R> }) => a.job });
  }

  private startWorkflow(members: NewWorkflow, { name, idempotencyKey }: WorkflowOptions): Promise<Workflow> {
    const body = { ...members, name };
    return this.run({ method: "POST", path: jobs(["workflows"]), body, headers: once(idempotencyKey), of: workflowOf });
  }

  private async run<A, T>({ of, isDone, ...call }: Request<A, T>): Promise<T> {
    const patience = new Patience((call.waitMs ?? 0) + this.patienceMs);
    const { headers } = call;
    // What makes something is part of the trace that it is made in, unless another one was given
    if (headers?.[ONCE] !== undefined && !TRACE.some((name) => name in headers)) {
      call.headers = { ...(await outgoing()), ...headers };
    }
    for (let isRepeated = false; ; isRepeated = true) {
      try {
        return of(await this.sender.call<A>(call));
      } catch (error) {
        if (error instanceof Unavailable) {
          await sleep(patience.pauseAfter(error));
          continue;
        }
        if (!(isRepeated && isDone !== undefined && error instanceof GalleyError && error.status === 409)) throw error;
        const path = call.path.replace(/\/(retry|activate)$/, "");
        const found = of(await this.sender.call<A>({ method: "GET", path }));
        if (!isDone(found)) throw error;
        return found;
      }
    }
  }
}

type Query = Record<string, string | number | boolean | string[] | null | undefined>;

function pathOf(parts: string[], query: Query = {}): string {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value === undefined || value === null) continue;
    for (const one of Array.isArray(value) ? value : [value]) given.append(name, String(one));
  }
  const path = `/${parts.map(encodeURIComponent).join("/")}`;
  return `${given}` === "" ? path : `${path}?${given}`;
}

function jobs(parts: string[], query: Query = {}): string {
  return pathOf(["ojs", "v1", ...parts], query);
}

/** Headers of a request that has one effect however often it arrives. */
function once(key?: string, trace: Parameters<typeof traceOf>[0] = {}): Record<string, string> {
  return { [ONCE]: key ?? uuid(), ...traceOf(trace) };
}

/** The body of a message and its content type. */
function contentOf(data: unknown, contentType: string | undefined): [content: string | Uint8Array, kind: string] {
  if (data instanceof Uint8Array) return [data, "application/octet-stream"];
  if (typeof data === "string" && contentType !== "application/json") return [data, "text/plain; charset=utf-8"];
  const json = JSON.stringify(data) as string | undefined;
  if (json === undefined) throw new TypeError(`a message cannot be ${String(data)}`);
  return [json, "application/json"];
}

function idOf(of: Id): string {
  return typeof of === "string" ? of : of.id;
}

function isEnded({ state }: Job): boolean {
  return ["completed", "cancelled", "discarded"].includes(state);
}

const workflowOf = (answer: { workflow: Workflow }) => answer.workflow;
const cronOf = (answer: { cron: Cron }) => answer.cron;
const queueOf = (answer: { queue: Queue }) => answer.queue;
const nothing = (): void => undefined;
