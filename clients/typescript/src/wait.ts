/**
 * Waiting in the middle of a job: for a time, for a signal, or for a person's approval.
 *
 * The attempt ends meanwhile and the next one goes on. What a wait brought is saved as the result of a step, in the form that
 * the clients for other languages use too.
 */

import type { Saved } from "./checkpoint.js";
import { NoRetry, Waiting } from "./errors.js";
import { checkNames } from "./names.js";
import type { Approval, Job, Signal } from "./types.js";

/** How the names of the steps begin that are waits. */
const WAIT_STEP = "galley:wait:";

type WaitResult = { signal: Signal | null };

export interface SignalWaitOptions {
  /** How long at most, counted from the first attempt that gets here. */
  timeoutMs?: number;
  /** The name of the step; that of the signal unless given. */
  step?: string;
}

/** Waits until there is a result, which is saved; throws `Waiting` when there is none yet. */
export async function waitAt(
  job: Job,
  saved: Saved,
  { step, signal, timeoutMs }: { step: string; signal?: string; timeoutMs?: number },
): Promise<Signal | undefined> {
  const name = WAIT_STEP + step;
  const results = saved.results().filter(([other]) => other.startsWith(WAIT_STEP)) as [string, WaitResult][];
  const known = results.find(([other]) => other === name);
  if (known !== undefined) return known[1].signal ?? undefined;
  const received = results.flatMap(([, result]) => (result.signal === null ? [] : [result.signal.sequence]));
  const came = job.signals?.find((one) => one.name === signal && !received.includes(one.sequence));
  const isOver = job.waiting?.step === step && job.waiting.is_over === true;
  if (came === undefined && !isOver) {
    const timeout_ms = timeoutMs === undefined ? undefined : Math.max(0, Math.round(timeoutMs));
    throw new Waiting(job.id, {
      step,
      received,
      ...(signal === undefined ? {} : { signal }),
      ...(timeout_ms === undefined ? {} : { timeout_ms }),
    });
  }
  await saved.step<WaitResult>(name, () => ({ signal: came ?? null }));
  return came;
}

/** What an attempt can wait for. */
export function waitsOf(job: Job, saved: Saved) {
  const waitForSignal = <T>(name: string, options: SignalWaitOptions = {}) => {
    checkNames("waitForSignal()", options, ["timeoutMs", "step"]);
    const { step = name, timeoutMs } = options;
    const wanted = { step, signal: name, ...(timeoutMs === undefined ? {} : { timeoutMs }) };
    return waitAt(job, saved, wanted) as Promise<Signal<T> | undefined>;
  };
  const waitForApproval = async (subject = "", options: { timeoutMs?: number } = {}): Promise<Approval | undefined> => {
    checkNames("waitForApproval()", options, ["timeoutMs"]);
    const signal = await waitForSignal<Partial<Approval> | null>(approvalSignal(subject), options);
    if (signal === undefined) return undefined;
    const { approved, by, comment } = signal.data ?? {};
    if (typeof approved !== "boolean") throw new NoRetry(`signal ${signal.name} has no {"approved": true} or false`);
    return { approved, by, comment };
  };
  const sleep = async (name: string, ms: number): Promise<void> => {
    await waitAt(job, saved, { step: name, timeoutMs: ms });
  };
  return { waitForSignal, waitForApproval, sleep };
}

export function approvalSignal(subject: string): string {
  return subject === "" ? "approval" : `approval.${subject}`;
}
