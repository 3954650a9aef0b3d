/** What can go wrong, and what a handler can say. */

import type { Job } from "./types.js";

/** The gateway refused a request. */
export class GalleyError extends Error {
  override name = "GalleyError";

  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly retryable = false,
  ) {
    super(`${code} (${status}): ${message}`);
  }
}

/** The gateway cannot be reached, or cannot do its work now. It may have done it all the same. `retryAfterMs`: its pause. */
export class Unavailable extends GalleyError {
  override name = "Unavailable";

  constructor(
    message: string,
    status = 503,
    code = "unavailable",
    readonly retryAfterMs: number | undefined = undefined,
  ) {
    super(status, code, message, true);
  }
}

/** A difference is not of the text that it was applied to, or it is damaged. */
export class DeltaError extends Error {
  override name = "DeltaError";

  constructor(what: string) {
    super(`this difference is not of that text: ${what}`);
  }
}

/** A job was discarded or cancelled. */
export class JobFailed extends Error {
  override name = "JobFailed";

  constructor(readonly job: Job) {
    const error = job.errors?.at(-1) ?? job.error;
    super(`job ${job.id} is ${job.state}: ${error?.message ?? "no error was recorded"}`);
  }
}

/** Thrown by a handler: the attempt failed. The next one, if there is one, follows after that time. */
export class Retry extends Error {
  override name = "Retry";
  readonly afterMs: number | undefined;

  constructor(message = "try again", options: { afterMs?: number } = {}) {
    super(message);
    this.afterMs = options.afterMs;
  }
}

/**
 * Thrown in a handler by what waits: the attempt ends without failing, and the job goes on when the wait is over. What catches
 * it must throw it again.
 */
export class Waiting extends Error {
  override name = "Waiting";

  /** @internal */
  constructor(
    readonly jobId: string,
    readonly request: { step: string; signal?: string; timeout_ms?: number; received: number[] },
  ) {
    super(`the job waits at ${request.step}`);
  }
}

/** Thrown by a handler: the job failed for good. */
export class NoRetry extends Error {
  override name = "NoRetry";
}
