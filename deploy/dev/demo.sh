#!/usr/bin/env bash
# The original demo on Galley: 3 producers put dishes into a queue of at most 10, 2 consumers take them. A producer
# whose dish is refused because the queue is full waits and offers it again. It ends after DISHES (default 30) dishes.
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
    start "$REDIS_SERVER" --port 0 --unixsocket "$data/redis.sock" --dir "$data" --save "" >"$data/redis.log" 2>&1
    for _ in $(seq 100); do
        [ ! -S "$data/redis.sock" ] || break
        sleep 0.1
    done
    export GALLEY__REDIS__URL="redis+unix://$data/redis.sock?db=5"
fi
export GALLEY__QUEUES__DEMO__MAX_DEPTH=10 GALLEY__LOG__FORMAT=json
export GALLEY__GATEWAY__LISTEN=127.0.0.1:0 GALLEY__QUEUE_WORKER__LISTEN=127.0.0.1:0
export GALLEY__QUEUE_WORKER__QUEUES=demo GALLEY__QUEUE_WORKER__CONCURRENCY=1 GALLEY__QUEUE_WORKER__DEMO_HANDLERS=true

start "$bin/gateway" >"$data/gateway.log" 2>&1
gateway_pid=$last_pid
for consumer in Thread-4 Thread-5; do
    # Only what the consumers say, in the words of the original demo
    export GALLEY__QUEUE_WORKER__NAME=$consumer
    start_logged -n 's/.*"message":"\(吃货[^"]*\)".*/\1/p' "$bin/queue-worker"
done
for _ in $(seq 100); do
    gateway=$(sed -n '/"event":"gateway.listening"/s/.*"address":"\([^"]*\)".*/\1/p' "$data/gateway.log")
    [ -z "$gateway" ] || break
    kill -0 "$gateway_pid" 2>/dev/null || break
    sleep 0.1
done
if [ -z "$gateway" ]; then
    echo "the gateway does not start:" >&2
    cat "$data/gateway.log" >&2
    exit 1
fi
"$bin/producer-consumer-demo" "http://$gateway" "$dishes"
