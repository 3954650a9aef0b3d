#!/usr/bin/env bash
# Whether a job takes more than before: instructions below callgrind, commands and bytes of Redis. UPDATE=1 expects what it
# measures from then on (bench/guard.json). The profile is dev, which the tests have built already.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/redis.sh

if ! command -v valgrind >/dev/null; then
    skip "valgrind is not installed (apt-get install valgrind): the work of a job is not compared"
    exit 0
fi
find_redis_server
export GALLEY_TEST_REDIS_SERVER=$REDIS_SERVER
cargo build --quiet --locked --workspace --bins
exec "$target/debug/guard"
