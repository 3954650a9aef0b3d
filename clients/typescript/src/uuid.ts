/** A random UUID, also on Node 18 and on pages without HTTPS, which lack `crypto.randomUUID`. */
export function uuid(): string {
  type Random = { randomUUID?: () => string; getRandomValues?: (bytes: Uint8Array) => Uint8Array };
  const { crypto } = globalThis as { crypto?: Random };
  if (crypto?.randomUUID !== undefined) return crypto.randomUUID();
  const bytes = crypto?.getRandomValues?.(new Uint8Array(32));
  const digit = (at: number) => (bytes === undefined ? Math.floor(Math.random() * 16) : bytes[at]! % 16);
  const digits = Array.from({ length: 32 }, (_, at) => digit(at));
  digits[12] = 4;
  digits[16] = 8 + (digits[16]! % 4);
  const text = digits.map((digit) => digit.toString(16)).join("");
  return [text.slice(0, 8), text.slice(8, 12), text.slice(12, 16), text.slice(16, 20), text.slice(20)].join("-");
}
