#!/usr/bin/env bash
# Builds and runs everything on this machine until Ctrl-C: a Redis (yours, if GALLEY__REDIS__URL names one), the
# gateway, a queue-worker and a pubsub-worker, with their logs in one stream.
set -euo pipefail
cd "$(dirname "$0")/../.."
. deploy/dev/redis.sh

trap 'stop_all; echo stopped 2>/dev/null' EXIT
trap 'exit 0' INT TERM HUP

# start NAME PROGRAM...: in a session of its own, so that Ctrl-C reaches only this script, which stops all in order
start() {
    local name=$1
    shift
    setsid "$@" > >(trap '' INT TERM HUP; exec sed -u "s/^/$(printf '%-14s' "$name")| /") 2>&1 &
    pids+=("$!")
}

start_redis() {
    find_redis_server
    local data=$folder/redis port
    mkdir -p "$data"
    # Two servers must never write to one append-only file
    exec 9>"$data/lock"
    if command -v flock >/dev/null && ! flock -n 9; then
        echo "another make run uses $data: stop it, or set GALLEY__REDIS__URL" >&2
        exit 1
    fi
    for port in $(seq 6390 6490); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    start redis "$REDIS_SERVER" --port "$port" --bind 127.0.0.1 --dir "$data" --appendonly yes --save "" --loglevel warning
    export GALLEY__REDIS__URL=redis://127.0.0.1:$port/5
}

# The listening address of a service: its setting, or the default
address() {
    local variable=GALLEY__$1__LISTEN
    local address=${!variable:-127.0.0.1:$2}
    if [[ ! $address =~ ^[0-9.]+:[1-9][0-9]*$ ]]; then
        echo "make run needs an IPv4 address and a fixed port in $variable, got $address" >&2
        exit 1
    fi
    echo "$address"
}

is_ready() { # ADDRESS
    timeout 2 bash -c 'exec 3<>"/dev/tcp/$0/$1" && printf "GET /health/ready HTTP/1.0\r\n\r\n" >&3 && grep -q "^HTTP/1.. 200" <&3' \
        "${1%:*}" "${1##*:}" 2>/dev/null
}

wait_ready() { # NAME ADDRESS
    local attempt
    for attempt in $(seq 100); do
        # Its own process first: somebody else may answer on that port
        kill -0 "${pids[-1]}" 2>/dev/null || break
        if is_ready "$2" && sleep 0.1 && kill -0 "${pids[-1]}" 2>/dev/null; then
            return
        fi
        sleep 0.1
    done
    sleep 0.2
    echo "$1 does not get ready at $2: see its log above" >&2
    exit 1
}

gateway=$(address GATEWAY 8080)
queue_worker=$(address QUEUE_WORKER 8081)
pubsub_worker=$(address PUBSUB_WORKER 8082)
echo "building (the first time takes some minutes)"
cargo build --quiet --workspace --bins
if [ -n "${GALLEY__REDIS__URL:-}" ]; then
    redis="the one that GALLEY__REDIS__URL names"
else
    start_redis
    redis=$GALLEY__REDIS__URL
fi
export GALLEY__LOG__FORMAT=${GALLEY__LOG__FORMAT:-pretty}
export GALLEY__QUEUE_WORKER__DEMO_HANDLERS=${GALLEY__QUEUE_WORKER__DEMO_HANDLERS:-true}
for service in "gateway=$gateway" "queue-worker=$queue_worker" "pubsub-worker=$pubsub_worker"; do
    start "${service%%=*}" "$target/debug/${service%%=*}"
    wait_ready "${service%%=*}" "${service#*=}"
done

cat <<READY

Galley runs:
  page      http://$gateway/
  jobs      http://$gateway/ojs/v1/jobs
  health    http://$gateway/health/ready
  metrics   http://$gateway/metrics
  redis     $redis

Ctrl-C stops everything.

READY
wait -n "${pids[@]}" || true
echo "one of the services ended" >&2
exit 1
