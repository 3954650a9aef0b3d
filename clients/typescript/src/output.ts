/**
 * The output of a job: chunks that its handler streams while it runs, on their way to the gateway.
 *
 * What gathers while a request is on its way is sent in the next one, so a handler does not wait for each chunk. What cannot
 * be sent is no reason to fail.
 */

import { GalleyError } from "./errors.js";

/** Bytes of JSON of a chunk: what the gateway takes. */
const MAX_CHUNK = 65_536;
/** Chunks that wait to be sent; then the handler waits. */
const MAX_WAITING = 256;
/** Chunks, and letters of their JSON, in one request. */
const MAX_SENT = 100;
const MAX_SENT_LETTERS = 131_072;

/** Sends some chunks, and waits while the gateway is away. */
export type SendOutput = (output: { chunks: unknown[]; first: number }) => Promise<void>;

/** Sends the chunks of one attempt in their order. */
export class OutputWriter {
  private waiting: { chunk: unknown; letters: number }[] = [];
  private sent = 0;
  private isBroken = false;
  private sending: Promise<void> | undefined;

  constructor(private readonly send: SendOutput) {}

  async add(chunk: unknown): Promise<void> {
    const text = JSON.stringify(chunk) ?? "null";
    const bytes = new TextEncoder().encode(text).length;
    if (bytes > MAX_CHUNK) throw new RangeError(`a chunk must have at most ${MAX_CHUNK} bytes as JSON, got ${bytes}`);
    if (this.isBroken) return;
    // As it is now: the handler may change it
    this.waiting.push({ chunk: JSON.parse(text), letters: text.length });
    this.sending ??= this.sendAll();
    while (this.waiting.length > MAX_WAITING) await this.sending;
  }

  /** Waits until everything is sent: after the attempt nobody may add to it. */
  async finish(): Promise<void> {
    while (this.sending !== undefined) await this.sending;
  }

  private async sendAll(): Promise<void> {
    try {
      while (this.waiting.length > 0) {
        const chunks = this.take();
        // Sent again, chunks with these numbers are added once
        await this.send({ chunks, first: this.sent + 1 });
        this.sent += chunks.length;
      }
    } catch (error) {
      if (!(error instanceof GalleyError)) console.error("galley: output of a job cannot be sent:", error);
      this.isBroken = true;
      this.waiting = [];
    } finally {
      this.sending = undefined;
    }
  }

  private take(): unknown[] {
    let [count, letters] = [0, 0];
    for (const next of this.waiting.slice(0, MAX_SENT)) {
      if (count > 0 && letters + next.letters > MAX_SENT_LETTERS) break;
      [count, letters] = [count + 1, letters + next.letters];
    }
    return this.waiting.splice(0, count).map(({ chunk }) => chunk);
  }
}
