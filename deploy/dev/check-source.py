#!/usr/bin/env python3
"""Checks the layout of the source: short files, type names that are defined once, no import circles between modules.

Reports and succeeds; with --strict it fails if it reports anything.
"""

import collections
import pathlib
import re
import subprocess
import sys

MAX_LINES = 400
# Type names that may be defined in more than one file, with the reason beside each. Associated types do not count.
REPEATED_TYPES = {
    # galley-client uses no crate of the workspace, and has the words of the interface
    "Gap", "JobState", "NewJob", "NewWorkflow", "Subscription", "WorkflowMember",
}

TOKEN = re.compile(
    r"""//[^\n]*|/\*.*?\*/|b?r(?P<hash>\#*)".*?"(?P=hash)|b?"(?:\\.|[^"\\])*"|b?'(?:\\.[^']*|[^'\\])'""", re.DOTALL
)


def read(path):
    return path.read_text(encoding="utf-8")


def plain(text):
    """The code without comments and literals, so that braces and names in them do not count."""
    return TOKEN.sub(lambda match: " " + "\n" * match.group().count("\n"), text)


def end_of_block(code, start):
    """Behind the brace that closes the one at `start`."""
    depth = 0
    for position in range(start, len(code)):
        depth += {"{": 1, "}": -1}.get(code[position], 0)
        if depth == 0:
            return position + 1
    return len(code)


TEST_MODULE = re.compile(r"#\[cfg\(test\)\]\s*(?:pub(?:\([^)]*\))?\s+)?mod\s+\w+\s*\{|\bmod\s+tests\s*\{")


def without_tests(code):
    while match := TEST_MODULE.search(code):
        code = code[: match.start()] + code[end_of_block(code, match.end() - 1) :]
    return code


INLINE_MODULE = re.compile(r"\bmod\s+\w+\s*$")


def top_level(code):
    """What stands outside all blocks but those of inline modules: no bodies of functions, traits, impls and macros."""
    result, position = [], 0
    while position < len(code):
        brace = code.find("{", position)
        if brace < 0:
            result.append(code[position:])
            break
        before = code[position:brace]
        result.append(before)
        position = brace + 1 if INLINE_MODULE.search(before) else end_of_block(code, brace)
        result.append(" ; ")
    return "".join(result)


TYPE = re.compile(r"\b(?:struct|enum|trait|union|type)\s+([A-Z]\w*)")


def use_tree(text, prefix=()):
    """The leaves of `a::{b, c as d, e::*}`, as (path, name here)."""
    text = text.strip()
    head, brace, rest = text.partition("{")
    if brace:
        prefix += tuple(part.strip() for part in head.split("::") if part.strip())
        depth, start = 0, 0
        body = rest[: rest.rfind("}")] + ","
        for position, letter in enumerate(body):
            depth += {"{": 1, "}": -1}.get(letter, 0)
            if letter == "," and depth == 0:
                if body[start:position].strip():
                    yield from use_tree(body[start:position], prefix)
                start = position + 1
        return
    path, _, name = (part.strip() for part in text.partition(" as "))
    path = prefix + tuple(part.strip() for part in path.split("::") if part.strip())
    if path and path[-1] == "self":
        path = path[:-1]
    if path:
        yield path, name or path[-1]


class Crate:
    """The modules of a crate: which there are, which names they import, which other modules they mention."""

    def __init__(self, folder, root):
        self.name = folder.name
        self.files, self.uses, self.code = {}, {}, {}
        source = folder / "src"
        for path in sorted(source.rglob("*.rs")):
            parts = path.relative_to(source).with_suffix("").parts
            if parts[0] == "bin" or (len(parts) == 1 and parts[0] in {"lib", "main"} and path != root):
                continue
            if parts[-1] == "tests":
                continue
            module = () if path == root else parts[:-1] if parts[-1] == "mod" else parts
            self.files[module] = path
            self.code[module] = without_tests(plain(read(path)))
        for module, code in self.code.items():
            self.uses[module] = [
                (path, name)
                for match in re.finditer(r"\buse\s+([^;]+);", code)
                for path, name in use_tree(re.sub(r"\s+", " ", match.group(1)))
            ]

    def absolute(self, module, path):
        """The path from the root of the crate, or None if it leads elsewhere."""
        if path[0] == "crate":
            return path[1:]
        if path[0] in {"self", "super"}:
            while path and path[0] in {"self", "super"}:
                if path[0] == "super":
                    if not module:
                        return None
                    module = module[:-1]
                path = path[1:]
            return module + path
        return module + path if module + path[:1] in self.files else None

    def resolve(self, path, seen=()):
        """The module that defines what the path names: names that a module only passes on are followed."""
        module = path
        while module not in self.files:
            module = module[:-1]
        rest = path[len(module) :]
        if rest and (module, rest[0]) not in seen:
            for used, name in self.uses[module]:
                target = self.absolute(module, used) if name == rest[0] else None
                if target is not None:
                    return self.resolve(target + rest[1:], (*seen, (module, rest[0])))
        return module

    def imports(self, module):
        paths = [path for path, _ in self.uses[module]]
        paths += [tuple(text.split("::")) for text in re.findall(r"\b(?:crate|super|self)(?:::\w+)+", self.code[module])]
        for path in paths:
            target = self.absolute(module, path)
            if target is None:
                continue
            target = self.resolve(target)
            if target != module[: len(target)] and module != target[: len(module)]:
                yield target




def circles(graph):
    """The strongly connected parts of more than one module (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            part = []
            while not part or part[-1] != node:
                part.append(stack.pop())
            if len(part) > 1:
                found.append(sorted(part))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def tracked(*patterns):
    output = subprocess.run(["git", "ls-files", "-z", *patterns], check=True, stdout=subprocess.PIPE, text=True).stdout
    return [path for path in map(pathlib.Path, filter(None, output.split("\0"))) if path.exists()]


def long_files():
    for path in tracked("*.rs", "*.lua"):
        lines = read(path).count("\n")
        if lines > MAX_LINES:
            yield f"{path}: {lines} lines, more than {MAX_LINES}"


def repeated_types():
    places = collections.defaultdict(set)
    for path in tracked("crates/*/src/*.rs"):
        if path.name == "tests.rs" or "tests" in path.parts:
            continue
        for name in TYPE.findall(top_level(without_tests(plain(read(path))))):
            places[name].add(str(path))
    for name, paths in sorted(places.items()):
        if len(paths) > 1 and name not in REPEATED_TYPES:
            yield f"type {name} is defined {len(paths)} times: {', '.join(sorted(paths))}"


def import_circles():
    for folder in sorted(path.parent for path in tracked("crates/*/Cargo.toml")):
        roots = [folder / "src/lib.rs", folder / "src/main.rs"]
        root = next((path for path in roots if path.exists()), None)
        if root is None:
            continue
        crate = Crate(folder, root)
        graph = {module: set(crate.imports(module)) for module in crate.files}
        for part in circles(graph):
            names = ["::".join(module) for module in part]
            yield f"{crate.name}: {len(part)} modules import each other: {', '.join(names)}"
            for module in part:
                targets = ", ".join("::".join(target) for target in sorted(graph[module] & set(part)))
                yield f"    {'::'.join(module)} -> {targets}"


def main():
    found = [*long_files(), *repeated_types(), *import_circles()]
    print("".join(f"{problem}\n" for problem in found), end="")
    sys.exit(bool(found) and "--strict" in sys.argv[1:])


main()
