#!/usr/bin/env bash
# Builds and runs everything on this machine until Ctrl-C: a Redis (yours, if GALLEY__REDIS__URL names one), the
# gateway, a queue-worker and a pubsub-worker, with their logs in one stream.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/redis.sh

build() {
    echo "building (the first time takes some minutes)"
    cargo build --quiet --workspace --bins
}

pids=()
stop() {
    # Another Ctrl-C must not leave half of it running
    trap '' INT TERM
    trap - EXIT
    echo
    echo "stopping"
    # The services first, Redis last: they have things to write
    local index
    for ((index = ${#pids[@]} - 1; index >= 0; index--)); do
        kill "${pids[index]}" 2>/dev/null || true
        wait "${pids[index]}" 2>/dev/null || true
    done
}
trap stop EXIT
trap 'exit 0' INT TERM

# start NAME PROGRAM...: in a session of its own, so that Ctrl-C reaches only this script, which stops all in order
start() {
    local name=$1
    shift
    setsid "$@" > >(sed -u "s/^/$(printf '%-14s' "$name")| /") 2>&1 &
    pids+=("$!")
}

start_redis() {
    find_redis_server
    local data port
    data=$folder/redis
    mkdir -p "$data"
    for port in $(seq 6390 6490); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    start redis "$REDIS_SERVER" --port "$port" --bind 127.0.0.1 --dir "$data" --appendonly yes --save "" --loglevel warning
    export GALLEY__REDIS__URL=redis://127.0.0.1:$port/5
}

# The listening address of a service: its setting, or the default
address() {
    local variable=GALLEY__$1__LISTEN
    echo "${!variable:-127.0.0.1:$2}"
}

wait_ready() { # NAME ADDRESS
    local attempt
    for attempt in $(seq 100); do
        if (exec 3<>"/dev/tcp/${2%:*}/${2##*:}" && printf 'GET /health/ready HTTP/1.0\r\n\r\n' >&3 && grep -q '^HTTP/1.. 200' <&3) 2>/dev/null; then
            return
        fi
        kill -0 "${pids[-1]}" 2>/dev/null || break
        sleep 0.1
    done
    echo "$1 does not get ready at $2: see its log above" >&2
    exit 1
}

build
if [ -n "${GALLEY__REDIS__URL:-}" ]; then
    echo "using the Redis that GALLEY__REDIS__URL names"
else
    start_redis
fi
bin=${CARGO_TARGET_DIR:-target}/debug
export GALLEY__LOG__FORMAT=${GALLEY__LOG__FORMAT:-pretty}
gateway=$(address GATEWAY 8080)
for service in gateway:$gateway queue-worker:$(address QUEUE_WORKER 8081) pubsub-worker:$(address PUBSUB_WORKER 8082); do
    start "${service%%:*}" "$bin/${service%%:*}"
    wait_ready "${service%%:*}" "${service#*:}"
done

cat <<READY

Galley runs:
  page      http://$gateway/
  jobs      http://$gateway/ojs/v1/jobs
  health    http://$gateway/health/ready
  metrics   http://$gateway/metrics
  redis     $GALLEY__REDIS__URL

Ctrl-C stops everything.

READY
wait -n "${pids[@]}" || true
echo "one of the services ended" >&2
exit 1
