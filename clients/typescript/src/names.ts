/** Names of options, checked when the program runs: what JavaScript calls is not checked before. */

/** Refuses the first name that is not known, with the nearest one that is. */
export function checkNames(what: string, given: object, known: readonly string[]): void {
  for (const name of Object.keys(given)) {
    if (!known.includes(name)) throw new TypeError(`${what} has no option "${name}"${nearest(name, known)}`);
  }
}

/** `: did you mean "priority"?`, or nothing if no known name is near. */
function nearest(name: string, known: readonly string[]): string {
  const plain = (text: string) => text.replace(/_/g, "").toLowerCase();
  const distances = known.map((other) => ({ other, far: distance(plain(name), plain(other)) }));
  const [best] = distances.sort((a, b) => a.far - b.far);
  return best !== undefined && best.far <= Math.max(1, name.length / 3) ? `: did you mean "${best.other}"?` : "";
}

/** How many letters to insert, delete, replace or exchange with their neighbour (optimal string alignment). */
function distance(a: string, b: string): number {
  const rows: number[][] = [Array.from({ length: b.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = rows[i - 1]![j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      row[j] = Math.min(replaced, rows[i - 1]![j]! + 1, row[j - 1]! + 1);
      const isExchanged = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      if (isExchanged) row[j] = Math.min(row[j]!, rows[i - 2]![j - 2]! + 1);
    }
    rows.push(row);
  }
  return rows[a.length]![b.length]!;
}
