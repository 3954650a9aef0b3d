/** Workflows of the test modes: which job starts when another one ended. */

import { GalleyError } from "./errors.js";
import type { Job, NewJob, NewStep, NewWorkflow, Workflow, WorkflowMember } from "./types.js";
import { uuid } from "./uuid.js";

type MemberState = WorkflowMember["state"];
/** A step as it is sent. */
type SentStep = NewStep & { id?: string; depends_on?: string[] };

/** All workflows of a test mode. */
export class FakeWorkflows {
  private readonly workflows = new Map<string, FakeWorkflow>();

  constructor(readonly store: (job: NewJob) => Job) {}

  add(workflow: FakeWorkflow): void {
    this.workflows.set(workflow.id, workflow);
  }

  /** A new workflow, as it is shown, and the jobs that start. */
  start(body: NewWorkflow): { answer: unknown; started: Job[] } {
    const workflow = new FakeWorkflow(this, body);
    const started = workflow.advance();
    return { answer: { workflow: workflow.shown() }, started };
  }

  show(id: string): unknown {
    return { workflow: this.found(id).shown() };
  }

  /** The workflow, as it is shown, and the jobs that start because it was cancelled: it may be a step of another one. */
  cancel(id: string): { answer: unknown; started: Job[] } {
    const workflow = this.found(id);
    workflow.cancel();
    const started = workflow.advance();
    return { answer: { workflow: workflow.shown() }, started };
  }

  /** The jobs that start because this one ended. */
  after({ workflow_id }: Job): Job[] {
    return this.workflows.get(workflow_id ?? "")?.advance() ?? [];
  }

  private found(id: string): FakeWorkflow {
    const workflow = this.workflows.get(id);
    if (workflow === undefined) throw new GalleyError(404, "not_found", `no workflow ${id}`);
    return workflow;
  }
}

/** A chain, a group, a batch or a DAG. Its jobs exist from the beginning; those that must wait are `waiting`. */
class FakeWorkflow {
  readonly id: string;
  readonly members: FakeMember[];
  private readonly callbacks: [event: string, callback: FakeMember][];
  private readonly names: string[];
  private isCancelled = false;

  constructor(
    readonly all: FakeWorkflows,
    private readonly body: NewWorkflow,
    readonly outer?: FakeMember,
  ) {
    this.id = outer?.id ?? uuid();
    all.add(this);
    const steps: SentStep[] = body.steps ?? body.jobs ?? [];
    const isDag = body.type === "dag";
    this.names = isDag ? steps.map(({ id = "" }) => id) : [];
    this.members = steps.map(({ id: _, depends_on = [], for_each: source, ...step }, index) => {
      const before = body.type === "chain" ? [...Array(index).keys()] : depends_on.map((name) => this.names.indexOf(name));
      const array = source === undefined ? undefined : isDag ? this.names.indexOf(source) : index - 1;
      return new FakeMember(this, index, step, before, array);
    });
    // The callbacks come after the members
    const everyone = [...this.members.keys()];
    this.callbacks = Object.entries(body.callbacks ?? {}).map(([event, job], offset) => [
      event,
      new FakeMember(this, steps.length + offset, job, everyone, undefined),
    ]);
  }

  /** The jobs that start now, here and in the workflow that this one is a member of. */
  advance(): Job[] {
    const due = this.advanceAlone();
    return this.outer !== undefined && isEnded(this.state) ? [...due, ...this.outer.workflow.advance()] : due;
  }

  advanceAlone(): Job[] {
    const due: Job[] = [];
    let hasChanged = !this.isCancelled;
    while (hasChanged) {
      hasChanged = false;
      for (const member of this.members.filter(({ state }) => state === "waiting")) {
        const before = member.before.map((index) => this.members[index]!.state);
        if (before.some((state) => isEnded(state) && state !== "completed")) {
          // What depends on it does not start either
          member.cancel();
        } else if (before.every((state) => state === "completed")) {
          due.push(...member.start(this.resultsFor(member)));
        } else {
          continue;
        }
        hasChanged = true;
      }
    }
    if (!this.isCancelled && this.members.every(({ state }) => isEnded(state))) {
      const wanted = ["on_complete", this.hasSucceeded() ? "on_success" : "on_failure"];
      for (const [event, callback] of this.callbacks) {
        if (callback.state !== "waiting") continue;
        if (wanted.includes(event)) due.push(...callback.start(this.members.map(({ result }) => result)));
        else callback.cancel();
      }
    }
    return due;
  }

  get state(): Workflow["state"] {
    const callbacks = this.callbacks.map(([, { state }]) => state);
    if (this.isCancelled) return "cancelled";
    if (![...this.members.map(({ state }) => state), ...callbacks].every(isEnded)) return "running";
    return this.hasSucceeded() && !callbacks.includes("discarded") ? "completed" : "failed";
  }

  /** Its result as a member of another workflow. */
  get result(): unknown {
    const results = this.members.map(({ result }) => result);
    if (this.body.type === "chain") return results.at(-1);
    return this.body.type === "dag" ? Object.fromEntries(this.names.map((name, index) => [name, results[index]])) : results;
  }

  cancel(): void {
    this.isCancelled = true;
    for (const member of [...this.members, ...this.callbacks.map(([, callback]) => callback)]) member.cancel();
  }

  /** As the gateway shows it. */
  shown(): Workflow {
    const count = (...states: MemberState[]) => this.members.filter(({ state }) => states.includes(state)).length;
    const outer = this.outer && { parent_workflow_id: this.outer.workflow.id, parent_workflow_index: this.outer.index };
    const callbacks = this.callbacks.map(([on, callback]) => ({ on, ...callback.shown() }));
    return {
      id: this.id,
      type: this.body.type,
      state: this.state,
      jobs_total: this.members.length,
      jobs_completed: count("completed"),
      jobs_failed: count("discarded", "failed"),
      jobs_cancelled: count("cancelled"),
      members: this.members.map((member, index) => ({ index, ...member.shown() })),
      ...outer,
      ...(callbacks.length > 0 ? { callbacks } : {}),
    };
  }

  private resultsFor({ before, source }: FakeMember): unknown[] {
    // One that waits for nothing gets what it would get as the job that this workflow is
    if (before.length === 0) return this.outer?.results ?? [];
    // Each job of an array has its element
    return before.filter((index) => index !== source).map((index) => this.members[index]!.result);
  }

  private hasSucceeded(): boolean {
    return this.members.every(({ state }) => state === "completed");
  }
}

/** A job of a workflow, or a workflow in it. */
class FakeMember {
  readonly id: string;
  /** The results that it got. */
  results: unknown[] = [];
  private readonly job: Job | undefined;
  /** What the job is when its turn comes. */
  private readonly startsAs: Job["state"] = "available";
  private flow: FakeWorkflow | undefined;
  /** Of a member that is a workflow, until that has started and where it does not. */
  private ownState: MemberState | undefined = "waiting";
  private error: { code: string; message: string } | undefined;

  constructor(
    readonly workflow: FakeWorkflow,
    readonly index: number,
    private readonly step: NewStep,
    readonly before: number[],
    /** The member whose result has an element for each of its jobs. */
    readonly source: number | undefined,
  ) {
    if (source === undefined && isJob(step)) {
      this.job = workflow.all.store(step);
      this.startsAs = this.job.state;
      Object.assign(this.job, { workflow_id: workflow.id, workflow_index: index, state: "waiting" });
    }
    this.id = this.job?.id ?? uuid();
    if (source === undefined && !isJob(step)) this.flow = new FakeWorkflow(workflow.all, step, this);
  }

  get state(): MemberState {
    return this.job?.state ?? this.ownState ?? this.flow!.state;
  }

  get result(): unknown {
    // JSON has no undefined
    return (this.job ?? this.flow)?.result ?? null;
  }

  /** The jobs that start with it. */
  start(results: unknown[]): Job[] {
    this.results = results;
    if (this.job !== undefined) {
      this.job.state = this.startsAs;
      if (results.length > 0) this.job.parent_results = results;
      return [this.job];
    }
    if (this.source !== undefined) {
      const elements = this.workflow.members[this.source]!.result;
      if (!Array.isArray(elements)) {
        const message = `for_each needs a JSON array as the result of step ${this.source}`;
        [this.ownState, this.error] = ["failed", { code: "not_an_array", message }];
        return [];
      }
      const jobs = elements.map((element) => withElement(this.step, element));
      this.flow = new FakeWorkflow(this.workflow.all, { type: "group", jobs }, this);
    }
    this.ownState = undefined;
    return this.flow!.advanceAlone();
  }

  cancel(): void {
    if (isEnded(this.state)) return;
    if (this.job !== undefined) {
      this.job.state = "cancelled";
      return;
    }
    this.ownState = "cancelled";
    this.flow?.cancel();
  }

  shown(): WorkflowMember {
    const { id, state, source, error } = this;
    if (this.job !== undefined) return { id, type: this.job.type, queue: this.job.queue, state };
    return {
      id,
      type: source === undefined ? this.step.type : "group",
      workflow: true,
      state,
      ...(source === undefined ? {} : { for_each: source }),
      ...(state === "completed" ? { result: this.result } : {}),
      ...(error === undefined ? {} : { error }),
    };
  }
}

function isEnded(state: MemberState): boolean {
  return ["completed", "cancelled", "discarded", "failed"].includes(state);
}

function isJob(step: NewStep): step is NewJob {
  return !("steps" in step || "jobs" in step || "callbacks" in step);
}

/** A job with an element behind its own arguments, or a workflow each of whose jobs has it there. */
function withElement<S extends NewStep>(step: S, element: unknown): S {
  if (isJob(step)) return { ...step, args: [...step.args, element] };
  const made: NewWorkflow = { ...(step as NewWorkflow) };
  if (made.steps !== undefined) made.steps = made.steps.map((one) => withElement(one, element));
  if (made.jobs !== undefined) made.jobs = made.jobs.map((one) => withElement(one, element));
  const callbacks = Object.entries(made.callbacks ?? {}).map(([event, job]) => [event, withElement(job, element)]);
  if (made.callbacks !== undefined) made.callbacks = Object.fromEntries(callbacks) as typeof made.callbacks;
  return made as S;
}
