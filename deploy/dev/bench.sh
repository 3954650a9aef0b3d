#!/usr/bin/env bash
# Measures Galley on this machine, on a Redis of its own: every row, or the one that is named, with its options:
# deploy/dev/bench.sh storm --jobs 20000
# It runs what images contain (profile dist). GALLEY_BENCH_PROFILE=release builds faster, and what it measures is slower.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/redis.sh

find_redis_server
export GALLEY_TEST_REDIS_SERVER=$REDIS_SERVER
# Thousands of clients, each with a connection of its own
ulimit -n "$(ulimit -Hn)" 2>/dev/null || true
profile=${GALLEY_BENCH_PROFILE:-dist}
echo "building with the profile $profile (the first time takes some minutes)"
cargo build --quiet --locked --profile "$profile" --bins \
    --package bench --package gateway --package queue-worker --package pubsub-worker --package testkit --package jobs-check
exec "$target/$profile/bench" "${@:-all}"
