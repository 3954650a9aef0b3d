/** How an attempt ended, as the gateway is told. */

import { NoRetry, Retry, Waiting } from "./errors.js";
import type { Failure } from "./types.js";

/** Characters of a stack that are sent along with a failure. */
const MAX_STACK = 16_000;
/** Codes of what is told instead of a refused outcome. */
const REFUSED = ["result_too_large", "result_refused", "failure_refused", "wait_refused"];

export type Settled = { kind: "acks"; body: { result: unknown } } | { kind: "nacks"; body: { error: Record<string, unknown> } | { wait: Waiting["request"] } };

export function failure(code: string, type: string, message: string, more: Record<string, unknown> = {}): Settled {
  return { kind: "nacks", body: { error: { code, type, message, ...more } } };
}

/** How an attempt ended whose handler threw something. */
export function thrownBy(jobId: string, thrown: unknown): Settled {
  // Of several jobs in one call: what one of them waits for is for its place in the array
  if (thrown instanceof Waiting && thrown.jobId === jobId) return { kind: "nacks", body: { wait: thrown.request } };
  return failureOf(thrown);
}

function failureOf(thrown: unknown): Settled {
  const error = thrown instanceof Error ? thrown : new Error(shown(() => thrown));
  const stack = shown(() => error.stack ?? "").slice(0, MAX_STACK);
  if (error instanceof Retry) {
    const after = error.afterMs === undefined ? {} : { retry_after_ms: Math.max(0, Math.round(error.afterMs)) };
    return failure("handler_error", shown(() => error.name), shown(() => error.message), { retryable: true, ...after });
  }
  const more = error instanceof NoRetry ? { stack, retryable: false } : { stack };
  return failure("handler_error", shown(() => error.name), shown(() => error.message), more);
}

/**
 * What to tell when an outcome is refused for what it says: dropped, its job would wait for its whole lease. Nothing when
 * the attempt is not ours any more, or when even this was refused.
 */
export function insteadOfRefused(settled: Settled, { code = "", message = "" }: Failure): Settled | undefined {
  if (["conflict", "not_found"].includes(code)) return undefined;
  if (settled.kind === "acks") {
    const isLarge = code === "payload_too_large";
    const [told, type] = isLarge ? ["result_too_large", "ResultTooLarge"] : ["result_refused", "ResultRefused"];
    return failure(told, type, message, { retryable: false });
  }
  if (!("error" in settled.body)) return failure("wait_refused", "WaitRefused", message, { retryable: false });
  const { error } = settled.body;
  if (REFUSED.includes(String(error["code"]))) return undefined;
  return failure("failure_refused", "FailureRefused", message, { retryable: error["retryable"] ?? true });
}

/** Something of what was thrown as text, whatever its getters and its `toString` do: a stack is made when it is read. */
function shown(get: () => unknown): string {
  try {
    return String(get());
  } catch {
    return "something that cannot be shown";
  }
}
