/**
 * What an attempt saves for the next one: the state of its handler, and the results of its steps.
 *
 * Both are one checkpoint, which is the state alone until there is a step, and then
 * `{"galley:steps": {name: result}, "state": ...}`. The clients for other languages write the same.
 */

import { GalleyError, NoRetry } from "./errors.js";
import type { Checkpoint } from "./types.js";

/** The member of a checkpoint that has the results of steps. */
const STEPS = "galley:steps";

/** Saves a checkpoint, and gives its number. */
export type SendCheckpoint = (checkpoint: { state: unknown; sequence: number }) => Promise<number>;

/** The checkpoint as this attempt knows it. */
export class Saved {
  private sequence: number;
  private state: unknown;
  private steps: Map<string, unknown>;
  private readonly running = new Set<string>();
  /** One save at a time: each has everything that the one before had. */
  private last: Promise<unknown> = Promise.resolve();

  constructor(checkpoint: Checkpoint | undefined, private readonly send: SendCheckpoint) {
    this.sequence = checkpoint?.sequence ?? 0;
    const stored = checkpoint?.state as { [STEPS]?: Record<string, unknown>; state?: unknown } | null | undefined;
    const steps = typeof stored === "object" && stored !== null ? stored[STEPS] : undefined;
    this.steps = new Map(Object.entries(steps ?? {}));
    this.state = steps === undefined ? stored : stored?.state;
  }

  current<T>(): T | undefined {
    return (this.state ?? undefined) as T | undefined;
  }

  save(state: unknown): Promise<void> {
    const next = stored(state);
    return this.after(async () => {
      await this.store(next, this.steps);
      this.state = next;
    });
  }

  results(): [string, unknown][] {
    return [...this.steps];
  }

  async step<T>(name: string, run: () => Promise<T> | T): Promise<T> {
    if (this.steps.has(name)) return this.steps.get(name) as T;
    if (this.running.has(name)) throw new NoRetry(`step ${name} runs already: give each step a name of its own`);
    this.running.add(name);
    try {
      const result = stored(await run());
      await this.after(async () => {
        const steps = new Map(this.steps).set(name, result);
        await this.store(this.state, steps);
        this.steps = steps;
      });
      return result as T;
    } catch (error) {
      if (!(error instanceof GalleyError && error.status === 413)) throw error;
      throw new NoRetry(`the result of step ${name} is too large: ${error.message}`);
    } finally {
      this.running.delete(name);
    }
  }

  private async store(state: unknown, steps: Map<string, unknown>): Promise<void> {
    const all = steps.size === 0 ? state : { [STEPS]: Object.fromEntries(steps), state: state ?? null };
    this.sequence = await this.send({ state: all ?? null, sequence: this.sequence + 1 });
  }

  private after(save: () => Promise<void>): Promise<void> {
    const saved = this.last.then(save);
    this.last = saved.catch(() => {});
    return saved;
  }
}

/** The value as the attempts after this one get it. */
function stored(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value) ?? "null");
}
