#!/usr/bin/env python3
"""Builds the documents as a site: docs.py FOLDER. Any warning is an error: a link or an anchor that leads nowhere, a page
that docs/README.md does not list.

Sphinx with MyST, because it reads Markdown as GitHub does. The pages are copied first, at their paths, so that their links
among each other hold; the menu follows docs/README.md. Sections that are marked as alternatives become tabs.
"""

import pathlib
import re
import shutil
import subprocess
import sys

#: Pages beside those in docs/ that readers of it need.
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "clients", "crates/client", "crates/worker", "examples", "docs")
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")

CONF = """
project = "Galley"
extensions = ["myst_parser", "sphinx_copybutton", "sphinx_design"]
source_suffix = {".md": "markdown"}
root_doc = "README"
# Anchors as GitHub makes them
myst_heading_anchors = 6
html_theme = "furo"
html_title = "Galley"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
# Pages begin with a heading of the second level where GitHub shows the first, and JSON in examples has dots
suppress_warnings = ["myst.header", "misc.highlighting_failure"]
"""


def tracked(*patterns):
    listed = subprocess.run(["git", "ls-files", "--", *patterns], check=True, stdout=subprocess.PIPE, text=True)
    return [pathlib.Path(path) for path in listed.stdout.splitlines()]


def links_of(page, text):
    """The files of the repository that a page links to, in order."""
    for link in LINK.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / link).resolve().relative_to(pathlib.Path.cwd())
        if target.is_file():
            yield target


def toctree(caption, pages):
    """A part of the menu, which is not shown in the page."""
    names = [str(pathlib.PurePosixPath("/", path.with_suffix(""))) for path in pages]
    return "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", *names, "```", ""])


def menus(pages):
    """By page what is added to it: the start page has the sections of the index, the records theirs."""
    index = pathlib.Path("docs/README.md")
    seen, menu = {pathlib.Path("README.md"), index}, []
    for section in re.split(r"^#+ ", index.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        caption, _, text = section.partition("\n")
        found = [path for path in dict.fromkeys(links_of(index, text)) if path in pages and path not in seen]
        seen.update(found)
        menu.append(toctree(caption, found if menu else [index, *found]))
    records = sorted(path for path in pages if path.match("docs/adr/0*.md"))
    return {pathlib.Path("README.md"): "".join(menu), pathlib.Path("docs/adr/README.md"): toctree("Records", records)}


def with_tabs(text):
    """Sections between two marks become tabs. GitHub has none and shows the sections."""

    def tabs(marked):
        parts = re.split(r"^### (.*)\n", marked[1], flags=re.MULTILINE)
        items = zip(parts[1::2], parts[2::2])
        return "".join(["``````{tab-set}\n", *(f"`````{{tab-item}} {name}\n{body}`````\n" for name, body in items), "``````\n"])

    return re.sub(r"<!-- tabs: begin -->\n(.*?)<!-- tabs: end -->\n", tabs, text, flags=re.DOTALL)


def stage(source):
    pages = [path for path in tracked(*PAGES) if path.suffix == ".md"]
    added = menus(pages)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        copy = source / page
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(with_tabs(text) + added.get(page, ""), encoding="utf-8")
        for target in links_of(page, text):
            if target.suffix != ".md":
                (source / target).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(target, source / target)
    (source / "conf.py").write_text(CONF, encoding="utf-8")


def main():
    site = pathlib.Path(sys.argv[1]).resolve()
    source = site.with_name(site.name + "-source")
    shutil.rmtree(source, ignore_errors=True)
    shutil.rmtree(site, ignore_errors=True)
    stage(source)
    words = ["--fail-on-warning", "--keep-going", "--quiet", "--fresh-env", "--jobs", "auto"]
    subprocess.run([sys.executable, "-m", "sphinx", *words, "--doctree-dir", source / ".doctrees", source, site], check=True)
    shutil.copy(site / "README.html", site / "index.html")
    print(f"documents: {site / 'index.html'}")


main()
