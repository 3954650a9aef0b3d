/** Requests to a gateway, and pauses between them. */

import { GalleyError, Unavailable } from "./errors.js";

declare const process: { env: Record<string, string | undefined> } | undefined;

/** Time for an answer on top of what is waited for. */
const ANSWER_MS = 10_000;
/** A stream says at least that often that it lives, unless `gateway.event_keep_alive_ms` was raised. */
const STREAM_SILENCE_MS = 60_000;
/** Pauses between attempts to reach the gateway: full jitter up to twice as long each time. */
const FIRST_PAUSE_MS = 100;
const MAX_PAUSE_MS = 5_000;

export interface Call {
  method: string;
  path: string;
  /** Sent as JSON. */
  body?: unknown;
  /** Sent as it is, with the content type among the headers. */
  content?: string | Uint8Array;
  /** How long the answer may take on purpose. */
  waitMs?: number;
  headers?: Record<string, string>;
  signal?: AbortSignal;
}

/** A text that arrives in pieces. */
export interface Stream {
  /** The next piece; nothing when it is over. */
  read(): Promise<string | undefined>;
  cancel(): void;
}

/** What sends requests: a gateway, or what stands in for one in tests. */
export interface Sender {
  call<T>(call: Call): Promise<T>;
  stream(path: string, headers: Record<string, string>, signal: AbortSignal): Promise<Stream | undefined>;
}

export class Gateway implements Sender {
  private readonly url: string;
  private readonly authorization: Record<string, string>;

  constructor(url?: string, key?: string) {
    const environment = typeof process === "undefined" ? {} : process.env;
    this.url = (url ?? (environment["GALLEY_URL"] || "http://127.0.0.1:8080")).replace(/\/+$/, "");
    const usedKey = key ?? environment["GALLEY_KEY"];
    this.authorization = usedKey ? { authorization: `Bearer ${usedKey}` } : {};
    // Complains about what is no URL
    new URL(this.url);
  }

  async call<T>({ method, path, body, content, waitMs = 0, headers = {}, signal }: Call): Promise<T> {
    const request: RequestInit = { method, headers: { ...this.authorization, ...headers } };
    if (content !== undefined) {
      request.body = content as BodyInit;
    } else if (body !== undefined) {
      // undefined is no JSON: JSON.stringify leaves it out, and says nothing of it
      request.body = JSON.stringify(body, isReport(path) ? (_, value) => wellFormed(value) : undefined);
      request.headers = { "content-type": "application/json", ...request.headers };
    }
    const limit = limited(waitMs + ANSWER_MS, signal);
    try {
      const response = await fetch(this.url + path, { ...request, signal: limit.signal });
      return read<T>(response.status, await response.text(), response.headers.get("retry-after"));
    } catch (error) {
      throw unavailable(error);
    } finally {
      limit.end();
    }
  }

  /** Opens a stream of events, which is read until it ends; nothing when the gateway says that no more will come. */
  async stream(path: string, headers: Record<string, string>, signal: AbortSignal): Promise<Stream | undefined> {
    const limit = limited(STREAM_SILENCE_MS, signal);
    try {
      const accept = { accept: "text/event-stream", ...this.authorization, ...headers };
      const response = await fetch(this.url + path, { headers: accept, signal: limit.signal, cache: "no-store" });
      if (response.status !== 200) {
        const text = await response.text();
        limit.end();
        if (response.status !== 204) read(response.status, text, response.headers.get("retry-after"));
        if (response.status !== 204) throw new Unavailable(`answered with ${response.status}`);
        return undefined;
      }
      const reader = response.body!.getReader();
      const decoder = new TextDecoder();
      return {
        async read() {
          try {
            // Silence counts while somebody waits, not while a message is handled
            limit.restart();
            const { done, value } = await reader.read();
            limit.pause();
            if (!done) return decoder.decode(value, { stream: true });
            limit.end();
            return undefined;
          } catch (error) {
            limit.end();
            throw unavailable(error);
          }
        },
        cancel: () => limit.abort(),
      };
    } catch (error) {
      limit.end();
      throw unavailable(error);
    }
  }
}

/** Aborts after a time, or with another signal. */
function limited(ms: number, signal: AbortSignal | undefined) {
  const limit = new AbortController();
  const late = () => limit.abort(new Error("no answer in time"));
  let timer = setTimeout(late, ms);
  const hangUp = () => limit.abort(signal?.reason);
  signal?.addEventListener("abort", hangUp, { once: true });
  if (signal?.aborted) hangUp();
  const end = () => {
    clearTimeout(timer);
    signal?.removeEventListener("abort", hangUp);
  };
  const restart = () => {
    clearTimeout(timer);
    timer = setTimeout(late, ms);
  };
  const abort = () => {
    end();
    limit.abort();
  };
  const pause = () => clearTimeout(timer);
  return { signal: limit.signal, end, restart, pause, abort };
}

function unavailable(error: unknown): GalleyError {
  if (error instanceof GalleyError) return error;
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  return new Unavailable(`the gateway cannot be reached: ${String(cause)}`);
}

/** Whether a request reports how a job does: it must arrive, whatever the text in it. */
function isReport(path: string): boolean {
  return path.startsWith("/ojs/v1/workers/") || /\/(progress|checkpoint|output|signals)$/.test(path);
}

/** The value without lone surrogates, which `slice` leaves and UTF-8 cannot carry. */
function wellFormed(value: unknown): unknown {
  if (typeof value !== "string") return value;
  return value.replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "\ufffd");
}

/** The JSON of an answer, or its error: in the Open Job Spec's shape, else in that of RFC 9457. */
export function read<T>(status: number, text: string, retryAfter: string | null = null): T {
  let content: unknown = {};
  try {
    content = text === "" ? {} : JSON.parse(text);
  } catch {
    // Whatever stands in between answered: the status says enough
  }
  if (status < 400) return content as T;
  type Problem = { code?: string; message?: string; detail?: string; retryable?: boolean };
  const told = (content ?? {}) as Problem & { error?: Problem };
  const { code = "unknown", message = told.detail ?? `answered with ${status}`, retryable } = told.error ?? told;
  if (status >= 500 || status === 408 || status === 429) {
    throw new Unavailable(message, status, code, milliseconds(retryAfter));
  }
  throw new GalleyError(status, code, message, retryable === true);
}

/** `Retry-After` in seconds or as a date. */
function milliseconds(retryAfter: string | null): number | undefined {
  if (retryAfter === null || retryAfter.trim() === "") return undefined;
  const seconds = Number(retryAfter);
  const ms = Number.isNaN(seconds) ? Date.parse(retryAfter) - Date.now() : 1000 * seconds;
  return Number.isNaN(ms) ? undefined : Math.max(0, ms);
}

/** For how long a request is repeated, and what lies between its attempts. */
export class Patience {
  private readonly deadline: number;
  private readonly pause = pauses();

  constructor(ms: number) {
    this.deadline = Date.now() + ms;
  }

  /** How long to pause; throws the error when patience is over. `Retry-After` is honoured. */
  pauseAfter(error: Unavailable): number {
    const ms = this.pause() + (error.retryAfterMs ?? 0);
    if (Date.now() + ms > this.deadline) throw error;
    return ms;
  }
}

/** Growing pauses with jitter. */
export function pauses(maxMs = MAX_PAUSE_MS): () => number {
  let longest = FIRST_PAUSE_MS;
  return () => {
    longest = Math.min(longest * 2, maxMs, MAX_PAUSE_MS);
    return Math.random() * longest;
  };
}

/** Waits that long, or until the signal. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve();
    const done = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, Math.min(ms, 2 ** 31 - 1));
    signal?.addEventListener("abort", done, { once: true });
  });
}
