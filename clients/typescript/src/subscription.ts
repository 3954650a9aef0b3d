/** Streams of events: parsed, and followed across lost connections by the last id that was seen. */

import { applyDelta } from "./delta.js";
import { DeltaError, GalleyError, Unavailable } from "./errors.js";
import { Patience, type Sender, sleep, type Stream } from "./http.js";
import type { Chunk, Gap, JobEvent, Message, PresenceEvent } from "./types.js";

const PRESENCE = ["members", "join", "update", "leave"];
const ENDS = ["job.completed", "job.discarded", "job.cancelled", "job.forgotten"];

/** An event of a stream. */
export interface Frame {
  name: string;
  data: string;
  /** The id with which a client that saw this event continues. */
  id: string | undefined;
}

/** Splits what arrives into events. */
export class Parser {
  retryMs: number;
  private rest = "";
  private lines: [name: string, value: string][] = [];

  constructor(
    private lastId?: string,
    retryMs = 1000,
  ) {
    this.retryMs = retryMs;
  }

  feed(piece: string): Frame[] {
    const text = this.rest + piece;
    // A CR at the end may be half of a line's end
    const held = text.endsWith("\r") ? "\r" : "";
    const lines = text.slice(0, text.length - held.length).split(/\r\n|\r|\n/);
    this.rest = (lines.pop() ?? "") + held;
    return lines.flatMap((line) => this.take(line) ?? []);
  }

  private take(line: string): Frame | undefined {
    if (line === "") return this.frame();
    const [, name = line, value = ""] = /^([^:]*): ?(.*)$/s.exec(line) ?? [];
    this.lines.push([name, value]);
    return undefined;
  }

  private frame(): Frame | undefined {
    const [lines, data] = [this.lines, [] as string[]];
    let event = "message";
    this.lines = [];
    for (const [name, value] of lines) {
      if (name === "event") event = value;
      else if (name === "data") data.push(value);
      else if (name === "id") this.lastId = value;
      else if (name === "retry" && /^\d+$/.test(value)) this.retryMs = Number(value);
    }
    return data.length === 0 ? undefined : { name: event, data: data.join("\n"), id: this.lastId };
  }
}

/** How a stream is followed. */
export interface Following<E> {
  path: string;
  lastId: string | undefined;
  read: (frame: Frame) => E | undefined;
  isLast?: (event: E) => boolean;
  patienceMs: number | undefined;
  signal: AbortSignal | undefined;
}

/** An iterator of what happens, which survives lost connections and restarts of gateways. */
export class Subscription<E> implements AsyncIterableIterator<E> {
  private seen: string | undefined;
  private readonly closing = new AbortController();
  private parser = new Parser();
  private frames: Frame[] = [];
  private stream: Stream | undefined;
  private waiting: Patience | undefined;
  private hasBegun = false;
  /** Why the next connection is needed although this one lives. */
  private misfit: Unavailable | undefined;
  private turn: Promise<unknown> = Promise.resolve();

  constructor(
    private readonly sender: Sender,
    private readonly following: Following<E>,
  ) {
    this.seen = following.lastId;
    const { signal } = following;
    if (signal?.aborted) this.close();
    else signal?.addEventListener("abort", () => this.close(), { once: true, signal: this.closing.signal });
  }

  /** The id to resume with: of the last event that was handed out, or of where the stream began. */
  get lastId(): string | undefined {
    return this.seen;
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  next(): Promise<IteratorResult<E, undefined>> {
    return this.inTurn(async () => {
      while (!this.isOver) {
        const event = this.nextEvent();
        if (event !== undefined) return { done: false, value: event };
        await this.advance();
      }
      return { done: true, value: undefined };
    });
  }

  /** Called when a loop over it is left: ends it. */
  return(): Promise<IteratorResult<E, undefined>> {
    this.close();
    return Promise.resolve({ done: true, value: undefined });
  }

  /** Connects, so that nothing is missed from now on. Otherwise the first event that is asked for does it. */
  open(): Promise<this> {
    return this.inTurn(async () => {
      while (!this.isOver && !this.hasBegun) await this.advance();
      return this;
    });
  }

  /** Ends the iteration. */
  close(): void {
    this.closing.abort();
    this.drop();
  }

  private get isOver(): boolean {
    return this.closing.signal.aborted;
  }

  private inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.turn.then(work);
    this.turn = result.catch(() => {});
    return result;
  }

  /** The next event that arrived, if there is one. */
  private nextEvent(): E | undefined {
    for (let frame = this.frames.shift(); frame !== undefined; frame = this.frames.shift()) {
      const before = this.seen;
      this.seen = frame.id;
      if (frame.name === "access_ended") {
        this.close();
        const { message = "the access has ended" } = JSON.parse(frame.data) as { message?: string };
        throw new GalleyError(401, "invalid_key", message);
      }
      if (frame.name === "end") {
        this.close();
        return undefined;
      }
      let event: E | undefined;
      try {
        event = this.following.read(frame);
      } catch (error) {
        if (!(error instanceof DeltaError)) throw error;
        console.warn(`galley: the subscription resumes with a whole message: ${error.message}`);
        this.seen = before;
        this.misfit = new Unavailable(error.message);
        return undefined;
      }
      if (event === undefined) continue;
      if (this.following.isLast?.(event)) this.close();
      return event;
    }
    return undefined;
  }

  /** Connects if need be, and reads what comes next. */
  private async advance(): Promise<void> {
    let broke: Unavailable | undefined;
    try {
      if (this.misfit !== undefined) throw this.misfit;
      if (this.stream === undefined) {
        // Events behind the last one that was handed out come again, and so does one that came half
        this.parser = new Parser(this.seen, this.parser.retryMs);
        this.frames = [];
        const headers: Record<string, string> = this.seen ? { "last-event-id": this.seen } : {};
        this.stream = await this.sender.stream(this.following.path, headers, this.closing.signal);
        if (this.stream === undefined) return this.close();
      }
      const piece = await this.stream.read();
      if (piece !== undefined) return this.take(piece);
    } catch (error) {
      if (this.isOver) return;
      if (!(error instanceof Unavailable)) {
        this.drop();
        throw error;
      }
      broke = error;
    }
    this.drop();
    if (!this.isOver) await sleep(this.pauseAfter(broke), this.closing.signal);
  }

  private take(piece: string): void {
    const frames = this.parser.feed(piece);
    if (frames.length > 0) {
      this.hasBegun = true;
      this.waiting = undefined;
    }
    if (frames[0]?.name === "begin") this.seen = frames.shift()?.id;
    this.frames.push(...frames);
  }

  private pauseAfter(error: Unavailable | undefined): number {
    // The gateway ended the stream: all of its clients should not come back at once
    if (error === undefined) return Math.random() * this.parser.retryMs;
    this.waiting ??= new Patience(this.following.patienceMs ?? Infinity);
    return this.waiting.pauseAfter(error);
  }

  private drop(): void {
    this.misfit = undefined;
    this.stream?.cancel();
    this.stream = undefined;
  }
}

/** Reads the events of channels. */
export function messageReader<T>(
  onGap: ((gap: Gap) => void) | undefined,
  onPresence: ((event: PresenceEvent) => void) | undefined,
  hasDeltas: boolean,
): (frame: Frame) => Message<T> | undefined {
  // The last message of each channel, as it came: the next one may come as its difference
  const bases = new Map<string, { id: string; text: string }>();
  const readMessage = (text: string): Message<T> => {
    const shown = JSON.parse(text) as ShownMessage;
    if (hasDeltas && shown.id) bases.set(shown.channel, { id: shown.id, text });
    return messageOf<T>(shown);
  };
  return ({ name, data }) => {
    if (PRESENCE.includes(name)) onPresence?.({ type: name, ...(JSON.parse(data) as object) } as PresenceEvent);
    if (name === "message") return readMessage(data);
    if (name === "delta") {
      const { channel, from, delta } = JSON.parse(data) as { channel: string; from: string; delta: string };
      const base = bases.get(channel);
      if (base?.id !== from) throw new DeltaError("the message before is another one");
      return readMessage(applyDelta(base.text, delta));
    }
    if (name === "gap") {
      const told = JSON.parse(data) as { channel?: string; from?: string; to?: string; count?: number };
      const gap = { channel: told.channel ?? "", after: told.from, to: told.to, count: told.count };
      if (onGap !== undefined) onGap(gap);
      else console.warn(`galley: ${gap.count ?? "some"} messages of ${gap.channel} are missing after ${gap.after}`);
    } else if (name === "left_out") {
      console.warn(`galley: a channel is left out of the stream: ${data}`);
    }
    return undefined;
  };
}

export interface ShownMessage {
  id?: string;
  channel: string;
  time: string;
  data?: unknown;
  data_base64?: string;
  content_type?: string;
  attributes?: Record<string, unknown>;
}

export function messageOf<T>(shown: ShownMessage): Message<T> {
  const { id = null, channel, time, data_base64: encoded, content_type: contentType, attributes = {} } = shown;
  const data = encoded === undefined ? shown.data : Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  return { id, channel, time, data: data as T, contentType, attributes };
}

/** Reads the events of jobs. */
export function readJobEvent({ name, data, id = "" }: Frame): JobEvent | undefined {
  if (!name.startsWith("job.") && !name.startsWith("cron.")) return undefined;
  const shown = JSON.parse(data) as { time?: string; data?: Record<string, unknown> };
  return { id, type: name, time: shown.time ?? "", data: shown.data ?? {} };
}

/** Reads the output of a job. */
export function readChunk<T>({ name, data, id = "" }: Frame): Chunk<T> | undefined {
  if (name === "gap") console.warn(`galley: chunks of a job are missing: ${data}`);
  if (name !== "chunk") return undefined;
  const { attempt, chunk } = JSON.parse(data) as { attempt: number; chunk: T };
  return { id, attempt, data: chunk };
}

/** A job that ended has no more events; the gateway would say so to a client that comes back. */
export function isLastOfJob(event: JobEvent): boolean {
  return ENDS.includes(event.type);
}
