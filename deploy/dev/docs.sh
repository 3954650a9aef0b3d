#!/usr/bin/env bash
# Makes a site of the documents: target/docs/index.html. Fails if a link leads nowhere or the index lacks a page.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/redis.sh

if install_python_packages sphinx==9.0.4 myst-parser==5.2.0 furo==2025.12.19 sphinx-copybutton==0.5.2 sphinx-design==0.7.0; then
    "$folder/python/bin/python" deploy/dev/docs.py "$target/docs"
else
    skip "sphinx cannot be installed from PyPI (python3 with venv): the documents are not made a site"
fi
