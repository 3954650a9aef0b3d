#!/usr/bin/env bash
# Measures Galley on this machine, on a Redis of its own: all scenarios, or the one that is named, with its options:
# deploy/dev/bench.sh storm --jobs 20000
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/redis.sh

find_redis_server
export GALLEY_TEST_REDIS_SERVER=$REDIS_SERVER
# Thousands of clients, each with a connection of its own
ulimit -n "$(ulimit -Hn)" 2>/dev/null || true
echo "building (the first time takes some minutes)"
cargo build --quiet --locked --release --bins --package bench --package gateway --package queue-worker --package pubsub-worker
exec "$target/release/bench" "${@:-all}"
