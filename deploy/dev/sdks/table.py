"""Writes the matrix of docs/sdks.md from what the drivers said: table.py FOLDER."""

import pathlib
import sys

PAGE = pathlib.Path("docs/sdks.md")
BEGIN, END = "<!-- matrix: begin -->\n", "<!-- matrix: end -->\n"

said = {}
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.tsv")):
    # The worker of Ruby logs to standard output, too
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if "\t" in line]
    said[path.stem.replace("-", " ").capitalize().replace("script", "Script")] = dict(line.split("\t", 1) for line in lines)
names = max(map(list, said.values()), key=len)
rows = [f"| | {' | '.join(said)} |", f"|---|{'---|' * len(said)}"]
for name in names:
    rows.append(f"| {name} | {' | '.join('yes' if answers.get(name) == 'ok' else 'no' for answers in said.values())} |")
page = PAGE.read_text(encoding="utf-8")
before, _, rest = page.partition(BEGIN)
_, _, after = rest.partition(END)
PAGE.write_text(before + BEGIN + "\n" + "\n".join(rows) + "\n\n" + END + after, encoding="utf-8")
