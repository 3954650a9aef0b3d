#!/usr/bin/env python3
"""Checks the documents against the repository: paths, links, named tests, settings and the modules in the maps of
modules exist, tasks of operations have their three ways, and the pages of metrics and of error codes list exactly what the code has.
"""

import collections
import pathlib
import re
import subprocess
import sys
import tomllib

# Written as they were: records of decisions use the words and files of their time.
UNCHECKED = ("docs/adr/0", "CHANGELOG.md")
PATH = re.compile(r"`((?:crates|deploy|config|clients|examples|k8s|bench)/[\w./-]+)`")
FILE = re.compile(r"`([\w-]+\.(?:rs|lua))`")
# "`function` in `path`", "`one` and `other` in `path`"
FUNCTION = re.compile(r"`(\w+)`(?: and `(\w+)`)? in `(crates/[\w./-]+\.rs)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
# `module::name`, `crate module::name`: what a document gives as proof.
TEST = re.compile(r"`(?:[a-z]+ )?((?:[a-z0-9_]+::)+)([a-z0-9_]+)`")
# A row of the map of modules at the top of a module: its names
MAP_ROW = re.compile(r"^//! \| ([^|]*[`\]]) \|", re.MULTILINE)
METRIC = re.compile(r'(?:\b(?:counter|gauge|histogram)!?|ReaderLimiter::new)\([^")]*"((?:galley|process)_\w+)"')
# Where metrics are declared, the page is generated from that
METRIC_CATALOG = "crates/common/src/prometheus/catalog/"
ERROR_ROW = re.compile(r'ErrorCodeRow\(\s*"(\w+)",\s*"(\w+)",\s*S::(\w+),\s*(true|false)')
STATUS = {
    "BAD_REQUEST": 400, "UNAUTHORIZED": 401, "FORBIDDEN": 403, "NOT_FOUND": 404, "METHOD_NOT_ALLOWED": 405,
    "REQUEST_TIMEOUT": 408, "CONFLICT": 409, "PAYLOAD_TOO_LARGE": 413, "UNSUPPORTED_MEDIA_TYPE": 415,
    "UNPROCESSABLE_ENTITY": 422, "UPGRADE_REQUIRED": 426, "TOO_MANY_REQUESTS": 429, "INTERNAL_SERVER_ERROR": 500,
    "SERVICE_UNAVAILABLE": 503,
}


def read(path):
    return pathlib.Path(path).read_text(encoding="utf-8")


def tracked(*patterns):
    listed = subprocess.run(["git", "ls-files", "--", *patterns], check=True, stdout=subprocess.PIPE, text=True)
    return listed.stdout.splitlines()


def anchors(text):
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def problems_of_paths(document, text, files):
    for path in PATH.findall(text):
        if not pathlib.Path(path).exists():
            yield f"{path} does not exist"
    for name in FILE.findall(text):
        if name not in files:
            yield f"no file is called {name}"
    for *names, path in FUNCTION.findall(text):
        for name in filter(None, names):
            if pathlib.Path(path).exists() and not re.search(rf"\bfn {name}\b", read(path)):
                yield f"{path} has no function {name}"
    for link in LINK.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document if not path else (pathlib.Path(document).parent / path)
        if not pathlib.Path(target).exists():
            yield f"the link {link} leads nowhere"
        elif anchor and anchor not in anchors(read(target)):
            yield f"the link {link} leads to no heading"


def is_in_module(path, module, code):
    return module in pathlib.Path(path).with_suffix("").parts or f"mod {module}" in code


def functions_of(sources):
    """Where each function is: the paths by its name."""
    places = collections.defaultdict(list)
    for path, code in sources.items():
        for name in set(re.findall(r"\bfn (\w+)", code)):
            places[name].append(path)
    return places


def problems_of_tests(text, sources, functions):
    for modules, name in TEST.findall(text):
        module = modules.split("::")[-2]
        if name.count("_") < 3:
            continue
        found = functions.get(name, [])
        if not found:
            yield f"there is no test {name}"
        elif not any(is_in_module(path, module, sources[path]) for path in found):
            yield f"the test {name} is in {', '.join(found)}, not in {module}"


def problems_of_tasks(text):
    """Every task of operations has its page of the dashboard, its command and its request."""
    tasks = re.split(r"^### ", text.partition("\n## Tasks\n")[2].partition("\n## ")[0], flags=re.MULTILINE)[1:]
    if len(tasks) < 5:
        yield "the tasks are not found"
    for task in tasks:
        name = task.splitlines()[0]
        for way, how in (("dashboard", r"dashboard\.md"), ("command", r"`galley \w"), ("curl", r"`curl ")):
            rows = re.findall(rf"^\| {way} \| (.*) \|$", task, re.MULTILINE)
            if len(rows) != 1 or not re.search(how, rows[0]):
                yield f"the task '{name}' lacks its way '{way}'"
    commands = set(re.findall(r"^#+ `galley ([\w -]+)`", read("docs/reference/cli.md"), re.MULTILINE))
    for words in re.findall(r"`galley ([a-z-]+(?: [a-z]+)?)", text):
        if words not in {*commands, "help"}:
            yield f"there is no command galley {words}"


def settings_of(table, prefix=""):
    for key, value in table.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from settings_of(value, f"{prefix}{key}.")


def problems_of_settings(text, sections, known):
    for name in re.findall(rf"`((?:{'|'.join(sections)})\.[a-z_.]+)`", text):
        if name not in known and not name.startswith("queues.") and not name.endswith((".yaml", ".rs")):
            yield f"there is no setting {name}"


def problems_of_map(code):
    for row in MAP_ROW.findall(code):
        for name in re.findall(r"`([a-z_]+)`", row):
            if name != "mod" and not re.search(rf"\bmod {name}\b", code):
                yield f"the map of modules names {name}, which is no module here"


def different(what, document, code):
    for item in sorted(code - document):
        yield f"{what} {item} is in the code and not here"
    for item in sorted(document - code):
        yield f"{what} {item} is here and not in the code"


def problems_of_metrics(text, sources):
    counting = (code for path, code in sources.items() if not path.startswith(METRIC_CATALOG))
    code = {name for source in counting for name in METRIC.findall(source)}
    yield from different("the metric", set(re.findall(r"^\| `((?:galley|process)_\w+)`", text, re.MULTILINE)), code)


def problems_of_errors(text, sources):
    rows = ERROR_ROW.findall(sources["crates/gateway/src/code.rs"])
    code = {(name, STATUS[status], kind, "yes" if again == "true" else "no") for name, kind, status, again in rows}
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| `(\w+)` \| (\w+) \|", text, re.MULTILINE)
    yield from different("the error", {(name, int(status), kind, again) for name, status, kind, again in rows}, code)


def problems_of_records(index):
    """Each decision has a number of its own and a line in the list of all."""
    taken = {}
    for record in tracked("docs/adr/0*.md"):
        name = pathlib.Path(record).name
        number = int(name[:4])
        if number in taken:
            yield f"{name} and {taken[number]} have the same number"
        taken[number] = name
        if f"| [{number}]({name}) |" not in index:
            yield f"{name} is not listed as {number}"
        if not read(record).startswith(f"# {number}. "):
            yield f"the heading of {name} has another number"


def main():
    sources = {path: read(path) for path in tracked("crates/*.rs")}
    functions = functions_of(sources)
    # CONTRIBUTING.md calls a script that does not exist yet name.lua
    files = {"name.lua", *(pathlib.Path(path).name for path in tracked("*.rs", "*.lua"))}
    # Types of events and names of log lines have the shape of settings: the code spells them out
    known = {name for code in sources.values() for name in re.findall(r'"([a-z_]+\.[a-z_.]+)"', code)}
    defaults = tomllib.loads(read("config/default.toml"))
    # The weight of a queue has no default
    known |= {*settings_of(defaults), "queue_worker.weights"}
    found = [f"{path}: {problem}" for path, code in sources.items() for problem in problems_of_map(code)]
    for document in tracked("*.md"):
        if document.startswith(UNCHECKED):
            continue
        text = read(document)
        problems = [*problems_of_paths(document, text, files), *problems_of_tests(text, sources, functions),
                    *problems_of_settings(text, defaults, known)]
        if document == "docs/adr/README.md":
            problems += problems_of_records(text)
        if document == "docs/operations.md":
            problems += problems_of_tasks(text)
        if document == "docs/reference/metrics.md":
            problems += problems_of_metrics(text, sources)
        if document == "docs/reference/errors.md":
            problems += problems_of_errors(text, sources)
        found += [f"{document}: {problem}" for problem in problems]
    print("\n".join(found) or "documents: paths, links, tests, settings, maps, metrics and error codes are right")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
