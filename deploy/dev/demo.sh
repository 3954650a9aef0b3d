#!/usr/bin/env bash
# The seed's kitchen on Galley: 3 chefs put dishes into a queue of at most 10, 2 eaters take them. A chef whose dish is
# refused because the queue is full waits and offers it again. DISHES (default 30) dishes, then everybody goes home.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/redis.sh
dishes=${DISHES:-30}

cargo build --quiet --workspace --bins
bin=$target/debug
data=$(mktemp -d)
: >"$data/gateway.log"
trap 'stop_all; rm -rf "$data"' EXIT
trap 'exit 0' INT TERM HUP

if [ -z "${GALLEY__REDIS__URL:-}" ]; then
    find_redis_server
    setsid "$REDIS_SERVER" --port 0 --unixsocket "$data/redis.sock" --dir "$data" --save "" >"$data/redis.log" 2>&1 &
    pids+=("$!")
    export GALLEY__REDIS__URL="redis+unix://$data/redis.sock?db=5"
fi
export GALLEY__QUEUES__DEMO__MAX_DEPTH=10 GALLEY__LOG__FORMAT=json
export GALLEY__GATEWAY__LISTEN=127.0.0.1:0 GALLEY__QUEUE_WORKER__LISTEN=127.0.0.1:0
export GALLEY__QUEUE_WORKER__QUEUES=demo GALLEY__QUEUE_WORKER__CONCURRENCY=1 GALLEY__QUEUE_WORKER__DEMO_HANDLERS=true

setsid "$bin/gateway" >"$data/gateway.log" 2>&1 &
pids+=("$!")
for eater in Thread-4 Thread-5; do
    # Only what the eaters say, in the seed's words
    GALLEY__QUEUE_WORKER__NAME=$eater setsid "$bin/queue-worker" \
        > >(sed -un 's/.*"message":"\(吃货[^"]*\)".*/\1/p') 2>&1 &
    pids+=("$!")
done
for _ in $(seq 100); do
    gateway=$(sed -n 's/.*"gateway listens","address":"\([^"]*\)".*/\1/p' "$data/gateway.log")
    [ -z "$gateway" ] || break
    sleep 0.1
done
"$bin/producer-consumer-demo" "http://$gateway" "$dishes"
