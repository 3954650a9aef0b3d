/** Messages that came as the difference from the one before. */

import { DeltaError } from "./errors.js";

const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz~";

/**
 * The text that `delta` is the difference of from `base`, in the format of Fossil: for what reads streams and WebSockets by
 * itself. A subscription with `delta: true` does it. It throws a `DeltaError` where the difference is not of this base:
 * resume after the last message that you have, and a whole one comes first.
 */
export function applyDelta(base: string, delta: string): string {
  const [source, steps] = [new TextEncoder().encode(base), new TextEncoder().encode(delta)];
  let at = 0;
  const takeNumber = (): [number: number, operator: string] => {
    for (let number = 0; at < steps.length; ) {
      const letter = String.fromCharCode(steps[at++]!);
      const digit = DIGITS.indexOf(letter);
      if (digit < 0) return [number, letter];
      number = ((number << 6) | digit) >>> 0;
    }
    throw new DeltaError("it is cut off");
  };
  const [size, begin] = takeNumber();
  if (begin !== "\n") throw new DeltaError("it does not begin with a length");
  const pieces: Uint8Array[] = [];
  let length = 0;
  for (;;) {
    const [number, operator] = takeNumber();
    let piece: Uint8Array;
    if (operator === "@") {
      const [offset, end] = takeNumber();
      piece = source.subarray(offset, offset + number);
      if (end !== "," || piece.length < number) throw new DeltaError("it copies what the text does not have");
    } else if (operator === ":") {
      piece = steps.subarray(at, at + number);
      if (piece.length < number) throw new DeltaError("it is cut off");
      at += number;
    } else if (operator === ";") {
      const text = joined(pieces, length);
      if (length !== size || checksum(text) !== number) {
        throw new DeltaError("the result has another length or checksum");
      }
      return new TextDecoder("utf-8", { ignoreBOM: true }).decode(text);
    } else {
      throw new DeltaError("it has an unknown operator");
    }
    length += piece.length;
    if (length > size) throw new DeltaError("the result is longer than it says");
    pieces.push(piece);
  }
}

function joined(pieces: Uint8Array[], length: number): Uint8Array {
  const text = new Uint8Array(length);
  let at = 0;
  for (const piece of pieces) {
    text.set(piece, at);
    at += piece.length;
  }
  return text;
}

/** The sum of all words of four bytes, the last one filled up with zeros. */
function checksum(bytes: Uint8Array): number {
  let sum = 0;
  bytes.forEach((byte, index) => (sum = (sum + (byte << (24 - 8 * (index % 4)))) | 0));
  return sum >>> 0;
}
