/**
 * The trace that requests and handlers belong to. `@opentelemetry/api` is used where it is installed, and never needed.
 */

declare const process: object | undefined;

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
  const runtime = typeof process === "undefined" ? undefined : (process as Runtime);
  const hooks = runtime?.getBuiltinModule?.("node:async_hooks");
  return hooks === undefined ? undefined : new hooks.AsyncLocalStorage();
})();

/** What is used of `@opentelemetry/api`. */
interface OpenTelemetry {
  ROOT_CONTEXT: unknown;
  SpanKind: { CONSUMER: number };
  SpanStatusCode: { ERROR: number };
  context: { active(): unknown };
  propagation: { inject(context: unknown, carrier: object): void; extract(context: unknown, carrier: object): unknown };
  trace: {
    getTracer(name: string): {
      startActiveSpan<R>(name: string, options: object, context: unknown, work: (span: Span) => R): R;
    };
  };
}

interface Span {
  recordException(error: unknown): void;
  setStatus(status: { code: number; message?: string }): void;
  end(): void;
}

let loading: Promise<OpenTelemetry | undefined> | undefined;

function openTelemetry(): Promise<OpenTelemetry | undefined> {
  return (loading ??= load());
}

async function load(): Promise<OpenTelemetry | undefined> {
  // In a page a bundler would have to know the package, and it may not be there
  if (typeof process === "undefined") return undefined;
  const name = "@opentelemetry/api";
  try {
    return (await import(/* webpackIgnore: true */ /* @vite-ignore */ name)) as OpenTelemetry;
  } catch {
    return undefined;
  }
}

/** Headers of a request that makes jobs or messages: the current span, else the job whose handler runs here. */
export async function outgoing(): Promise<Trace> {
  const inherited = handled?.getStore() ?? {};
  const api = await openTelemetry();
  const injected: Trace = {};
  api?.propagation.inject(api.context.active(), injected);
  if (injected.traceparent === undefined) return inherited;
  // A propagator that leaves the baggage out does not end it
  return traceOf({ ...injected, baggage: injected.baggage ?? inherited.baggage });
}

/** A running attempt as its span says it. */
type Spanned = Trace & { job: { id: string; type: string; queue: string; attempt: number } };

/** Does the work of an attempt in its span, which is current meanwhile. */
export async function inSpan<R>({ job, ...trace }: Spanned, work: () => Promise<R>): Promise<R> {
  const api = await openTelemetry();
  if (api === undefined) return work();
  const attributes = {
    "messaging.system": "galley",
    "messaging.operation.type": "process",
    "messaging.operation.name": "process",
    "messaging.destination.name": job.queue,
    "messaging.message.id": job.id,
    "galley.job.type": job.type,
    "galley.job.attempt": job.attempt,
  };
  const parent = api.propagation.extract(api.ROOT_CONTEXT, trace);
  const options = { kind: api.SpanKind.CONSUMER, attributes };
  return api.trace.getTracer("galley-jobs").startActiveSpan(`process ${job.type}`, options, parent, async (span) => {
    try {
      return await work();
    } catch (error) {
      span.recordException(error instanceof Error ? error : String(error));
      span.setStatus({ code: api.SpanStatusCode.ERROR });
      throw error;
    } finally {
      span.end();
    }
  });
}
